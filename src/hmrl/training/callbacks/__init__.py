"""Lightning callbacks: evaluation, budget, checkpoints, interruption, progress."""

from hmrl.training.callbacks.claim import RunDirectory as RunDirectory
from hmrl.training.callbacks.forgetting import Forgetting as Forgetting
from hmrl.training.callbacks.last_checkpoint import LastCheckpoint as LastCheckpoint
from hmrl.training.callbacks.latent_analysis import LatentAnalysis as LatentAnalysis
from hmrl.training.callbacks.progress import EnvStepsProgressBar as EnvStepsProgressBar
from hmrl.training.callbacks.record_video import Video as Video
from hmrl.training.callbacks.stopping import EnvStepBudget as EnvStepBudget
from hmrl.training.callbacks.stopping import GracefulStop as GracefulStop
from hmrl.training.callbacks.success_rate import SuccessRate as SuccessRate
