"""HiMeta: three-level hierarchical meta-reinforcement learning (arXiv 2412.11930).

What is named here is the public API. Each name is imported when it is first asked for, PyTorch with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmrl.envs.benchmarks import Benchmark, World
    from hmrl.envs.wrappers.perturb import Perturbation
    from hmrl.evaluation.protocols import EvaluationConfig, TrialConfig
    from hmrl.himeta.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig
    from hmrl.system.errors import UserError
    from hmrl.training.callbacks import Forgetting, Latents, Video
    from hmrl.training.curriculum import CurriculumConfig
    from hmrl.training.datamodule import MetaWorldDataModule
    from hmrl.training.loggers import WandbConfig
    from hmrl.training.module import HierarchicalMetaRL
    from hmrl.training.trainer import make_trainer
    from hmrl.types import Acting, EnvStep

__version__ = "0.1.0"
__all__ = [
    "Acting",
    "ActorCriticConfig",
    "Benchmark",
    "CurriculumConfig",
    "EnvStep",
    "EvaluationConfig",
    "Forgetting",
    "HierarchicalMetaRL",
    "Latents",
    "MacroVAEConfig",
    "MetaWorldDataModule",
    "PPOConfig",
    "Perturbation",
    "TaskEncoderConfig",
    "TrialConfig",
    "UserError",
    "Video",
    "WandbConfig",
    "World",
    "__version__",
    "make_trainer",
]
_HOMES = {
    "envs.benchmarks": ("Benchmark", "World"),
    "envs.wrappers.perturb": ("Perturbation",),
    "evaluation.protocols": ("EvaluationConfig", "TrialConfig"),
    "himeta.config": ("ActorCriticConfig", "MacroVAEConfig", "PPOConfig", "TaskEncoderConfig"),
    "system.errors": ("UserError",),
    "training.callbacks": ("Forgetting", "Latents", "Video"),
    "training.curriculum": ("CurriculumConfig",),
    "training.datamodule": ("MetaWorldDataModule",),
    "training.module": ("HierarchicalMetaRL",),
    "training.trainer": ("make_trainer",),
    "training.loggers": ("WandbConfig",),
    "types": ("Acting", "EnvStep"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"hmrl.{module}"), name)
    raise AttributeError(f"module 'hmrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
