"""What a setting must be, in words and as a test."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple, get_args

from hmrl.system.errors import UserError


class Rule(NamedTuple):
    """What a value must be, in words and as a test; comparisons are such that nan fails them."""

    right: str
    holds: Callable[[Any], bool]


AT_LEAST_1 = Rule("at least 1", lambda x: 1 <= x < inf)
NOT_NEGATIVE = Rule("0 or more and finite", lambda x: 0 <= x < inf)
POSITIVE = Rule("positive and finite", lambda x: 0 < x < inf)
POSITIVE_OR_NULL = Rule("positive and finite, or null", lambda x: x is None or 0 < x < inf)
FINITE = Rule("finite", lambda x: -inf < x < inf)
FROM_0_TO_1 = Rule("in [0, 1]", lambda x: 0 <= x <= 1)
ABOVE_0_TO_1 = Rule("in (0, 1]", lambda x: 0 < x <= 1)
FROM_0_BELOW_1 = Rule("in [0, 1)", lambda x: 0 <= x < 1)
WIDTHS = Rule("a list of widths of at least 1", lambda x: all(1 <= width < inf for width in x))
THREE_WIDTHS = Rule("3 widths of at least 1", lambda x: len(x) == 3 and WIDTHS.holds(x))
BOUNDS = Rule("a lower and an upper bound", lambda x: len(x) == 2 and -inf < x[0] <= x[1] < inf)


def one_of(allowed: Any) -> Rule:
    """``allowed`` is a ``Literal``."""
    return Rule(f"one of {', '.join(get_args(allowed))}", lambda x: x in get_args(allowed))


def require(config: object, section: str, **rules: Rule) -> None:
    """Refuse the first value of ``config`` that does not follow its rule."""
    for name, rule in rules.items():
        value = getattr(config, name)
        try:
            good = rule.holds(value)
        except TypeError:  # no number, or no list
            good = False
        if not good:
            raise UserError(f"{section}.{name} is {value!r}, but it must be {rule.right}")
