"""Families in blocks: who trains when, what is evaluated, what a break changes. As a script, one of two."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from hmrl.cli.main import main
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.training.callbacks import Forgetting
from hmrl.training.curriculum import CurriculumConfig, backward_transfer, forgetting
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.types import Rollout
from support.launch import run_script
from support.paths import CONFIGS, TINY
from support.runs import Run, assert_same, fit, learning_state
from support.toy import STEPS, toy_data

# Of 600 steps: one of three iterations (to 780), and one of two (to 1300). Most families are in neither.
BLOCKS = [["push", "reach"], ["door-open"]]
LASTS = 600
GOALS = 4
ENDS = [3 * STEPS, 5 * STEPS]
TRAINED = [("reach", "push")] * 3 + [("door-open",)] * 2


def data(cls: Any = None, **changes: Any) -> Any:
    options = {k: changes.pop(k) for k in ("blocks", "env_steps_per_block", "clear_replay") if k in changes}
    config = CurriculumConfig(**{"blocks": BLOCKS, "env_steps_per_block": LASTS} | options)
    usual = {"curriculum": config, "validation": EvaluationConfig(GOALS, 2)}
    return toy_data(*([cls] if cls else []), **usual | changes)


class Watch(pl.Callback):
    """Families that the replay holds after each iteration; asks to stop after ``stop_at`` of them."""

    def __init__(self, stop_at: int = 1000) -> None:
        self.stop_at = stop_at
        self.replayed: list[Counter[int]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.replayed.append(Counter(batch.replay.sample(1000).family.tolist()))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop |= int(pl_module.iteration) >= self.stop_at


def learn(folder: Path, env_steps: int = 2 * LASTS, stop_at: int = 1000, **options: Any) -> Run:
    """A run that would evaluate every hundred iterations."""
    callbacks = [Forgetting(str(folder)), Watch(stop_at)]
    given = {"data": data(), "check_val_every_n_epoch": 100, "callbacks": callbacks} | options
    return fit(folder, env_steps, **given)


def callback(run: Run, kind: type[Any]) -> Any:
    (found,) = (c for c in run.trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]
    return found


def families(rollout: Rollout) -> Counter[str]:
    return Counter(rollout.families[i] for i in rollout.family.tolist())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return learn(tmp_path_factory.mktemp("straight"))


# --- who trains when -------------------------------------------------------------------------------


def test_blocks_come_in_order_and_share_all_environments_equally(straight: Run) -> None:
    trained = [families(rollout) for rollout in straight.recorder.rollouts]
    assert trained == [Counter({f: 20 // len(block) for f in block}) for block in TRAINED]
    assert straight.recorder.env_steps == [n * STEPS for n in range(1, 6)]
    assert all(rollout.families == straight.data.families for rollout in straight.recorder.rollouts)


def test_environments_are_made_anew_for_a_block_and_the_old_ones_closed(straight: Run) -> None:
    made = [envs for envs in straight.data.made if envs.training]
    assert [set(envs.families) for envs in made] == [{"reach", "push"}, {"door-open"}]
    assert all(envs.closed for envs in made)


def test_episodes_go_on_counting_and_no_two_share_a_goal(straight: Run) -> None:
    seen = [(e.family, e.goal) for e in straight.data.episodes if e.training]
    assert len(seen) == len(set(seen)) == 100
    numbers = [e.number for e in straight.data.episodes if e.training]
    assert numbers == [n for n in range(5) for _ in range(20)]


def test_families_that_were_not_there_are_not_logged(straight: Run) -> None:
    rows = [row for row in straight.rows if "ppo/approx_kl" in row]
    for row, block in zip(rows, TRAINED, strict=True):
        logged = {key.removeprefix("rollout/success/") for key in row if key.startswith("rollout/success/")}
        assert logged == {*block}
        assert float(row["rollout/success_in_block/mean"]) == pytest.approx(
            sum(float(row[f"rollout/success/{family}"]) for family in block) / len(block)
        )
    for row in straight.rows:
        assert "nan" not in row.values()


def test_one_block_of_all_families_is_the_usual_training(tmp_path: Path) -> None:
    everything = list(reversed(toy_data().families))
    blocks = learn(tmp_path / "block", 2 * STEPS, data=data(blocks=[everything]))
    usual = fit(tmp_path / "usual", 2 * STEPS, check_val_every_n_epoch=100)
    assert_same(learning_state(blocks.last), learning_state(usual.last))


def test_the_replay_keeps_earlier_families_unless_it_is_cleared(straight: Run, cleared: Run) -> None:
    reach, push, door = (straight.data.families.index(f) for f in ("reach", "push", "door-open"))
    kept = callback(straight, Watch).replayed
    assert [sum(held.values()) for held in kept] == [20, 40, 40, 40, 40]
    assert kept[3] == Counter({reach: 10, push: 10, door: 20})  # the two rollouts that there is room for
    held = callback(cleared, Watch).replayed
    assert held[:3] == kept[:3]
    assert held[3:] == [Counter({door: 20}), Counter({door: 40})]


# --- evaluation and what it finds ------------------------------------------------------------------


def record(run: Run, evaluation: int) -> dict[str, dict[str, float]]:
    """By split and family, success with sampled actions in the environments' own record."""
    success: dict[str, dict[str, float]] = {}
    for split, count in (("train", 10), ("test", 5)):
        episodes = [e for e in run.data.episodes if not e.training and e.split == split]
        # Of each evaluation: two modes, every goal of a family; sampled actions first.
        sampled = episodes[evaluation * count * 2 * GOALS :][: count * GOALS]
        won = {e.family: [any(x.successes) for x in sampled if x.family == e.family] for e in sampled}
        assert all(len(outcomes) == GOALS for outcomes in won.values())
        success[split] = {family: sum(outcomes) / GOALS for family, outcomes in won.items()}
    return success


