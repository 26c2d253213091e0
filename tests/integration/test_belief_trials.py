"""A policy that searches among beliefs, in Meta-World's own evaluation of the toy world."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from metaworld.evaluation import Timestep, metalearning_evaluation
from torch import Tensor

from hmrl.evaluation.metaworld_protocol import (
    RecordedEnvs,
    SearchingTrialAgent,
    TrialAgent,
    evaluate_trials,
)
from hmrl.evaluation.protocols import EvaluationConfig, MetaWorldConfig
from hmrl.rollouts.collect import seeded
from hmrl.system.errors import UserError
from hmrl.training.callbacks.success_rate import describe_protocol
from hmrl.training.checkpoint import load
from hmrl.training.module import HierarchicalMetaRL
from hmrl.training.trainer import make_trainer
from hmrl.types import Acting, ActorStep, Carry, EnvStep
from support.runs import fit_iterations
from support.toy import HORIZON, tiny_module, tiny_networks, toy_data
from support.trials import FAMILIES, TrialEnvs, toy_envs

MEAN = Acting(action="mean")
INTERVAL, DECISIONS = 3, 5
EPISODES = 7  # of adaptation
OTHERS = 4
GOAL = 3  # the estimate of the goal, with which a belief ends
Altered = Callable[[EnvStep], EnvStep]


@pytest.fixture(scope="module")
def module() -> HierarchicalMetaRL:
    data = toy_data(horizon=HORIZON)
    with seeded(5):
        module = tiny_module(data, decision_interval=INTERVAL)
        for parameter in module.policy.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        width = data.observation_dim
        module.policy.observe(torch.randn(50, width), torch.rand(50), torch.randn(50, data.goal_dim))
    return module


def averages(others: int = OTHERS) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(others, DECISIONS, 8, 3, generator=generator)
    goal = torch.randn(others, DECISIONS, GOAL, generator=generator)
    return torch.cat([(4 * drawn).softmax(-1).flatten(-2), goal], dim=-1)


class Noting(SearchingTrialAgent):
    """Notes what it does, and what it searches for."""

    def init(self) -> None:
        super().init()
        self.steps: list[tuple[Tensor, Tensor, Tensor, ActorStep, Carry]] = []
        self.chosen: list[np.ndarray] = [self.search.chosen.copy()]
        self.returns: list[np.ndarray] = []
        self.earned = np.zeros(2)

    def step(self, timestep: Any) -> None:
        ended = np.logical_or(timestep.terminated, timestep.truncated)
        self.earned = self.earned + timestep.reward
        if ended.any():  # all at once
            self.returns.append(self.earned)
            self.earned = np.zeros(2)
        super().step(timestep)
        if ended.any():
            self.chosen.append(self.search.chosen.copy())

    def _decide(self, seen: Tensor, reward: Tensor, due: Any) -> tuple[ActorStep, Carry]:
        step, carry = super()._decide(seen, reward, due)
        if self._adapts:
            self.steps.append((seen, reward, torch.from_numpy(due), step, carry))
        return step, carry


def searched(
    module: HierarchicalMetaRL,
    altered: Altered = lambda taken: taken,
    families: Sequence[str] = FAMILIES,
    solved: int = 0,
) -> Noting:
    """One trial; ``altered`` is done to what every step of the toy world answers."""
    agent = Noting(module.policy, MEAN, families, averages(), EPISODES)
    toy = toy_envs(solved)
    answer = toy.step
    toy.step = lambda action: altered(answer(action))  # type: ignore[method-assign]
    metalearning_evaluation(
        agent, TrialEnvs(toy), num_evals=1, adaptation_episodes=EPISODES, evaluation_episodes=1
    )
    return agent


def beliefs(agent: Noting) -> Tensor:
    """What was acted on. ``[episodes * decisions, 2, belief_dim]``"""
    return torch.stack([step.task_belief for *_, step, _ in agent.steps])


def test_each_episode_is_played_on_the_belief_that_was_chosen(module: HierarchicalMetaRL) -> None:
    agent = searched(module)
    acted = beliefs(agent).unflatten(0, (EPISODES, DECISIONS))
    chosen = np.stack(agent.chosen[:EPISODES])
    assert (chosen[0] == 0).all()
    for i in range(EPISODES):
        for b in range(2):
            equal = [torch.equal(acted[i, :, b, :-GOAL], other[:, :-GOAL]) for other in averages()]
            assert [c for c, same in enumerate(equal, 1) if same] == [c for c in [chosen[i, b]] if c]
    for b in range(2):  # seven episodes: five beliefs, then the best ones
        assert set(chosen[:5, b]) == set(range(1 + OTHERS))
        earned: dict[int, list[float]] = {}
        for i, total in enumerate(agent.returns):
            if i >= 5:
                assert chosen[i, b] == max(earned, key=lambda c: np.mean(earned[c]))
            earned.setdefault(int(chosen[i, b]), []).append(total[b])
        assert agent.search.chosen[b] == max(earned, key=lambda c: np.mean(earned[c]))


def test_beliefs_are_ordered_by_what_the_trial_has_shown(module: HierarchicalMetaRL) -> None:
    """Against the errors of predicted rewards over every transition within an episode."""
    agent = searched(module)
    policy, known = module.policy, averages()
    assert policy.task_encoder is not None
    for b in range(2):
        error = np.zeros(OTHERS)
        for i in range(1, 5):
            episode = agent.steps[(i - 1) * DECISIONS : i * DECISIONS]
            for t, (now, then) in enumerate(pairwise(episode)):
                state, after = policy.normalize(now[0][b]), policy.normalize(then[0][b])
                action, reward = now[3].action[b].clip(-1, 1), policy.normalize_reward(then[1][b])
                for c in range(OTHERS):
                    belief = torch.cat([known[c, t, :-GOAL], now[3].task_belief[b, -GOAL:]])
                    with torch.no_grad():
                        said = policy.task_encoder.predicted_reward(belief, state, action, after)
                    error[c] += float(said - reward) ** 2
            tried = {chosen[b] for chosen in agent.chosen[:i]}
            untried = [c for c in range(1, 1 + OTHERS) if c not in tried]
            assert agent.chosen[i][b] == min(untried, key=lambda c: error[c - 1])
        assert len({round(x, 6) for x in error}) == OTHERS


def test_rewards_of_one_environment_are_nothing_to_the_other(module: HierarchicalMetaRL) -> None:
    def upside_down(taken: EnvStep) -> EnvStep:
        return taken._replace(reward=taken.reward * np.array([1.0, -1.0]))

    usual, other = searched(module), searched(module, upside_down)
    assert torch.equal(beliefs(usual)[:, 0], beliefs(other)[:, 0])
    left, right = ([step.action for *_, step, _ in agent.steps] for agent in (usual, other))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(left, right, strict=True))
    assert [c[0] for c in usual.chosen] == [c[0] for c in other.chosen]
    assert usual.search.chosen[0] == other.search.chosen[0]
    assert [c[1] for c in usual.chosen] != [c[1] for c in other.chosen]


def test_how_long_episodes_of_one_environment_last_is_nothing_to_the_other(
    module: HierarchicalMetaRL,
) -> None:
    """Environments then decide at different steps, and each explains its own transitions alone."""

    def errors(length: int) -> np.ndarray:
        """Of the second environment, whose episodes have 13 steps, where the first one's have ``length``."""
        agent = SearchingTrialAgent(module.policy, MEAN, FAMILIES, averages(), EPISODES)
        agent.init()
        steps = np.zeros(2, dtype=int)
        found = []
        for t in range(4 * 13):
            seen = np.stack([np.random.default_rng([b, t]).normal(size=45) for b in range(2)])
            action, _ = agent.adapt_action(seen)
            steps += 1
            ended = steps == np.array([length, 13])
            steps[ended] = 0
            agent.step(Timestep(seen, action, seen[:, 0], np.zeros(2, dtype=bool), ended, {}))
            found.append(agent.search._error[:, 1].copy())
        return np.stack(found)

    together, apart = errors(13), errors(11)
    assert len(np.unique(together)) > 20
    assert np.allclose(together, apart, rtol=1e-5)


