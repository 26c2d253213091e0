"""Protocols, and who is evaluated by them."""
