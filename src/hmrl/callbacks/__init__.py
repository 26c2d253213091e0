"""Lightning callbacks: evaluation, budget, checkpoints, interruption, progress."""

from hmrl.callbacks.budget import EnvStepBudget
from hmrl.callbacks.forgetting import Forgetting
from hmrl.callbacks.graceful_stop import GracefulStop
from hmrl.callbacks.last_checkpoint import LastCheckpoint
from hmrl.callbacks.latents import Latents
from hmrl.callbacks.progress import EnvStepsProgressBar
from hmrl.callbacks.run_directory import RunDirectory
from hmrl.callbacks.success_rate import SuccessRate
from hmrl.callbacks.video import Video

__all__ = [
    "EnvStepBudget",
    "EnvStepsProgressBar",
    "Forgetting",
    "GracefulStop",
    "LastCheckpoint",
    "Latents",
    "RunDirectory",
    "SuccessRate",
    "Video",
]
