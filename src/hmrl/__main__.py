"""``python -m hmrl``."""

from hmrl.cli import main

main()
