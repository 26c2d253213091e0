"""Evaluation: every goal counts once, in every mode, and training does not notice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from hmrl.envs.wrappers.perturb import Missing, Perturbation
from hmrl.evaluation.baselines import AgentName
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.training.callbacks import SuccessRate
from hmrl.training.callbacks.success_rate import describe_protocol
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.trainer import BEST_DEFAULTS, make_trainer
from hmrl.types import Acting
from support.runs import Run, assert_same, fit, fit_iterations, learning_state, snapshot
from support.toy import STEPS, Episode, toy_data

MODES = ("sampled", "mean_action")
SUFFIX = {"sampled": "", "mean_action": "_mean_action"}


def evaluation_episodes(data: Any, split: str) -> dict[str, list[Episode]]:
    """The environments' own record of one evaluation, by mode."""
    episodes = [e for e in data.episodes if not e.training and e.split == split]
    each, rest = divmod(len(episodes), len(MODES))
    assert rest == 0
    return {mode: episodes[i * each : (i + 1) * each] for i, mode in enumerate(MODES)}


def recomputed(data: Any) -> dict[str, float]:
    """Every evaluation metric, from the simulator steps that the environments recorded."""
    metrics: dict[str, float] = {}
    for split in ("train", "test"):
        for mode, episodes in evaluation_episodes(data, split).items():
            means: dict[str, list[float]] = {"success": [], "final_success": [], "return": []}
            for family in data.benchmark.families(split):
                own = [e for e in episodes if e.family == family]
                values = {
                    "success": fmean(any(e.successes) for e in own),
                    "final_success": fmean(e.successes[-1] for e in own),
                    "return": fmean(sum(e.rewards) for e in own),
                }
                for name, value in values.items():
                    metrics[f"{name}{SUFFIX[mode]}/{split}/{family}"] = value
                    means[name].append(value)
            for name, each in means.items():
                metrics[f"{name}{SUFFIX[mode]}/{split}/mean"] = fmean(each)
    return metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_iterations(tmp_path_factory.mktemp("trained"), 2)


def evaluate(run: Run, what: str, data: Any, folder: Path | None = None, **options: Any) -> dict[str, float]:
    trainer = make_trainer(
        str(folder or run.folder), 1, logger=False, accelerator="cpu", devices=1, **options
    )
    logged = getattr(trainer, what)(run.module, datamodule=data)
    return {k: v for metrics in logged for k, v in metrics.items()}


@pytest.mark.parametrize(("what", "goals"), [("validate", 3), ("test", 6)])
def test_metrics_are_what_environments_saw(trained: Run, what: str, goals: int, tmp_path: Path) -> None:
    data = toy_data(validation=EvaluationConfig(3, 3), test=EvaluationConfig(6, 2))
    logged = evaluate(trained, what, data, tmp_path)
    expected = recomputed(data)
    assert logged.pop("step") == 2 * STEPS
    assert logged.keys() == expected.keys()
    assert logged == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 2 * 3 * (10 + 1 + 5 + 1)
    # The toy world tells the measures apart.
    assert 0 < expected["final_success/train/mean"] < expected["success/train/mean"] < 1
    assert expected["success/train/mean"] != expected["success_mean_action/train/mean"]
    for split in ("train", "test"):
        for episodes in evaluation_episodes(data, split).values():
            assert set(Counter(e.family for e in episodes).values()) == {goals}


def test_every_goal_counts_once_and_modes_share_the_goals(trained: Run, tmp_path: Path) -> None:
    data = toy_data(test=EvaluationConfig(6, 2))
    evaluate(trained, "test", data, tmp_path)
    goals = {}
    for split in ("train", "test"):
        for mode, episodes in evaluation_episodes(data, split).items():
            pairs = [(e.family, e.goal) for e in episodes]
            assert len(set(pairs)) == len(pairs) == 6 * len(data.benchmark.families(split))
            goals[split, mode] = set(pairs)
        assert goals[split, "sampled"] == goals[split, "mean_action"]
    trained_on = {(e.family, e.goal) for e in trained.data.episodes if e.training}
    validated = {(e.family, e.goal) for e in trained.data.episodes if not e.training}
    assert not goals["train", "sampled"] & (trained_on | validated)


