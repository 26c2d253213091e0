"""Lightning callbacks: evaluation, budget, checkpoints, progress."""

from hmrl.callbacks.budget import EnvStepBudget
from hmrl.callbacks.last_checkpoint import LastCheckpoint
from hmrl.callbacks.progress import EnvStepsProgressBar
from hmrl.callbacks.success_rate import SuccessRate

__all__ = ["EnvStepBudget", "EnvStepsProgressBar", "LastCheckpoint", "SuccessRate"]
