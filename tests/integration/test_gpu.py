"""On a GPU: the same losses as on the CPU, exact resume, and checkpoints that go from one to the other."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal

from hmrl.evaluation.protocols import EvaluationConfig, MetaWorldConfig
from hmrl.himeta.losses import actor_loss, critic_loss, macro_vae_loss, ppo_samples, task_encoder_loss
from hmrl.rollouts.collect import seeded, where_it_is_faster
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.trainer import make_trainer
from hmrl.types import Acting
from support.runs import assert_same, fit, fit_iterations, learning_state
from support.toy import STEPS, tiny_module, tiny_networks, toy_data

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
GPU: dict[str, Any] = {"accelerator": "gpu"}
ONE_LEVEL = {"task_encoder": None, "macro_vae": None}
JOINT = {
    "gradients": "joint",
    "task_encoder": replace(tiny_networks()["task_encoder"], target_kl=None),
    "macro_vae": replace(tiny_networks()["macro_vae"], target_kl=None),
}


@pytest.mark.parametrize("networks", [{}, ONE_LEVEL, JOINT], ids=["three-levels", "flat", "joint"])
def test_a_run_that_is_continued_is_the_run_in_one_piece(tmp_path: Path, networks: dict[str, Any]) -> None:
    straight = fit_iterations(tmp_path / "straight", 4, networks=networks, **GPU)
    fit_iterations(tmp_path / "resumed", 2, networks=networks, **GPU)
    resumed = fit_iterations(tmp_path / "resumed", 4, networks=networks, resume=True, seed=77, **GPU)
    assert straight.trainer.strategy.root_device.type == "cuda"
    assert_same(learning_state(resumed.last), learning_state(straight.last))
    assert resumed.rows == straight.rows


def test_ml10_trains_and_is_tested(tmp_path: Path) -> None:
    small = {"validation": EvaluationConfig(1, 1), "test": EvaluationConfig(1, 1, "envpool")}
    data = toy_data(MetaWorldDataModule, envs_per_family=1, horizon=20, **small)
    run = fit(tmp_path, 3 * 10 * 20, data=data, **GPU)
    assert run.recorder.env_steps == [200, 400, 600]
    scores = run.trainer.test(run.module, datamodule=data, verbose=False)
    assert any("success/test/mean" in score for score in scores)


@pytest.mark.parametrize("there", ["cpu", "gpu"])
def test_a_checkpoint_goes_on_and_is_tested_on_the_other(tmp_path: Path, there: str) -> None:
    here = {"cpu": "gpu", "gpu": "cpu"}[there]
    fit_iterations(tmp_path, 2, accelerator=there)
    longer = fit_iterations(tmp_path, 3, resume=True, accelerator=here)
    assert longer.recorder.env_steps == [3 * STEPS]
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    scores = []
    for accelerator in (there, here):
        data = toy_data()
        trainer = make_trainer(str(tmp_path / accelerator), STEPS, accelerator=accelerator, devices=1)
        scores.append(trainer.test(tiny_module(data), datamodule=data, ckpt_path=last, verbose=False))
    assert scores[0][0].keys() == scores[1][0].keys()


@pytest.mark.parametrize("agent", ["expert", "random"])
@pytest.mark.parametrize("protocol", ["first_episode", "meta_world"])
def test_agents_to_compare_with_are_tested(tmp_path: Path, agent: str, protocol: str) -> None:
    test = EvaluationConfig(2, 1, "metaworld", protocol=protocol, agent=agent)
    meta_world = MetaWorldConfig(num_evals=1, adaptation_episodes=1, evaluation_episodes=2, meta_batch_size=2)
    data = MetaWorldDataModule("ML1", ["reach"], horizon=20, test=test, meta_world=meta_world)
    trainer = make_trainer(str(tmp_path), STEPS, accelerator="gpu", devices=1)
    assert trainer.test(tiny_module(data), datamodule=data, verbose=False)


def test_every_loss_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Normal, "rsample", lambda self: self.mean)  # a GPU draws other numbers
    run = fit_iterations(tmp_path, 1, networks=tiny_networks())
    rollout, module, replay = run.recorder.rollouts[-1], run.module, run.data.replay
    with seeded(3):
        episodes = replay.sample(6)
    found: dict[str, dict[str, float]] = {}
    for device in ("cpu", "cuda"):
        policy = module.to(device).policy
        one, some = rollout.to(device), episodes.to(device)
        reward = module._learning_reward(some)
        samples, _ = ppo_samples(policy, one, module._learning_reward(one), module.ppo)
        batch = {name: value.flatten(0, 1) for name, value in samples.items()}
        policy.train()  # nothing here has dropout; a GPU's GRU insists
        assert module.vae_config is not None
        assert module.encoder_config is not None
        encoder = replace(module.encoder_config, reward_coef=0.0)  # which steps to ask about is drawn there
        losses = {
            "task_encoder": task_encoder_loss(policy, some, reward, encoder, module.ppo, module.acting),
            "macro_vae": macro_vae_loss(policy, some, module.vae_config, module.acting),
            "actor": actor_loss(policy, batch, module.ppo),
            "critic": critic_loss(policy, batch),
        }
        found[device] = {}
        for name, (loss, _) in losses.items():
            level = list(policy.get_submodule(name).parameters())
            gradients = torch.autograd.grad(loss, level, allow_unused=True)
            norm = sum(float(g.double().square().sum()) for g in gradients if g is not None) ** 0.5
            found[device] |= {name: float(loss), f"gradient of {name}": norm}
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("environments", "device"), [(10, "cpu"), (1000, "cuda")])
def test_few_environments_are_acted_for_on_the_cpu(environments: int, device: str) -> None:
    policy = tiny_module(toy_data()).policy.to("cuda")
    agent, where = where_it_is_faster(policy, environments)
    assert where.type == device
    assert next(policy.parameters()).is_cuda
    for name, value in agent.state_dict().items():
        assert value.device.type == device
        assert torch.equal(value.cpu(), policy.state_dict()[name].cpu())


def test_nothing_is_rounded_to_ten_bits(tmp_path: Path) -> None:
    """The GRU's kernels may, by PyTorch's default: beliefs would be others in learning than in acting."""
    module = fit_iterations(tmp_path, 1, **GPU).module
    here = module.policy.to("cpu")
    there = deepcopy(here).to("cuda")
    episodes = (
        torch.randn(14, 6, here.observation_dim),
        torch.randn(13, 6, here.action_dim),
        torch.rand(13, 6),
    )
    beliefs = [
        policy.encode_episodes(*(x.to(device) for x in episodes), Acting()).belief.cpu()
        for policy, device in ((here, "cpu"), (there, "cuda"))
    ]
    torch.testing.assert_close(beliefs[1], beliefs[0], rtol=1e-5, atol=1e-6)
