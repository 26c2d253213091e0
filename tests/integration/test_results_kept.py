"""Results that were quoted are not replaced by others without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hmrl.cli import main
from integration.conftest import CONFIGS, TINY

pytestmark = pytest.mark.usefixtures("toy_world")
SHORT = ["--budget.env_steps", "260", "--trainer.check_val_every_n_epoch", "100"]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """``run(*options)`` tests a short run's last weights; returns the results, or what a refusal says."""
    main(["fit", *TINY, *SHORT, "--run_dir", str(tmp_path)])

    def test(*options: str, weights: str = "last") -> Any:
        capsys.readouterr()
        path = tmp_path / "checkpoints" / f"{weights}.weights.ckpt"
        given = [] if weights == "none" else ["--ckpt_path", str(path)]
        ended = 0
        try:
            main(["test", *TINY, *options, "--run_dir", str(tmp_path), *given])
        except SystemExit as end:
            ended = end.code  # type: ignore[assignment]
        if ended == 2:
            return capsys.readouterr().err
        return json.loads((tmp_path / "test-first_episode.json").read_text())

    return test


def test_the_same_evaluation_may_be_repeated(run: Any) -> None:
    first, again = run(), run()
    assert first["episodes"] == again["episodes"]
    assert first["training_git"] == first["git"]


@pytest.mark.parametrize(
    ("options", "weights", "differs"),
    [
        (["--data.test.perturbation.noise_std", "0.5"], "last", "protocol"),
        (["--config", str(CONFIGS / "experiments/permuted.yaml")], "last", "modes"),
        (["--data.test.agent", "random"], "none", "agent and checkpoint"),
    ],
)
def test_others_are_refused_before_they_are_made(
    run: Any, tmp_path: Path, options: list[str], weights: str, differs: str
) -> None:
    run()
    path = tmp_path / "test-first_episode.json"
    before = path.read_bytes()
    said = run(*options, weights=weights)
    assert f"{path} holds other results, which would be lost (its {differs} differs)" in said
    assert "--overwrite true" in said
    assert path.read_bytes() == before
    replaced = run(*options, "--overwrite", "true", weights=weights)
    assert replaced != json.loads(before)


def test_another_protocol_has_a_file_of_its_own(run: Any, tmp_path: Path) -> None:
    before = run()
    assert run("--data.test.protocol", "paper") == before
    assert (tmp_path / "test-paper.json").is_file()


def test_agents_to_compare_with_need_the_age_of_the_world(run: Any) -> None:
    worn = ["--config", str(CONFIGS / "experiments/gain_wear.yaml"), "--data.test.agent", "random"]
    said = run(*worn, weights="none")
    assert "the world changes" not in said
    assert "to compare with agent random hmrl test needs --ckpt_path" in said
    found = run(*worn)
    assert not isinstance(found, str), found
    assert found["protocol"]["age"] == 1
