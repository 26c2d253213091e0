"""``hmrl`` on the toy world, as a script that launchers can start; run by test_launchers.py.

What goes wrong on the second rank in the second iteration is said by the environment variable TOY_FAULT,
"nan" or "bug".
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.strategies import DDPStrategy

import hmrl.cli.main
from hmrl.system.distributed import rank_and_world_size
from hmrl.types import EnvStep, TaskEnvs
from support.toy import ToyDataModule

FAULT = os.environ.get("TOY_FAULT", "")


class CommandDataModule(ToyDataModule):
    def make_envs(self, *arguments: Any, **options: Any) -> TaskEnvs:
        envs = super().make_envs(*arguments)
        if FAULT and rank_and_world_size()[0] == 1 and envs.training:
            take_step = envs.step

            def step(action: Any) -> EnvStep:
                taken = take_step(action)
                return taken if self.module.iteration != 1 else faulty(taken)

            envs.step = step
        return envs

    def setup(self, stage: str) -> None:
        """Also say what holds the processes together."""
        super().setup(stage)
        strategy, (rank, world_size) = self.trainer.strategy, rank_and_world_size()
        options = strategy._ddp_kwargs if isinstance(strategy, DDPStrategy) else None
        said = {"strategy": type(strategy).__name__, "options": options, "world_size": world_size}
        folder = Path(os.environ["TOY_FOLDER"])
        (folder / f"strategy-{rank}.json").write_text(json.dumps(said))


def faulty(taken: EnvStep) -> EnvStep:
    if FAULT == "bug":
        raise ZeroDivisionError("a fault of ours")
    observation = taken.observation.copy()
    observation[0, 0] = np.nan
    return taken._replace(observation=observation)


if __name__ == "__main__":
    hmrl.cli.main.MetaWorldDataModule = CommandDataModule  # type: ignore[misc]
    hmrl.cli.main.main(sys.argv[1:])
