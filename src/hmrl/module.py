"""The schedule of one iteration: three levels, each trained on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.utils import clip_grad_norm_

from hmrl.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig, as_config
from hmrl.diagnostics import rollout_metrics
from hmrl.distributed import rank_and_world_size, sum_over_ranks
from hmrl.functional import (
    agreement,
    explained_variance,
    gae,
    standardize,
)
from hmrl.losses import (
    LossFunction,
    Metrics,
    actor_loss,
    average,
    critic_loss,
    macro_vae_loss,
    task_encoder_loss,
)
from hmrl.normalizer import RewardScaler
from hmrl.policy import build_policy
from hmrl.replay import TrajectoryReplay
from hmrl.rollout import seeded
from hmrl.types import Acting, Rollout, Trajectories, UserError

_STREAM = 1  # of the random numbers used in learning; the data module has its own


class IterationBatch(Protocol):
    """What the data module hands over: a fresh rollout and the replay that already contains it."""

    rollout: Rollout
    replay: TrajectoryReplay


class HierarchicalMetaRL(pl.LightningModule):
    """HiMeta (arXiv 2412.11930): task encoder, macro-VAE and PPO actor-critic.

    One batch is one rollout of whole episodes, one ``training_step`` one iteration of the algorithm, and
    one epoch has one step, so that a checkpoint always lies between two iterations.

    Args:
        families: training families. Only the trainer uses them, to scale rewards and advantages and to
            log; the agent never sees which one it faces.
        observation_dim: S.
        action_dim: A.
        ego_indices: which dimensions of an observation are the robot's own.
        decision_interval: simulator steps between two decisions, k.
        task_encoder: high level; None leaves it out.
        macro_vae: intermediate level; None leaves it out.
        actor_critic: low level's networks.
        ppo: low level's learning.
        acting: how y, z and the action are drawn in training.
        seed: of everything random in learning.
    """

    env_steps: Tensor
    iteration: Tensor

    def __init__(
        self,
        families: Sequence[str],
        observation_dim: int,
        action_dim: int,
        ego_indices: Sequence[int],
        decision_interval: int = 2,
        task_encoder: TaskEncoderConfig | None = TaskEncoderConfig(),  # noqa: B008
        macro_vae: MacroVAEConfig | None = MacroVAEConfig(),  # noqa: B008
        actor_critic: ActorCriticConfig = ActorCriticConfig(),  # noqa: B008
        ppo: PPOConfig = PPOConfig(),  # noqa: B008
        acting: Acting = Acting(),  # noqa: B008
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.families, self.seed = tuple(families), seed
        self.encoder_config = None if task_encoder is None else as_config(TaskEncoderConfig, task_encoder)
        self.vae_config = None if macro_vae is None else as_config(MacroVAEConfig, macro_vae)
        self.network_config = as_config(ActorCriticConfig, actor_critic)
        self.ppo = as_config(PPOConfig, ppo)
        self.acting = as_config(Acting, acting)
        # Plain values only: a checkpoint must load without running code.
        self.save_hyperparameters(
            {
                "families": list(families),
                "observation_dim": observation_dim,
                "action_dim": action_dim,
                "ego_indices": list(ego_indices),
                "decision_interval": decision_interval,
                "task_encoder": asdict(self.encoder_config) if self.encoder_config else None,
                "macro_vae": asdict(self.vae_config) if self.vae_config else None,
                "actor_critic": asdict(self.network_config),
                "ppo": asdict(self.ppo),
                "acting": asdict(self.acting),
                "seed": seed,
            },
            logger=False,
        )
        self.policy = build_policy(
            self.encoder_config,
            self.vae_config,
            self.network_config,
            observation_dim=observation_dim,
            action_dim=action_dim,
            ego_indices=tuple(ego_indices),
            decision_interval=decision_interval,
        )
        self.reward_scaler = RewardScaler(self.ppo.reward_scale, self.ppo.gamma, len(self.families))
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    # --- one iteration ---------------------------------------------------------------------------

    def training_step(self, batch: IterationBatch, batch_idx: int) -> None:
        """Collect (done), learn the high, the intermediate and the low level, move the normaliser."""
        rollout = batch.rollout
        rank, world_size = rank_and_world_size()
        with seeded(self.seed, _STREAM, rank, int(self.iteration)):
            # Before the advantages: the policy does not see these moments, so its ratio stays 1.
            self.reward_scaler.observe(rollout.reward, rollout.family)
            before = self._policy_now(rollout)
            metrics = self._update_task_encoder(batch.replay)
            after_encoder = self._policy_now(rollout)
            metrics |= self._update_macro_vae(batch.replay)
            after_vae = self._policy_now(rollout)
            metrics["encoder/policy_kl"] = kl_divergence(before, after_encoder).sum(-1).mean()
            metrics["vae/policy_kl"] = kl_divergence(after_encoder, after_vae).sum(-1).mean()
            metrics |= self._update_actor_critic(rollout)
            # Only now: until here, learning saw what acting saw.
            self.policy.observe(rollout.observation, rollout.reward)
        self.iteration += 1
        self.env_steps += rollout.env_steps * world_size
        self._log(metrics | rollout_metrics(rollout))

    def _update_task_encoder(self, replay: TrajectoryReplay) -> Metrics:
        """High level: gradient steps on replayed episodes."""
        config = self.encoder_config
        if config is None:
            return {}
        log: list[Metrics] = []
        for _ in range(config.updates):
            episodes = replay.sample(config.trajectories).to(self.device)
            reward = self._learning_reward(episodes)
            loss = partial(task_encoder_loss, self.policy, episodes, reward, config, self.ppo, self.acting)
            log.append(self._descend("task_encoder", config.max_grad_norm, loss))
        return average(log)

    def _update_macro_vae(self, replay: TrajectoryReplay) -> Metrics:
        """Intermediate level: gradient steps on replayed episodes."""
        config = self.vae_config
        if config is None:
            return {}
        log: list[Metrics] = []
        for _ in range(config.updates):
            episodes = replay.sample(config.trajectories).to(self.device)
            loss = partial(macro_vae_loss, self.policy, episodes, config, self.acting)
            log.append(self._descend("macro_vae", config.max_grad_norm, loss))
        return average(log)

    def _update_actor_critic(self, rollout: Rollout) -> Metrics:
        """Low level: PPO epochs on the fresh rollout, with the y_t and z_t that acted."""
        ppo, policy = self.ppo, self.policy
        policy.eval()
        with torch.no_grad():
            state = policy.normalize(rollout.observation)
            value = policy.critic(state, rollout.task_belief)
            reward = self._learning_reward(rollout)
            advantage, target = gae(reward, value, ppo.gamma, ppo.gae_lambda)
            if ppo.advantage == "family":
                advantage = standardize(advantage, rollout.family, len(self.families))
            elif ppo.advantage == "batch":
                advantage = standardize(advantage, torch.zeros_like(rollout.family), 1)
        data = {
            "state": state[:-1],
            "task_belief": rollout.task_belief[:-1],
            "macro_action": rollout.macro_action,
            "action": rollout.action,
            "log_prob": rollout.log_prob,
            "advantage": advantage,
            "return": target,
        }
        data = {k: v.flatten(0, 1) for k, v in data.items()}
        count, epochs = len(data["action"]), 0
        log: list[Metrics] = []
        for _ in range(ppo.epochs):
            epochs += 1
            log = []
            for index in torch.randperm(count).to(self.device).chunk(ppo.minibatches):
                batch = {k: v[index] for k, v in data.items()}
                actor = self._descend("actor", ppo.max_grad_norm, partial(actor_loss, policy, batch, ppo))
                critic = self._descend("critic", ppo.max_grad_norm, partial(critic_loss, policy, batch))
                policy.actor.project()
                log.append(actor | critic)
            if ppo.target_kl is not None:
                _, world_size = rank_and_world_size()
                kl = sum_over_ranks(average(log)["ppo/approx_kl"]) / world_size
                if kl > ppo.target_kl:
                    break
        return average(log) | {
            "ppo/epochs": torch.tensor(float(epochs)),
            "ppo/explained_variance": explained_variance(value[:-1], target),
        }

    def _learning_reward(self, episodes: Rollout | Trajectories) -> Tensor:
        """What returns are made of: scaled rewards and the agreement bonus. ``[T, B]``"""
        reward: Tensor = self.reward_scaler(episodes.reward, episodes.family)
        if self.ppo.agreement_bonus and self.vae_config:
            reward = reward + self.ppo.agreement_bonus * agreement(episodes.action, episodes.macro_action)
        return reward

    def _descend(self, name: str, max_grad_norm: float, loss_function: LossFunction) -> Metrics:
        """One step of one level's optimizer; every other parameter is constant inside."""
        optimizer = self._optimizer(name)
        self.policy.eval()  # dropout only in the level that learns: y is what it is when acting
        self._level(name).train()
        with self.toggled_optimizer(optimizer):
            loss, metrics = loss_function()
            optimizer.zero_grad()
            self.manual_backward(loss)
            norm = clip_grad_norm_(self._level(name).parameters(), max_grad_norm)
            if not torch.isfinite(norm):
                raise UserError(
                    f"the loss or gradient of {name} is not finite in iteration {int(self.iteration)} "
                    f"(loss {float(loss):.3g}, gradient norm {float(norm):.3g}); nothing was changed by it: "
                    "continue from the last checkpoint with a lower learning rate or gradient clip"
                )
            optimizer.step()
        return metrics | {f"grad_norm/{name}": norm.detach()}

    # --- logging ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _policy_now(self, rollout: Rollout) -> torch.distributions.Normal:
        """The policy on this rollout with y and z made anew, noise-free: what HL and IL updates move."""
        self.policy.eval()
        sequence = self.policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting())
        state = self.policy.normalize(rollout.observation)[:-1]
        belief = sequence.belief[:-1]
        now: torch.distributions.Normal = self.policy.actor(
            state, belief, self.policy.macro_action(state, belief, Acting())
        )
        return now

    def _log(self, metrics: Mapping[str, Tensor]) -> None:
        """Collective. Log rank means by environment steps; float64, as float32 miscounts above 16 million."""
        values = {**metrics, "step": self.env_steps.double()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    # --- Lightning -------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Hand the rollout on: callbacks score it."""
        return batch

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Hand the rollout on: callbacks score it."""
        return batch

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for each level that is present, and for actor and critic each."""
        rates = {"actor": (self.ppo.actor_lr, self.ppo.weight_decay)}
        rates["critic"] = (self.ppo.critic_lr, self.ppo.weight_decay)
        for name, config in (("task_encoder", self.encoder_config), ("macro_vae", self.vae_config)):
            if config:
                rates[name] = (config.lr, config.weight_decay)
        self._optimizer_names = list(rates)
        return [
            torch.optim.AdamW(self._level(name).parameters(), lr=lr, weight_decay=decay)
            for name, (lr, decay) in rates.items()
        ]

    def _level(self, name: str) -> nn.Module:
        return self.policy.get_submodule(name)

    def _optimizer(self, name: str) -> LightningOptimizer:
        optimizers: Any = self.optimizers()
        chosen: LightningOptimizer = optimizers[self._optimizer_names.index(name)]
        return chosen
