"""Films of the agent that ``hmrl test`` has evaluated."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from hmrl.analysis.video import FilmedEnvs, camera_on, caption, captioned, require_film_tools, write
from hmrl.envs.benchmarks import Goals
from hmrl.envs.metaworld import MetaWorldEnvs
from hmrl.envs.wrappers.perturb import Perturbation, PerturbedEnvs
from hmrl.envs.wrappers.shown import ShownFamilies
from hmrl.evaluation.baselines import choose_agent
from hmrl.rollouts.collect import collect, seeded
from hmrl.system.distributed import together
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.training.callbacks.common import data_of, say
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Rollout, Split, TaskEnvs

_STREAM = 4  # of random numbers; training, learning, validation and test have those before


class Video(pl.Callback):
    """After ``hmrl test``, films one episode a family into ``videos/<split>-<family>.mp4``.

    On the reference simulator, whichever one evaluates, on the first of a family's test goals; by the agent
    that is evaluated, in its first mode. It is an episode of its own, with actions sampled anew, not one of
    those that were scored. A permutation of beliefs or macro-actions needs other episodes and does nothing.

    Args:
        results_dir: folder of ``videos``.
        record: whether to film at all.
        families: which; None for all.
        every: simulator steps between two pictures; there are 80 a second.
    """

    def __init__(
        self, results_dir: str, record: bool = False, families: list[str] | None = None, every: int = 4
    ) -> None:
        if every < 1:
            raise UserError(f"video.every is {every}, but it must be at least 1")
        self.folder = local_path(results_dir, "results_dir") / "videos"
        self.record, self.families, self.every = record, families, every

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Collective. Refuse what cannot be filmed, before anything is evaluated."""
        if stage != "test" or not self.record:
            return
        with together():
            if trainer.is_global_zero:
                bench = data_of(trainer).benchmark
                if "metaworld" not in bench.world.backends:
                    raise UserError(
                        f"video.record is true, but only Meta-World can be filmed and data.benchmark is "
                        f"{bench.name}: use false"
                    )
                known = dict.fromkeys((*bench.train, *bench.test))
                if unknown := [family for family in self.families or () if family not in known]:
                    raise UserError(
                        f"video.families names {unknown[0]!r}, which is not evaluated: use some of "
                        f"{', '.join(known)}"
                    )
                require_film_tools()

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Film, on the first rank."""
        if not (self.record and trainer.is_global_zero):
            return
        data = data_of(trainer)
        splits: tuple[Split, Split] = ("train", "test")
        wanted = [(split, family) for split in splits for family in data.benchmark.families(split)]
        wanted = [film for film in wanted if self.families is None or film[1] in self.families]
        for i, (split, family) in enumerate(wanted, start=1):
            path = self.folder / f"{split}-{family}.mp4"
            rollout = self._film(path, data, pl_module, split, family)
            outcome = "solved" if rollout.ever_success.item() else "not solved"
            say(trainer, f"video {i} of {len(wanted)}: {path} ({outcome})")

    def _film(
        self, path: Path, data: MetaWorldDataModule, module: HierarchicalMetaRL, split: Split, family: str
    ) -> Rollout:
        families, shown = data.benchmark.families(split), data.shown_to(data.test.agent)
        mode, acting = next(iter(data.modes.items()))
        agent = choose_agent(data.test.agent, module.policy, [family], data.benchmark.world)
        # One goal a family is the first one, which every evaluation on this simulator has.
        goals = Goals(split, data.seed, 1, _STREAM)
        envs = MetaWorldEnvs(
            (family,), goals, [0], 1, data.horizon, shown["goal_visible"], bench=data.benchmark
        )
        with closing(envs), closing(camera_on(envs.simulators[0])) as camera:
            perturbation = data.test.perturbation_within(data.perturbation)
            key = (data.seed, _STREAM, int(split == "test"))
            age = int(module.iteration) * data.episodes_per_trial
            seen: TaskEnvs = envs
            if perturbation != Perturbation():
                seen = PerturbedEnvs(envs, perturbation, data.sensors, key, 0, 1, age)
            if shown["family_visible"]:
                seen = ShownFamilies(seen, data.families)
            filmed = FilmedEnvs(seen, camera, self.every)
            with seeded(*key, families.index(family)):
                rollout = collect(
                    filmed, agent, episode=0, acting=acting, families=families, split=split, mode=mode
                )
        known = (agent.decision_interval, getattr(agent, "categorical_entries", 0))  # experts have no belief
        film = [
            captioned(picture, caption(rollout, step, *known)) for step, picture in filmed.pictures.items()
        ]
        write(path, film, self.every)
        return rollout
