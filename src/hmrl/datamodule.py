"""Rollouts as Lightning data: streamed from environments with the weights of the moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch

from hmrl.config import as_config
from hmrl.distributed import gather, rank_and_world_size, share_of, together
from hmrl.envs import Backend, benchmark, make_envs
from hmrl.envs.benchmarks import (
    ACTION_DIM,
    EGO_INDICES,
    GOALS_PER_FAMILY,
    HORIZON,
    OBSERVATION_DIM,
    BenchmarkName,
    Goals,
)
from hmrl.memory import give_back_memory, share_arenas
from hmrl.replay import TrajectoryReplay, deal
from hmrl.rollout import collect, seeded
from hmrl.stream import Batch, RolloutStream
from hmrl.types import Acting, Rollout, Split, TaskEnvs, UserError

# Independent streams of goals and of random numbers: what is drawn in one never depends on another.
# Learning (hmrl.module) has stream 1.
_TRAIN, _VALIDATION, _TEST = 0, 2, 3
_SPLITS: tuple[Split, Split] = ("train", "test")


@dataclass
class EvaluationConfig:
    """One way to evaluate.

    Args:
        goals: fixed goals a family; each gets one episode per mode.
        envs_per_family: environments that share them; must divide ``goals``.
        backend: simulator; None for the data module's own.
    """

    goals: int = 4
    envs_per_family: int = 4
    backend: Backend | None = None


def default_modes() -> dict[str, Acting]:
    """The two ways of acting that every evaluation reports."""
    return {"sampled": Acting(action="sample"), "mean_action": Acting(action="mean")}


class MetaWorldDataModule(pl.LightningDataModule):
    """Streams whole-episode rollouts from Meta-World; owns the environments and the replay.

    Args:
        benchmark: ML1, ML10, ML25, ML45 or custom.
        train_families, test_families: for ML1 (one, in train) and custom.
        backend: envpool, metaworld, or metaworld_async (a process an environment).
        envs_per_family: training environments a family, over all ranks.
        goals_per_family: fixed training goals a family, or None for a fresh goal every episode.
        horizon: simulator steps of an episode.
        replay_trajectories: episodes the replay remembers, over all ranks.
        validation, test: how to evaluate during and after training.
        modes: by name, the ways of acting that are evaluated.
        seed: of goals and of acting.
    """

    observation_dim = OBSERVATION_DIM
    action_dim = ACTION_DIM
    ego_indices = EGO_INDICES

    def __init__(
        self,
        benchmark: BenchmarkName = "ML10",
        train_families: Sequence[str] = (),
        test_families: Sequence[str] = (),
        backend: Backend = "envpool",
        envs_per_family: int = 10,
        goals_per_family: int | None = None,
        horizon: int = HORIZON,
        replay_trajectories: int = 1000,
        validation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
        test: EvaluationConfig = EvaluationConfig(50, 5, "metaworld"),  # noqa: B008
        modes: dict[str, Acting] | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        share_arenas()
        if envs_per_family < 1:
            raise UserError(f"data.envs_per_family is {envs_per_family}: use 1 or more")
        if not 1 <= horizon <= HORIZON:
            raise UserError(f"data.horizon is {horizon}: use 1 to {HORIZON}, the length of an episode")
        if goals_per_family is not None and goals_per_family < 1:
            raise UserError(
                f"data.goals_per_family is {goals_per_family}: use 1 or more, or null for fresh goals"
            )
        if replay_trajectories < 1:
            raise UserError(f"data.replay_trajectories is {replay_trajectories}: use 1 or more")
        if modes is not None and not modes:
            raise UserError("data.modes is {}: name one or more ways of acting, or null for the usual two")
        self.benchmark = _benchmark(benchmark, train_families, test_families)
        self.backend: Backend = backend
        self.envs_per_family, self.goals_per_family = envs_per_family, goals_per_family
        self.horizon, self.seed = horizon, seed
        self.validation = as_config(EvaluationConfig, validation)
        self.test = as_config(EvaluationConfig, test)
        self.modes = {k: as_config(Acting, v) for k, v in (modes or default_modes()).items()}
        self.save_hyperparameters(
            {
                "benchmark": benchmark,
                "train_families": list(train_families),
                "test_families": list(test_families),
                "backend": backend,
                "envs_per_family": envs_per_family,
                "goals_per_family": goals_per_family,
                "horizon": horizon,
                "replay_trajectories": replay_trajectories,
                "validation": asdict(self.validation),
                "test": asdict(self.test),
                "modes": {k: asdict(v) for k, v in self.modes.items()},
                "seed": seed,
            },
            logger=False,
        )
        if seed < 0:
            raise UserError(f"seed_everything is {seed}: use 0 or more")
        evaluations = {"validation": self.validation, "test": self.test}
        for name, e in evaluations.items():
            if e.goals < 1 or e.envs_per_family < 1 or e.goals % e.envs_per_family:
                raise UserError(
                    f"data.{name}.goals is {e.goals} and data.{name}.envs_per_family is {e.envs_per_family}: "
                    "use 1 or more, and goals that divide over them, so that every goal counts once"
                )
        fixed = [(f"{n}.goals", e.goals, e.backend) for n, e in evaluations.items()]
        for key, count, which in [*fixed, ("goals_per_family", goals_per_family or 0, None)]:
            if (which or backend) != "envpool" and count > GOALS_PER_FAMILY:
                raise UserError(
                    f"data.{key} is {count}, but Meta-World has {GOALS_PER_FAMILY} goals a family: "
                    "use no more, or the envpool backend"
                )
        self._replay_trajectories = replay_trajectories
        self.replay = TrajectoryReplay(replay_trajectories)
        self._envs: TaskEnvs | None = None

    @property
    def families(self) -> tuple[str, ...]:
        """Training families: what the module's per-family statistics are about."""
        return self.benchmark.train

    def check(self, stage: str, world_size: int) -> None:
        """Refuse early what could not be built.

        Raises:
            UserError: if environments do not divide over the processes.
        """
        name = "test" if stage == "test" else "validation"
        counts = {f"{name}.envs_per_family": getattr(self, name).envs_per_family}
        if stage == "fit":
            counts["envs_per_family"] = self.envs_per_family
        for key, count in counts.items():
            if count % world_size:
                raise UserError(
                    f"data.{key} is {count}, which does not divide over {world_size} processes: "
                    f"use a multiple of {world_size}"
                )

    def setup(self, stage: str) -> None:
        """Check, and give each rank its share of the replay."""
        self.check(stage, rank_and_world_size()[1])
        if stage == "fit":
            self.replay.capacity = share_of(self._replay_trajectories)

    def make_envs(self, backend: Backend, goals: Goals, envs_per_family: int) -> TaskEnvs:
        """This rank's environments; another world than Meta-World overrides this method."""
        rank, world_size = rank_and_world_size()
        return make_envs(
            backend,
            self.benchmark,
            goals,
            envs_per_family,
            horizon=self.horizon,
            rank=rank,
            world_size=world_size,
        )

    # --- streams ---------------------------------------------------------------------------------

    def train_dataloader(self) -> RolloutStream[Batch]:
        """One rollout an epoch, collected with the weights that the last iteration left."""
        if int(self._module.iteration) and not self.replay.size and rank_and_world_size()[0] == 0:
            print(f"the checkpoint holds no replay of {type(self).__name__}: it starts empty")
        return RolloutStream(1, lambda _: self._draw_training())

    def val_dataloader(self) -> list[RolloutStream[Rollout]]:
        """Train families, then test families, in every mode."""
        return [self._evaluation(split, self.validation, _VALIDATION) for split in _SPLITS]

    def test_dataloader(self) -> list[RolloutStream[Rollout]]:
        """Train families, then test families, in every mode."""
        return [self._evaluation(split, self.test, _TEST) for split in _SPLITS]

    def _draw_training(self) -> Batch:
        give_back_memory()
        iteration = int(self._module.iteration)  # the episode's number, too: it resumes with the weights
        with together():
            if self._envs is None:
                goals = Goals("train", self.seed, self.goals_per_family, _TRAIN)
                self._envs = self.make_envs(self.backend, goals, self.envs_per_family)
            rollout = self._collect(
                self._envs, (_TRAIN, iteration), iteration, self._module.acting, "train", "training"
            )
            self.replay.append(rollout)
        return Batch(rollout, self.replay)

    def _evaluation(self, split: Split, config: EvaluationConfig, stream: int) -> RolloutStream[Rollout]:
        # Fixed training goals are the benchmark's goals, so evaluation means the same ones.
        fixed = self.goals_per_family
        goals = Goals(split, self.seed, min(fixed or config.goals, config.goals), _TRAIN if fixed else stream)
        rounds = config.goals // config.envs_per_family
        modes = list(self.modes.items())
        envs: list[TaskEnvs] = []

        def draw(i: int) -> Rollout:
            (name, acting), episode = modes[i // rounds], i % rounds
            with together():
                if not envs:
                    backend = config.backend or self.backend
                    envs.append(self.make_envs(backend, goals, config.envs_per_family))
                key = (stream, int(split == "test"), i)
                return self._collect(envs[0], key, episode, acting, split, name)

        def close() -> None:
            while envs:
                envs.pop().close()

        return RolloutStream(len(modes) * rounds, draw, close)

    def _collect(
        self, envs: TaskEnvs, key: tuple[int, ...], episode: int, acting: Acting, split: Split, mode: str
    ) -> Rollout:
        module, (rank, _) = self._module, rank_and_world_size()
        stream, *rest = key
        with seeded(self.seed, stream, rank, *rest):
            return collect(
                envs,
                module.policy,
                episode=episode,
                acting=acting,
                families=self.benchmark.families(split),
                split=split,
                mode=mode,
                device=module.device,
            )

    @property
    def _module(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module

    # --- Lightning -------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Rollouts go to the learner's device; the replay stays on the CPU and is sampled from there."""
        if isinstance(batch, Batch):
            return Batch(batch.rollout.to(device), batch.replay)
        return batch.to(device)

    def teardown(self, stage: str) -> None:
        """Free the simulators."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    def state_dict(self) -> dict[str, Any]:
        """Collective. Every rank's replay."""
        return {"replays": gather(self.replay.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave: each rank its own replay, or its share of all."""
        rank, world_size = rank_and_world_size()
        replays = state_dict["replays"]
        if len(replays) == world_size:
            self.replay.load_state_dict(replays[rank])
            return
        self.replay.load_state_dict(deal(replays, rank, world_size))
        if rank == 0:
            print(
                f"the checkpoint was written by {len(replays)} process(es) and is continued by {world_size}: "
                "weights, optimizers, normaliser and replay are kept, but the run will not be bit-equal to "
                "one with the same number throughout"
            )


_benchmark = benchmark  # the constructor has an argument of that name
