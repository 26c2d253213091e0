"""The schedule of one iteration: three levels, each trained on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from hmrl.himeta.average_beliefs import AverageBeliefs
from hmrl.himeta.config import ActorCriticConfig, Gradients, MacroVAEConfig, PPOConfig, TaskEncoderConfig
from hmrl.himeta.diagnostics import Movement, average, beliefs_of, rollout_metrics
from hmrl.himeta.formulas import agreement
from hmrl.himeta.losses import (
    actor_loss,
    critic_loss,
    joint_batch,
    joint_loss,
    macro_vae_loss,
    ppo_samples,
    task_encoder_loss,
)
from hmrl.himeta.normalizer import GoalScaler, RewardScaler
from hmrl.himeta.policy import build_policy
from hmrl.results.file import digest
from hmrl.rollouts.collect import seeded
from hmrl.rollouts.replay import TrajectoryReplay
from hmrl.rollouts.stream import Batch
from hmrl.system.distributed import exceeds, gather, rank_and_world_size, share_of, sum_over_ranks
from hmrl.system.errors import SharedError, UserError
from hmrl.system.rules import as_config
from hmrl.system.terminal import is_first_process
from hmrl.training.checkpoint import env_steps_of, load
from hmrl.training.compatibility import (
    PARTS,
    check_deviations,
    check_frozen,
    check_gaps,
    check_goals,
    check_goals_shown,
    check_levels,
    check_network,
    check_rollout,
    check_settings,
)
from hmrl.training.descent import descents
from hmrl.types import Acting, Gap, Metrics, Rollout, Trajectories

_OF_FAMILIES = ("reward_scaler.", "goal_scaler.")  # what is about training families, and only to learn from
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
            (:mod:`hmrl.himeta.losses`). An ablation, and how recurrent PPO is trained.
        frozen: which of task_encoder, macro_vae, actor and critic keep the weights that they begin with
            (:meth:`init_from`). With any of them the normaliser keeps its moments, too: they are part of what
            the levels compute.
        task_encoder, macro_vae: high and intermediate level; None leaves one out.
        actor_critic: low level's networks.
        ppo: low level's learning.
        close_up: the networks also see ``gaps``, magnified (:class:`hmrl.types.Gap`).
        gaps: differences of an observation's entries that the world names.
        goal_dim: width of the goals that the critic is told of (``actor_critic.critic_input``) and that the
            belief has to predict (``task_encoder.goal_coef``), if so.
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
        frozen: Sequence[str] = (),
        task_encoder: TaskEncoderConfig | None = TaskEncoderConfig(),  # noqa: B008
        macro_vae: MacroVAEConfig | None = MacroVAEConfig(),  # noqa: B008
        actor_critic: ActorCriticConfig = ActorCriticConfig(),  # noqa: B008
        ppo: PPOConfig = PPOConfig(),  # noqa: B008
        acting: Acting = Acting(),  # noqa: B008
        close_up: bool = True,
        gaps: Sequence[Gap] = (),
        goal_dim: int = 0,
        seed: int = 1,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.automatic_optimization = False
        self.families, self.seed = tuple(families), seed
        self.training_seed: int | None = None  # of the checkpoint that is evaluated
        self.training_git: dict[str, Any] | None = None  # the source that trained it
        self.training_hparams: Mapping[str, Any] | None = None  # its own
        self._loaded: Mapping[str, Any] | None = None  # what check_deviations must know of it
        self.initial: dict[str, Any] | None = None  # of fine-tuning: the results file's entry init_from
        self._left: dict[str, Tensor] = {}  # of its weights, what other families have no use for
        self.encoder_config = as_config(TaskEncoderConfig, task_encoder) if task_encoder else None
        self.vae_config = as_config(MacroVAEConfig, macro_vae) if macro_vae else None
        self.network_config = as_config(ActorCriticConfig, actor_critic)
        self.ppo = as_config(PPOConfig, ppo)
        self.acting = as_config(Acting, acting)
        self.critic_is_told, self._goal_dim = self.network_config.critic_input == "task", goal_dim
        predicts_goals = bool(self.encoder_config and self.encoder_config.goal_coef)
        self.uses_goals = self.critic_is_told or predicts_goals
        self.gradients: Gradients = gradients
        self._settings = descents(self.encoder_config, self.vae_config, self.ppo)
        check_levels(gradients, self.encoder_config, self.vae_config, self.ppo, self.acting)
        check_frozen(frozen, {"task_encoder", "macro_vae"} - self._settings.keys())
        self.frozen = tuple(level for level in PARTS if level in frozen)
        for level in self.frozen:
            del self._settings[level]
        configs: dict[str, Any] = {
            "task_encoder": self.encoder_config,
            "macro_vae": self.vae_config,
            "actor_critic": self.network_config,
            "ppo": self.ppo,
            "acting": self.acting,
        }
        arguments |= {name: asdict(config) if config else None for name, config in configs.items()}
        gaps = [Gap(*gap) for gap in gaps] if close_up else []
        lists = {"families": families, "ego_indices": ego_indices, "frozen": self.frozen}
        arguments |= {name: list(values) for name, values in lists.items()}
        arguments["gaps"] = [list(gap) for gap in gaps]
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
            families=len(self.families),
            goal_dim=goal_dim,
            gaps=gaps,
        )
        for level in self.frozen:
            self.policy.get_submodule(level).requires_grad_(False)
        self.reward_scaler = RewardScaler(self.ppo.reward_scale, self.ppo.gamma, len(self.families))
        self.goal_scaler = GoalScaler(goal_dim if predicts_goals else 0, len(self.families))
        self.average_beliefs = AverageBeliefs(len(self.families))
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    # --- one iteration ---------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration of HiMeta, after the rollout: each level learns on its own, from the top down.

        The normaliser moves last: until then, learning sees what acting saw.
        """
        rollout, replay = batch.rollout, batch.replay
        check_rollout(self.ppo, self.vae_config, self.gradients, self.acting, *rollout.reward.shape)
        check_goals(self.uses_goals, self._goal_dim, rollout.hidden_goal.shape[1])
        rank, world_size = rank_and_world_size()
        beliefs = beliefs_of(self.policy, rollout, self.acting)
        with seeded(self.seed, _STREAM, rank, int(self.iteration)):
            # Before the advantages: the policy does not see these moments, so its ratio stays 1.
            self.reward_scaler.observe(rollout.reward, rollout.family)
            self.goal_scaler.observe(rollout.hidden_goal, rollout.family)
            if self.gradients == "joint":
                metrics = self._update_jointly(rollout)
            else:
                metrics = self._update_task_encoder(replay, rollout)
                metrics |= self._update_macro_vae(replay, rollout)
                metrics |= self._update_actor_critic(rollout)
            if not self.frozen:
                self.policy.observe(rollout.observation, rollout.reward, rollout.hidden_goal)
        if self.policy.task_encoder:
            self.average_beliefs.update(rollout)
        self.iteration += 1
        self.env_steps += rollout.env_steps * world_size
        self._log(metrics | rollout_metrics(rollout, beliefs))

    def _update_task_encoder(self, replay: TrajectoryReplay, rollout: Rollout) -> Metrics:
        """High level: the belief y, on replayed episodes, from their values and rewards."""
        config, log = self.encoder_config, list[Metrics]()
        if config is None or "task_encoder" in self.frozen:
            return {}
        moved = Movement(self.policy, rollout)
        for episodes in self._replayed(replay, config, moved):
            with self._learning("task_encoder"):
                reward = self._learning_reward(episodes)
                goal = self.goal_scaler(episodes.hidden_goal, episodes.family)
                loss, seen = task_encoder_loss(
                    self.policy, episodes, reward, config, self.ppo, self.acting, goal
                )
                log.append(seen | self._descend(loss, "task_encoder"))
        return average(log) | {"updates/task_encoder": self._number(len(log)), "encoder/policy_kl": moved.kl}

    def _update_macro_vae(self, replay: TrajectoryReplay, rollout: Rollout) -> Metrics:
        """Intermediate level: the macro-action z, on replayed episodes, by imputation."""
        config, log = self.vae_config, list[Metrics]()
        if config is None or "macro_vae" in self.frozen:
            return {}
        moved = Movement(self.policy, rollout, beliefs_stay=True)
        for episodes in self._replayed(replay, config, moved):
            with self._learning("macro_vae"):
                loss, seen = macro_vae_loss(self.policy, episodes, config, self.acting, len(self.families))
                log.append(seen | self._descend(loss, "macro_vae"))
        return average(log) | {"updates/macro_vae": self._number(len(log)), "vae/policy_kl": moved.kl}

    def _update_actor_critic(self, rollout: Rollout) -> Metrics:
        """Low level: PPO on the decisions of the fresh rollout."""
        policy, ppo, log = self.policy, self.ppo, list[Metrics]()
        targets, metrics = ppo_samples(policy, rollout, self._learning_reward(rollout), ppo)
        samples = {k: v.flatten(0, 1) for k, v in targets.items()}
        for epoch, index in self._minibatches(len(samples["action"]), log):
            batch = {k: v[index] for k, v in samples.items()}
            seen: Metrics = {"ppo/epochs": self._number(epoch)}
            if "actor" not in self.frozen:
                with self._learning("actor"):
                    loss, of_actor = actor_loss(policy, batch, ppo)
                    seen |= of_actor | self._descend(loss, "actor")
            if "critic" not in self.frozen:
                with self._learning("critic"):
                    loss, of_critic = critic_loss(policy, batch)
                    seen |= of_critic | self._descend(loss, "critic")
            log.append(seen)
        return average(log) | metrics

    def _update_jointly(self, rollout: Rollout) -> Metrics:
        """All levels at once, end to end: PPO on whole trials of the fresh rollout."""
        log = list[Metrics]()
        targets, metrics = ppo_samples(self.policy, rollout, self._learning_reward(rollout), self.ppo)
        trials = joint_batch(rollout, targets)
        configs = self.encoder_config, self.vae_config, self.ppo
        for epoch, index in self._minibatches(len(rollout.family), log):
            with self._learning(*self._settings):
                loss, seen = joint_loss(
                    self.policy, trials.select(index), *configs, self.acting, len(self.families)
                )
                seen |= self._descend(loss, *self._settings)
            log.append(seen | {"ppo/epochs": self._number(epoch)})
        return average(log) | metrics

    # --- its parts -------------------------------------------------------------------------------

    def _replayed(
        self, replay: TrajectoryReplay, config: TaskEncoderConfig | MacroVAEConfig, moved: Movement
    ) -> Iterator[Trajectories]:
        """Collective. Batches for a level's updates, until the policy has ``moved`` by its ``target_kl``.

        It is asked after every other update: to ask costs half as much as an update.
        """
        for update in range(1, config.updates + 1):
            yield replay.sample(share_of(config.trajectories)).to(self.device)
            last = update == config.updates
            if last or (config.target_kl is not None and update % 2 == 0):
                moved.measure()
                if config.target_kl is not None and exceeds(moved.kl, config.target_kl):
                    return

    def _minibatches(self, count: int, log: list[Metrics]) -> Iterator[tuple[int, Tensor]]:
        """Collective. Passes over ``count`` samples in random minibatches, until the KL stops them.

        Args:
            log: what the updates of the present pass have said; emptied before each.

        Yields:
            The number of the pass, from 1, and the minibatch's indices.
        """
        limit, learns = self.ppo.target_kl, "actor" not in self.frozen
        moves = learns or self.gradients == "joint"  # through y and z, too
        for epoch in range(1, self.ppo.epochs + 1):
            log.clear()
            for index in torch.randperm(count).to(self.device).tensor_split(self.ppo.minibatches):
                yield epoch, index
                if learns:
                    self.policy.actor.project()
            if moves and limit is not None and exceeds(average(log)["ppo/approx_kl"], limit):
                return

    def _learning_reward(self, episodes: Rollout | Trajectories) -> Tensor:
        """What returns are made of: scaled rewards and the agreement bonus. ``[T, B]``"""
        reward: Tensor = self.reward_scaler(episodes.reward, episodes.family)
        if self.ppo.agreement_bonus and self.vae_config:
            reward = reward + self.ppo.agreement_bonus * agreement(episodes.action, episodes.macro_action)
        return reward

    @contextmanager
    def _learning(self, *levels: str) -> Iterator[None]:
        """Where a loss is made and descended: a single level learns with every other parameter constant.

        Dropout is only in what learns: y is what it is when acting.
        """
        for name, part in self.policy.named_children():
            if part.training != (name in levels):  # to ask is cheaper than to switch
                part.train(name in levels)
        with self.toggled_optimizer(self._optimizer(levels[0])) if len(levels) == 1 else nullcontext():
            yield

    def _descend(self, loss: Tensor, *levels: str) -> Metrics:
        """Collective. Zero, backward, clip, step.

        Raises:
            SharedError: before the step, if the loss or a gradient is not finite on any rank.
        """
        optimizers = [self._optimizer(level) for level in levels]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        norms = {
            level: clip_grad_norm_(
                self.policy.get_submodule(level).parameters(), self._settings[level].max_grad_norm
            )
            for level in levels
        }
        finite = torch.isfinite(torch.stack([loss.detach(), *norms.values()])).all()
        if sum_over_ranks((~finite).float()) > 0:
            sizes = ", ".join(f"{float(norm):.3g}" for norm in norms.values())
            said = f"loss {float(loss):.3g}, gradient norm {sizes}"
            _, said = next(x for x in gather((bool(finite), said)) if not x[0])
            raise SharedError(
                f"the loss or gradient of level {' and '.join(levels)} is not finite in iteration "
                f"{int(self.iteration)}, after {int(self.env_steps):,} environment steps ({said}); nothing "
                "was changed by it: continue from the last checkpoint with a lower learning rate or "
                "max_grad_norm"
            )
        for optimizer in optimizers:
            optimizer.step()
        return {f"grad_norm/{level}": norm.detach() for level, norm in norms.items()}

    def _optimizer(self, level: str) -> LightningOptimizer:
        optimizers: Any = self.optimizers()  # of one, Lightning makes no list
        chosen: LightningOptimizer = (
            optimizers[list(self._settings).index(level)] if len(self._settings) > 1 else optimizers
        )
        return chosen

    # --- fine-tuning -----------------------------------------------------------------------------

    def init_from(self, path: str | Path) -> None:
        """Begin from another run's weights: networks and normaliser are taken over, the rest begins anew.

        Anew are optimizers, replay, scalers of rewards and goals, environment steps, iterations; and, where
        families are others, a critic that is told the family (``critic_input: task``).

        Args:
            path: a checkpoint or weights-only export.

        Raises:
            UserError: naming what does not fit, before anything is changed.
        """
        checkpoint = load(path, key="init_from")
        saved, anew = checkpoint["hyper_parameters"], [*_OF_FAMILIES, "env_steps", "iteration"]
        try:
            check_settings(saved)
            others = list(saved["families"]) != list(self.families)
            if told_others := self.critic_is_told and others:
                anew.append("policy.critic.")
                if "critic" in self.frozen:
                    raise UserError(
                        "the critic is told other families and begins anew: leave it out of model.frozen"
                    )
            world = checkpoint.get("datamodule_hyper_parameters", {})
            if world.get("families_shown") and others:
                raise UserError(
                    "its agent was shown the number of its training family (data.families_shown), and here "
                    "families are others: begin from one that was not"
                )
            initial = {
                "path": str(path),
                "weights": digest(checkpoint["state_dict"]),
                "env_steps": env_steps_of(checkpoint),
                **{key: saved[key] for key in ("seed", "families")},
                "goals_shown": world.get("goals_shown", False),
                **{key: checkpoint.get(key) for key in ("git", "init_from")},
            }
            self._keep_own(checkpoint, anew)
            check_network(checkpoint, self, training=False)
            check_deviations(checkpoint, [self.acting], training=False)
        except UserError as error:
            raise UserError(f"init_from is {path}: {error}") from error
        self.load_state_dict(checkpoint["state_dict"])
        self.initial = initial
        if told_others and is_first_process():
            print("the critic begins anew: it is told the family, and the families are others")

    def check_frozen_have_learnt(self) -> None:
        """Refuse to train around levels whose weights are random, and would stay so."""
        if self.frozen and not (self.initial or self._loaded):
            raise UserError(
                f"model.frozen is {list(self.frozen)}, but nothing has learnt their weights: begin from a "
                "checkpoint with --init_from (in Python: module.init_from)"
            )

    def _keep_own(self, checkpoint: dict[str, Any], prefixes: Sequence[str]) -> None:
        own = {k: v for k, v in self.state_dict().items() if k.startswith(tuple(prefixes))}
        checkpoint["state_dict"] |= own

    # --- logging ---------------------------------------------------------------------------------

    def _number(self, value: int) -> Tensor:
        return torch.tensor(float(value), device=self.device)

    def _log(self, metrics: Mapping[str, Tensor]) -> None:
        """Collective. Log rank means by environment steps; float64, as float32 miscounts above 16 million."""
        values = {**metrics, "step": self.env_steps.double()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    # --- Lightning -------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Hand the rollout on: callbacks score it."""
        return batch

    test_step = validation_step

    def on_fit_start(self) -> None:
        """Refuse what :func:`check_deviations` refuses, however the weights were loaded."""
        training = self.trainer.state.fn == "fit"
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if training:
            self.check_frozen_have_learnt()
            check_goals(self.uses_goals, self._goal_dim, getattr(data, "goal_dim", self._goal_dim))
            seen = self.hparams["gaps"]
            check_gaps(self.hparams["close_up"], seen, getattr(data, "gaps", seen))
            check_goals_shown(self.initial, getattr(data, "goals_shown", None))
        if self._loaded:
            check_deviations(self._loaded, getattr(data, "modes", {}).values(), training=training)

    on_validation_start = on_test_start = on_fit_start

    def on_train_start(self) -> None:
        """A resumed run learns at the rates it is given, not at those of the checkpoint."""
        self._left = {}
        for level, chosen in self._settings.items():
            for group in self._optimizer(level).param_groups:
                group["lr"], group["weight_decay"] = chosen.lr, chosen.weight_decay

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the average beliefs, and what training began from, beside the networks."""
        if self.policy.task_encoder:
            checkpoint["average_beliefs"] = self.average_beliefs.state_dict()
        if self.initial:
            checkpoint["init_from"] = self.initial

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network; on another benchmark's families, keep this model's reward scale.

        Raises:
            UserError: naming the settings that differ.
        """
        training, self._left = self._trainer is not None and self.trainer.state.fn == "fit", {}
        if "close_up" not in checkpoint["hyper_parameters"]:
            self.hparams["close_up"] = False  # older networks have none
        if not training and list(checkpoint["hyper_parameters"]["families"]) != list(self.families):
            learning = [*_OF_FAMILIES]
            if self.critic_is_told:
                learning.append("policy.critic.")
            replaced = tuple(learning)
            self._left = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith(replaced)}
            self._keep_own(checkpoint, learning)
        check_network(checkpoint, self, training=training)
        if "average_beliefs" in checkpoint:
            self.average_beliefs.load_state_dict(checkpoint["average_beliefs"])
        self._loaded = {key: checkpoint[key] for key in ("format", "hyper_parameters") if key in checkpoint}
        self.training_seed = checkpoint["hyper_parameters"]["seed"]
        self.training_git, self.initial = checkpoint.get("git"), checkpoint.get("init_from")
        self.training_hparams = None if training else checkpoint["hyper_parameters"]

    def trained_state(self) -> dict[str, Tensor]:
        """Parameters and buffers by name: all of the checkpoint's, whatever families are evaluated."""
        return self.state_dict() | self._left

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for each level that learns, and for actor and critic each; a step is one kernel."""
        return [
            torch.optim.AdamW(
                self.policy.get_submodule(level).parameters(), lr=lr, weight_decay=weight_decay, fused=True
            )
            for level, (lr, weight_decay, _) in self._settings.items()
        ]