def test_test_scores_do_not_depend_on_the_number_of_environments_for_mean_actions(
    trained: Run, tmp_path: Path
) -> None:
    few, many = toy_data(test=EvaluationConfig(4, 1)), toy_data(test=EvaluationConfig(4, 4))
    goals = []
    for data in (few, many):
        evaluate(trained, "test", data, tmp_path)
        episodes = [e for split in ("train", "test") for e in evaluation_episodes(data, split)["mean_action"]]
        goals.append({(e.family, e.goal, any(e.successes)) for e in episodes})
    assert goals[0] == goals[1]


def test_every_mode_acts_as_it_says(trained: Run, tmp_path: Path) -> None:
    """A mean action is the policy's mean; permuted variables are those of other environments."""
    modes = {
        "sampled": Acting(),
        "mean_action": Acting(action="mean"),
        "shuffled": Acting(permute="task_belief"),
    }
    data = toy_data(modes=modes, test=EvaluationConfig(2, 2))
    seen: list[Any] = []

    class Keep(pl.Callback):
        def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any, **__: Any) -> None:
            seen.append(outputs)

    evaluate(trained, "test", data, tmp_path, callbacks=[Keep()])
    assert [(r.split, r.mode) for r in seen] == [(s, m) for s in ("train", "test") for m in modes]
    for rollout in seen:
        state = trained.module.policy.normalize(rollout.observation)[:-1]
        belief = rollout.task_belief[:-1]
        mean = trained.module.policy.actor(state, belief, rollout.macro_action).mean
        assert torch.allclose(rollout.action, mean, atol=1e-6) == (rollout.mode == "mean_action")
        sequence = trained.module.policy.encode_episodes(
            rollout.observation, rollout.action, rollout.reward, Acting()
        )
        own = torch.allclose(sequence.belief, rollout.task_belief, atol=1e-6)
        assert own == (rollout.mode != "shuffled")


def test_training_is_the_same_with_and_without_evaluation(tmp_path: Path) -> None:
    with_it = fit_iterations(tmp_path / "with", 3)
    without = fit_iterations(tmp_path / "without", 3, limit_val_batches=0)
    assert with_it.recorder.evaluated
    assert not without.recorder.evaluated
    states = [learning_state(run.last) for run in (with_it, without)]
    for state in states:
        del state["loops"]  # they count validation batches
    assert_same(*states)
    assert with_it.recorder.checksums == without.recorder.checksums


@pytest.mark.parametrize("what", ["validate", "test"])
def test_evaluation_changes_nothing(trained: Run, what: str, tmp_path: Path) -> None:
    """Normaliser moments, counters, weights, replay and the global generator."""
    before = snapshot(trained.module, trained.data)
    assert before["data"]["replays"][0]["size"] == 40
    generator = torch.get_rng_state()
    evaluate(trained, what, trained.data, tmp_path)
    assert_same(snapshot(trained.module, trained.data), before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_same_evaluation_twice_gives_the_same_numbers(trained: Run, tmp_path: Path) -> None:
    first = evaluate(trained, "test", toy_data(), tmp_path)
    torch.manual_seed(99)
    assert evaluate(trained, "test", toy_data(), tmp_path) == first


def test_the_best_model_is_best_on_training_families(tmp_path: Path) -> None:
    """However well held-out families are solved; and the first of equals stays."""
    assert BEST_DEFAULTS["monitor"] == "success/train/mean"
    data = toy_data()
    data.solved = {"train": [2, 6, 4, 6, 1], "test": [0, 1, 5, 2, 5]}
    scores: list[tuple[float, float]] = []

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            (rate,) = (c for c in trainer.callbacks if isinstance(c, SuccessRate))
            scores.append(tuple(rate.scores[s]["sampled"]["mean"].success for s in ("train", "test")))

    run = fit_iterations(tmp_path, 5, data=data, callbacks=[Keep()])
    assert scores == [(0.2, 0), (0.6, 0.2), (0.4, 1), (0.6, 0.4), (0.1, 1)]
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert int(best["state_dict"]["iteration"]) == 2
    assert int(run.last["state_dict"]["iteration"]) == 5
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt",
        "best.weights.ckpt",
        "last.ckpt",
        "last.weights.ckpt",
    ]


