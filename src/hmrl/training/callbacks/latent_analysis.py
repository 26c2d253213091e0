"""Evaluation: evidence about the macro-action and the belief, as numbers and figures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from hmrl.analysis.figures import draw, save
from hmrl.analysis.latents import Findings, analyse, first_trials, scalars
from hmrl.evaluation.metaworld_protocol import Trials
from hmrl.results.file import PRIMARY_MODE
from hmrl.system.distributed import gather, share_of
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.training.callbacks.common import data_of, log
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Rollout

_TRIALS = 10  # kept of each family, over all ranks: a few MB


class LatentAnalysis(pl.Callback):
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
            raise UserError(f"latent_analysis.every_n_evaluations is {every_n_evaluations}: use 1 or more")
        self.dir = None if dir is None else local_path(dir, "dir")
        self.every_n_evaluations = every_n_evaluations
        self.findings: dict[str, Findings] = {}  # of the last evaluation, by split
        self._evaluations = 0  # of this training run, so far
        self._due = False
        self._kept: dict[str, list[Rollout]] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the last evaluation."""
        training = trainer.state.fn == "fit"
        self._evaluations += training
        self._due = not training or self._evaluations % self.every_n_evaluations == 0
        self._kept, self.findings = {}, {}

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep a rollout until there are enough trials of each family."""
        rollout: Rollout | Trials = outputs
        if not (self._due and isinstance(rollout, Rollout) and rollout.mode == PRIMARY_MODE):
            return
        if not rollout.task_belief.shape[-1] and not rollout.macro_action.shape[-1]:
            return  # flat, scripted or random
        kept = self._kept.setdefault(rollout.split, [])
        if sum(len(r.family) for r in kept) < share_of(_TRIALS) * len(rollout.families):
            kept.append(rollout)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Analyse, log and draw."""
        self._analyse(trainer, pl_module)
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if self.findings and boards and trainer.is_global_zero:
            for name, figure in draw(self.findings).items():
                for board in boards:
                    step = int(pl_module.env_steps)
                    board.experiment.add_figure(f"latents/{name}", figure, global_step=step, close=False)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Collective. Analyse, log and write the files."""
        self._analyse(trainer, pl_module)
        if not (self.findings and self.dir and trainer.is_global_zero):
            return
        folder, by_split = self.dir / "latents", self.findings.items()
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {"env_steps": int(pl_module.env_steps), **{split: f.numbers() for split, f in by_split}}
        (folder / "latents.json").write_text(json.dumps(numbers, indent=2) + "\n")
        arrays: dict[str, Any] = {f"{s}/{name}": x for s, f in by_split for name, x in f.arrays().items()}
        np.savez_compressed(folder / "latents.npz", **arrays)
        for name, figure in draw(self.findings).items():
            save(figure, folder / name)

    def _analyse(self, trainer: pl.Trainer, module: HierarchicalMetaRL) -> None:
        if not self._due:
            return
        shares = gather({split: first_trials(r, share_of(_TRIALS)) for split, r in self._kept.items()})
        self._kept, mine = {}, dict[str, Findings]()
        if trainer.is_global_zero:
            body = data_of(trainer).benchmark.world.ego_indices
            for split in shares[0]:
                trials = first_trials([share[split] for share in shares], len(shares) * _TRIALS)
                mine[split] = analyse(module.policy, module.vae_config, trials, body)
        self.findings = gather(mine)[0]
        if self.findings:
            log(module, scalars(self.findings))

    def state_dict(self) -> dict[str, Any]:
        """How many evaluations there were, so that a resumed run looks at the same ones."""
        return {"evaluations": self._evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._evaluations = state_dict["evaluations"]
