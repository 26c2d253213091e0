"""Lightning callbacks: evaluation, budget, checkpoints, interruption, progress."""

from hmrl.training.callbacks.budget import EnvStepBudget
from hmrl.training.callbacks.claim import RunDirectory
from hmrl.training.callbacks.forgetting import Forgetting
from hmrl.training.callbacks.graceful_stop import GracefulStop
from hmrl.training.callbacks.last_checkpoint import LastCheckpoint
from hmrl.training.callbacks.latent_analysis import Latents
from hmrl.training.callbacks.progress import EnvStepsProgressBar
from hmrl.training.callbacks.record_video import Video
from hmrl.training.callbacks.success_rate import SuccessRate

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