def test_between_evaluations_no_old_score_is_taken_for_a_new_one(tmp_path: Path) -> None:
    """Evaluation every second iteration: the best model is one that was evaluated."""
    data = toy_data()
    data.solved = {"train": [3, 5, 1], "test": [1, 1, 1]}
    fit_iterations(tmp_path, 5, data=data, check_val_every_n_epoch=2)  # after 2, 4, and at the end
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert int(best["state_dict"]["iteration"]) == 4


def test_results_file_holds_the_logged_numbers(trained: Run, tmp_path: Path) -> None:
    data = toy_data()
    logged = evaluate(trained, "test", data, tmp_path)
    results = json.loads((tmp_path / "test-first_episode.json").read_text())
    names = {"success": "success", "final_success": "final_success", "return": "episode_return"}
    for split, modes in results["scores"].items():
        for mode, families in modes.items():
            assert list(families) == [*data.benchmark.families(split), "mean"]
            for family, score in families.items():
                for name, key in names.items():
                    assert logged[f"{name}{SUFFIX[mode]}/{split}/{family}"] == pytest.approx(
                        score[key], rel=1e-6
                    )
                assert score["low"] <= score["success"] <= score["high"]
                assert score["episodes"] == 4 * (1 if family != "mean" else len(families) - 1)
    assert results["env_steps"] == 2 * STEPS
    assert results["protocol"]["name"] == "first_episode"
    assert results["data"]["horizon"] == 13
    assert results["model"]["decision_interval"] == 2


def test_families_are_told_at_the_end_of_what_a_policy_sees_and_of_nothing_else(tmp_path: Path) -> None:
    """Held-out families are none of those; experts and random agents have no use for it."""

    def data(agent: AgentName, told: bool) -> MetaWorldDataModule:
        return MetaWorldDataModule(
            "GridWorld",
            backend="gridworld",
            horizon=3,
            envs_per_family=2,
            families_shown=told,
            perturbation=Perturbation(missing=Missing(0.5, told=True)),
            validation=EvaluationConfig(2, 2, agent=agent),
            test=EvaluationConfig(2, 2),
        )

    told = data("policy", True)
    run = fit(tmp_path, 2 * 10 * 3, data=told)
    run.trainer.test(run.module, datamodule=told, verbose=False)
    count = len(told.families)
    assert told.observation_dim == data("policy", False).observation_dim + count
    assert describe_protocol(told)["families_shown"] is True
    assert {rollout.split for rollout in run.recorder.evaluated} == {"train", "test"}
    for rollout in (*run.recorder.rollouts, *run.recorder.evaluated):
        shown = rollout.observation[..., -count:]
        own = torch.nn.functional.one_hot(rollout.family, count).float()
        expected = own if rollout.split == "train" else torch.zeros_like(own)
        assert torch.equal(shown, expected.expand_as(shown))

    run.recorder.evaluated.clear()
    run.trainer.validate(run.module, datamodule=data("expert", True), verbose=False)
    widths = {rollout.observation.shape[-1] for rollout in run.recorder.evaluated}
    assert widths == {told.benchmark.world.observation_dim}


def test_validation_writes_no_results_file(trained: Run, tmp_path: Path) -> None:
    evaluate(trained, "validate", toy_data(), tmp_path)
    assert not (tmp_path / "test-first_episode.json").exists()


@pytest.mark.parametrize("shown", [False, True])
def test_goals_are_hidden_unless_they_are_shown_and_then_results_say_so(shown: bool, tmp_path: Path) -> None:
    """In training and in evaluation, whoever is evaluated but the experts."""
    data = MetaWorldDataModule(
        "GridWorld",
        backend="gridworld",
        horizon=3,
        envs_per_family=4,
        goals_shown=shown,
        validation=EvaluationConfig(2, 2),
        test=EvaluationConfig(2, 2),
    )
    run = fit(tmp_path, 2 * 20 * 3, data=data)
    run.trainer.test(run.module, datamodule=data, verbose=False)
    assert len(run.recorder.rollouts) == 2
    assert {rollout.split for rollout in run.recorder.evaluated} == {"train", "test"}
    for rollout in (*run.recorder.rollouts, *run.recorder.evaluated):
        assert (rollout.observation[..., 8:] != 0).any(-1).all() == shown
        assert (rollout.observation[..., 8:] != 0).any() == shown
    assert describe_protocol(data).get("goals_shown", False) is shown
