"""The schedule of one iteration: three levels, each trained on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.utils import clip_grad_norm_

from hmrl.compatibility import check_levels, check_network, check_rollout
from hmrl.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig, as_config
from hmrl.diagnostics import rollout_metrics
from hmrl.distributed import rank_and_world_size, share_of, sum_over_ranks
from hmrl.faults import families_at_fault, not_finite
from hmrl.functional import agreement
from hmrl.losses import (
    LossFunction,
    Metrics,
    Minibatch,
    actor_loss,
    average,
    critic_loss,
    macro_vae_loss,
    ppo_samples,
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
        self.training_seed: int | None = None  # of the checkpoint that is evaluated
        self.encoder_config = None if task_encoder is None else as_config(TaskEncoderConfig, task_encoder)
        self.vae_config = None if macro_vae is None else as_config(MacroVAEConfig, macro_vae)
        self.network_config = as_config(ActorCriticConfig, actor_critic)
        self.ppo = as_config(PPOConfig, ppo)
        self.acting = as_config(Acting, acting)
        check_levels(self.encoder_config, self.vae_config, self.ppo)
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
        if not ego_indices or not all(0 <= i < observation_dim for i in ego_indices):
            raise UserError(
                f"ego_indices is {list(ego_indices)}: use one or more of 0 to {observation_dim - 1}, "
                "dimensions of the observation"
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
        check_rollout(self.ppo, self.vae_config, *rollout.reward.shape)
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

        def loss(episodes: Trajectories) -> tuple[Tensor, Metrics]:
            reward = self._learning_reward(episodes)
            return task_encoder_loss(self.policy, episodes, reward, config, self.ppo, self.acting)

        count = share_of(config.trajectories)
        batches = (replay.sample(count).to(self.device) for _ in range(config.updates))
        return average([self._descend("task_encoder", config.max_grad_norm, loss, b) for b in batches])

    def _update_macro_vae(self, replay: TrajectoryReplay) -> Metrics:
        """Intermediate level: gradient steps on replayed episodes."""
        config = self.vae_config
        if config is None:
            return {}

        def loss(episodes: Trajectories) -> tuple[Tensor, Metrics]:
            return macro_vae_loss(self.policy, episodes, config, self.acting)

        count = share_of(config.trajectories)
        batches = (replay.sample(count).to(self.device) for _ in range(config.updates))
        return average([self._descend("macro_vae", config.max_grad_norm, loss, b) for b in batches])

    def _update_actor_critic(self, rollout: Rollout) -> Metrics:
        """Low level: PPO epochs on the fresh rollout, with the y_t and z_t that acted."""
        ppo, policy = self.ppo, self.policy
        samples, metrics = ppo_samples(policy, rollout, self._learning_reward(rollout), ppo)
        _, world_size = rank_and_world_size()
        epochs = 0
        log: list[Metrics] = []
        for _ in range(ppo.epochs):
            epochs += 1
            log = []
            for index in torch.randperm(len(samples["action"])).to(self.device).chunk(ppo.minibatches):
                batch = {k: v[index] for k, v in samples.items()}
                actor = self._descend("actor", ppo.max_grad_norm, lambda b: actor_loss(policy, b, ppo), batch)
                critic = self._descend("critic", ppo.max_grad_norm, lambda b: critic_loss(policy, b), batch)
                policy.actor.project()
                log.append(actor | critic)
            kl = average(log)["ppo/approx_kl"]
            if ppo.target_kl is not None and sum_over_ranks(kl) / world_size > ppo.target_kl:
                break
        return average(log) | metrics | {"ppo/epochs": torch.tensor(float(epochs), device=self.device)}

    def _learning_reward(self, episodes: Rollout | Trajectories) -> Tensor:
        """What returns are made of: scaled rewards and the agreement bonus. ``[T, B]``"""
        reward: Tensor = self.reward_scaler(episodes.reward, episodes.family)
        if self.ppo.agreement_bonus and self.vae_config:
            reward = reward + self.ppo.agreement_bonus * agreement(episodes.action, episodes.macro_action)
        return reward

    def _descend(
        self, name: str, max_grad_norm: float, loss_function: LossFunction, batch: Minibatch
    ) -> Metrics:
        """Collective. One step of one level's optimizer; every other parameter is constant inside."""
        optimizer, level = self._optimizer(name), self._level(name)
        self.policy.eval()  # dropout only in the level that learns: y is what it is when acting
        level.train()
        with self.toggled_optimizer(optimizer):
            loss, metrics = loss_function(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            norm = clip_grad_norm_(level.parameters(), max_grad_norm)
            broken = ~(torch.isfinite(norm) & torch.isfinite(loss.detach()))
            if sum_over_ranks(broken.float()) > 0:
                where = f"in iteration {int(self.iteration)}, after {int(self.env_steps):,} environment steps"
                what = f"loss {float(loss):.3g}, gradient norm {float(norm):.3g}"
                blamed = families_at_fault(loss_function, batch, level.parameters(), self.families)
                raise not_finite(name, blamed, where, what)
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

    test_step = validation_step

    def on_train_start(self) -> None:
        """A resumed run learns at the rates it is given, not at those of the checkpoint."""
        for name, (lr, decay) in self._rates().items():
            for group in self._optimizer(name).param_groups:
                group["lr"], group["weight_decay"] = lr, decay

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network; on another benchmark's families, keep this model's reward scale.

        Raises:
            UserError: naming the settings that differ.
        """
        training = self._trainer is not None and self.trainer.state.fn == "fit"
        if not training and list(checkpoint["hyper_parameters"]["families"]) != list(self.families):
            own = {k: v for k, v in self.state_dict().items() if k.startswith("reward_scaler.")}
            checkpoint["state_dict"] |= own  # it is about training families, and only to learn from
        check_network(checkpoint, self, training=training)
        self.training_seed = checkpoint["hyper_parameters"]["seed"]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for each level that is present, and for actor and critic each."""
        return [
            torch.optim.AdamW(self._level(name).parameters(), lr=lr, weight_decay=decay)
            for name, (lr, decay) in self._rates().items()
        ]

    def _rates(self) -> dict[str, tuple[float, float]]:
        """Learning rate and weight decay of each level that is present, in the order of the optimizers."""
        rates = {"actor": (self.ppo.actor_lr, self.ppo.weight_decay)}
        rates["critic"] = (self.ppo.critic_lr, self.ppo.weight_decay)
        for name, config in (("task_encoder", self.encoder_config), ("macro_vae", self.vae_config)):
            if config:
                rates[name] = (config.lr, config.weight_decay)
        return rates

    def _level(self, name: str) -> nn.Module:
        return self.policy.get_submodule(name)

    def _optimizer(self, name: str) -> LightningOptimizer:
        optimizers: Any = self.optimizers()
        chosen: LightningOptimizer = optimizers[list(self._rates()).index(name)]
        return chosen
