"""A wrong value is named, with its key, when the configuration is built."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import pytest
import yaml

from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.system.errors import UserError
from hmrl.system.rules import as_config
from hmrl.types import Acting
from support.paths import CONFIGS

KEYS: dict[type, str] = {
    TaskEncoderConfig: "model.task_encoder",
    MacroVAEConfig: "model.macro_vae",
    ActorCriticConfig: "model.actor_critic",
    PPOConfig: "model.ppo",
}
WRONG: list[tuple[type, str, Any]] = [
    (TaskEncoderConfig, "categories", 0),
    (TaskEncoderConfig, "cell", "rnn"),
    (TaskEncoderConfig, "dropout", 1.0),
    (TaskEncoderConfig, "dropout", -0.1),
    (TaskEncoderConfig, "temperature", 0.0),
    (TaskEncoderConfig, "categorical", "marginl"),
    (TaskEncoderConfig, "updates", -1),
    (TaskEncoderConfig, "trajectories", 0),
    (TaskEncoderConfig, "lr", 0.0),
    (TaskEncoderConfig, "hidden", 0),
    (TaskEncoderConfig, "embedding_hidden", (4, 0, 4)),
    (TaskEncoderConfig, "embedding_hidden", (4, 4)),
    (TaskEncoderConfig, "embedding_hidden", 4),
    (TaskEncoderConfig, "head_hidden", (-1,)),
    (TaskEncoderConfig, "value_coef", -1.0),
    (TaskEncoderConfig, "max_grad_norm", 0.0),
    (MacroVAEConfig, "goal_state", "CD"),
    (MacroVAEConfig, "n", 0),
    (MacroVAEConfig, "decoder_std", 0.0),
    (MacroVAEConfig, "dropout", 1.0),
    (MacroVAEConfig, "log_std_range", (0.5, -2.0)),
    (MacroVAEConfig, "updates", -1),
    (MacroVAEConfig, "trajectories", 0),
    (MacroVAEConfig, "lr", -1e-3),
    (MacroVAEConfig, "encoder_hidden", (8, 0)),
    (MacroVAEConfig, "decoder_hidden", None),
    (MacroVAEConfig, "log_std_range", (0.5,)),
    (MacroVAEConfig, "log_std_range", (float("-inf"), 0.5)),
    (MacroVAEConfig, "max_grad_norm", 0.0),
    (ActorCriticConfig, "log_std_range", (0.5, -2.0)),
    (ActorCriticConfig, "actor_hidden", (0,)),
    (ActorCriticConfig, "critic_hidden", (8, -8)),
    (PPOConfig, "gamma", 0.0),
    (PPOConfig, "gamma", 1.01),
    (PPOConfig, "gae_lambda", -0.1),
    (PPOConfig, "gae_lambda", 1.1),
    (PPOConfig, "clip", 0.0),
    (PPOConfig, "epochs", 0),
    (PPOConfig, "minibatches", 0),
    (PPOConfig, "advantage", "families"),
    (PPOConfig, "reward_scale", "families"),
    (PPOConfig, "agreement_bonus", -1.0),
    (PPOConfig, "advantage_pooling", -0.1),
    (PPOConfig, "actor_lr", 0.0),
    (PPOConfig, "critic_lr", 0.0),
    (PPOConfig, "entropy_coef", -1.0),
    (PPOConfig, "target_kl", 0.0),
    (PPOConfig, "weight_decay", -1.0),
    (PPOConfig, "max_grad_norm", 0.0),
]


@pytest.mark.parametrize(("cls", "name", "value"), WRONG, ids=lambda x: getattr(x, "__name__", str(x)))
def test_wrong_values_are_named_with_their_key(cls: type, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=re.escape(f"{KEYS[cls]}.{name} is {value!r}")):
        cls(**{name: value})


NUMBERS = [
    (cls, name)
    for cls in KEYS
    for name, hint in get_type_hints(cls).items()
    if hint in (int, float, float | None)
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "many"])
@pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_number_must_be_one_and_finite(cls: type, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=re.escape(f"{KEYS[cls]}.{name} is {value!r}")):
        cls(**{name: value})


@pytest.mark.parametrize("cls", KEYS)
def test_every_setting_is_checked(cls: type) -> None:
    hints = get_type_hints(cls, include_extras=True)
    free = {f.name for f in fields(cls) if get_origin(hints[f.name]) not in (Annotated, Literal)}
    assert free <= {"state_dependent_std", "critic_layer_norm"}  # true or false


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (TaskEncoderConfig, {"categories": 1, "dropout": 0.0, "updates": 0, "trajectories": 1}),
        (TaskEncoderConfig, {"head_hidden": (), "categorical_coef": -1.0, "occupancy_coef": -1.0}),
        (MacroVAEConfig, {"n": 1, "updates": 0, "log_std_range": (0.0, 0.0)}),
        (PPOConfig, {"gamma": 1.0, "gae_lambda": 0.0, "epochs": 1, "minibatches": 1}),
        (PPOConfig, {"gae_lambda": 1.0, "agreement_bonus": 0.0, "target_kl": None}),
    ],
)
def test_the_edges_are_allowed(cls: type, values: dict[str, Any]) -> None:
    assert asdict(cls(**values)).items() >= values.items()


@pytest.mark.parametrize("cls", [*KEYS, Acting, EvaluationConfig])
def test_as_config_takes_instances_and_plain_mappings(cls: type) -> None:
    instance = cls()
    assert as_config(cls, instance) is instance
    assert as_config(cls, asdict(instance)) == instance


def test_as_config_checks_mappings_too() -> None:
    with pytest.raises(UserError, match=re.escape("model.ppo.clip is -1")):
        as_config(PPOConfig, {"clip": -1})
    with pytest.raises(TypeError, match="clipp"):
        as_config(PPOConfig, {"clipp": 0.1})


@pytest.mark.parametrize("cls", [*KEYS, Acting])
def test_defaults_in_python_are_those_of_ml10_yaml(cls: Any) -> None:
    section = KEYS.get(cls, "model.acting").removeprefix("model.")
    written = yaml.safe_load((CONFIGS / "ml10.yaml").read_text())["model"][section]
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(cls()).items()}
    assert plain == written
