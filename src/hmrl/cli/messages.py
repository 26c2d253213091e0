"""What the command line says when it fails."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hmrl.system.errors import SharedError, UserError
from hmrl.system.terminal import INTERRUPTED, hold_signals, is_first_process, outlive_output, stop_signals

# What a disk says that is full, read-only or somebody else's.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextmanager
def one_sentence() -> Iterator[None]:
    """One sentence and exit code 2 for what the user can mend; a traceback for what is a fault of ours."""
    outlive_output()
    hook = threading.excepthook
    # TensorBoard writes in a thread of its own; what stops it stops the next write here, with a sentence.
    threading.excepthook = lambda args: None if _is_disk(args.exc_value) else hook(args)
    main_thread = threading.current_thread() is threading.main_thread()
    handlers = {s: signal.getsignal(s) for s in stop_signals()} if main_thread else {}
    for signum in handlers:
        signal.signal(signum, signal.default_int_handler)  # until training takes over
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning turns the one into the other.
        if isinstance(end, SystemExit) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        if is_first_process():
            print(INTERRUPTED, end="", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        if isinstance(mistake, SharedError) and not is_first_process():
            raise SystemExit(0) from None  # the first rank speaks, and fails, for all
        print(f"hmrl: error: {' '.join(str(mistake).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        threading.excepthook = hook
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        hold_signals(False)


def _is_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _DISK


def mistake_behind(error: BaseException | None) -> UserError | None:
    """The user's mistake behind ``error``, if that is what it comes from."""
    cause = error
    while cause is not None:  # jsonargparse wraps what a configuration class raises
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__
    if _is_disk(error):
        return UserError(f"cannot write: {error}; the last checkpoint, if there was one, is intact")
    kinds = [kind.__name__ for kind in type(error).__mro__]  # PyTorch is not imported for who does without
    if isinstance(error, RuntimeError) and ("DistError" in kinds or "gloo" in str(error)):
        return UserError(
            f"the connection to the other processes failed ({error}): if another process says why, mend "
            "that; else see to MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, where "
            "they are set"
        )
    return None
