"""HiMeta: three-level hierarchical meta-reinforcement learning (arXiv 2412.11930).

What is named here is the public API. Each name is imported when it is first asked for, PyTorch with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmrl.callbacks import Forgetting, Latents, Video
    from hmrl.config import ActorCriticConfig, MacroVAEConfig, PPOConfig, TaskEncoderConfig
    from hmrl.curriculum import CurriculumConfig
    from hmrl.datamodule import MetaWorldDataModule
    from hmrl.envs.benchmarks import Benchmark, World
    from hmrl.envs.perturb import Perturbation
    from hmrl.evaluation import EvaluationConfig, TrialConfig
    from hmrl.module import HierarchicalMetaRL
    from hmrl.trainer import make_trainer
    from hmrl.types import Acting, EnvStep, UserError
    from hmrl.wandb_logger import WandbConfig

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
    "callbacks": ("Forgetting", "Latents", "Video"),
    "config": ("ActorCriticConfig", "MacroVAEConfig", "PPOConfig", "TaskEncoderConfig"),
    "curriculum": ("CurriculumConfig",),
    "datamodule": ("MetaWorldDataModule",),
    "envs.benchmarks": ("Benchmark", "World"),
    "envs.perturb": ("Perturbation",),
    "evaluation": ("EvaluationConfig", "TrialConfig"),
    "module": ("HierarchicalMetaRL",),
    "trainer": ("make_trainer",),
    "types": ("Acting", "EnvStep", "UserError"),
    "wandb_logger": ("WandbConfig",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"hmrl.{module}"), name)
    raise AttributeError(f"module 'hmrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
