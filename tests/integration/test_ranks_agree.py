"""From the same episodes, two processes learn what one does: by equality, for every level and statistic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.launch import run_script, still_running
from support.ranks_agree import (
    APART,
    ENVS,
    EPOCHS,
    ITERATIONS,
    KL_ALONE,
    KL_BOTH,
    RUNS,
    UPDATES,
    learn,
)
from support.runs import assert_same

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

Result = dict[str, Any]
LEVELS = ("task_encoder", "macro_vae", "actor", "critic")
CATEGORICALS = ("information", "marginal", "conditional")

each_iteration = pytest.mark.parametrize("iteration", range(ITERATIONS))
each_categorical = pytest.mark.parametrize("categorical", CATEGORICALS)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_script("support/ranks_agree.py", str(folder))
    assert not still_running(folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The same in this process alone."""
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    return {name: learn(folder / name, 1, **RUNS[name]) for name in CATEGORICALS}


def own(values: Tensor, rank: int) -> Tensor:
    """The columns of one of two processes."""
    slot = torch.arange(values.shape[1]) % ENVS
    return values[:, slot // (ENVS // 2) == rank]


def assert_close(left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-6 * max(1.0, scale))


@each_iteration
def test_both_processes_together_have_the_episodes_of_the_one(
    iteration: int, ranks: list[dict[str, Result]], alone: dict[str, Result]
) -> None:
    whole = alone["information"]["rewards"][iteration]
    parts = [rank["information"]["rewards"][iteration] for rank in ranks]
    for rank, part in enumerate(parts):
        assert torch.equal(part, own(whole, rank))
    assert not torch.isclose(*(part.mean() for part in parts), rtol=1e-3)


@each_categorical
@each_iteration
@pytest.mark.parametrize("level", LEVELS)
def test_first_gradients_are_those_of_one_process(
    categorical: str, iteration: int, level: str, ranks: list[dict[str, Result]], alone: dict[str, Result]
) -> None:
    expected = alone[categorical]["gradients"][iteration][level]
    scale = max(float(gradient.abs().max()) for gradient in expected)
    assert scale > 1e-3
    found = [rank[categorical]["gradients"][iteration][level] for rank in ranks]
    assert_same(*found)  # what DDP has averaged
    for gradient, right in zip(found[0], expected, strict=True):
        assert_close(gradient, right, scale)


@each_iteration
def test_advantages_are_standardised_over_all_processes(
    iteration: int, ranks: list[dict[str, Result]], alone: dict[str, Result]
) -> None:
    expected = alone["information"]["advantages"][iteration]
    for rank, results in enumerate(ranks):
        advantages = results["information"]["advantages"][iteration]
        assert_close(advantages, own(expected, rank))
        # Not by chance: on their own, those of a process are not standardised.
        families = advantages.reshape(len(advantages), -1, ENVS // 2)
        assert families.mean((0, 2)).abs().max() > 0.1


def test_average_beliefs_are_those_of_all_episodes(
    ranks: list[dict[str, Result]], alone: dict[str, Result]
) -> None:
    expected = alone["information"]["average_beliefs"]
    found = [rank["information"]["average_beliefs"] for rank in ranks]
    assert_same(*found)
    assert expected["count"].tolist() == [ITERATIONS] * 10
    assert torch.equal(found[0]["count"], expected["count"])
    assert expected["mean"].std(0).max() > 1e-3  # families differ
    assert_close(found[0]["mean"], expected["mean"])


@each_iteration
def test_reward_scaler_and_normaliser_have_the_moments_of_all(
    iteration: int, ranks: list[dict[str, Result]], alone: dict[str, Result]
) -> None:
    expected = alone["information"]["states"][iteration]
    moments = [key for key in expected if "moments" in key]
    assert {key.rsplit(".", 1)[0] for key in moments} == {
        "policy.observation_moments",
        "policy.reward_moments",
        "reward_scaler.moments",
    }
    for results in ranks:
        state = results["information"]["states"][iteration]
        for key in [*moments, "env_steps", "iteration"]:
            torch.testing.assert_close(state[key], expected[key], rtol=1e-12, atol=1e-12)


@each_categorical
@each_iteration
def test_what_is_logged_is_about_all_processes(
    categorical: str, iteration: int, ranks: list[dict[str, Result]], alone: dict[str, Result]
) -> None:
    expected = alone[categorical]["metrics"][iteration]
    names = {k for k in expected if not k.startswith("time/")}
    assert {
        "encoder/entropy",
        "encoder/marginal_entropy",
        "encoder/largest_category",
        "encoder/family_information",
        "encoder/categorical",
        "encoder/reward_error",
        "vae/agreement_by_chance",
        "vae/decoder_error",
        "vae/decoder_error_without_z",
        "vae/z_spread",
        "ppo/explained_variance",
        "ppo/approx_kl",
        "rollout/success/reach",
        "rollout/return/mean",
    } <= names
    for results in ranks:
        found = results[categorical]["metrics"][iteration]
        assert found.keys() == expected.keys()
        for name in names:
            assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize(
    ("run", "epochs"), [("information", EPOCHS), ("one would stop", EPOCHS), ("one would not", 1)]
)
def test_processes_agree_on_the_epochs_by_their_mean_kl(
    run: str, epochs: int, ranks: list[dict[str, Result]]
) -> None:
    """Where they did not, one would wait for the other for ever."""
    for rank in ranks:
        assert rank[run]["steps"]["actor"] == rank[run]["steps"]["critic"] == epochs * ITERATIONS
        assert [metrics["ppo/epochs"] for metrics in rank[run]["metrics"]] == [epochs] * ITERATIONS


@pytest.mark.parametrize(
    ("run", "updates"), [("upper levels, one would stop", UPDATES), ("upper levels, one would not", 2)]
)
def test_processes_agree_on_the_updates_of_upper_levels_by_how_far_they_moved_on_average(
    run: str, updates: int, ranks: list[dict[str, Result]]
) -> None:
    for rank in ranks:
        assert rank[run]["steps"]["task_encoder"] == rank[run]["steps"]["macro_vae"] == updates * ITERATIONS


@pytest.mark.parametrize("target_kl", [KL_ALONE, KL_BOTH])
def test_on_its_own_one_of_them_would_have_stopped_and_the_other_not(
    target_kl: float, tmp_path: Path
) -> None:
    epochs = []
    for kl in APART["kl"]:
        result = learn(tmp_path / str(kl), 1, target_kl=target_kl, kl=(kl,))
        epochs.append(result["steps"]["actor"] / ITERATIONS)
    assert epochs == [EPOCHS, 1]


def test_the_mistake_of_one_is_raised_on_both(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["failures"] == [
            ("SharedError", f"the goal of rank {unlucky} has rolled away") for unlucky in (0, 1)
        ]
