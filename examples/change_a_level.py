"""Change one level: a task encoder without memory. Does it pay to remember?

python examples/change_a_level.py                 # the grid world: one to two minutes on one core
"""

import argparse
from typing import Any

from pytorch_lightning import seed_everything
from torch import Tensor, nn

from hmrl import (
    EvaluationConfig,
    HierarchicalMetaRL,
    MetaWorldDataModule,
    TaskEncoderConfig,
    make_trainer,
)
from hmrl.himeta.networks import TaskEncoder


class Reactive(TaskEncoder):
    """A belief of the latest context alone: an MLP in the place of the recurrent cell."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.recurrent = nn.Sequential(nn.Linear(self.recurrent.input_size, self.hidden), nn.ReLU())

    def remember(self, *context_and_hidden: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As :meth:`TaskEncoder.remember`, with the recurrent state unchanged."""
        *context, hidden = context_and_hidden
        return self.recurrent(self.context(*context)), hidden


class ReactiveAgent(HierarchicalMetaRL):
    """HiMeta, save for its task encoder. Losses, optimizers and checkpoints stay as they are."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        config = self.encoder_config
        assert config is not None
        self.policy.task_encoder = Reactive(
            self.policy.state_dim,
            self.policy.action_dim,
            categories=config.categories,
            variables=config.variables,
            cell=config.cell,
            hidden=config.hidden,
            embedding_hidden=config.embedding_hidden,
            reward_embedding=config.reward_embedding,
            reward_change=config.context_reward == "change",
            head_hidden=config.head_hidden,
            dropout=config.dropout,
            reward_decoder_hidden=config.decoder_hidden,
            goal_dim=self.policy.task_encoder.goal_dim,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env_steps", type=int, default=480_000)
    parser.add_argument("--run_dir", default="runs/reactive")
    options = parser.parse_args()
    seed_everything(1)
    evaluation = EvaluationConfig(goals_per_family=20, envs_per_family=20, backend="gridworld")
    world = {"benchmark": "GridWorld", "backend": "gridworld", "horizon": 24}
    data = MetaWorldDataModule(**world, validation=evaluation, test=evaluation, seed=1)
    agent = ReactiveAgent(**data.sizes, task_encoder=TaskEncoderConfig(hidden=64, cell="gru"), seed=1)
    make_trainer(options.run_dir, options.env_steps, accelerator="cpu", devices=1).fit(agent, data)
    belief = agent.policy.task_encoder
    print(f"a belief of {belief.belief_dim} numbers, {sum(p.numel() for p in belief.parameters()):,} weights")
