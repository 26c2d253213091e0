"""Every unit test starts from the same random stream; and what several of them need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.reported import write_methods


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Three methods of three seeds, an expert and a random agent."""
    return write_methods(tmp_path / "runs")
