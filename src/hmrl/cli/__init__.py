"""The command ``hmrl``."""
