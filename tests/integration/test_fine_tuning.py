"""Fine-tuning: a run that begins from another run's weights, on other families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hmrl.cli.main import main
from hmrl.results.file import BEGINNING
from hmrl.rollouts.collect import seeded
from hmrl.system.errors import UserError
from hmrl.training.checkpoint import load
from support.paths import TINY
from support.runs import Run, assert_same, fit, fit_iterations, learning_state
from support.toy import HORIZON, tiny_module, toy_data

NEW = {"benchmark": "custom", "train_families": ["hammer", "stick-pull"], "test_families": ["sweep"]}
STEPS = 2 * 2 * HORIZON  # environment steps of an iteration on two families


def other_families() -> Any:
    return toy_data(**NEW)


def fine_tune(folder: Path, origin: Path | None, iterations: int, **networks: Any) -> Run:
    """Begins from ``origin``, or goes on where there is none."""
    data = other_families()
    with seeded(4):  # the critic begins anew
        module = tiny_module(data, **networks)
    if origin:
        module.init_from(origin)
    return fit(folder, iterations * STEPS, data=data, module=module, resume=origin is None)


@pytest.mark.parametrize("frozen", [[], ["task_encoder", "macro_vae"]], ids=str)
def test_a_resumed_fine_tuned_run_is_the_straight_one(frozen: list[str], tmp_path: Path) -> None:
    source = fit_iterations(tmp_path / "source", 2)
    weights = tmp_path / "source" / "checkpoints" / "last.weights.ckpt"
    straight = fine_tune(tmp_path / "straight", weights, 4, frozen=frozen)
    fine_tune(tmp_path / "resumed", weights, 2, frozen=frozen)
    resumed = fine_tune(tmp_path / "resumed", None, 4, frozen=frozen)
    assert resumed.recorder.env_steps == [3 * STEPS, 4 * STEPS]
    assert_same(learning_state(resumed.last), learning_state(straight.last))
    assert resumed.rows == straight.rows
    began = straight.last["init_from"]
    assert (began["path"], began["families"]) == (str(weights), list(source.data.families))
    assert resumed.last["init_from"] == began
    beginning = json.loads((tmp_path / "resumed" / BEGINNING).read_text())
    assert beginning == {"env_steps": 0, "init_from": began}
    assert json.loads((tmp_path / "source" / BEGINNING).read_text())["init_from"] is None
    assert resumed.last["hyper_parameters"]["frozen"] == frozen
    there, here = source.last["state_dict"], resumed.last["state_dict"]
    kept = [f"policy.{level}." for level in frozen]
    kept += ["policy.observation_moments."] if frozen else []
    for name, value in here.items():
        if name.startswith(tuple(kept)):
            assert torch.equal(value, there[name]), name
    assert len(resumed.last["optimizer_states"]) == 4 - len(frozen)
    assert int(here["policy.observation_moments.count"]) > 0


def test_the_first_rollout_is_that_of_the_agent_that_was_taken_over(tmp_path: Path) -> None:
    """And of it alone: optimizers, replay, reward scale and counts are those of a run that begins."""
    fit_iterations(tmp_path / "source", 2)
    full = tmp_path / "source" / "checkpoints" / "last.ckpt"
    run = fine_tune(tmp_path / "run", full, 1)
    agent = tiny_module(other_families())
    agent.init_from(full)
    rollout = run.recorder.rollouts[0]
    belief, z = agent.policy.renewed(rollout.observation, rollout.action, rollout.reward)
    torch.testing.assert_close(belief, rollout.task_belief)
    torch.testing.assert_close(z, rollout.macro_action)
    assert run.recorder.env_steps == [STEPS]
    assert run.data.replay.size == 4
    assert {float(o["state"][0]["step"]) for o in run.last["optimizer_states"]} == {2.0, 6.0}
    assert run.last["state_dict"]["reward_scaler.moments.count"].shape == (2,)


def test_a_told_critic_begins_anew_on_other_families(tmp_path: Path) -> None:
    origin = fit_iterations(tmp_path / "source", 1).folder / "checkpoints" / "last.ckpt"
    module = tiny_module(other_families())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.init_from(origin)
    taken_over = load(origin)["state_dict"]
    for name, value in module.state_dict().items():
        if name.startswith("policy."):
            anew = name.startswith("policy.critic.")
            assert torch.equal(value, (before if anew else taken_over)[name]), name
    run = fine_tune(tmp_path / "run", origin, 1)
    assert run.recorder.env_steps == [STEPS]


# --- the command line ----------------------------------------------------------------------------


def options(folder: Path, *more: str) -> list[str]:
    given = [part for key, value in NEW.items() for part in (f"--data.{key}", json.dumps(value).strip('"'))]
    given += ["--last_checkpoint.every_n_iterations", "1", "--trainer.check_val_every_n_epoch", "9"]
    return [*TINY, *given, "--run_dir", str(folder), *more]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_goals_are_hidden_from_an_agent_that_was_not_shown_them(tmp_path: Path) -> None:
    """In Python, where nothing is checked before training."""
    fit_iterations(tmp_path / "source", 1)
    data = toy_data(**NEW, goals_shown=True)
    module = tiny_module(data)
    module.init_from(tmp_path / "source" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"was trained with data\.goals_shown False, and here it is True"):
        fit(tmp_path / "tuned", STEPS, data=data, module=module)


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
def test_the_same_command_goes_on_and_another_origin_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_iterations(tmp_path / "source", 1)
    origin, run = tmp_path / "source" / "checkpoints" / "last.ckpt", tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"

    def command(iterations: int, *more: str) -> None:
        budget = ["--budget.env_steps", str(iterations * STEPS), "--ckpt_path", "last"]
        main(["fit", *options(run, *budget, "--model.frozen", "[macro_vae]", *more)])

    def refused(*more: str) -> str:
        before = contents(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["fit", *options(*more)])  # type: ignore[arg-type]
        assert exit_.value.code == 2
        assert contents(tmp_path) == before
        return capsys.readouterr().err

    assert "nothing has learnt their weights" in refused(run, "--model.frozen", "[macro_vae]")
    command(1, "--init_from", str(origin))
    began = load(last)["init_from"]
    same = tmp_path / "same.ckpt"
    shutil.copy(origin, same)
    command(2, "--init_from", str(same))
    fit_iterations(tmp_path / "further", 2)
    shutil.copy(tmp_path / "further" / "checkpoints" / "last.ckpt", tmp_path / "other.ckpt")
    shutil.rmtree(tmp_path / "source")  # what goes on does not need it
    command(3)
    assert int(load(last)["state_dict"]["iteration"]) == 3
    assert load(last)["init_from"] == began
    assert yaml.safe_load((run / "config.yaml").read_text())["init_from"] == str(origin)

    on = [run, "--ckpt_path", "last", "--model.frozen", "[macro_vae]"]
    other = refused(*on, "--init_from", str(tmp_path / "other.ckpt"))
    assert f"other.ckpt, but the run that goes on began from {origin}: leave init_from out" in other
    assert "model.frozen is ['macro_vae'] there and [] here" in refused(*on[:3])
    assert f"which the run in {run} has written" in refused(
        run, "--overwrite", "true", "--init_from", str(last)
    )
    wide = ["--model.task_encoder.hidden", "9", "--init_from", str(last)]
    assert (
        f"init_from is {last}: the checkpoint is of another network: model.task_encoder.hidden is 8 there"
        in (refused(tmp_path / "new", *wide))
    )
    shown = load(last)
    shown["datamodule_hyper_parameters"]["goals_shown"] = True
    torch.save(shown, tmp_path / "shown.ckpt")
    assert "was trained with data.goals_shown True, and here it is False" in refused(
        tmp_path / "new", "--init_from", str(tmp_path / "shown.ckpt")
    )
    assert "init_from must be a .ckpt file" in refused(tmp_path / "new", "--init_from", str(origin))

    main(["test", *options(run, "--ckpt_path", "last")])
    results = json.loads((run / "test-first_episode.json").read_text())
    assert results["init_from"] == began
    assert "test families: sweep trained on before fine-tuning" in capsys.readouterr().out
    assert results["differs_from_training"]["test families"] == "sweep trained on before fine-tuning"
