"""Two processes on the CPU train one agent: equal weights, different experience, nothing counted twice."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from hmrl.himeta.formulas import signed_log
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.types import TRAJECTORY_TENSORS
from support.launch import run_script, still_running
from support.runs import Run, assert_same, fit, fit_iterations, read_rows
from support.toy import STEPS, toy_data
from support.two_processes import States

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torch.set_num_threads(1)
    fit_iterations(folder / "one", 3, limit_val_batches=0)
    shutil.copytree(folder / "one", folder / "from one")  # for two to continue
    said = run_script("support/two_processes.py", str(folder)).out
    (folder / "said").write_text(said)
    assert not still_running(folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Ranks:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_the_automatic_strategy_expects_one_level_at_a_time(ranks: Ranks) -> None:
    for rank in ranks:
        name, options = rank["straight"]["strategy"]
        assert name == "DDPStrategy"
        assert options["find_unused_parameters"] is True


@pytest.mark.parametrize(
    ("run", "iterations"), [("straight", 2), ("noisy", 3), ("from one", 1), ("frozen", 2)]
)
def test_weights_buffers_and_optimizers_are_equal_after_every_iteration(
    run: str, iterations: int, ranks: Ranks
) -> None:
    first, second = (rank[run] for rank in ranks)
    assert len(first["left"]) == len(second["left"]) == iterations
    for a, b in zip(first["left"], second["left"], strict=True):
        assert_same(a["state"], b["state"])
        assert_same(a["optimizers"], b["optimizers"])
        assert all(
            state["state"] for state in a["optimizers"]
        )  # Adam's moments: there is something to compare
    assert_same(first["state"], second["state"])  # in the end
    assert_same(first["optimizers"], second["optimizers"])
    assert first["checksums"] == second["checksums"]
    assert len(set(first["checksums"])) == iterations  # each changed something


def test_frozen_levels_keep_their_bits(folder: Path, ranks: Ranks) -> None:
    weights = torch.load(folder / "one" / "checkpoints" / "last.weights.ckpt", weights_only=True)[
        "state_dict"
    ]
    for rank in ranks:
        state = rank["frozen"]["state"]
        for name in state:
            if name.startswith(("policy.task_encoder.", "policy.macro_vae.", "policy.observation_moments.")):
                assert torch.equal(state[name], weights[name]), name
        assert not torch.equal(state["policy.actor.net.0.weight"], weights["policy.actor.net.0.weight"])
        assert len(rank["frozen"]["optimizers"]) == 2


def test_processes_share_a_gradient_steps_episodes_out(ranks: Ranks) -> None:
    """``trajectories`` is 6: over all processes. Two levels, two updates each, two iterations."""
    for rank in ranks:
        assert rank["straight"]["sampled"] == [3] * 8


def test_environment_steps_count_both_processes(ranks: Ranks, folder: Path) -> None:
    for rank in ranks:
        assert rank["straight"]["env_steps"] == [STEPS, 2 * STEPS]
    rows = read_rows(folder / "straight")
    assert [int(row["step"]) for row in rows] == [STEPS, STEPS, 2 * STEPS, 2 * STEPS]


def test_experience_differs(ranks: Ranks) -> None:
    first, second = (rank["straight"] for rank in ranks)
    for a, b in zip(first["actions"], second["actions"], strict=True):
        assert a.shape == b.shape == (7, 10, 4)
        assert not torch.equal(a, b)
    # Of equal deviations, equal noise would have equal log-probabilities, whatever the states.
    assert not torch.isclose(first["log_probs"][0], second["log_probs"][0]).any()
    goals = [{(f, g) for training, _, f, g, _ in rank["goals"] if training} for rank in (first, second)]
    assert len(goals[0]) == len(goals[1]) == 20
    assert not goals[0] & goals[1]


def test_the_normaliser_has_seen_the_rollouts_of_both(ranks: Ranks) -> None:
    moments = [m for rank in ranks for m in rank["straight"]["moments"]]
    observation = torch.cat([o.flatten(0, 1) for o, _ in moments]).double()
    reward = signed_log(torch.cat([r.flatten() for _, r in moments])).double()  # as contexts hold it
    state = ranks[0]["straight"]["state"]
    for name, seen in (("observation", observation), ("reward", reward.unsqueeze(1))):
        assert int(state[f"policy.{name}_moments.count"]) == len(seen)
        torch.testing.assert_close(state[f"policy.{name}_moments.mean"][0], seen.mean(0))
        torch.testing.assert_close(state[f"policy.{name}_moments.var"][0], seen.var(0, unbiased=False))


def test_evaluation_counts_every_goal_of_both_processes_once(ranks: Ranks) -> None:
    first, second = (rank["straight"] for rank in ranks)
    assert_same(first["scores"], second["scores"])
    for split, families in (("train", 10), ("test", 5)):
        episodes = [
            [e for e in rank["goals"] if not e[0] and e[1] == split][-families * 4 :]  # the last evaluation
            for rank in (first, second)
        ]
        # Of each process: two modes, two rounds, one environment a family.
        sampled = [e for own in episodes for e in own[: families * 2]]
        goals = Counter((family, goal) for _, _, family, goal, _ in sampled)
        assert len(goals) == families * 4
        assert set(goals.values()) == {1}
        scores = first["scores"][split]["sampled"]
        for family in {e[2] for e in sampled}:
            won = [e[4] for e in sampled if e[2] == family]
            assert scores[family]["episodes"] == len(won) == 4
            assert scores[family]["success"] == pytest.approx(sum(won) / 4)
        assert scores["mean"]["episodes"] == families * 4


def test_a_resumed_run_is_the_straight_one_on_both(ranks: Ranks, folder: Path) -> None:
    """Each process takes its own replay from the checkpoint that the first one wrote."""
    for rank in ranks:
        for key in ("state", "optimizers", "replay"):
            assert_same(rank["resumed"][key], rank["straight"][key], key)
    assert not torch.equal(ranks[0]["straight"]["replay"]["action"], ranks[1]["straight"]["replay"]["action"])
    assert read_rows(folder / "resumed") == read_rows(folder / "straight")


# --- another number of processes -------------------------------------------------------------------


def episodes(*replays: dict[str, Any]) -> list[bytes]:
    """Every episode of some replays, as a sorted list of all its bytes."""
    names = TRAJECTORY_TENSORS
    return sorted(
        b"".join(replay[name][slot].numpy().tobytes() for name in names)
        for replay in replays
        for slot in range(replay["size"])
    )


def newest(replay: dict[str, Any], count: int) -> dict[str, Any]:
    """The last ``count`` episodes of one."""
    kept = TrajectoryReplay(count)
    kept.load_state_dict(replay)
    return kept.state_dict()


def assert_loaded(loaded: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    """Everything but the replay is the checkpoint's, bit by bit."""
    assert_same(loaded["state"], dict(checkpoint["state_dict"]))
    assert_same(loaded["optimizers"], checkpoint["optimizer_states"])
    assert len(loaded["optimizers"]) == 4
    assert {"env_steps", "iteration", "policy.observation_moments.mean"} <= loaded["state"].keys()