def test_success_and_names_of_families_make_no_difference(module: HierarchicalMetaRL) -> None:
    usual = searched(module)
    for other in (searched(module, solved=2), searched(module, families=("sweep", "sweep"))):
        assert torch.equal(beliefs(usual), beliefs(other))
        assert (np.stack(usual.chosen) == np.stack(other.chosen)).all()
        assert (usual.search.chosen == other.search.chosen).all()


@pytest.mark.parametrize("episodes", [1, 4])
def test_with_its_own_belief_alone_it_is_memory(module: HierarchicalMetaRL, episodes: int) -> None:
    said: list[list[np.ndarray]] = [[], []]

    def noted(agent: TrialAgent, into: list[np.ndarray]) -> TrialAgent:
        act = agent._act
        agent._act = lambda seen: into.append(act(seen)) or into[-1]  # type: ignore[method-assign, func-returns-value]
        return agent

    acting = Acting()
    agents = [
        TrialAgent(module.policy, acting, FAMILIES),
        SearchingTrialAgent(module.policy, acting, FAMILIES, averages(0), episodes),
    ]
    numbers = []
    for agent, into in zip(agents, said, strict=True):
        with seeded(9):
            numbers.append(
                metalearning_evaluation(
                    noted(agent, into),
                    TrialEnvs(toy_envs()),
                    num_evals=2,
                    adaptation_episodes=episodes,
                    evaluation_episodes=2,
                )
            )
    assert numbers[0] == numbers[1]
    assert len(said[0]) == len(said[1]) >= 2 * (episodes + 1) * HORIZON // 2
    assert all((x == y).all() for x, y in zip(*said, strict=True))


