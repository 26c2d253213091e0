"""Success on every family after every block of a curriculum, and what was forgotten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from hmrl.analysis.figures import blank, save
from hmrl.system.paths import local_path
from hmrl.training.callbacks.common import callbacks_of, data_of, log
from hmrl.training.callbacks.success_rate import SuccessRate
from hmrl.training.curriculum import backward_transfer, forgetting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCHEMA = 1


class Forgetting(pl.Callback):
    """Evaluates at the end of each block, whatever ``check_val_every_n_epoch`` says, and keeps the scores.

    Success is at any step, in the first of the ways of acting. From the second block on it logs
    ``forgetting/mean`` and ``forgetting/backward_transfer`` (:func:`hmrl.training.curriculum.forgetting`,
    :func:`hmrl.training.curriculum.backward_transfer`, means over families). When training ends it writes
    ``forgetting.json`` (the matrix and these numbers after every block) and ``forgetting.png`` and ``.pdf``.
    A block that is still going on then has no row. Without a curriculum it does nothing.

    Args:
        results_dir: folder of these files; None writes none.
    """

    def __init__(self, results_dir: str | None = None) -> None:
        self.results_dir = None if results_dir is None else local_path(results_dir, "results_dir")
        self.rows: list[dict[str, Any]] = []  # after each block; plain values, for the checkpoint
        self._usual: int | None = None  # iterations between evaluations
        self._due = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """If a block ends with this iteration, evaluate, whether or not its turn has come."""
        schedule, done = data_of(trainer).schedule, int(pl_module.env_steps)
        if schedule:
            before = done - schedule.environments * schedule.steps_of_environment
            self._due = schedule.ended(done) > schedule.ended(before)
        if self._due:
            self._usual, trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch, 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep the evaluation's scores, and log."""
        if not self._due:
            return
        trainer.check_val_every_n_epoch = self._usual
        (rate,), schedule = callbacks_of(trainer, SuccessRate), data_of(trainer).schedule
        if not rate.scores or schedule is None:
            return  # evaluation is switched off
        mode = next(iter(rate.scores["train"]))
        success = {
            split: {family: score.success for family, score in modes[mode].items() if family != "mean"}
            for split, modes in rate.scores.items()
        }
        env_steps = int(pl_module.env_steps)
        families = list(schedule.blocks[schedule.ended(env_steps) - 1])
        row = {"families": families, "env_steps": env_steps, "mode": mode, "success": success}
        self.rows.append(row)
        lost, moved = (list(changes.values()) for changes in _changes(self.rows).values())
        if lost:
            log(pl_module, {"forgetting/mean": fmean(lost), "forgetting/backward_transfer": fmean(moved)})

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the files, on the first rank."""
        if not (self.rows and self.results_dir and trainer.is_global_zero):
            return
        path = self.results_dir / "forgetting.json"
        blocks = [{**row, **_changes(self.rows[: n + 1])} for n, row in enumerate(self.rows)]
        content = {"schema": _SCHEMA, "seed": pl_module.seed, "blocks": blocks}
        path.write_text(json.dumps(content, indent=2) + "\n")
        save(heat_map(self.rows), path)
        print(f"success after every block: {path}")

    def state_dict(self) -> dict[str, Any]:
        """The rows, so that a resumed run goes on with them."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.rows = list(state_dict["rows"])


def _changes(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Forgetting and backward transfer after the last of ``rows``, by training family."""
    success, blocks = [row["success"]["train"] for row in rows], [row["families"] for row in rows]
    return {
        "forgetting": forgetting(success, blocks),
        "backward_transfer": backward_transfer(success, blocks),
    }


def heat_map(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Success after each block, blocks downwards, families to the right; trained ones are framed.

    Args:
        rows: of :class:`Forgetting`.
    """
    from matplotlib.patches import Rectangle

    splits: dict[str, dict[str, float]] = rows[0]["success"]
    widths = [len(families) for families in splits.values()]
    figure = blank(4 + 0.5 * sum(widths), 1.8 + 0.32 * len(rows))
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False, width_ratios=widths)[0]
    for ax, (split, families) in zip(axes, splits.items(), strict=True):
        values = [[row["success"][split][family] for family in families] for row in rows]
        image = ax.imshow(values, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1)
        for y, row in enumerate(rows):
            for x, (family, value) in enumerate(zip(families, values[y], strict=True)):
                colour = "white" if value > 0.6 else "#222222"
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
                if split == "train" and family in row["families"]:
                    frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, color="#d9662b", clip_on=False)
                    ax.add_patch(frame)
        ax.set_xticks(range(len(families)), families, rotation=45, ha="right", fontsize=8)
        ax.set_title(f"{split} families", fontsize=9)
    labels = []  # as "3: push", or "1: reach and 4 more"
    for n, row in enumerate(rows, 1):
        first, *others = row["families"]
        named = [first, *others] if len(others) < 2 else [first, f"{len(others)} more"]
        labels.append(f"{n}: {' and '.join(named)}")
    axes[0].set_yticks(range(len(rows)), labels, fontsize=8)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], pad=0.01)
    bar.set_label("success", size=8)
    bar.ax.tick_params(labelsize=8)
    return figure
