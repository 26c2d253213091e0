"""Which settings make a checkpoint another network's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from hmrl.system.errors import UserError
from hmrl.training.checkpoint import FORMAT
from hmrl.training.compatibility import check_deviations, check_network, check_settings, network_differences
from hmrl.types import Acting
from support.agents import build_module, encoder_config, fit, iteration_batch, random_rollout, vae_config


def hparams(**changes: Any) -> dict[str, Any]:
    encoder = encoder_config(**changes.pop("encoder", {}))
    return dict(build_module(encoder, vae_config(), **changes).hparams)


def test_a_checkpoint_with_other_settings_is_refused() -> None:
    check_settings(hparams())
    saved = hparams()
    del saved["gradients"]
    saved["ppo"] = {k: v for k, v in saved["ppo"].items() if k != "latents"} | {"clipp": 0.1}
    said = r"it lacks model\.gradients, has model\.ppo\.clipp, lacks model\.ppo\.latents"
    with pytest.raises(UserError, match=said):
        check_settings(saved)
    saved = hparams()
    saved["macro_vae"] = None
    check_settings(saved)


def test_networks_differ_by_what_shapes_them() -> None:
    changed = {"variables": 2, "reward_embedding": 2, "context_reward": "log"}
    names = [f"model.task_encoder.{name}" for name in changed]
    assert sorted(network_differences(hparams(), hparams(encoder=changed))) == sorted(names)
    assert list(network_differences(hparams(), hparams(macro_interval=2))) == ["model.macro_interval"]
    mixture = {"belief": "mixture", "categorical_coef": 0.0}
    assert "model.task_encoder.belief" in network_differences(hparams(), hparams(encoder=mixture))


MEANS = Acting()


@pytest.mark.parametrize(
    ("settings", "acting", "training", "said"),
    [
        ({}, MEANS, False, None),
        ({}, MEANS, True, "training goes on from it"),
        ({}, Acting(macro_action="sample"), False, "z is sampled"),
        ({"vae": None}, Acting(macro_action="sample"), False, None),
        (
            {"encoder": {"belief": "mixture", "categorical_coef": 0.0}},
            MEANS,
            False,
            "its belief is a mixture",
        ),
        ({"network": {"state_dependent_std": True}}, MEANS, False, "actions are sampled"),
        ({"network": {"state_dependent_std": True}}, Acting(action="mean"), False, None),
    ],
)
def test_clamped_deviations_are_another_agents(
    settings: dict[str, Any], acting: Acting, training: bool, said: str | None
) -> None:
    saved = hparams(encoder=settings.get("encoder", {}))
    saved["macro_vae"] = settings.get("vae", saved["macro_vae"])
    saved["actor_critic"] = saved["actor_critic"] | settings.get("network", {})
    check_deviations({"hyper_parameters": saved, "format": FORMAT}, [acting], training=training)
    for old in ({}, {"format": 1}):
        with pytest.raises(UserError, match=said) if said else nullcontext():
            check_deviations({"hyper_parameters": saved, **old}, [acting], training=training)


def test_an_agent_that_draws_can_be_built_but_not_trained_on_renewed_latents() -> None:
    module = build_module(encoder_config(), vae_config(), acting=Acting(macro_action="sample"))
    with pytest.raises(UserError, match=r"z as sample, .* set model.ppo.latents to acted"):
        fit(module, [iteration_batch(random_rollout())])


@pytest.mark.parametrize("changed", [{"decoder_hidden": (5,)}, {"reward_coef": 0.0}])
def test_another_decoder_of_rewards_is_seen_by_its_shapes(changed: dict[str, Any]) -> None:
    one, other = (
        build_module(encoder_config(**{"reward_coef": 1.0, "decoder_hidden": (4,)} | changes), vae_config())
        for changes in ({}, changed)
    )
    saved = {"hyper_parameters": dict(one.hparams), "state_dict": one.state_dict(), "format": FORMAT}
    check_network(saved, one, training=False)
    with pytest.raises(UserError, match=r"another network: policy\..* has shape .* there and .* here"):
        check_network(saved, other, training=False)


def test_how_much_rewards_count_does_not_make_another_network() -> None:
    a, b = (hparams(encoder={"reward_coef": coefficient}) for coefficient in (0.5, 1.0))
    assert network_differences(a, b) == {}
