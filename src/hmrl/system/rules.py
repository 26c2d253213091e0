"""What a setting must be, said with its type: ``lr: Positive``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from math import inf
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from hmrl.system.errors import UserError

C = TypeVar("C")


class Rule(NamedTuple):
    """What a value must be, in words and as a test; comparisons are such that nan fails them."""

    right: str
    holds: Callable[[Any], bool]


_WIDTHS = Rule("a list of widths of at least 1", lambda x: all(1 <= width < inf for width in x))
_POSITIVE = Rule("positive and finite", lambda x: 0 < x < inf)
_NOT_NEGATIVE = Rule("0 or more and finite", lambda x: 0 <= x < inf)

Count = Annotated[int, Rule("at least 1", lambda x: 1 <= x < inf)]
CountOr0 = Annotated[int, _NOT_NEGATIVE]
Positive = Annotated[float, _POSITIVE]
PositiveOrNull = Annotated[
    float | None, Rule("positive and finite, or null", lambda x: x is None or 0 < x < inf)
]
AtLeast2OrNull = Annotated[int | None, Rule("at least 2, or null", lambda x: x is None or 2 <= x < inf)]
NotNegative = Annotated[float, _NOT_NEGATIVE]
Finite = Annotated[float, Rule("finite", lambda x: -inf < x < inf)]
From0To1 = Annotated[float, Rule("in [0, 1]", lambda x: 0 <= x <= 1)]
Above0To1 = Annotated[float, Rule("in (0, 1]", lambda x: 0 < x <= 1)]
From0Below1 = Annotated[float, Rule("in [0, 1)", lambda x: 0 <= x < 1)]
Widths = Annotated[tuple[int, ...], _WIDTHS]
ThreeWidths = Annotated[
    tuple[int, int, int], Rule("3 widths of at least 1", lambda x: len(x) == 3 and _WIDTHS.holds(x))
]
Bounds = Annotated[
    tuple[float, float],
    Rule("a lower and an upper bound", lambda x: len(x) == 2 and -inf < x[0] <= x[1] < inf),
]


def check(settings: Any, key: str) -> None:
    """Refuse what the types of a dataclass do not allow, and those of the dataclasses within it.

    Args:
        key: where the settings are in a configuration, as "data.perturbation".

    Raises:
        UserError: naming the key of the first value that is wrong.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            check(value, f"{key}.{name}")
        if get_origin(hint) is Annotated:
            rule = hint.__metadata__[0]
        elif get_origin(hint) is Literal:
            rule = Rule(f"one of {', '.join(get_args(hint))}", get_args(hint).__contains__)
        else:
            continue
        try:
            good = rule.holds(value)
        except TypeError:  # no number, or no list
            good = False
        if not good:
            raise UserError(f"{key}.{name} is {value!r}, but it must be {rule.right}")


@dataclass  # as those that inherit from it: jsonargparse takes others for classes to choose from
class Checked:
    """Settings that are checked when they are built."""

    # Where the settings are in a configuration. It has no type: jsonargparse would look for ClassVar in the
    # module of the dataclass, and give up on all of its types.
    KEY = ""

    def __post_init__(self) -> None:
        check(self, self.KEY)


def as_config(cls: type[C], value: C | Mapping[str, Any]) -> C:
    """``value`` itself, or built from the plain mapping that a checkpoint holds."""
    return cls(**value) if isinstance(value, Mapping) else value
