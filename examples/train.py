"""Train the three levels from Python, as ``hmrl fit`` does: the grid world, one to two minutes on one core.

For Meta-World it is ``MetaWorldDataModule(benchmark="ML10", seed=1)``, and 2 million environment steps.
"""

import argparse

from pytorch_lightning import seed_everything

from hmrl import EvaluationConfig, HierarchicalMetaRL, MetaWorldDataModule, make_trainer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--env_steps", type=int, default=480_000)
parser.add_argument("--run_dir", default="runs/python")
options = parser.parse_args()

seed_everything(1)  # the networks' first weights
evaluation = EvaluationConfig(goals_per_family=20, envs_per_family=20, backend="gridworld")
data = MetaWorldDataModule(
    benchmark="GridWorld", backend="gridworld", horizon=24, validation=evaluation, test=evaluation, seed=1
)
model = HierarchicalMetaRL(**data.sizes, seed=1)  # critic and encoder are told the goal, in training alone
trainer = make_trainer(options.run_dir, options.env_steps, accelerator="cpu", devices=1)
trainer.fit(model, data)
