"""What a command refuses because settings do not go together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.plugins import MixedPrecision

from hmrl.envs.wrappers.perturb import Change, Perturbation
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.system.errors import UserError
from hmrl.training.checkpoint import AtomicCheckpointIO
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.trainer import TRAINER_DEFAULTS, complete_options, make_trainer

NOISE = Perturbation(noise_std=0.1)
GRID = {"backend": "gridworld", "horizon": 24, "test": EvaluationConfig(50, 5)}
WEAR = Perturbation(action_gain=Change("random_walk", 0.3, over_episodes=100))


def trained(**settings: Any) -> dict[str, Any]:
    """A checkpoint of an agent that was trained so."""
    data = MetaWorldDataModule(**settings)
    hyper_parameters = {"seed": data.seed, "families": list(data.families)}
    return {"hyper_parameters": hyper_parameters, "datamodule_hyper_parameters": dict(data.hparams)}


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"goals_per_family": 4}, {}, "data.goals_per_family is 4 there and None here"),
        ({"goals_shown": True}, {}, "data.goals_shown is True there and False here"),
        ({}, {"families_shown": True}, "data.families_shown is False there and True here"),
        (
            {"goals_per_family": 1, "seed": 3},
            {"goals_per_family": 1},
            "seed_everything is 3 there and 1 here",
        ),
        (
            {"goals_per_family": 4, "backend": "metaworld"},
            {"goals_per_family": 4},
            "data.backend is 'metaworld' there and 'envpool' here",
        ),
        ({"perturbation": NOISE}, {}, "data.perturbation is {'noise_std': 0.1"),
        ({"horizon": 400}, {}, "data.horizon is 400 there and 500 here"),
        ({"episodes_per_trial": 3}, {}, "data.episodes_per_trial is 3 there and 1 here"),
        ({"ego_state": "other"}, {}, "data.ego_state is 'other' there and 'ego' here"),
        (
            {"benchmark": "GridWorld", **GRID},
            {"benchmark": "GridWorldLarge", **GRID},
            "data.benchmark is 'GridWorld' there and 'GridWorldLarge' here",
        ),
        (
            {"perturbation": WEAR, "seed": 3},
            {"perturbation": WEAR},
            "seed_everything is 3 there and 1 here",  # its course is drawn by the seed
        ),
        (
            {"benchmark": "custom", "train_families": ["reach", "push"], "test_families": ["sweep"]}
            | {"families_shown": True},
            {"benchmark": "custom", "train_families": ["push", "reach"], "test_families": ["sweep"]}
            | {"families_shown": True},
            "the order of families is ['reach', 'push'] there and ['push', 'reach'] here",
        ),
    ],
)
def test_an_agent_is_tested_in_the_world_it_was_trained_in(
    there: dict[str, Any], here: dict[str, Any], said: str
) -> None:
    data = MetaWorldDataModule(**here)
    with pytest.raises(UserError, match=re.escape(said)):
        data.check_world(trained(**there), data.test)


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({"seed": 3}, {}),  # other goals, none of which training had
        ({"backend": "metaworld"}, {}),
        (
            {"goals_per_family": 4, "backend": "metaworld"},
            {"goals_per_family": 4, "backend": "metaworld_async"},
        ),
        ({"perturbation": NOISE}, {"test": EvaluationConfig(50, 5, perturbation=Perturbation())}),
        ({"envs_per_family": 3, "replay_trajectories": 5}, {}),
        ({"benchmark": "ML45"}, {}),  # which families are the agent's own is said with the numbers
    ],
)
def test_what_evaluation_may_do_otherwise(there: dict[str, Any], here: dict[str, Any]) -> None:
    data = MetaWorldDataModule(**here)
    data.check_world(trained(**there), data.test)


def test_a_checkpoint_that_does_not_say_is_not_compared() -> None:
    data = MetaWorldDataModule(goals_shown=True)
    data.check_world({"hyper_parameters": {"seed": 1, "families": list(data.families)}}, data.test)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_epochs", 3),
        ("min_epochs", 3),
        ("max_steps", 3),
        ("min_steps", 3),
        ("max_time", {"hours": 1}),
        ("limit_train_batches", 0),
        ("limit_train_batches", 0.5),
        ("limit_val_batches", 1),
        ("limit_val_batches", 0.5),
        ("limit_test_batches", 0),
        ("limit_test_batches", 1),
        ("limit_test_batches", 0.5),
        ("fast_dev_run", True),
        ("check_val_every_n_epoch", 0),
        ("overfit_batches", 1),
        ("num_sanity_val_steps", None),
        ("num_sanity_val_steps", -1),
        ("val_check_interval", "00:00:10:00"),
        ("gradient_clip_algorithm", "value"),
        ("plugins", [MixedPrecision("bf16-mixed", "cpu")]),
        ("plugins", TorchCheckpointIO()),
        ("model_registry", "mine"),
    ],
)
def test_what_would_break_training_is_refused_from_python_too(
    option: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{option} is .*, but it must be "):
        make_trainer(str(tmp_path / "run"), 100, **{option: value})
    assert not (tmp_path / "run").exists()


def test_harmless_options_of_the_trainer_pass() -> None:
    for options in (
        {**TRAINER_DEFAULTS, "limit_val_batches": 0, "limit_train_batches": 1, "precision": 32},
        {"limit_val_batches": 1.0, "limit_test_batches": 1.0, "min_epochs": None, "fast_dev_run": False},
    ):
        completed = complete_options({"accelerator": "cpu", **options}, ())
        assert {name: completed[name] for name in options} == options
    plugins = complete_options({"accelerator": "cpu", "plugins": [LightningEnvironment()]}, ())["plugins"]
    assert [type(plugin) for plugin in plugins] == [LightningEnvironment, AtomicCheckpointIO]
