"""The schedule of one iteration: three levels, each trained on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from hmrl.himeta.build import build_policy
from hmrl.himeta.config import (
    ActorCriticConfig,
    Gradients,
    MacroVAEConfig,
    PPOConfig,
    TaskEncoderConfig,
    as_config,
)
from hmrl.himeta.diagnostics import Movement, beliefs_of, rollout_metrics
from hmrl.himeta.formulas import agreement
from hmrl.himeta.joint import JointBatch, joint_batch, joint_loss
from hmrl.himeta.losses import (
    LossFunction,
    Minibatch,
    actor_loss,
    average,
    critic_loss,
    macro_vae_loss,
    ppo_samples,
    task_encoder_loss,
)
from hmrl.himeta.normalizer import RewardScaler
from hmrl.rollouts.collect import seeded
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.rollouts.stream import Batch
from hmrl.system.distributed import exceeds, rank_and_world_size, share_of
from hmrl.training.compatibility import check_levels, check_network, check_rollout, check_training, completed
from hmrl.training.descent import Step, adamw, descend, rates_of
from hmrl.types import Acting, Metrics, Rollout, Trajectories

_LOGGED_AS = {"task_encoder": "encoder", "macro_vae": "vae"}
_STREAM = 1  # of the random numbers used in learning; the data module has its own


class HierarchicalMetaRL(pl.LightningModule):
    """HiMeta (arXiv 2412.11930): task encoder, macro-VAE and PPO actor-critic.

    One batch is one rollout of whole episodes, one ``training_step`` one iteration of the algorithm, and
    one epoch has one step, so that a checkpoint always lies between two iterations.

    Args:
        families: training families. Only the trainer uses them, to scale rewards and advantages and to
            log; the agent never sees which one it faces.
        observation_dim, action_dim: S and A.
        ego_indices: which dimensions of an observation are the robot's own.
        decision_interval: simulator steps between two decisions, k.
        macro_interval: decisions that a macro-action is held, with primitive actions within.
        gradients: "isolated": no gradient crosses a level, each has its own updates (HiMeta); "joint": one
            loss, the sum of all, on the fresh rollout, with gradients through the levels
            (:mod:`hmrl.himeta.joint`). An ablation, and how recurrent PPO is trained.
        task_encoder, macro_vae: high and intermediate level; None leaves one out.
        actor_critic: low level's networks.
        ppo: low level's learning.
        acting, seed: how y, z and the action are drawn in training; of everything random in learning.
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
        macro_interval: int = 1,
        gradients: Gradients = "isolated",
        task_encoder: TaskEncoderConfig | None = TaskEncoderConfig(),  # noqa: B008
        macro_vae: MacroVAEConfig | None = MacroVAEConfig(),  # noqa: B008
        actor_critic: ActorCriticConfig = ActorCriticConfig(),  # noqa: B008
        ppo: PPOConfig = PPOConfig(),  # noqa: B008
        acting: Acting = Acting(),  # noqa: B008
        seed: int = 1,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.automatic_optimization = False
        self.families, self.seed = tuple(families), seed
        self.training_seed: int | None = None  # of the checkpoint that is evaluated
        self.training_git: dict[str, Any] | None = None  # the source that trained it
        self.training_hparams: Mapping[str, Any] | None = None  # its own
        encoder, vae = completed("task_encoder", task_encoder), completed("macro_vae", macro_vae)
        self.encoder_config = as_config(TaskEncoderConfig, encoder) if encoder else None
        self.vae_config = as_config(MacroVAEConfig, vae) if vae else None
        self.network_config = as_config(ActorCriticConfig, actor_critic)
        self.ppo = as_config(PPOConfig, completed("ppo", ppo))
        self.acting = as_config(Acting, acting)
        self.gradients: Gradients = gradients
        self._rates = rates_of(self.ppo, self.encoder_config, self.vae_config)
        check_levels(self.encoder_config, self.vae_config, self.ppo)
        check_training(gradients, self.encoder_config, self.vae_config, self.ppo, self.acting)
        configs: dict[str, Any] = {
            "task_encoder": self.encoder_config,
            "macro_vae": self.vae_config,
            "actor_critic": self.network_config,
            "ppo": self.ppo,
            "acting": self.acting,
        }
        arguments |= {name: asdict(config) if config else None for name, config in configs.items()}
        arguments |= {"families": list(families), "ego_indices": list(ego_indices)}
        self.save_hyperparameters(arguments, logger=False)  # plain values: a checkpoint loads without code
        self.policy = build_policy(
            self.encoder_config,
            self.vae_config,
            self.network_config,
            observation_dim=observation_dim,
            action_dim=action_dim,
            ego_indices=tuple(ego_indices),
            decision_interval=decision_interval,
            macro_interval=macro_interval,
        )
        self.reward_scaler = RewardScaler(self.ppo.reward_scale, self.ppo.gamma, len(self.families))
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    # --- one iteration ---------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect (done), learn the high, the intermediate and the low level, move the normaliser."""
        rollout = batch.rollout
        check_rollout(self.ppo, self.vae_config, self.gradients, self.acting, *rollout.reward.shape)
        rank, world_size = rank_and_world_size()
        beliefs = beliefs_of(self.policy, rollout, self.acting)
        with seeded(self.seed, _STREAM, rank, int(self.iteration)):
            # Before the advantages: the policy does not see these moments, so its ratio stays 1.
            self.reward_scaler.observe(rollout.reward, rollout.family)
            if self.gradients == "joint":
                metrics = self._update_jointly(rollout)
            else:
                metrics = self._update_upper_levels(rollout, batch.replay)
                metrics |= self._update_actor_critic(rollout)
            # Only now: until here, learning saw what acting saw.
            self.policy.observe(rollout.observation, rollout.reward)
        self.iteration += 1
        self.env_steps += rollout.env_steps * world_size
        self._log(metrics | rollout_metrics(rollout, beliefs))

    def _update_upper_levels(self, rollout: Rollout, replay: TrajectoryReplay) -> Metrics:
        """High, then intermediate level, those that are present, and how far each moves the policy."""
        metrics: Metrics = {}
        if self.encoder_config:
            metrics |= self._update_task_encoder(replay, Movement(self.policy, rollout))
        if self.vae_config:
            metrics |= self._update_macro_vae(replay, Movement(self.policy, rollout, beliefs_stay=True))
        return metrics

    def _update_task_encoder(self, replay: TrajectoryReplay, moved: Movement) -> Metrics:
        """High level: gradient steps on replayed episodes."""
        config = self.encoder_config
        assert config is not None

        def loss(episodes: Trajectories) -> tuple[Tensor, Metrics]:
            reward = self._learning_reward(episodes)
            return task_encoder_loss(self.policy, episodes, reward, config, self.ppo, self.acting)

        return self._replayed("task_encoder", config, loss, replay, moved)

    def _update_macro_vae(self, replay: TrajectoryReplay, moved: Movement) -> Metrics:
        """Intermediate level: gradient steps on replayed episodes."""
        config = self.vae_config
        assert config is not None

        def loss(episodes: Trajectories) -> tuple[Tensor, Metrics]:
            return macro_vae_loss(self.policy, episodes, config, self.acting, len(self.families))

        return self._replayed("macro_vae", config, loss, replay, moved)

    def _replayed(
        self, level: str, config: Any, loss: LossFunction, replay: TrajectoryReplay, moved: Movement
    ) -> Metrics:
        """Collective. Gradient steps, until the policy has ``moved`` by the level's ``target_kl``."""
        log: list[Metrics] = []
        kl = torch.zeros((), device=self.device)
        for update in range(1, config.updates + 1):
            batch = replay.sample(share_of(config.trajectories)).to(self.device)
            log.append(self._descend({level: config.max_grad_norm}, loss, batch))
            if config.target_kl is not None or update == config.updates:
                kl = moved()
            if config.target_kl is not None and exceeds(kl, config.target_kl):
                break
        updates = torch.tensor(float(len(log)), device=self.device)
        return average(log) | {f"updates/{level}": updates, f"{_LOGGED_AS[level]}/policy_kl": kl}

    def _update_actor_critic(self, rollout: Rollout) -> Metrics:
        """Low level: PPO epochs on the fresh rollout."""
        ppo, policy = self.ppo, self.policy
        targets, metrics = ppo_samples(policy, rollout, self._learning_reward(rollout), ppo)
        samples = {k: v.flatten(0, 1) for k, v in targets.items()}

        def update(index: Tensor) -> Metrics:
            batch = {k: v[index] for k, v in samples.items()}
            norm = ppo.max_grad_norm
            actor = self._descend({"actor": norm}, lambda b: actor_loss(policy, b, ppo), batch)
            critic = self._descend({"critic": norm}, lambda b: critic_loss(policy, b), batch)
            return actor | critic

        return self._epochs(len(samples["action"]), update) | metrics

    def _update_jointly(self, rollout: Rollout) -> Metrics:
        """All levels at once: PPO epochs on whole trials of the fresh rollout, end to end."""
        policy, ppo, encoder, vae = self.policy, self.ppo, self.encoder_config, self.vae_config
        targets, metrics = ppo_samples(policy, rollout, self._learning_reward(rollout), ppo)
        trials = joint_batch(rollout, targets)
        limits: dict[str, Any] = {"actor": ppo, "critic": ppo, "task_encoder": encoder, "macro_vae": vae}
        norms = {level: config.max_grad_norm for level, config in limits.items() if config}

        def update(index: Tensor) -> Metrics:
            def loss(batch: JointBatch) -> tuple[Tensor, Metrics]:
                return joint_loss(policy, batch, encoder, vae, ppo, self.acting, len(self.families))

            return self._descend(norms, loss, trials.select(index))

        return self._epochs(len(rollout.family), update) | metrics

    def _epochs(self, count: int, update: Callable[[Tensor], Metrics]) -> Metrics:
        """Collective. PPO's passes over ``count`` samples, in random minibatches, until the KL stops them."""
        ppo = self.ppo
        epochs = 0
        log: list[Metrics] = []
        for _ in range(ppo.epochs):
            epochs, log = epochs + 1, []
            for index in torch.randperm(count).to(self.device).tensor_split(ppo.minibatches):
                log.append(update(index))
                self.policy.actor.project()
            if ppo.target_kl is not None and exceeds(average(log)["ppo/approx_kl"], ppo.target_kl):
                break
        return average(log) | {"ppo/epochs": torch.tensor(float(epochs), device=self.device)}

    def _learning_reward(self, episodes: Rollout | Trajectories) -> Tensor:
        """What returns are made of: scaled rewards and the agreement bonus. ``[T, B]``"""
        reward: Tensor = self.reward_scaler(episodes.reward, episodes.family)
        if self.ppo.agreement_bonus and self.vae_config:
            reward = reward + self.ppo.agreement_bonus * agreement(episodes.action, episodes.macro_action)
        return reward

    def _descend(
        self, max_grad_norm: Mapping[str, float], loss_function: LossFunction, batch: Minibatch
    ) -> Metrics:
        """Collective. One step of the levels that ``max_grad_norm`` names."""
        steps = {
            n: Step(self.policy.get_submodule(n), self._optimizer(n), norm)
            for n, norm in max_grad_norm.items()
        }
        self.policy.eval()  # dropout only in what learns: y is what it is when acting
        where = f"in iteration {int(self.iteration)}, after {int(self.env_steps):,} environment steps"
        return descend(self, steps, loss_function, batch, where)

    # --- logging ---------------------------------------------------------------------------------

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
        for name, (lr, decay) in self._rates.items():
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
        self.training_git = checkpoint.get("git")
        self.training_hparams = None if training else checkpoint["hyper_parameters"]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for each level that is present, and for actor and critic each."""
        return [
            adamw(self.policy.get_submodule(name), lr, weight_decay)
            for name, (lr, weight_decay) in self._rates.items()
        ]

    def _optimizer(self, name: str) -> LightningOptimizer:
        optimizers: Any = self.optimizers()
        chosen: LightningOptimizer = optimizers[list(self._rates).index(name)]
        return chosen
