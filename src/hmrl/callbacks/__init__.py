"""Lightning callbacks: evaluation, budget, checkpoints, interruption, progress."""

from hmrl.callbacks.budget import EnvStepBudget
from hmrl.callbacks.graceful_stop import GracefulStop, hold_signals
from hmrl.callbacks.last_checkpoint import LastCheckpoint
from hmrl.callbacks.progress import EnvStepsProgressBar
from hmrl.callbacks.run_directory import RunDirectory
from hmrl.callbacks.success_rate import SuccessRate

__all__ = [
    "EnvStepBudget",
    "EnvStepsProgressBar",
    "GracefulStop",
    "LastCheckpoint",
    "RunDirectory",
    "SuccessRate",
    "hold_signals",
]
