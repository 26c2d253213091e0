"""What the user can mend, and who says it."""

from __future__ import annotations


class UserError(Exception):
    """What the user can mend; the command line prints it as one sentence."""


class SharedError(UserError):
    """The same on every rank: the first one speaks for all."""
