"""HiMeta: three-level hierarchical meta-reinforcement learning (arXiv 2412.11930).

What is named here is the public API. Each name is imported when it is first asked for, PyTorch with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmrl.envs.benchmarks import Benchmark as Benchmark
    from hmrl.envs.benchmarks import World as World
    from hmrl.envs.wrappers.perturb import Perturbation as Perturbation
    from hmrl.evaluation.protocols import EvaluationConfig as EvaluationConfig
    from hmrl.evaluation.protocols import MetaWorldConfig as MetaWorldConfig
    from hmrl.himeta.config import ActorCriticConfig as ActorCriticConfig
    from hmrl.himeta.config import MacroVAEConfig as MacroVAEConfig
    from hmrl.himeta.config import PPOConfig as PPOConfig
    from hmrl.himeta.config import TaskEncoderConfig as TaskEncoderConfig
    from hmrl.system.errors import UserError as UserError
    from hmrl.training.callbacks import Forgetting as Forgetting
    from hmrl.training.callbacks import LatentAnalysis as LatentAnalysis
    from hmrl.training.callbacks import Video as Video
    from hmrl.training.curriculum import CurriculumConfig as CurriculumConfig
    from hmrl.training.datamodule import MetaWorldDataModule as MetaWorldDataModule
    from hmrl.training.loggers import WandbConfig as WandbConfig
    from hmrl.training.module import HierarchicalMetaRL as HierarchicalMetaRL
    from hmrl.training.trainer import make_trainer as make_trainer
    from hmrl.types import Acting as Acting
    from hmrl.types import EnvStep as EnvStep

__version__ = "0.1.0"
_HOMES = {
    "envs.benchmarks": ("Benchmark", "World"),
    "envs.wrappers.perturb": ("Perturbation",),
    "evaluation.protocols": ("EvaluationConfig", "MetaWorldConfig"),
    "himeta.config": ("ActorCriticConfig", "MacroVAEConfig", "PPOConfig", "TaskEncoderConfig"),
    "system.errors": ("UserError",),
    "training.callbacks": ("Forgetting", "LatentAnalysis", "Video"),
    "training.curriculum": ("CurriculumConfig",),
    "training.datamodule": ("MetaWorldDataModule",),
    "training.module": ("HierarchicalMetaRL",),
    "training.trainer": ("make_trainer",),
    "training.loggers": ("WandbConfig",),
    "types": ("Acting", "EnvStep"),
}

__all__ = ["__version__", *(name for names in _HOMES.values() for name in names)]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"hmrl.{module}"), name)
    raise AttributeError(f"module 'hmrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
