"""Which settings make a checkpoint another network's."""

from __future__ import annotations

from typing import Any

import pytest

from hmrl.system.errors import UserError
from hmrl.training.compatibility import network_differences, settings_since
from hmrl.types import Acting
from support.agents import build_module, encoder_config, fit, iteration_batch, random_rollout, vae_config


def hparams(**changes: Any) -> dict[str, Any]:
    encoder = encoder_config(**changes.pop("encoder", {}))
    return dict(build_module(encoder, vae_config(), **changes).hparams)


def test_a_checkpoint_from_before_a_setting_counts_as_its_old_value() -> None:
    saved = hparams()
    for name in ("macro_interval", "gradients"):
        del saved[name]
    before = ("belief", "variables", "reward_embedding", "context_reward", "reward_coef")
    saved["task_encoder"] = {
        k: v
        for k, v in saved["task_encoder"].items()
        if k not in (*before, "latent", "decoder_hidden", "mixture_coef")
    }
    assert network_differences(saved, hparams()) == {}
    assert list(network_differences(saved, hparams(macro_interval=2))) == ["model.macro_interval"]
    changed = {"variables": 2, "reward_embedding": 2, "context_reward": "log", "reward_coef": 1.0}
    names = [f"model.task_encoder.{name}" for name in changed]
    assert sorted(network_differences(saved, hparams(encoder=changed))) == sorted(names)
    mixture = {"belief": "mixture", "categorical_coef": 0.0}
    assert "model.task_encoder.belief" in network_differences(saved, hparams(encoder=mixture))


def test_settings_that_a_checkpoint_did_not_have_are_named() -> None:
    saved, present = hparams(), hparams(ppo={"latents": "acted"})
    assert settings_since(saved, present) == []
    saved["ppo"] = {k: v for k, v in saved["ppo"].items() if k != "latents"}
    del saved["gradients"]
    assert settings_since(saved, present) == ["model.gradients isolated", "model.ppo.latents acted"]
    saved["task_encoder"] = None
    assert len(settings_since(saved, present)) == 2  # another network, which is refused elsewhere


def test_an_agent_that_draws_can_be_built_but_not_trained_on_renewed_latents() -> None:
    """As one from a checkpoint of before the setting is, to be evaluated."""
    module = build_module(encoder_config(), vae_config(), acting=Acting(macro_action="sample"))
    with pytest.raises(UserError, match=r"z as sample, .* set model.ppo.latents to acted"):
        fit(module, [iteration_batch(random_rollout())])


@pytest.mark.parametrize(("belief", "differs"), [("categorical", False), ("mixture", True)])
def test_a_mixtures_settings_count_where_there_is_one(belief: str, differs: bool) -> None:
    a, b = (hparams(encoder={"belief": belief, "latent": latent}) for latent in (2, 3))
    assert list(network_differences(a, b)) == (["model.task_encoder.latent"] if differs else [])


@pytest.mark.parametrize(("coefficient", "differs"), [(0.0, False), (1.0, True)])
def test_a_decoder_of_rewards_counts_where_there_is_one(coefficient: float, differs: bool) -> None:
    a, b = (hparams(encoder={"reward_coef": coefficient, "decoder_hidden": width}) for width in ((4,), (5,)))
    assert list(network_differences(a, b)) == (["model.task_encoder.decoder_hidden"] if differs else [])


def test_how_much_rewards_count_does_not_make_another_network() -> None:
    a, b = (hparams(encoder={"reward_coef": coefficient}) for coefficient in (0.5, 1.0))
    assert network_differences(a, b) == {}
