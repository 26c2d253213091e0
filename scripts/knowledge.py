"""What an agent's belief knows about families that look alike, along their episodes, and whether it matters.

python scripts/knowledge.py results/ml10-20m/default/agent.weights.ckpt --families reach push pick-place

Fresh episodes on EnvPool with fresh goals. At some decisions: I(category; family) in nats among these
families (of at most the logarithm of their number, and what shuffled families would give: few episodes
look informed); the KL by which the policy in a family's states moves where the beliefs are another family's
at the same decision (beliefs and macro-actions without noise, whatever the agent acted on); and, by family,
the mean of one dimension of the observation (6: the height of Meta-World's first object, in metres).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.distributions import kl_divergence

from hmrl.cli.messages import one_sentence
from hmrl.envs.benchmarks import Goals, benchmark
from hmrl.himeta.formulas import mutual_information
from hmrl.rollouts.collect import collect, seeded
from hmrl.system.errors import UserError
from hmrl.system.paths import file_to_write
from hmrl.training import checkpoint
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.loading import agent_of, data_of
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Rollout

_STREAM = 1000  # of what is perturbed: not training's
_SEEN = ("goals_shown", "horizon", "perturbation")  # settings of what the agent sees


def episodes(
    agent: HierarchicalMetaRL, trained: MetaWorldDataModule, families: list[str], each: int, seed: int
) -> Rollout:
    """``each`` episodes of each family as in training, on goals of their own.

    Args:
        trained: the data module that the agent was trained with.
    """
    data = MetaWorldDataModule(
        benchmark="custom",
        train_families=families,
        test_families=[next(f for f in benchmark("ML10").test if f not in families)],  # never played
        envs_per_family=each,
        seed=trained.seed,  # what a world that changes has come to is a function of it
        **{name: getattr(trained, name) for name in _SEEN},
    )
    if data.observation_dim != agent.policy.observation_dim:
        raise UserError(
            f"the agent sees {agent.policy.observation_dim} numbers, not the {data.observation_dim} that "
            "Meta-World shows: it cannot be played here"
        )
    goals = Goals("train", seed, None, 0)
    envs = data.seen_envs("envpool", goals, each, data.perturbation, _STREAM, age=trained.age(agent))
    with seeded(seed):
        rollout = collect(
            envs,
            agent.policy,
            episode=0,
            acting=agent.acting,
            families=data.families,
            split="train",
            mode="training",
        )
    envs.close()
    return rollout


@torch.no_grad()
def findings(
    agent: HierarchicalMetaRL, rollout: Rollout, decisions: list[int], dimension: int
) -> dict[str, Any]:
    """By decision, as in the module's text."""
    policy, count = agent.policy, len(rollout.families)
    state = policy.normalize(rollout.observation)
    belief = rollout.task_belief
    if agent.acting.task_belief == "sample":  # a draw is no distribution
        belief, _ = policy.renewed(rollout.observation, rollout.action, rollout.reward)
    by_family = rollout.family.argsort(stable=True).unflatten(0, (count, -1))
    names = ("information", "information_by_chance", "kl_of_swapped_beliefs", "observed")
    found: dict[str, Any] = {name: {} for name in names}
    generator = torch.Generator().manual_seed(0)
    for t in decisions:
        probabilities = policy.by_variable(belief[t])
        found["information"][t] = float(mutual_information(probabilities, rollout.family, count))
        shuffled = rollout.family[torch.randperm(len(rollout.family), generator=generator)]
        found["information_by_chance"][t] = float(mutual_information(probabilities, shuffled, count))
        observed = rollout.observation[t, :, dimension]
        found["observed"][t] = {
            f: float(observed[i].mean()) for f, i in zip(rollout.families, by_family, strict=True)
        }

        def policy_given(y: torch.Tensor, at: int = t) -> torch.distributions.Normal:
            return policy.actor(state[at], y, policy.macro_action(state[at], y, Acting()))

        own = policy_given(belief[t])
        swapped = {}
        for shift in range(1, count):
            other = torch.empty_like(belief[t])
            other[by_family] = belief[t][by_family.roll(-shift, 0)]
            kl = kl_divergence(own, policy_given(other)).sum(-1)
            for k, name in enumerate(rollout.families):
                donor = rollout.families[(k + shift) % count]
                swapped[f"{name} given {donor}"] = float(kl[by_family[k]].mean())
        found["kl_of_swapped_beliefs"][t] = swapped
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--families", nargs="+", default=["reach", "push", "pick-place"])
    parser.add_argument("--episodes", type=int, default=100, help="of each family (default: 100)")
    parser.add_argument("--decisions", type=int, nargs="+", default=[0, 5, 25, 50, 100, 200])
    parser.add_argument("--dimension", type=int, default=6, help="of the observation (default: 6)")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=file_to_write, help="a JSON file, too")
    options = parser.parse_args()
    saved = checkpoint.load(options.checkpoint)
    agent, trained = agent_of(saved), data_of(saved)
    if not agent.policy.categorical_entries:
        raise UserError(f"{options.checkpoint} is of an agent whose belief has no categories")
    rollout = episodes(agent, trained, options.families, options.episodes, options.seed)
    decisions = [t for t in options.decisions if 0 <= t < len(rollout.action)]
    if not decisions:
        raise UserError(f"--decisions has none of an episode's, 0 to {len(rollout.action) - 1}")
    if not 0 <= options.dimension < (size := rollout.observation.shape[-1]):
        raise UserError(f"--dimension is {options.dimension}: use 0 to {size - 1}")
    found = findings(agent, rollout, decisions, options.dimension)
    print(f"I(category; family) of at most {math.log(len(options.families)):.2f} nats, by decision:")
    print("  " + ", ".join(f"{t}: {value:.2f}" for t, value in found["information"].items()))
    print("  by chance " + ", ".join(f"{t}: {x:.2f}" for t, x in found["information_by_chance"].items()))
    print("KL of the policy where the belief is another family's:")
    for pair in next(iter(found["kl_of_swapped_beliefs"].values())):
        values = {t: kl[pair] for t, kl in found["kl_of_swapped_beliefs"].items()}
        print(f"  {pair:<32}" + ", ".join(f"{t}: {value:.2f}" for t, value in values.items()))
    print(f"observed in dimension {options.dimension}:")
    for family in rollout.families:
        print(f"  {family:<32}" + ", ".join(f"{t}: {x[family]:.3f}" for t, x in found["observed"].items()))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    with one_sentence():
        main()