def test_any_number_of_episodes_will_do(module: HierarchicalMetaRL) -> None:
    for episodes in (1, 2, 3):
        config = MetaWorldConfig("beliefs", 2, episodes, 1)
        envs = RecordedEnvs(TrialEnvs(toy_envs(1)), FAMILIES)
        found = evaluate_trials(module.policy, envs, config, MEAN, "train", "sampled", averages())
        adapted = [phase == "adaptation" for phase in found.recorded.phase or ()]
        assert sum(adapted) == 2 * 2 * episodes
        assert found.scored.number.tolist() == [episodes - 1] * 4


# --- settings and results ----------------------------------------------------------------------------


def beliefs_data(**changes: Any) -> Any:
    test = EvaluationConfig(backend="metaworld", protocol="meta_world")
    return toy_data(test=test, meta_world=MetaWorldConfig("beliefs"), **changes)


def test_results_say_how_the_policy_adapted() -> None:
    data = beliefs_data()
    assert describe_protocol(data)["adaptation"] == "beliefs"
    data.meta_world = replace(data.meta_world, adaptation="memory")
    assert "adaptation" not in describe_protocol(data)


@pytest.mark.parametrize("agent", ["expert", "random"])
def test_agents_without_beliefs_are_refused(agent: Any) -> None:
    data = beliefs_data()
    data.test.agent = agent
    with pytest.raises(UserError, match=re.escape(f"data.test.agent is {agent}, which has none: use memory")):
        data.check("test", 1)


def test_a_mode_that_permutes_the_belief_is_refused() -> None:
    """The search would put its own belief in the place of the permuted one."""
    data = beliefs_data(modes={"sampled": Acting(), "permuted": Acting(permute="task_belief")})
    with pytest.raises(UserError, match="mode permuted permutes the belief"):
        data.check("test", 1)
    data.meta_world = replace(data.meta_world, adaptation="memory")
    data.check("test", 1)


def test_evaluations_of_a_training_that_begins_need_no_beliefs_yet() -> None:
    """Lightning may ask for the streams before the first rollout."""
    data = beliefs_data(validation=EvaluationConfig(backend="metaworld", protocol="meta_world"))
    module = tiny_module(data)
    data.trainer = SimpleNamespace(lightning_module=module)
    assert len(data.val_dataloader()) == 2
    module.iteration.fill_(1)
    with pytest.raises(UserError, match="the checkpoint holds no average beliefs"):
        data.val_dataloader()


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        ({}, "the checkpoint holds no average beliefs of its training families"),
        ({"task_encoder": None}, "this agent has none (model.task_encoder is null)"),
        (
            {"task_encoder": replace(tiny_networks()["task_encoder"], reward_coef=0.0)},
            "predicts no rewards, by which they are ordered (model.task_encoder.reward_coef is 0)",
        ),
    ],
)
def test_an_agent_that_cannot_is_refused_before_anything_is_run(
    networks: dict[str, Any], said: str, tmp_path: Path
) -> None:
    data = beliefs_data()
    module = tiny_module(data, **networks)
    trainer = make_trainer(str(tmp_path / "run"), 1, logger=False, accelerator="cpu", devices=1)
    with pytest.raises(UserError, match=re.escape(said)):
        trainer.test(module, datamodule=data)
    assert not (tmp_path / "run").exists()


def test_training_keeps_the_means_of_its_rollouts_in_both_files_of_a_checkpoint(tmp_path: Path) -> None:
    run = fit_iterations(tmp_path, 2, limit_val_batches=0)
    rollouts = run.recorder.rollouts
    for name in ("last.ckpt", "last.weights.ckpt"):
        kept = load(tmp_path / "checkpoints" / name)["average_beliefs"]
        assert kept["count"].tolist() == [2] * 10
        for i in range(10):
            own = torch.cat([rollout.task_belief[:-1, rollout.family == i] for rollout in rollouts], dim=1)
            assert torch.allclose(kept["mean"][i], own.mean(1), atol=1e-6)
