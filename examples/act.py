"""A trained agent in a plain Meta-World environment, one decision at a time.

python examples/act.py results/ml10-20m/default/agent.weights.ckpt --family drawer-close
"""

import argparse

import metaworld
import numpy as np

from hmrl import Acting, HierarchicalMetaRL

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("checkpoint")
parser.add_argument("--family", default="drawer-close")
options = parser.parse_args()

agent = HierarchicalMetaRL.load_from_checkpoint(options.checkpoint).policy
benchmark = metaworld.ML1(f"{options.family}-v3", seed=1)
env = benchmark.train_classes[f"{options.family}-v3"]()
env.set_task(benchmark.test_tasks[0])

observation, _ = env.reset()
carry = agent.initial_carry(1)  # all that the agent remembers: a new one begins a new trial
reward, success = 0.0, False
for _ in range(500 // agent.decision_interval):
    step, carry = agent.act(observation[None], np.array([reward]), carry, Acting())
    reward = 0.0  # summed between two decisions
    for _ in range(agent.decision_interval):
        observation, now, _, _, info = env.step(step.action[0].clamp(-1, 1).numpy())
        reward, success = reward + now, success or info["success"] > 0
print(f"{options.family}: {'solved' if success else 'not solved'}")
