"""Evaluation: evidence about the macro-action and the belief, as numbers and figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from hmrl.analysis import figures
from hmrl.analysis.latents import Episodes, Findings, analyse, scalars
from hmrl.evaluation.metaworld_protocol import Trials
from hmrl.system.distributed import gather, share_of
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.training.callbacks.common import data_of, log, save
from hmrl.training.callbacks.success_rate import PRIMARY_MODE
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Rollout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EPISODES = 10  # kept of each family, over all ranks: a few MB


class Latents(pl.Callback):
    """What z and y have become (:mod:`hmrl.analysis.latents`), from the rollouts with sampled actions.

    Logs ``latents/probe/...`` (of the training families), ``latents/decoder_error/<split>``,
    ``latents/decoder_error_without_z/<split>``, ``latents/correlation/<split>`` (mean over axes) and
    ``latents/agreement/<split>``, and draws into TensorBoard. ``hmrl test`` writes ``latents.json``
    (numbers), ``latents.npz`` (arrays) and figures. An absent level is left out, and an agent without both
    upper levels has nothing to show. With several processes the first one looks at everybody's
    episodes: its own share alone may have too few of a family to fit and to score.

    Args:
        dir: its folder ``latents`` is written to; None writes no files.
        every_n_evaluations: of a training run.
    """

    def __init__(self, dir: str | None, every_n_evaluations: int = 1) -> None:
        if every_n_evaluations < 1:
            raise UserError(f"latents.every_n_evaluations is {every_n_evaluations}: use 1 or more")
        self.dir = None if dir is None else local_path(dir, "dir")
        self.every_n_evaluations = every_n_evaluations
        self.findings: dict[str, Findings] = {}  # of the last evaluation, by split
        self._evaluations = 0  # of this training run, so far
        self._due = False
        self._kept: dict[str, list[Episodes]] = {}
        self._count: Counter[tuple[str, int]] = Counter()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the last evaluation."""
        training = trainer.state.fn == "fit"
        self._evaluations += training
        self._start(not training or self._evaluations % self.every_n_evaluations == 0)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the last evaluation."""
        self._start(True)

    def _start(self, due: bool) -> None:
        self._due, self._kept, self._count, self.findings = due, {}, Counter(), {}

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep some of a rollout's episodes."""
        self._keep(outputs)

    on_test_batch_end = on_validation_batch_end

    def _keep(self, rollout: Rollout | Trials) -> None:
        if not (self._due and isinstance(rollout, Rollout) and rollout.mode == PRIMARY_MODE):
            return
        if not rollout.task_belief.shape[-1] and not rollout.macro_action.shape[-1]:
            return  # flat, scripted or random
        chosen = []
        for i, family in enumerate(rollout.family.tolist()):
            if self._count[rollout.split, family] < share_of(_EPISODES):
                self._count[rollout.split, family] += 1
                chosen.append(i)
        if chosen:
            self._kept.setdefault(rollout.split, []).append(Episodes.of(rollout, chosen))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Analyse, log and draw."""
        self._analyse(trainer, pl_module)
        if self.findings and trainer.is_global_zero:
            boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
            drawn = draw(self.findings) if boards else {}
            for board in boards:
                for name, figure in drawn.items():
                    step = int(pl_module.env_steps)
                    board.experiment.add_figure(f"latents/{name}", figure, global_step=step, close=False)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Analyse, log and write the files."""
        self._analyse(trainer, pl_module)
        if self.findings and self.dir and trainer.is_global_zero:
            write(self.dir / "latents", self.findings, int(pl_module.env_steps))

    def _analyse(self, trainer: pl.Trainer, module: HierarchicalMetaRL) -> None:
        if not self._due:
            return
        shares = gather({split: Episodes.join(parts) for split, parts in self._kept.items()})
        self._kept = {}
        mine: dict[str, Findings] = {}
        if trainer.is_global_zero:
            body = data_of(trainer).benchmark.world.ego_indices
            with _evaluating(module.policy):
                for split in shares[0]:
                    episodes = Episodes.join([share[split] for share in shares])
                    mine[split] = analyse(module.policy, module.vae_config, episodes, body)
        self.findings = gather(mine)[0]
        if self.findings:
            log(module, scalars(self.findings))

    def state_dict(self) -> dict[str, Any]:
        """How many evaluations there were, so that a resumed run looks at the same ones."""
        return {"evaluations": self._evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._evaluations = state_dict["evaluations"]


def draw(findings: Mapping[str, Findings]) -> dict[str, Figure]:
    """The figures that ``findings``, by split, have something for: by file name."""
    drawn: dict[str, Figure] = {}
    seen = {split: found for split, found in findings.items() if found.belief}
    if seen:
        drawn["belief"] = figures.belief_panels(
            {f"{s} {name}": belief for s, found in seen.items() for name, belief in found.belief.items()},
            {f"{s} {name}": step for s, found in seen.items() for name, step in found.success_step.items()},
        )
    macro = {split: found.macro for split, found in findings.items() if found.macro}
    if macro:
        drawn["displacement"] = figures.displacement_scatter(
            {split: found.macro_action for split, found in macro.items()},
            {split: found.displacement for split, found in macro.items()},
            {split: found.correlation for split, found in macro.items()},
        )
        drawn["decoder_error"] = figures.decoder_bars(
            {split: found.decoder_error for split, found in macro.items()},
            {split: found.decoder_error_without_z for split, found in macro.items()},
        )
    probed = {split: found.probe for split, found in findings.items() if found.probe}
    if probed:
        drawn["probe"] = figures.probe_bars(probed)
    return drawn


def write(folder: Path, findings: Mapping[str, Findings], env_steps: int) -> None:
    """``latents.json``, ``latents.npz`` (names as ``train/belief``) and each figure as PNG and PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"env_steps": env_steps, **{split: found.numbers() for split, found in findings.items()}}
    (folder / "latents.json").write_text(json.dumps(numbers, indent=2) + "\n")
    arrays = {f"{s}/{name}": array for s, found in findings.items() for name, array in found.arrays().items()}
    np.savez_compressed(folder / "latents.npz", **arrays)  # type: ignore[arg-type]
    for name, figure in draw(findings).items():
        save(figure, folder / name)


@contextmanager
def _evaluating(policy: nn.Module) -> Iterator[None]:
    """Every part in evaluation mode inside the block, and as it was after it."""
    modes = {part: part.training for part in policy.modules()}
    policy.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
