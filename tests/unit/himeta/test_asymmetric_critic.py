"""The critic may be told family and goal; nothing that acts ever is."""

from __future__ import annotations

from dataclasses import replace

import torch

from hmrl.himeta.losses import actor_loss, critic_loss, macro_vae_loss, ppo_samples, task_encoder_loss
from hmrl.results.file import digest
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting
from support.agents import (
    FAMILIES,
    B,
    G,
    build_module,
    encoder_config,
    play,
    random_rollout,
    trajectories,
    vae_config,
)


def told(**changes: object) -> HierarchicalMetaRL:
    levels = encoder_config(), vae_config()
    module = build_module(*levels, networks={"critic_input": "task"}, goal_dim=G, **changes)
    assert module.policy.goal_moments is not None
    return module


def test_values_depend_on_family_and_goal() -> None:
    policy = told().policy
    rollout = random_rollout()
    state = policy.normalize(rollout.observation)
    task = policy.task(rollout)
    assert task.shape == (B, len(FAMILIES) + G)
    assert torch.equal(task[:, : len(FAMILIES)].argmax(-1), rollout.family)
    value = policy.value(state, rollout.task_belief, task)
    for change in ({"family": 1 - rollout.family}, {"hidden_goal": rollout.hidden_goal + 1}):
        other = policy.value(state, rollout.task_belief, policy.task(replace(rollout, **change)))  # type: ignore[arg-type]
        assert (other - value).abs().max() > 1e-4


def test_goals_are_standardised_as_they_were_before_this_rollout() -> None:
    policy = told().policy
    assert policy.goal_moments is not None
    rollout = random_rollout()
    moments = policy.goal_moments
    expected = ((rollout.hidden_goal - moments.mean[0]) / moments.var[0].sqrt()).clamp(-5, 5)
    torch.testing.assert_close(policy.task(rollout)[:, len(FAMILIES) :], expected.float())
    policy.observe(rollout.observation, rollout.reward, rollout.hidden_goal)
    assert not torch.allclose(policy.task(rollout)[:, len(FAMILIES) :], expected.float())


def test_what_acts_is_the_same_function_with_and_without() -> None:
    """The same weights act alike to the bit, and are all weights but the critic's."""
    with_task, without = told(), build_module(encoder_config(), vae_config())
    state, plain = with_task.state_dict(), without.state_dict()
    extra = {name for name in state if name not in plain}
    assert extra == {f"policy.goal_moments.{part}" for part in ("count", "mean", "var")}
    odd = {name for name in plain if plain[name].shape != state[name].shape}
    assert odd == {"policy.critic.net.0.weight"}
    acts = {name: value for name, value in state.items() if ".critic." not in name and name in plain}
    without.load_state_dict(acts, strict=False)
    one, other = (play(module, key=[3]) for module in (with_task, without))
    for name in ("observation", "action", "log_prob", "task_belief", "macro_action", "reward"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_family_and_goal_reach_the_critic_alone() -> None:
    """Losses of macro-VAE and actor, and what the beliefs are, do not change with the goal; values do."""
    module = told()
    policy, rollout = module.policy.eval(), random_rollout()
    other = replace(rollout, hidden_goal=rollout.hidden_goal + 1)
    assert module.encoder_config
    assert module.vae_config

    def losses(rollout):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        episodes = trajectories(rollout)
        samples, _ = ppo_samples(policy, random_rollout(), rollout.reward, module.ppo)
        batch = {name: value.flatten(0, 1) for name, value in samples.items()}
        batch["task"] = policy.task(rollout).expand(len(rollout.action), -1, -1).flatten(0, 1)
        of_vae, _ = macro_vae_loss(policy, episodes, module.vae_config, Acting())
        of_encoder, _ = task_encoder_loss(
            policy, episodes, rollout.reward, module.encoder_config, module.ppo, Acting()
        )
        unmoved = [
            of_vae,
            actor_loss(policy, batch, module.ppo)[0],
            policy.renewed_belief(*episodes_of(rollout)),
        ]
        return unmoved, [of_encoder, critic_loss(policy, batch)[0]]

    def episodes_of(rollout):  # type: ignore[no-untyped-def]
        return rollout.observation, rollout.action, rollout.reward

    (unmoved, moved), (unmoved_too, moved_too) = losses(rollout), losses(other)
    for a, b in zip(unmoved, unmoved_too, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(moved, moved_too, strict=True):
        assert not torch.equal(a, b)


def test_an_agent_is_evaluated_on_other_families_without_them() -> None:
    """The critic of more families is left behind: only learning asks it."""
    trained = told()
    checkpoint = {
        "state_dict": trained.state_dict(),
        "hyper_parameters": dict(trained.hparams),
        "format": 2,
    }
    evaluated = build_module(
        encoder_config(),
        vae_config(),
        networks={"critic_input": "task"},
        goal_dim=G,
        families=("reach", "push", "sweep"),
    )
    evaluated.on_load_checkpoint(checkpoint)
    evaluated.load_state_dict(checkpoint["state_dict"])
    one, other = (play(module, key=[3]) for module in (trained, evaluated))
    assert torch.equal(one.action, other.action)
    assert digest(evaluated.trained_state()) == digest(trained.state_dict())  # by which results name it
