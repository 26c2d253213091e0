"""Success on every family after every block of a curriculum, and what was forgotten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from hmrl.analysis.figures import blank
from hmrl.system.paths import local_path
from hmrl.training.callbacks.common import data_of, log, save
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
        self._ended = 0  # blocks, when the iteration began
        self._usual: int | None = None  # iterations between evaluations
        self._due = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """See how many blocks have ended before this iteration."""
        if schedule := data_of(trainer).schedule:
            self._ended = schedule.ended(int(pl_module.env_steps))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """If a block ends with this iteration, evaluate, whether or not its turn has come."""
        schedule = data_of(trainer).schedule
        self._due = schedule is not None and schedule.ended(int(pl_module.env_steps)) > self._ended
        if self._due:
            self._usual = trainer.check_val_every_n_epoch
            trainer.check_val_every_n_epoch = 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep the evaluation's scores, and log."""
        if not self._due:
            return
        trainer.check_val_every_n_epoch = self._usual
        (rate,) = (c for c in trainer.callbacks if isinstance(c, SuccessRate))  # type: ignore[attr-defined]
        schedule = data_of(trainer).schedule
        if not rate.scores or schedule is None:
            return  # evaluation is switched off
        mode = next(iter(rate.scores["train"]))
        scores = {split: modes[mode] for split, modes in rate.scores.items()}
        self.rows.append(
            {
                "families": list(schedule.blocks[self._ended]),
                "env_steps": int(pl_module.env_steps),
                "mode": mode,
                "success": {
                    split: {family: score.success for family, score in families.items() if family != "mean"}
                    for split, families in scores.items()
                },
            }
        )
        changes = {name: fmean(values.values()) for name, values in _changes(self.rows).items() if values}
        if changes:
            named = {"mean": changes["forgetting"], "backward_transfer": changes["backward_transfer"]}
            log(pl_module, {f"forgetting/{name}": value for name, value in named.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the files, on the first rank."""
        if not (self.rows and self.results_dir and trainer.is_global_zero):
            return
        path = self.results_dir / "forgetting.json"
        so_far = [self.rows[: n + 1] for n in range(len(self.rows))]
        blocks = [{**rows[-1], **_changes(rows)} for rows in so_far]
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
            for x, family in enumerate(families):
                colour = "white" if values[y][x] > 0.6 else "#222222"
                ax.text(x, y, f"{values[y][x]:.2f}", ha="center", va="center", fontsize=7, color=colour)
                if split == "train" and family in row["families"]:
                    ax.add_patch(
                        Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, color="#d9662b", clip_on=False)
                    )
        ax.set_xticks(range(len(families)), families, rotation=45, ha="right", fontsize=8)
        ax.set_title(f"{split} families", fontsize=9)
    axes[0].set_yticks(range(len(rows)), [_label(n, row) for n, row in enumerate(rows, 1)], fontsize=8)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], pad=0.01)
    bar.set_label("success", size=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _label(number: int, row: Mapping[str, Any]) -> str:
    """As "3: push", or "1: reach and 4 more"."""
    first, *others = row["families"]
    named = " and ".join(row["families"]) if len(others) < 2 else f"{first} and {len(others)} more"
    return f"{number}: {named}"
