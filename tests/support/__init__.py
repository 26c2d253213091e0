"""What several tests share. Imported as ``support.NAME``: pytest has ``tests`` on its path."""
