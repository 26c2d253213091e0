"""Rollouts as Lightning data: streamed from environments with the weights of the moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from hmrl.envs import Backend, Benchmark, benchmark, make_envs
from hmrl.envs.benchmarks import HORIZON, BenchmarkName, EgoState, Goals, same_goals, world_of
from hmrl.envs.wrappers.perturb import Perturbation, PerturbedEnvs, sensors_of
from hmrl.envs.wrappers.shown import HiddenGoals, ShownFamilies
from hmrl.evaluation.evaluator import Evaluated, Evaluator
from hmrl.evaluation.protocols import EvaluationConfig, MetaWorldConfig, default_modes
from hmrl.himeta.average_beliefs import AverageBeliefs
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.rollouts.collector import Collector
from hmrl.rollouts.replay import TrajectoryReplay, check_capacity, deal
from hmrl.rollouts.stream import Batch, RolloutStream
from hmrl.system.distributed import gather, rank_and_world_size, share_of
from hmrl.system.errors import UserError
from hmrl.system.memory import keep_heaps_small
from hmrl.system.rules import as_config
from hmrl.training.curriculum import CurriculumConfig, Schedule
from hmrl.types import Acting, Split, TaskEnvs

# Independent streams of goals and of random numbers: what is drawn in one never depends on another.
# Learning (hmrl.training.module) has stream 1.
_TRAIN, _VALIDATION, _TEST = 0, 2, 3
# What an agent's world is, and hence what its success means. Families may be others.
# Attributes that are arguments of the model.
OF_WORLD = ("families", "observation_dim", "action_dim", "ego_indices", "goal_dim", "gaps")
_WORLD = ("goals_per_family", "goals_shown", "families_shown", "horizon", "episodes_per_trial", "ego_state")


class Learner(Protocol):
    """The module that is trained: who acts and how, how far it has come, and what its critic knows.

    ``average_beliefs`` are those of training families.
    """

    policy: HierarchicalPolicy
    uses_goals: bool
    acting: Acting
    average_beliefs: AverageBeliefs
    iteration: Tensor
    env_steps: Tensor


class MetaWorldDataModule(pl.LightningDataModule):
    """Streams whole-episode rollouts from Meta-World; owns the environments and the replay.

    Another world overrides :meth:`describe` and :meth:`make_envs`; its backend is ``own``. A model is
    given its ``sizes``.

    Args:
        benchmark: ML1, ML10, ML25, ML45 or custom; or GridWorld or GridWorldLarge.
        train_families, test_families: for ML1 (one, in train) and custom.
        backend: envpool, metaworld, or metaworld_async (a process an environment); gridworld for its own;
            own for those of a subclass.
        envs_per_family: training environments a family, over all ranks.
        goals_per_family: fixed training goals a family, or None for a fresh goal every episode.
        goals_shown, families_shown: the agent sees the goal, or which training family it is: upper bounds.
        horizon: simulator steps of an episode.
        episodes_per_trial: of training: episodes in a row on one goal, with memory kept from one to the next.
        replay_trajectories: most trials that the replay remembers, in whole rollouts, over all ranks.
        curriculum: training families in blocks; None for all of them all the time.
        perturbation: of what agents see, do and earn, in training and, unless it has its own, in evaluation.
        validation, test: how to evaluate during and after training.
        meta_world: of evaluations by the protocol ``meta_world``.
        modes: by name, the ways of acting that are evaluated.
        ego_state: observation dimensions that macro-actions are about: the body's own (``ego``), all but
            the hidden goal's (``everything``), or the ``other`` ones among these.
        seed: of goals and of acting.
    """

    def __init__(
        self,
        benchmark: BenchmarkName = "ML10",
        train_families: Sequence[str] = (),
        test_families: Sequence[str] = (),
        backend: Backend = "envpool",
        envs_per_family: int = 10,
        goals_per_family: int | None = None,
        goals_shown: bool = False,
        families_shown: bool = False,
        horizon: int = HORIZON,
        episodes_per_trial: int = 1,
        replay_trajectories: int = 1000,
        curriculum: CurriculumConfig | None = None,
        perturbation: Perturbation = Perturbation(),  # noqa: B008
        validation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
        test: EvaluationConfig = EvaluationConfig(50, 5, "metaworld"),  # noqa: B008
        meta_world: MetaWorldConfig = MetaWorldConfig(),  # noqa: B008
        modes: dict[str, Acting] | None = None,
        ego_state: EgoState = "ego",
        seed: int = 1,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        keep_heaps_small()
        for name in ("envs_per_family", "episodes_per_trial", "replay_trajectories", "goals_per_family"):
            if arguments[name] is not None and arguments[name] < 1:
                raise UserError(f"data.{name} is {arguments[name]}: use 1 or more")
        if seed < 0:
            raise UserError(f"seed_everything is {seed}: use 0 or more")
        if modes is not None and not modes:
            raise UserError("data.modes is {}: name one or more ways of acting, or null for the usual two")
        self.backend: Backend = backend
        self.envs_per_family, self.goals_per_family = envs_per_family, goals_per_family
        self.goals_shown, self.families_shown = goals_shown, families_shown
        self.horizon, self.episodes_per_trial, self.seed = horizon, episodes_per_trial, seed
        self.perturbation = as_config(Perturbation, perturbation)
        self.curriculum = None if curriculum is None else as_config(CurriculumConfig, curriculum)
        self.validation = as_config(EvaluationConfig, validation)
        self.test = as_config(EvaluationConfig, test)
        self.meta_world = as_config(MetaWorldConfig, meta_world)
        self.modes = {k: as_config(Acting, v) for k, v in (modes or default_modes()).items()}

        self.benchmark = self.describe(benchmark, train_families, test_families)
        self.benchmark.check_backend("data.backend", backend)
        self.benchmark.check_horizon("data.horizon", horizon)
        self.benchmark.check_goals("data.goals_per_family", goals_per_family or 1, backend)
        self.perturbation.check("data.perturbation")
        shown = [key for key in ("goals_shown", "families_shown") if arguments[key]]
        trained = backend, goals_per_family, self.perturbation
        self.validation.check("data.validation", self.benchmark, *trained, shown)
        self.test.check("data.test", self.benchmark, *trained, shown)

        world, self.families = self.benchmark.world, self.benchmark.train
        self.sensors = sensors_of(world.observation_dim)
        appended = self.perturbation.missing.mask_width(self.sensors)
        appended += len(self.families) if families_shown else 0
        self.observation_dim, self.action_dim = world.observation_dim + appended, world.action_dim
        self.ego_indices, self.goal_dim = world.decoded(ego_state), len(world.goal_indices)
        self.gaps = world.gaps
        self.schedule: Schedule | None = None
        if self.curriculum:
            steps = horizon * episodes_per_trial
            self.schedule = self.curriculum.schedule(self.families, envs_per_family, steps)

        for name in ("perturbation", "validation", "test", "meta_world"):
            arguments[name] = asdict(getattr(self, name))
        arguments["modes"] = {k: asdict(v) for k, v in self.modes.items()}
        arguments["curriculum"] = self.curriculum and asdict(self.curriculum)
        arguments |= {"train_families": list(train_families), "test_families": list(test_families)}
        arguments["benchmark"] = self.benchmark.name
        self.save_hyperparameters(arguments, logger=False)  # plain values: a checkpoint loads without code
        self._replay_trajectories = replay_trajectories
        self.replay = TrajectoryReplay(replay_trajectories)
        trial = {"seed": seed, "stream": _TRAIN, "episodes": episodes_per_trial}
        self._collector = Collector(self._training_envs, self.replay, self.families, **trial)

    def describe(self, name: BenchmarkName, train: Sequence[str], test: Sequence[str]) -> Benchmark:
        """Families of both splits, and the sizes of observations and actions; called by the constructor.

        Another world than Meta-World overrides this method, as with
        ``Benchmark("maze", ("left",), ("right",), World(6, 2, ego_indices=(0, 1)))``.
        """
        return benchmark(name, train, test)

    def check(self, stage: str, world_size: int) -> None:
        """Refuse early what could not be built, or would not divide over the processes or fit the replay."""
        key, config = ("data.test", self.test) if stage == "test" else ("data.validation", self.validation)
        if stage == "fit":
            self.benchmark.check_installed("data.backend", self.backend)
            check_capacity(self._replay_trajectories, len(self.families) * self.envs_per_family)
            if self.schedule:
                self.schedule.check(world_size)
            _check_share("data.envs_per_family", self.envs_per_family, world_size)
        self.benchmark.check_installed(f"{key}.backend", config.backend or self.backend)
        if config.protocol == "meta_world":
            splits = self.benchmark.train, self.benchmark.test
            self.meta_world.check(key, config.agent, self.modes, splits, world_size)
        _check_share(f"{key}.envs_per_family", config.envs_per_family, world_size)

    def check_world(self, checkpoint: Mapping[str, Any], evaluation: EvaluationConfig) -> None:
        """Refuse to evaluate an agent as if it had been trained in another world, or on other goals.

        Args:
            checkpoint: as it was loaded; what it does not say is not compared.
            evaluation: which of the two.
        """
        there, trained = checkpoint.get("datamodule_hyper_parameters") or {}, checkpoint["hyper_parameters"]
        pairs = {f"data.{key}": (there[key], self.hparams[key]) for key in _WORLD if key in there}
        if "benchmark" in there and world_of(there["benchmark"]) != self.benchmark.world:
            pairs["data.benchmark"] = (there["benchmark"], self.benchmark.name)
        as_trained = evaluation.perturbation is None
        if self.goals_per_family is not None or (as_trained and self.perturbation.over_training()):
            pairs["seed_everything"] = trained["seed"], self.seed  # it draws goals, and the world's course
        backend = there.get("backend", self.backend)
        if self.goals_per_family is not None and not same_goals(backend, self.backend):
            pairs["data.backend"] = (backend, self.backend)
        if as_trained and "perturbation" in there:
            saved = asdict(as_config(Perturbation, there["perturbation"]))
            pairs["data.perturbation"] = (saved, asdict(self.perturbation))
        if self.families_shown:
            pairs["the order of families"] = (list(trained["families"]), list(self.families))
        found = [f"{key} is {a!r} there and {b!r} here" for key, (a, b) in pairs.items() if a != b]
        if found:
            raise UserError(
                f"the checkpoint was trained in another world: {'; '.join(found)}; give the overlays and the "
                "seed it was trained with (what is to differ in evaluation alone is set under data.test)"
            )

    def setup(self, stage: str) -> None:
        """Check, and give each rank its share of the replay."""
        self.check(stage, rank_and_world_size()[1])
        if stage == "fit":
            self.replay.capacity = share_of(self._replay_trajectories)

    def make_envs(
        self,
        backend: Backend,
        goals: Goals,
        envs_per_family: int,
        *,
        goal_visible: bool = False,
        families: Sequence[str] | None = None,
    ) -> TaskEnvs:
        """This rank's environments; another world than Meta-World overrides this and :meth:`describe`.

        Args:
            families: some of the split's, where a curriculum says so.
        """
        rank, world_size = rank_and_world_size()
        return make_envs(
            backend,
            self.benchmark,
            goals,
            envs_per_family,
            horizon=self.horizon,
            goal_visible=goal_visible,
            families=families,
            rank=rank,
            world_size=world_size,
        )

    def shown_to(self, agent: str) -> dict[str, bool]:
        """What ``agent``, as ``test.agent`` names it, sees beyond an observation."""
        return {
            "goal_visible": self.goals_shown or agent == "expert",
            "family_visible": self.families_shown and agent == "policy",
        }

    def seen_envs(
        self,
        backend: Backend,
        goals: Goals,
        envs_per_family: int,
        perturbation: Perturbation,
        stream: int,
        *,
        agent: str = "policy",
        age: int | None = None,
    ) -> TaskEnvs:
        """:meth:`make_envs` as ``agent`` sees them; ``age`` is that of :class:`PerturbedEnvs`."""
        shown = self.shown_to(agent)
        envs = self.make_envs(backend, goals, envs_per_family, goal_visible=shown["goal_visible"])
        return self._as_seen(envs, goals.split, envs_per_family, perturbation, stream, agent, age)

    def age(self, learner: Learner) -> int:
        """Episodes of training that the world has gone through with ``learner``."""
        return int(learner.iteration) * self.episodes_per_trial

    def _as_seen(
        self,
        envs: TaskEnvs,
        split: Split,
        envs_per_family: int,
        perturbation: Perturbation,
        stream: int,
        agent: str,
        age: int | None,
    ) -> TaskEnvs:
        rank, world_size = rank_and_world_size()
        key = (self.seed, stream, int(split == "test"))
        first_slot = rank * (envs_per_family // world_size)
        if perturbation != Perturbation():
            envs = PerturbedEnvs(envs, perturbation, self.sensors, key, first_slot, envs_per_family, age)
        return ShownFamilies(envs, self.families) if self.shown_to(agent)["family_visible"] else envs

    def _training_envs(self, families: Sequence[str]) -> tuple[TaskEnvs, HiddenGoals | None]:
        """Of ``families``, as many as of all of them, as the agent sees them.

        Where learning uses goals they show them, and what hides them from the agent is returned, too.
        """
        goals = Goals("train", self.seed, self.goals_per_family, _TRAIN, self.episodes_per_trial)
        each = len(self.families) * self.envs_per_family // len(families)
        used, indices = self.module.uses_goals, self.benchmark.world.goal_indices
        visible = self.goals_shown or (used and bool(indices))
        envs = self.make_envs(self.backend, goals, each, goal_visible=visible, families=families)
        hidden = HiddenGoals(envs, indices, self.goals_shown) if used else None
        return self._as_seen(hidden or envs, "train", each, self.perturbation, _TRAIN, "policy", None), hidden

    @property
    def sizes(self) -> dict[str, Any]:
        """What a model must be told of the world: arguments of :class:`HierarchicalMetaRL`, by name.

        ``observation_dim`` counts what perturbations and ``families_shown`` append.
        """
        return {name: getattr(self, name) for name in OF_WORLD}

    # --- streams ---------------------------------------------------------------------------------

    @property
    def module(self) -> Learner:
        """The LightningModule that is trained or evaluated."""
        assert self.trainer is not None
        return cast(Learner, self.trainer.lightning_module)

    def train_dataloader(self) -> RolloutStream[Batch]:
        """One rollout an epoch, collected with the weights that the last iteration left."""
        if int(self.module.iteration) and not self.replay.size and rank_and_world_size()[0] == 0:
            print(f"the checkpoint holds no replay of {type(self).__name__}: it starts empty")
        return RolloutStream(1, lambda _: self._draw())

    def _draw(self) -> Batch:
        """Collective. The rollout of the iteration that begins."""
        learner, families = self.module, self.families
        if self.schedule and self.curriculum:
            done = int(learner.env_steps)
            families = self.schedule.blocks[self.schedule.number(done)]
            if self.curriculum.clear_replay and self.schedule.begins(done):
                self.replay.clear()
        # The iteration is the trial's number, too: it resumes with the weights.
        return self._collector.draw(learner.policy, learner.acting, int(learner.iteration), families)

    def val_dataloader(self) -> list[RolloutStream[Evaluated]]:
        """Training families, then held-out families, in every mode."""
        learnt = int(self.module.iteration) > 0  # Lightning may ask before the first rollout
        return self._evaluator(self.validation, _VALIDATION).streams(learnt=learnt)

    def test_dataloader(self) -> list[RolloutStream[Evaluated]]:
        """Training families, then held-out families, in every mode."""
        return self._evaluator(self.test, _TEST).streams()

    def _evaluator(self, config: EvaluationConfig, stream: int) -> Evaluator:
        learner, backend = self.module, config.backend or self.backend
        perturbation = config.perturbation_within(self.perturbation)

        def build(goals: Goals) -> TaskEnvs:
            envs = backend, goals, config.envs_per_family
            return self.seen_envs(*envs, perturbation, stream, agent=config.agent, age=self.age(learner))

        trained_on = self.seed, self.backend, self.goals_per_family
        splits: tuple[Split, Split] = ("train", "test")
        return Evaluator(
            config,
            self.benchmark,
            backend,
            perturbation,
            {s: config.goals_of(s, *trained_on, training=_TRAIN, stream=stream) for s in splits},
            self.modes,
            self.meta_world,
            self.horizon,
            self.seed,
            stream,
            learner.policy,
            learner.average_beliefs,
            build,
        )

    # --- Lightning -------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Rollouts go to the learner's device; the replay stays on the CPU and is sampled from there."""
        if isinstance(batch, Batch):
            return Batch(batch.rollout.to(device), batch.replay)
        return batch.to(device)

    def teardown(self, stage: str) -> None:
        """Free the simulators."""
        self._collector.close()

    def state_dict(self) -> dict[str, Any]:
        """Collective. Every rank's replay."""
        return {"replays": gather(self.replay.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave: each rank its own replay, or its share of all."""
        rank, world_size = rank_and_world_size()
        replays = state_dict["replays"]
        same = len(replays) == world_size
        self.replay.load_state_dict(replays[rank] if same else deal(replays, rank, world_size))
        if rank == 0 and not same:
            print(
                f"the checkpoint was written by {len(replays)} process(es) and is continued by {world_size}: "
                "weights, optimizers, normaliser and replay are kept, but the run will not be bit-equal to "
                "one with the same number throughout"
            )


def _check_share(key: str, count: int, world_size: int) -> None:
    if count % world_size:
        raise UserError(
            f"{key} is {count}, which does not divide over {world_size} processes: use a multiple of "
            f"{world_size}"
        )
