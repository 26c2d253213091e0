"""Results that were quoted are not replaced by others without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import hmrl.cli.main
from hmrl.cli.main import main
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.training.callbacks.success_rate import describe_protocol
from hmrl.training.datamodule import MetaWorldDataModule
from support.paths import CONFIGS, TINY
from support.toy import ToyDataModule

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("toy_world")]
SHORT = ["--budget.env_steps", "260", "--trainer.check_val_every_n_epoch", "100"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, of which each test has a copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as context:
        context.setattr(hmrl.cli.main, "MetaWorldDataModule", ToyDataModule)
        main(["fit", *TINY, *SHORT, "--run_dir", str(folder)])
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """``run(*options)`` tests a short run's last weights; returns the results, or what a refusal says."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)

    def test(*options: str, weights: str = "last", by_name: str = "") -> Any:
        capsys.readouterr()
        path = by_name or str(tmp_path / "checkpoints" / f"{weights}.weights.ckpt")
        given = [] if weights == "none" else ["--ckpt_path", path]
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
        (["--config", str(CONFIGS / "protocols/permuted.yaml")], "last", "modes"),
        (["--data.test.agent", "random"], "none", "agent and weights"),
        (["--seed_everything", "7"], "last", "evaluation_seed"),
    ],
)
def test_other_results_are_refused_before_anything_is_evaluated(
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


@pytest.mark.parametrize(
    "option",
    ["--trainer.limit_test_batches=1", "--trainer.limit_test_batches=0.5", "--trainer.fast_dev_run=true"],
)
def test_a_partial_evaluation_is_rejected(run: Any, tmp_path: Path, option: str) -> None:
    said = run(option)
    assert "an evaluation must be whole" in said
    assert not (tmp_path / "test-first_episode.json").exists()


def test_an_agent_is_not_tested_as_if_it_had_learnt_otherwise(run: Any) -> None:
    said = run("--data.goals_per_family", "4")
    assert "trained in another world: data.goals_per_family is None there and 4 here" in said


@pytest.mark.parametrize("command", ["test", "validate"])
def test_an_agent_is_not_evaluated_in_other_episodes_than_it_was_trained_in(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    weights = str(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit) as end:
        main([command, *TINY, "--run_dir", str(tmp_path), "--ckpt_path", weights, "--data.horizon", "12"])
    assert end.value.code == 2
    assert "trained in another world: data.horizon is 13 there and 12 here" in capsys.readouterr().err
    assert not (tmp_path / "test-first_episode.json").exists()


def test_another_way_of_acting_is_said_beside_the_numbers(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run("--data.modes.sampled.task_belief", "sample")
    words = {"sampled": "task belief sample (training: probabilities)"}
    words |= {"mean_action": "action mean (training: sample)"}
    assert results["differs_from_training"] == words
    said = capsys.readouterr().out
    for mode, in_words in words.items():
        assert f"differs from training: {mode}: {in_words}" in said


def test_train_families_that_were_not_trained_on_are_said(run: Any) -> None:
    usual = run()
    other = ("--data.train_families", "[reach,hammer]", "--data.test_families", "[sweep]")
    results = run("--data.benchmark", "custom", *other, "--overwrite", "true")
    assert results["differs_from_training"]["train families"] == "hammer not trained on"
    assert results["weights"] == usual["weights"]  # of one checkpoint


def test_copies_of_one_episode_have_no_interval(run: Any, tmp_path: Path, capsys: Any) -> None:
    """One goal a family and nothing drawn: however many episodes there are, they are one."""
    weights = str(tmp_path / "checkpoints" / "last.weights.ckpt")
    paper = ("--data.test.protocol", "paper", "--ckpt_path", weights)
    main(["test", *TINY, "--run_dir", str(tmp_path), *paper])
    results = json.loads((tmp_path / "test-paper.json").read_text())
    for split, families in (("train", 10), ("test", 5)):
        modes = results["scores"][split]
        for family, score in modes["mean_action"].items():
            assert (score["low"], score["high"]) == (None, None)
            assert score["episodes"] == (families if family == "mean" else 1)
            assert score["success"] in (0, 1) or family == "mean"
        assert all(score["low"] is not None for score in modes["sampled"].values())
        assert {len(e["return"]) for e in results["episodes"][split]["mean_action"].values()} == {4}
    assert "no interval: one goal a family and nothing drawn" in capsys.readouterr().out


def test_results_alone_are_not_lost_to_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an agent to compare with, tested in the directory where training is to begin."""
    main(["test", *TINY, "--data.test.agent", "random", "--run_dir", str(tmp_path)])
    path = tmp_path / "test-first_episode.json"
    before = path.read_bytes()
    for options in ((), ("--ckpt_path", "last")):
        with pytest.raises(SystemExit):
            main(["fit", *TINY, *SHORT, "--run_dir", str(tmp_path), *options])
        assert f"{tmp_path} already holds results, which would be lost: choose" in capsys.readouterr().err
    assert path.read_bytes() == before
    main(["fit", *TINY, *SHORT, "--run_dir", str(tmp_path), "--overwrite", "true"])
    assert not path.exists()


def test_weights_alone_are_not_lost_to_a_new_run(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(SystemExit):
        main(["fit", *TINY, *SHORT, "--run_dir", str(tmp_path), "--ckpt_path", "last"])
    assert f"{tmp_path} already holds a run, which would be lost: choose" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "last.weights.ckpt").is_file()


def test_a_checkpoint_is_found_by_name_or_its_lack_is_said(run: Any, tmp_path: Path) -> None:
    last = run(by_name="last")
    assert last["checkpoint"] == str(tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "checkpoints" / "best.ckpt").unlink(missing_ok=True)
    said = run(by_name="best")
    assert "ckpt_path is best, but the run in" in said
    assert "last.ckpt" in said


def test_goals_of_training_are_named() -> None:
    """Fixed goals are the same in training and test, fresh ones are not."""
    for fixed, backend, protocol, said in (
        (None, "envpool", "first_episode", False),
        (4, "envpool", "first_episode", True),
        (1, "envpool", "paper", True),
        (1, "envpool", "first_episode", False),
        (50, "metaworld", "first_episode", True),
        (1, "metaworld", "first_episode", True),
        (50, "metaworld", "meta_world", True),
        (None, "metaworld", "meta_world", False),
    ):
        test = EvaluationConfig(4, 2, None, protocol)  # type: ignore[arg-type]
        data = MetaWorldDataModule(backend=backend, goals_per_family=fixed, test=test)  # type: ignore[arg-type]
        assert describe_protocol(data).get("training_goals", False) is said, (fixed, backend, protocol)
        assert "training_goals" not in describe_protocol(data, training_seed=7)  # whose goals are others


def test_another_simulator_has_other_goals() -> None:
    """So training's are not tested on there, and their number does not matter."""
    for training, tested in (("envpool", "metaworld"), ("metaworld", "envpool")):
        test = EvaluationConfig(20, 2, tested)  # type: ignore[arg-type]
        data = MetaWorldDataModule(backend=training, goals_per_family=4, test=test)  # type: ignore[arg-type]
        described = describe_protocol(data)
        assert "training_goals" not in described
        assert described["goals_per_family"] == 20
        goals = data.test.goals_of("test", 1, data.backend, 4, training=0, stream=3)
        assert (goals.per_family, goals.stream) == (20, 3)
    same = EvaluationConfig(20, 2, "metaworld_async")
    described = describe_protocol(MetaWorldDataModule(backend="metaworld", goals_per_family=4, test=same))
    assert described["training_goals"]
    assert described["goals_per_family"] == 4


def test_agents_to_compare_with_need_the_age_of_the_world(run: Any, tmp_path: Path) -> None:
    worn = ["--data.perturbation.action_gain", "{kind: linear, size: -0.5, over_episodes: 40}"]
    random = [*worn, "--data.test.agent", "random"]
    said = run(*random, weights="none")
    assert "the world changes" not in said
    assert "to compare with agent random hmrl test needs --ckpt_path" in said
    assert "trained in another world: data.perturbation is" in run(*random)
    main(["fit", *TINY, *SHORT, *worn, "--run_dir", str(tmp_path / "worn")])
    found = run(*random, by_name=str(tmp_path / "worn/checkpoints/last.ckpt"))
    assert not isinstance(found, str), found
    assert found["protocol"]["age"] == 1