@pytest.fixture(scope="module")
def by_one(folder: Path) -> tuple[Run, dict[str, Any]]:
    """What two processes have trained, continued by one for an iteration."""
    shutil.copytree(folder / "straight", folder / "from two")
    states = States()
    run = fit(
        folder / "from two",
        3 * STEPS,
        resume=True,
        callbacks=[states],
        limit_val_batches=0,
        data=toy_data(),
    )
    return run, states.loaded


def test_one_process_continues_two(by_one: tuple[Run, dict[str, Any]], ranks: Ranks, folder: Path) -> None:
    run, loaded = by_one
    checkpoint = torch.load(folder / "straight" / "checkpoints" / "last.ckpt", weights_only=True)
    assert_loaded(loaded, checkpoint)
    replays = [rank["straight"]["replay"] for rank in ranks]
    assert [replay["size"] for replay in replays] == [20, 20]
    assert episodes(loaded["replay"]) == episodes(*replays)
    assert len(set(episodes(loaded["replay"]))) == 40
    assert run.recorder.env_steps == [3 * STEPS]
    # The oldest rollout of both is forgotten: 50 episodes have room for two of 20.
    assert run.data.replay.size == 40
    kept = [newest(replay, 10) for replay in replays]
    assert set(episodes(*kept)) < set(episodes(run.data.replay.state_dict()))


def test_two_processes_continue_one(ranks: Ranks, folder: Path) -> None:
    """Whose replay had overflowed: its oldest episode is in the middle."""
    checkpoint = torch.load(folder / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    (replay,) = checkpoint["ToyDataModule"]["replays"]
    assert replay["rollout"].tolist() == [2] * 20 + [1] * 20 + [-1] * 10
    for rank in ranks:
        assert_loaded(rank["from one"]["loaded"], checkpoint)
        assert rank["from one"]["env_steps"] == [4 * STEPS]
    shares = [rank["from one"]["loaded"]["replay"] for rank in ranks]
    for share in shares:
        assert share["family"].bincount().tolist() == [2] * 10
    assert episodes(*shares) == episodes(replay)
    assert len(set(episodes(replay))) == 40
    # Each has collected ten since and has room for twenty: the older twenty are forgotten, ten of each.
    left = [rank["from one"]["replay"] for rank in ranks]
    assert [share["size"] for share in left] == [20, 20]
    assert set(episodes(newest(replay, 20))) < set(episodes(*left))


def test_it_is_said_once_that_such_a_run_is_not_bit_equal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (folder / "said").read_text()
    words = "the checkpoint was written by 1 process(es) and is continued by 2"
    assert said.count(words) == said.count("not be bit-equal") == 1  # not in the run of two continued by two
    state = {"replays": [TrajectoryReplay(3).state_dict() for _ in range(2)]}
    toy_data().load_state_dict(state)
    assert "written by 2 process(es) and is continued by 1" in capsys.readouterr().out


def test_a_smaller_replay_keeps_the_newest_rollouts_of_all_processes(ranks: Ranks) -> None:
    replays = [rank["straight"]["replay"] for rank in ranks]
    data = toy_data(replay_trajectories=22)
    data.load_state_dict({"replays": replays})
    assert episodes(data.replay.state_dict()) == episodes(*(newest(replay, 10) for replay in replays))
