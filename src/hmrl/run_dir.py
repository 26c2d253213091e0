"""A run's directory: what it holds, and who may write there."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from hmrl.types import UserError

_held: dict[Path, FileLock] = {}  # until this process ends, however it ends


def checkpoint_dir(run_dir: str | Path) -> str:
    """Where a run keeps its checkpoints."""
    return str(Path(run_dir) / "checkpoints")


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """What a run continues from: ``last.ckpt``, or what a SLURM requeue saved after it; None if nothing."""
    found = [Path(checkpoint_dir(run_dir)) / "last.ckpt", *_requeue_checkpoints(run_dir)]
    found = [path for path in found if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def was_requeued(run_dir: str | Path) -> bool:
    """Whether SLURM has requeued the run in ``run_dir``, so that the same command continues it."""
    return bool(_requeue_checkpoints(run_dir))


def _requeue_checkpoints(run_dir: str | Path) -> list[Path]:
    found = Path(run_dir).glob("hpc_ckpt_*.ckpt")
    return [path for path in found if not path.name.endswith(".weights.ckpt")]


def clear(run_dir: str | Path) -> None:
    """Delete what another run has left in ``run_dir``, save its logs, which loggers begin anew.

    Else results and checkpoints of the old run would pass for those of the new one.
    """
    folder = Path(run_dir)
    patterns = (
        "checkpoints/*.ckpt",
        "hpc_ckpt_*.ckpt",
        "test-*.json",
        "forgetting.*",
        "latents/*",
        "videos/*",
    )
    for path in (found for pattern in patterns for found in folder.glob(pattern)):
        path.unlink()


def find_checkpoint(run_dir: str | Path, name: str) -> Path:
    """``last`` or ``best`` of the run in ``run_dir``.

    Raises:
        UserError: if there is none.
    """
    best = Path(checkpoint_dir(run_dir)) / "best.ckpt"
    path = newest_checkpoint(run_dir) if name == "last" else best if best.is_file() else None
    if path is None:
        there = ", ".join(sorted(p.name for p in best.parent.glob("*.ckpt"))) or "none"
        raise UserError(
            f"ckpt_path is {name}, but the run in {run_dir} has no such checkpoint (there is {there}): train "
            "it further, or give the path of another one"
        )
    return path


def continues(run_dir: str | Path, ckpt_path: str | Path | None) -> bool:
    """Whether ``ckpt_path`` is a checkpoint of the run in ``run_dir``."""
    return ckpt_path is not None and Path(run_dir).resolve() in Path(ckpt_path).resolve().parents


def may_begin(run_dir: str | Path) -> bool:
    """Whether ``--ckpt_path last`` may start afresh in ``run_dir``: nothing but a log would be lost."""
    return not (_checkpoints(run_dir) or _results(run_dir))


def _checkpoints(run_dir: str | Path) -> list[Path]:
    return list(Path(checkpoint_dir(run_dir)).glob("*.ckpt"))


def _results(run_dir: str | Path) -> list[Path]:
    return list(Path(run_dir).glob("test-*.json"))


def claim(run_dir: str | Path, *, may_hold_run: bool) -> None:
    """Make ``run_dir`` this process's own, until it ends.

    Args:
        may_hold_run: whether there may be a run already, which is continued or written over.

    Raises:
        UserError: if another process is writing there, if there is a run, or results, that would be lost, or
            if nothing can be written.
    """
    folder = Path(run_dir).resolve()
    if not may_hold_run:
        run = _checkpoints(folder) or (folder / "metrics.csv").is_file()
        if run or _results(folder):
            last = "continue it with --ckpt_path last, " if newest_checkpoint(folder) else ""
            raise UserError(
                f"{run_dir} already holds {'a run' if run else 'results'}, which would be lost: {last}choose "
                "another --run_dir, or write over it with --overwrite true"
            )
    if folder in _held:
        return
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        Path(checkpoint_dir(folder)).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another run is writing to {run_dir}: wait for it, stop it, or choose another --run_dir"
        ) from error
    except NotImplementedError:  # a file system without locks: then nobody can tell
        print(f"{run_dir} is on a file system without locks: make sure that no other run writes there")
    except OSError as error:
        raise UserError(f"run_dir {run_dir} cannot be written to ({error}): choose another one") from error
    _held[folder] = lock
