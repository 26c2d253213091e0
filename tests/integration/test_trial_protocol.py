"""Meta-World's own evaluation drives our agent: it must be given what it was given in training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from metaworld.evaluation import metalearning_evaluation

from hmrl.envs.benchmarks import ACTION_DIM, OBSERVATION_DIM
from hmrl.evaluation.metaworld_protocol import RecordedEnvs, TrialAgent, evaluate_trials
from hmrl.evaluation.protocols import MetaWorldConfig
from hmrl.rollouts.collect import collect, seeded
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, ActorStep, Carry
from support.toy import HORIZON, tiny_module, toy_data
from support.trials import FAMILIES, REPEATS, TrialEnvs, toy_envs

MEAN = Acting(action="mean")


class Notes:
    """Passes everything on to an agent, and notes what it was given."""

    def __init__(self, agent: Any) -> None:
        self.agent, self.decision_interval = agent, agent.decision_interval
        self.given: list[tuple[torch.Tensor, torch.Tensor, Carry]] = []
        self.actions: list[torch.Tensor] = []
        self.carries = 0

    def initial_carry(self, batch_size: int) -> Carry:
        self.carries += 1
        return self.agent.initial_carry(batch_size)

    def act(self, observation: Any, reward: Any, carry: Carry, acting: Acting) -> tuple[ActorStep, Carry]:
        self.given.append((observation.clone(), reward.clone(), carry))
        step, carry = self.agent.act(observation, reward, carry, acting)
        self.actions.append(step.action.clone())
        return step, carry


@pytest.fixture(scope="module")
def module() -> HierarchicalMetaRL:
    with seeded(5):
        module = tiny_module(toy_data(), decision_interval=3)
        for parameter in module.policy.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        module.policy.observe(torch.randn(50, OBSERVATION_DIM), torch.rand(50), torch.randn(50, 3))
    return module


def test_a_trial_is_what_training_on_trials_sees(module: HierarchicalMetaRL) -> None:
    """Observations, summed rewards, memory and actions, over the resets of the adaptation episodes."""
    trained, tested = Notes(module.policy), Notes(module.policy)
    collect(
        toy_envs(0),
        trained,
        episode=0,
        episodes=REPEATS,
        acting=MEAN,
        families=FAMILIES,
        split="train",
        mode="mean_action",
    )
    agent = TrialAgent(tested, MEAN, FAMILIES)
    metalearning_evaluation(
        agent, TrialEnvs(toy_envs(0)), num_evals=1, adaptation_episodes=REPEATS, evaluation_episodes=1
    )
    decisions = REPEATS * -(-HORIZON // 3)
    assert len(trained.given) == decisions + 1  # and the bootstrap
    assert len(tested.given) == decisions + -(-HORIZON // 3)
    for i in range(decisions):
        for a, b in zip(trained.given[i][:2], tested.given[i][:2], strict=True):
            assert torch.allclose(a, b, atol=1e-6), i
        hidden = zip(trained.given[i][2].hidden, tested.given[i][2].hidden, strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in hidden)
        assert torch.allclose(trained.actions[i], tested.actions[i], atol=1e-6)
    # Where evaluation begins, memory goes on, with the last reward of adaptation.
    _, reward, carry = tested.given[decisions]
    assert carry.hidden[0].abs().sum() > 0
    assert torch.allclose(reward, trained.given[decisions][1], atol=1e-6)


def test_only_a_new_trial_clears_memory(module: HierarchicalMetaRL) -> None:
    notes = Notes(module.policy)
    agent = TrialAgent(notes, MEAN, FAMILIES)
    metalearning_evaluation(
        agent, TrialEnvs(toy_envs(0)), num_evals=4, adaptation_episodes=2, evaluation_episodes=2
    )
    assert notes.carries == 4
    empty = [i for i, (_, _, carry) in enumerate(notes.given) if not carry.hidden[0].any()]
    each = len(notes.given) // 4
    assert empty == [0, each, 2 * each, 3 * each]
    assert all(not notes.given[i][1].any() for i in empty)  # no reward of the trial before


class Counting:
    """Acts by the number of decisions that each environment has had."""

    decision_interval = 3

    def initial_carry(self, batch_size: int) -> Carry:
        zeros = torch.zeros(batch_size, ACTION_DIM)
        return Carry((torch.zeros(1, batch_size, 1),), zeros, zeros, zeros[:, :1], zeros[:, :0], zeros[:, :1])

    def act(self, observation: Any, reward: Any, carry: Carry, acting: Acting) -> tuple[ActorStep, Carry]:
        count = carry.hidden[0] + 1
        action = (count[0] / 100).expand(-1, ACTION_DIM).clone()
        action[:, 1] = reward / 100
        nothing = torch.zeros(len(action), 0)
        step = ActorStep(action, torch.zeros(len(action)), nothing, nothing)
        return step, replace(carry, hidden=(count,))


def test_each_environment_decides_in_its_own_time() -> None:
    agent = TrialAgent(Counting(), Acting(), FAMILIES)
    agent.init()
    agent.reset(np.array([True, True]))
    observed = np.zeros((2, OBSERVATION_DIM + ACTION_DIM + 2))
    observed[:, OBSERVATION_DIM + ACTION_DIM] = 1.0  # a reward at every step
    counts, rewards = [], []
    for t in range(8):
        action = agent.eval_action(observed) * 100
        counts.append(action[:, 0].round().tolist())
        rewards.append(action[:, 1].round().tolist())
        agent.reset(np.array([t == 3, False]))  # the first environment's episode ends after step 3
    assert [c[0] for c in counts] == [1, 1, 1, 2, 3, 3, 3, 4]
    assert [c[1] for c in counts] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert [r[0] for r in rewards] == [1, 1, 1, 3, 1, 1, 1, 3]  # summed since the last decision
    assert [r[1] for r in rewards] == [1, 1, 1, 3, 3, 3, 3, 3]


def test_a_macro_action_is_not_held_into_another_episode() -> None:
    with seeded(5):
        held = tiny_module(toy_data(), decision_interval=1, macro_interval=5)
    agent = TrialAgent(held.policy, MEAN, FAMILIES)
    agent.init()
    agent.reset(np.array([True, True]))
    observed = np.random.default_rng(0).normal(size=(4, 2, OBSERVATION_DIM + ACTION_DIM + 2))
    said = []
    for t in range(4):
        agent.eval_action(observed[t])
        said.append(agent._carry.macro_action)
        agent.reset(np.array([t == 1, False]))  # the first environment's episode ends after two decisions
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[1][0], said[2][0])
    assert torch.equal(said[1][1], said[2][1])
    assert torch.equal(said[2], said[3])


def test_a_non_finite_action_names_its_family() -> None:
    class Broken(Counting):
        def act(self, *args: Any) -> Any:
            step, carry = super().act(*args)
            step.action[1] = torch.nan
            return step, carry

    agent = TrialAgent(Broken(), Acting(), FAMILIES)
    agent.init()
    with pytest.raises(Exception, match="action of family push is not finite"):
        agent.adapt_action(np.zeros((2, OBSERVATION_DIM + ACTION_DIM + 2)))


@pytest.mark.parametrize(("column", "what"), [(3, "observation"), (OBSERVATION_DIM + ACTION_DIM, "reward")])
@pytest.mark.parametrize("value", [np.nan, 1e39])
def test_what_the_simulator_says_is_blamed_on_it(column: int, what: str, value: float) -> None:
    agent = TrialAgent(Counting(), Acting(), FAMILIES)
    agent.init()
    seen = np.zeros((2, OBSERVATION_DIM + ACTION_DIM + 2))
    seen[1, column] = value
    with pytest.raises(Exception, match=f"the {what} of family push is"):
        agent.eval_action(seen)


# Of a trial of two episodes of adaptation and one of evaluation: phase, number, environment.
EPISODES = [
    (phase, n, i) for phase, n in (*(("adaptation", n) for n in (0, 1)), ("evaluation", 0)) for i in (0, 1)
]


@pytest.mark.parametrize("solved", [0, 2])
def test_every_episode_is_noted(solved: int) -> None:
    """Against the toy world's own record."""
    toy = toy_envs(solved)
    envs = RecordedEnvs(TrialEnvs(toy), FAMILIES)
    config = MetaWorldConfig(num_evals=2, adaptation_episodes=2, evaluation_episodes=1)
    found = evaluate_trials(Counting(), envs, config, Acting(), "train", "sampled")
    assert found.official["success"] == solved / 2
    assert found.official["families"] == {f: float(solved > 0) for f in FAMILIES}
    noted = found.recorded
    order = [(t, phase, n, i) for t in range(2) for phase, n, i in EPISODES]
    assert noted.phase == tuple(phase for _, phase, _, _ in order)
    pairs = zip(*(x.tolist() for x in (noted.goal, noted.number, noted.family)), strict=True)
    assert list(pairs) == [(t, n, i) for t, _, n, i in order]
    record = [e for e in toy.record if len(e.rewards) == HORIZON]
    whole = noted.length == HORIZON
    assert noted.episode_return[whole].tolist() == pytest.approx([sum(e.rewards) for e in record])
    assert noted.success[whole].tolist() == [any(e.successes) for e in record]
    evaluated = torch.tensor([phase == "evaluation" for phase in noted.phase])
    assert (noted.success[evaluated] == (solved > 0)).all()
    assert (noted.final_success[evaluated] == (solved > 0)).all()
    assert (noted.length[evaluated] == (1 if solved else HORIZON)).all()
    assert set(found.scored.phase) == {"adaptation"}
    last = ~evaluated & (noted.number == 1)
    for name in ("family", "goal", "number", "success", "final_success", "episode_return", "length"):
        assert torch.equal(getattr(found.scored, name), getattr(noted, name)[last])
