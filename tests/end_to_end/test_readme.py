"""The Python of README and docs runs as printed, on smaller numbers."""

import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.simulator]

ROOT = Path(__file__).parents[2]
SMALLER = {"env_steps=2_000_000": "env_steps=5_000", "envs_per_family=10": "envs_per_family=1"}


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_printed_examples_train_and_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (train,), (act, *_) = python_blocks("README.md"), python_blocks("docs/extending.md")
    for printed, smaller in SMALLER.items():
        assert printed in train
        train = train.replace(printed, smaller)
    trained: dict = {}
    exec(compile(train, "README: train", "exec"), trained)
    assert int(trained["model"].env_steps) == 5_000
    assert (tmp_path / "runs/python/metrics.csv").is_file()

    path = "runs/ml10/checkpoints/last.weights.ckpt"
    assert path in act
    acted: dict = {}
    exec(compile(act.replace(path, path.replace("ml10", "python")), "docs/extending.md: act", "exec"), acted)
    assert acted["env"].curr_path_length == 500
    assert acted["observation"].shape == (39,)
    assert isinstance(bool(acted["success"]), bool)
