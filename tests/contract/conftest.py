"""Meta-World draws ML10's goals in ten seconds: whoever asks for the same ones gets the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import metaworld
import pytest


@pytest.fixture(scope="session", autouse=True)
def _drawn_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metaworld, "ML10", cache(metaworld.ML10))
        yield
