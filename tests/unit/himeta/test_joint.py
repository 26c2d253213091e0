"""Training end to end: one loss, gradients through all levels, whole trials as minibatches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hmrl.himeta.formulas import gae
from hmrl.himeta.losses import (
    JointBatch,
    actor_loss,
    belief_loss,
    critic_loss,
    imputation_loss,
    joint_batch,
    joint_loss,
    ppo_samples,
)
from hmrl.rollouts.collect import seeded
from hmrl.system.errors import UserError
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Rollout
from support.agents import ToyEnvs, build_module, encoder_config, fit, iteration_batch, play, vae_config

RL2 = {"belief": "continuous", "categorical_coef": 0.0}


def agent(**changes: Any) -> HierarchicalMetaRL:
    options: dict[str, Any] = {"task_encoder": encoder_config(), "macro_vae": vae_config()} | changes
    return build_module(gradients="joint", **options)


def rl2() -> HierarchicalMetaRL:
    return agent(task_encoder=encoder_config(**RL2), macro_vae=None)


def rollout_of(module: HierarchicalMetaRL, batch: int = 6) -> Rollout:
    return play(module, ToyEnvs(batch), key=[1, 2], acting=Acting())


def batch_of(module: HierarchicalMetaRL) -> JointBatch:
    rollout = rollout_of(module)
    module.reward_scaler.observe(rollout.reward, rollout.family)
    targets, _ = ppo_samples(module.policy, rollout, rollout.reward, module.ppo)
    return joint_batch(rollout, targets)


def loss_of(module: HierarchicalMetaRL, batch: JointBatch) -> tuple[Tensor, dict[str, Tensor]]:
    configs = module.encoder_config, module.vae_config, module.ppo
    with seeded(3):
        return joint_loss(module.policy, batch, *configs, Acting())


@pytest.mark.parametrize("make", [agent, rl2], ids=["three levels", "rl2"])
def test_the_first_ratio_is_one(make: Any) -> None:
    """What is made anew is what acted."""
    module = make()
    _, metrics = loss_of(module, batch_of(module))
    assert float(metrics["ppo/approx_kl"]) == pytest.approx(0, abs=1e-6)
    assert float(metrics["ppo/clip_fraction"]) == 0


@pytest.mark.parametrize(
    ("encoder", "vae", "sentence"),
    [
        ({"dropout": 0.5}, {}, "model.task_encoder.dropout is 0.5, .* use 0"),
        ({}, {"dropout": 0.5}, "model.macro_vae.dropout is 0.5, .* use 0"),
        ({"value_coef": 20.0}, {}, "model.task_encoder.value_coef is 20.0, .* use 1"),
        ({"target_kl": 0.01}, {}, "model.task_encoder.target_kl is 0.01, .* use null"),
        ({}, {"target_kl": 0.01}, "model.macro_vae.target_kl is 0.01, .* use null"),
    ],
)
def test_refuses_what_end_to_end_training_would_not_heed(
    encoder: dict[str, Any], vae: dict[str, Any], sentence: str
) -> None:
    configs = encoder_config(**encoder), vae_config(**vae)
    with pytest.raises(UserError, match=sentence):
        build_module(*configs, gradients="joint")
    build_module(*configs)


def test_end_to_end_training_always_makes_latents_anew() -> None:
    with pytest.raises(UserError, match=r"latents is acted, but with model.gradients joint .* use renewed"):
        agent(ppo={"latents": "acted"})


def test_the_loss_is_the_sum_of_all() -> None:
    module = agent()
    batch = batch_of(module)
    policy = module.policy
    sequence = policy.encode_episodes(batch.observation, batch.action, batch.reward, Acting())
    state, belief = policy.normalize(batch.observation)[:-1], sequence.belief[:-1]
    samples = {
        "state": state,
        "task_belief": belief,
        "task": belief[..., :0],
        "macro_action": policy.macro_action(state, belief, Acting()),
        "action": batch.action,
        "log_prob": batch.log_prob,
        "advantage": batch.advantage,
        "return": batch.returns,
    }
    assert module.encoder_config
    assert module.vae_config
    with seeded(3):
        parts = [
            actor_loss(policy, samples, module.ppo)[0],
            critic_loss(policy, samples)[0],
            belief_loss(policy, batch, sequence, module.encoder_config)[0],
            imputation_loss(policy, batch, sequence, module.vae_config)[0],
        ]
    assert float(loss_of(module, batch)[0]) == pytest.approx(float(sum(parts)), rel=1e-5)


def test_targets_are_those_of_isolated_training() -> None:
    module = agent()
    rollout = rollout_of(module)
    targets, _ = ppo_samples(module.policy, rollout, rollout.reward, module.ppo)
    value = module.policy.value(
        module.policy.normalize(rollout.observation), rollout.task_belief, rollout.hidden_goal[:, :0]
    )
    _, expected = gae(rollout.reward, value, module.ppo.gamma, module.ppo.gae_lambda)
    assert torch.allclose(joint_batch(rollout, targets).returns, expected)


@pytest.mark.parametrize("part", ["actor", "critic", "vae"])
def test_gradients_cross_the_levels(part: str) -> None:
    """Each lower loss alone reaches the task encoder, and the actor's the macro-VAE's encoder."""
    module = agent()
    batch = batch_of(module)
    policy = module.policy
    assert policy.task_encoder
    assert policy.macro_vae
    sequence = policy.encode_episodes(batch.observation, batch.action, batch.reward, Acting())
    state, belief = policy.normalize(batch.observation)[:-1], sequence.belief[:-1]
    z = policy.macro_action(state, belief, Acting())
    samples = {"state": state, "task_belief": belief, "macro_action": z, "action": batch.action}
    samples |= {
        "task": belief[..., :0],
        "log_prob": batch.log_prob,
        "advantage": batch.advantage,
        "return": batch.returns,
    }
    assert module.vae_config
    loss = {
        "actor": lambda: actor_loss(policy, samples, module.ppo)[0],
        "critic": lambda: critic_loss(policy, samples)[0],
        "vae": lambda: imputation_loss(policy, batch, sequence, module.vae_config)[0],
    }[part]()
    loss.backward()
    reached = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("task_encoder") for n in reached)
    assert any(n.startswith("macro_vae.encoder") for n in reached) == (part != "critic")


@pytest.mark.parametrize("make", [agent, rl2], ids=["three levels", "rl2"])
def test_one_iteration_trains_every_level(make: Any) -> None:
    module = make()
    before = {k: v.clone() for k, v in module.named_parameters()}
    fit(module, [iteration_batch(rollout_of(module))])
    moved = {k.split(".")[1] for k, v in module.named_parameters() if not torch.equal(v, before[k])}
    levels = {"actor", "critic", "task_encoder"} | ({"macro_vae"} if module.vae_config else set())
    assert moved == levels


def test_a_minibatch_is_whole_trials() -> None:
    module = agent()
    batch = batch_of(module)
    chosen = torch.tensor([4, 1])
    part = batch.select(chosen)
    assert torch.equal(part.observation, batch.observation[:, chosen])
    assert torch.equal(part.advantage, batch.advantage[:, chosen])
    assert torch.equal(part.log_prob, batch.log_prob[:, chosen])
    assert torch.equal(part.returns, batch.returns[:, chosen])
    assert torch.equal(part.family, batch.family[chosen])
    # A trial's loss does not depend on the others'.
    both = [float(loss_of(module, batch.select(torch.tensor([i])))[1]["ppo/value_loss"]) for i in (4, 1)]
    assert float(loss_of(module, part)[1]["ppo/value_loss"]) == pytest.approx(sum(both) / 2, rel=1e-5)


def test_a_non_finite_loss_names_the_levels() -> None:
    module = agent()
    rollout = rollout_of(module)
    rollout.log_prob[1, rollout.family == 1] = float("nan")
    before = {k: v.clone() for k, v in module.named_parameters()}
    with pytest.raises(
        UserError, match=r"level actor and critic and task_encoder and macro_vae is not finite"
    ):
        fit(module, [iteration_batch(rollout)])
    assert all(torch.equal(v, before[k]) for k, v in module.named_parameters())


def test_a_continuous_belief_is_memory_without_categories() -> None:
    module = rl2()
    policy = module.policy
    assert policy.categorical_entries == 0
    rollout = rollout_of(module)
    assert rollout.task_belief.shape[-1] == 3
    assert rollout.task_belief.abs().max() < 1
    sums = rollout.task_belief.sum(-1)
    assert not torch.allclose(sums, torch.ones_like(sums))
    fit(module, [iteration_batch(rollout)])
    assert not any(k.startswith("encoder/") and "entropy" in k for k in module.trainer.logged_metrics)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradients": "both"}, "model.gradients is 'both': use isolated or joint"),
        ({"gradients": "joint", "ppo": {"latents": "acted"}}, "y and z are made anew when learning"),
        (
            {"task_encoder": encoder_config(belief="continuous")},
            r"model\.task_encoder\.categorical_coef is .*, but a continuous .*belief has no categories",
        ),
        (
            {"task_encoder": encoder_config(**RL2), "macro_vae": vae_config(goal_state="sub_task")},
            "with a continuous belief, there are no sub-tasks",
        ),
        ({"macro_interval": 0}, "model.macro_interval is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_module(**{"task_encoder": encoder_config(), "macro_vae": vae_config()} | changes)


def test_an_absent_encoder_asks_for_nothing_that_joint_training_lacks() -> None:
    build_module(None, None, gradients="joint")