def test_every_block_ends_with_an_evaluation_of_all_families(straight: Run) -> None:
    evaluated = [int(row["step"]) for row in straight.rows if "success/train/mean" in row]
    assert evaluated == ENDS
    rows = callback(straight, Forgetting).rows
    assert [row["env_steps"] for row in rows] == ENDS
    assert [row["families"] for row in rows] == [["reach", "push"], ["door-open"]]
    assert [row["success"] for row in rows] == [record(straight, evaluation) for evaluation in (0, 1)]
    assert len(set(rows[0]["success"]["train"].values())) > 2  # there is something to tell apart


def test_the_usual_evaluations_come_as_they_would(tmp_path: Path) -> None:
    run = learn(tmp_path, check_val_every_n_epoch=2)
    evaluated = [int(row["step"]) // STEPS for row in run.rows if "success/train/mean" in row]
    assert evaluated == [2, 3, 4, 5]
    assert [row["env_steps"] for row in callback(run, Forgetting).rows] == ENDS


def scripted(train: list[int]) -> Any:
    toy = data()
    toy.solved = {"train": train, "test": [1] * len(train)}
    return toy


def test_numbers_are_logged_and_written(tmp_path: Path) -> None:
    """The first two families are solved after the first block, one after the second."""
    run = learn(tmp_path, data=scripted([2, 1]))
    logged = {int(row["step"]): row for row in run.rows if "forgetting/mean" in row}
    assert list(logged) == [ENDS[1]]
    assert float(logged[ENDS[1]]["forgetting/mean"]) == 0.5  # of reach and push
    assert float(logged[ENDS[1]]["forgetting/backward_transfer"]) == -0.5
    content = json.loads((tmp_path / "forgetting.json").read_text())
    first, second = content["blocks"]
    assert first["forgetting"] == first["backward_transfer"] == {}
    assert second["forgetting"] == {"reach": 0, "push": 1}
    assert second["backward_transfer"] == {"reach": 0, "push": -1}
    assert second["success"]["train"]["reach"] == 1
    assert sum(second["success"]["train"].values()) == 1
    for row in content["blocks"]:
        assert (len(row["success"]["train"]), len(row["success"]["test"])) == (10, 5)
    for kind, begin in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert (tmp_path / f"forgetting.{kind}").read_bytes().startswith(begin)


def test_the_file_holds_what_the_formulae_say(straight: Run) -> None:
    blocks = json.loads((straight.folder / "forgetting.json").read_text())["blocks"]
    success = [block["success"]["train"] for block in blocks]
    trained = [block["families"] for block in blocks]
    assert blocks[1]["forgetting"] == forgetting(success, trained)
    assert blocks[1]["backward_transfer"] == backward_transfer(success, trained)
    assert set(blocks[1]["forgetting"]) == {"reach", "push"}


def test_a_block_that_goes_on_has_no_row(tmp_path: Path) -> None:
    run = learn(tmp_path, 4 * STEPS)
    assert [int(row["step"]) for row in run.rows if "success/train/mean" in row] == [3 * STEPS, 4 * STEPS]
    assert [row["env_steps"] for row in callback(run, Forgetting).rows] == ENDS[:1]


@pytest.mark.parametrize(
    "options", [{"data": None}, {"limit_val_batches": 0}], ids=["no curriculum", "no evaluation"]
)
def test_otherwise_nothing_is_kept_or_written(options: dict[str, Any], tmp_path: Path) -> None:
    run = learn(tmp_path, **options)
    assert callback(run, Forgetting).rows == []
    assert not list(tmp_path.glob("forgetting*"))
    assert not any(key.startswith("forgetting/") for row in run.rows for key in row)


# --- a break ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cleared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return learn(tmp_path_factory.mktemp("cleared"), data=data(clear_replay=True))


@pytest.mark.slow
@pytest.mark.parametrize("clear_replay", [False, True])
@pytest.mark.parametrize("iterations", [2, 3, 4], ids=["within a block", "at its end", "within the next"])
def test_a_break_changes_nothing(
    iterations: int, clear_replay: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def build() -> Any:
        return data(clear_replay=clear_replay)

    straight = request.getfixturevalue("cleared" if clear_replay else "straight")
    folder = tmp_path / "resumed"
    assert len(learn(folder, stop_at=iterations, data=build()).recorder.rollouts) == iterations
    resumed = learn(folder, data=build(), resume=True, seed=77)
    assert resumed.recorder.env_steps == [n * STEPS for n in range(iterations + 1, 6)]
    assert_same(learning_state(resumed.last), learning_state(straight.last))
    assert resumed.rows == straight.rows
    assert callback(resumed, Forgetting).rows == callback(straight, Forgetting).rows
    assert (folder / "forgetting.json").read_bytes() == (straight.folder / "forgetting.json").read_bytes()


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.parametrize("goals", [None, 3])
def test_a_break_changes_nothing_in_the_real_world(goals: int | None, tmp_path: Path) -> None:
    """ML10 in EnvPool, whose new pools must catch up with the episodes of earlier blocks."""

    def build() -> MetaWorldDataModule:
        small = {"envs_per_family": 1, "horizon": 20, "validation": EvaluationConfig(1, 1)}
        toy: MetaWorldDataModule = data(
            MetaWorldDataModule, env_steps_per_block=400, goals_per_family=goals, **small
        )
        return toy

    straight = learn(tmp_path / "straight", 800, data=build())
    assert [families(rollout) for rollout in straight.recorder.rollouts] == [
        *[Counter({"reach": 5, "push": 5})] * 2,
        *[Counter({"door-open": 10})] * 2,
    ]
    learn(tmp_path / "resumed", 800, stop_at=3, data=build())
    resumed = learn(tmp_path / "resumed", 800, data=build(), resume=True)
    assert_same(learning_state(resumed.last), learning_state(straight.last))
    assert resumed.rows == straight.rows


# --- two processes ---------------------------------------------------------------------------------


def in_two(folder: Path) -> None:
    torch.set_num_threads(1)
    run = learn(folder, data=data(validation=EvaluationConfig(4, 2)), devices=2)
    left = {
        "checksums": run.recorder.checksums,
        "env_steps": run.recorder.env_steps,
        "trained": [dict(families(rollout)) for rollout in run.recorder.rollouts],
        "goals": [(e.family, e.goal) for e in run.data.episodes if e.training],
        "evaluated": [
            (rollout.split, rollout.families[family], won)
            for rollout in run.recorder.evaluated
            if rollout.mode == "sampled"
            for family, won in zip(
                rollout.episode_family.tolist(), rollout.ever_success.tolist(), strict=True
            )
        ],
        "rows": callback(run, Forgetting).rows,
    }
    torch.save(left, folder / f"rank{torch.distributed.get_rank()}.pt")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_agree(tmp_path: Path) -> None:
    run_script("integration/test_curriculum.py", str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first["env_steps"] == second["env_steps"] == [n * STEPS for n in range(1, 6)]
    assert first["trained"] == second["trained"]
    assert first["trained"] == [{family: 10 // len(block) for family in block} for block in TRAINED]
    assert not set(first["goals"]) & set(second["goals"])
    assert first["checksums"] == second["checksums"]
    assert first["rows"] == second["rows"]
    assert [row["env_steps"] for row in first["rows"]] == ENDS
    half = len(first["evaluated"]) // 2
    for n, row in enumerate(first["rows"]):
        episodes = [e for rank in (first, second) for e in rank["evaluated"][n * half :][:half]]
        assert len(episodes) == 15 * 4
        for split, scores in row["success"].items():
            for family, score in scores.items():
                won = [w for s, f, w in episodes if (s, f) == (split, family)]
                assert score == sum(won) / 4


# --- the command line ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("toy_world")
@pytest.mark.parametrize(("overlay", "blocks"), [("one_after_another", 10), ("blocks", 5)])
def test_the_experiments_run_without_macro_actions_too(overlay: str, blocks: int, tmp_path: Path) -> None:
    given = ["--config", f"{CONFIGS}/curricula/{overlay}.yaml", "--model.macro_vae", "null"]
    sizes = ["--data.curriculum.env_steps_per_block", str(STEPS), "--budget.env_steps", str(3 * STEPS)]
    main(["fit", *TINY, *given, *sizes, "--run_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "forgetting.json").read_text())["blocks"]
    assert [row["env_steps"] for row in rows] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert [len(row["families"]) for row in rows] == [10 // blocks] * 3
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["hyper_parameters"]["macro_vae"] is None
    assert last["datamodule_hyper_parameters"]["curriculum"]["env_steps_per_block"] == STEPS


if __name__ == "__main__":
    in_two(Path(sys.argv[1]))
