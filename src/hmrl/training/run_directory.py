"""A run's directory: what it holds, and who may write there."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from hmrl.system.errors import UserError
from hmrl.system.paths import local_path

_CHECKPOINTS = ("checkpoints/*.ckpt", "hpc_ckpt_*.ckpt")
_RESULTS = ("test-*.json", "forgetting.*", "latents/*", "videos/*")
_held: dict[tuple[int, int], FileLock] = {}  # by the file, until this process ends, however it ends


def _files(run_dir: str | Path, *patterns: str) -> list[Path]:
    found = (path for pattern in patterns for path in Path(run_dir).glob(pattern))
    return [path for path in found if path.is_file()]


def _resumable(run_dir: str | Path) -> list[Path]:
    return _files(run_dir, "checkpoints/last.ckpt", "hpc_ckpt_*[0-9].ckpt")  # no weights-only exports


def _env_steps_at(path: str | Path) -> int:
    from hmrl.training.checkpoint import env_steps_at  # PyTorch, which `hmrl sweep --help` does without

    return env_steps_at(path)


# --- what it holds -------------------------------------------------------------------------------


def checkpoint_dir(run_dir: str | Path) -> str:
    """Where a run keeps its checkpoints."""
    return str(local_path(run_dir, "run_dir") / "checkpoints")


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """What a run continues from: ``last.ckpt``, or what a SLURM requeue saved after it; None if nothing.

    By the environment steps inside: a copy of the run may have other file times.
    """
    found = _resumable(run_dir)
    return max(found, key=_env_steps_at) if len(found) > 1 else next(iter(found), None)


def was_requeued(run_dir: str | Path) -> bool:
    """Whether SLURM has requeued the run in ``run_dir``, so that the same command continues it."""
    return any(path.name != "last.ckpt" for path in _resumable(run_dir))


def find_checkpoint(run_dir: str | Path, name: str) -> Path:
    """``last`` or ``best`` of the run in ``run_dir``, or a refusal."""
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
    if ckpt_path is None:
        return False
    return Path(run_dir).resolve() in local_path(ckpt_path, "ckpt_path", folder=False).resolve().parents


# --- who may write there -------------------------------------------------------------------------


def may_begin(run_dir: str | Path) -> bool:
    """Whether ``--ckpt_path last`` may start afresh in ``run_dir``: nothing but a log would be lost."""
    return not _files(run_dir, *_CHECKPOINTS, *_RESULTS)


def claim(run_dir: str | Path, ckpt_path: str | Path | None = None, *, overwrite: bool = False) -> None:
    """Make ``run_dir`` this process's own, until it ends.

    Args:
        run_dir: the directory.
        ckpt_path: what training continues from, if from anything.
        overwrite: whether a run, or results, may be lost.

    Raises:
        UserError: if another process writes there, something would be lost, or nothing can be written.
    """
    if not overwrite:
        _check_nothing_is_lost(run_dir, ckpt_path)
    file = Path(run_dir).resolve() / ".lock"
    lock = FileLock(file, timeout=0)
    try:
        if file.exists() and _identity(file) in _held:
            return
        (file.parent / "checkpoints").mkdir(parents=True, exist_ok=True)
        lock.acquire()
        _held[_identity(file)] = lock
    except Timeout as error:
        raise UserError(
            f"another run is writing to {run_dir}: wait for it, stop it, or choose another --run_dir"
        ) from error
    except NotImplementedError:  # a file system without locks: then nobody can tell
        print(f"{run_dir} is on a file system without locks: make sure that no other run writes there")
    except OSError as error:
        raise UserError(f"run_dir {run_dir} cannot be written to ({error}): choose another one") from error


def _identity(file: Path) -> tuple[int, int]:
    """The same wherever the run's directory is moved."""
    return file.stat().st_dev, file.stat().st_ino


def _check_nothing_is_lost(run_dir: str | Path, ckpt_path: str | Path | None) -> None:
    otherwise = "choose another --run_dir, or write over it with --overwrite true (in Python: overwrite=True)"
    if ckpt_path is not None and continues(run_dir, ckpt_path):
        here, there = _env_steps_at(ckpt_path), max(map(_env_steps_at, _resumable(run_dir)), default=0)
        if here < there:
            raise UserError(
                f"{ckpt_path} is of {here:,} environment steps, but the run in {run_dir} has gone on to "
                f"{there:,}, which would be lost: continue it with --ckpt_path last, {otherwise}"
            )
    elif _files(run_dir, *_CHECKPOINTS, *_RESULTS, "metrics.csv"):
        what = "a run" if _files(run_dir, *_CHECKPOINTS, "metrics.csv") else "results"
        newest = newest_checkpoint(run_dir)
        last = f"continue it with --ckpt_path last (in Python: ckpt_path={str(newest)!r}), " if newest else ""
        raise UserError(f"{run_dir} already holds {what}, which would be lost: {last}{otherwise}")


def clear(run_dir: str | Path) -> None:
    """Delete what would pass for a new run's, but another one left in ``run_dir``."""
    for path in _files(run_dir, *_CHECKPOINTS, *_RESULTS):
        path.unlink()


def rewind(run_dir: str | Path, env_steps: int) -> None:
    """Delete the run's checkpoints after ``env_steps``, from which it goes on another way."""
    for path in _files(run_dir, *_CHECKPOINTS):
        if _env_steps_at(path) > env_steps:
            path.unlink()
