"""Evidence about z and y: probes whose answer is known, formulae recomputed, figures read back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from torch import Tensor

from hmrl.analysis import figures
from hmrl.analysis.latents import MacroFindings, analyse, family_probe, first_trials, pearson, scalars
from hmrl.himeta.config import MacroVAEConfig
from hmrl.himeta.formulas import GoalStrategy, goal_steps
from hmrl.himeta.losses import macro_vae_loss
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Rollout
from support.agents import (
    EGO,
    FAMILIES,
    A,
    B,
    K,
    T,
    build_module,
    encoder_config,
    full_module,
    random_rollout,
    trajectories,
    vae_config,
)

STRATEGIES: tuple[GoalStrategy, ...] = ("constant_discretisation", "constant_margin", "sub_task")


def random_trial(episodes: int) -> Rollout:
    return replace(random_rollout(), episodes=episodes)


# --- probes --------------------------------------------------------------------------------------

RNG = np.random.default_rng


def balanced_families(families: int, episodes: int) -> np.ndarray[Any, Any]:
    return np.repeat(np.arange(families), episodes)


def test_probe_finds_nothing_in_features_that_know_nothing() -> None:
    family = balanced_families(5, 8)
    accuracy = family_probe(RNG(0).normal(size=(100, len(family), 4)), family)
    assert accuracy == pytest.approx(1 / 5, abs=0.04)


def test_probe_reads_a_family_that_is_written_there() -> None:
    family = balanced_families(5, 4)
    one_hot = np.broadcast_to(np.eye(5)[family], (30, len(family), 5))
    assert family_probe(one_hot, family) == 1


def test_probe_scores_what_is_there_and_not_more() -> None:
    """Families 0 and 1 look alike, 2 does not: 1/2, 1/2 and 1."""
    family = balanced_families(3, 20)
    features = RNG(0).normal(size=(50, len(family), 2))
    features[:, family == 2] += 100
    assert family_probe(features, family) == pytest.approx(2 / 3, abs=0.04)


def test_probe_is_blind_to_what_identifies_an_episode() -> None:
    """Rows of one episode on both sides would score close to 1 here."""
    family = balanced_families(4, 40)
    name_of_episode = RNG(0).normal(size=(1, len(family), 200))
    features = name_of_episode + 0.01 * RNG(1).normal(size=(40, len(family), 200))
    assert family_probe(features, family) == pytest.approx(1 / 4, abs=0.12)


def test_probe_does_not_count_families_by_their_episodes() -> None:
    family = np.array([0] * 2 + [1] * 2 + [2] * 30)
    assert family_probe(np.zeros((10, len(family), 1)), family) == pytest.approx(1 / 3)


def test_probe_does_not_mind_units() -> None:
    family = balanced_families(2, 4)
    features = RNG(0).normal(size=(30, len(family), 2)) + np.stack([family, family], axis=-1)
    scaled = features * [1e-6, 1e3] + [5, -2e4]
    assert family_probe(scaled, family) == pytest.approx(family_probe(features, family), abs=0.01)


def test_probe_reads_at_most_200_decisions_of_an_episode() -> None:
    family = balanced_families(2, 2)
    features = np.broadcast_to(family[:, None], (399, 4, 1)).astype(float).copy()
    features[1::2] = np.nan  # any of these would be refused
    assert family_probe(features, family) == 1


def test_probe_touches_no_random_stream_and_repeats_itself() -> None:
    family = balanced_families(3, 4)
    features = RNG(0).normal(size=(20, len(family), 3))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    once, again = family_probe(features, family), family_probe(features, family)
    assert once == again
    np.testing.assert_array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize("family", [[0, 0, 0, 0], [0, 0, 0, 1]])
def test_no_probe_where_there_is_nothing_to_tell_or_to_score(family: list[int]) -> None:
    assert family_probe(np.zeros((5, 4, 2)), np.array(family)) is None


# --- correlation and agreement -------------------------------------------------------------------


def test_correlation_is_numpys() -> None:
    x, noise = RNG(0).normal(size=(2, 50, 3))
    y = x * [1, -2, 0] + noise
    expected = [np.corrcoef(x[:, d], y[:, d])[0, 1] for d in range(3)]
    np.testing.assert_allclose(pearson(x, y), expected, atol=1e-12)
    assert pearson(x[:, :1], 3 * x[:, :1] + 1) == pytest.approx((1,))


def test_a_constant_correlates_with_nothing() -> None:
    x = RNG(0).normal(size=(10, 3))
    y = x.copy()
    x[:, 1] = 0.3
    x[:, 2] = y[:, 2] = 0.1  # whose mean over ten is not 0.1 in floating point
    assert pearson(x, y) == pytest.approx((1, 0, 0))


@pytest.mark.parametrize("trial", [1, 2])
def test_macro_action_is_held_against_where_the_hand_went(trial: int) -> None:
    """n = 2, so the goals of steps 0..5 are 2 2 4 4 6 6; in two episodes of 3: 2 2 2, 5 5 6."""
    module = full_module()
    rollout = random_trial(trial)
    found = analyse(module.policy.eval(), module.vae_config, rollout, EGO).macro
    assert found is not None
    goals = [2, 2, 4, 4, 6, 6] if trial == 1 else [2, 2, 2, 5, 5, 6]
    axes = EGO[:A]  # two: an action has no more
    z = [rollout.macro_action[t, b, :2].tolist() for t in range(T) for b in range(B)]
    moved = [
        [float(rollout.observation[goals[t], b, i] - rollout.observation[t, b, i]) for i in axes]
        for t in range(T)
        for b in range(B)
    ]
    np.testing.assert_allclose(found.macro_action, z)
    np.testing.assert_allclose(found.displacement, moved, rtol=1e-5)
    of_families: dict[str, list[Any]] = {"correlation": [], "agreement": [], "by chance": []}
    for family in range(len(FAMILIES)):  # each by itself: what lies between them is not what z says
        rows = np.tile((rollout.family == family).numpy(), T)
        own = np.array(z)[rows], np.array(moved)[rows]
        of_families["correlation"].append([np.corrcoef(own[0][:, d], own[1][:, d])[0, 1] for d in range(2)])
        action, macro = (x.flatten(0, 1).numpy()[rows] >= 0 for x in (rollout.action, rollout.macro_action))
        of_families["agreement"].append(np.mean(action == macro))
        of_families["by chance"].append(  # every action beside every macro-action
            np.mean([(action[:, d, None] == macro[None, :, d]).mean() for d in range(A)])
        )
    np.testing.assert_allclose(found.correlation, np.mean(of_families["correlation"], axis=0), rtol=1e-5)
    assert found.agreement == pytest.approx(np.mean(of_families["agreement"]))
    assert found.agreement_by_chance == pytest.approx(np.mean(of_families["by chance"]))


def test_the_hand_is_the_hand_whatever_the_decoder_predicts() -> None:
    """Also where macro-actions are about the other-state."""
    module = full_module()
    rollout = random_rollout()
    other = (2, 3, 5, 6)
    own, others = (analyse(module.policy.eval(), None, rollout, body) for body in (EGO, other))
    hand = rollout.observation[:-1][..., list(EGO)].numpy()
    assert own.probe["ego_state"] == family_probe(hand, rollout.family.numpy())
    assert own.probe["ego_state"] != others.probe["ego_state"]
    module.policy.ego_indices = torch.tensor(other[:3])  # as many as the decoder predicts
    found = analyse(module.policy, module.vae_config, rollout, EGO).macro
    assert found is not None
    moved = rollout.observation[2, 0, list(EGO[:A])] - rollout.observation[0, 0, list(EGO[:A])]
    np.testing.assert_allclose(found.displacement[0], moved, rtol=1e-5)


# --- decoder -------------------------------------------------------------------------------------


def expected_errors(module: HierarchicalMetaRL, rollout: Rollout, goal: Tensor) -> dict[str, list[float]]:
    """Family, "all" their mean -> errors given z and the average z, episode by episode and step by step."""
    policy = module.policy
    vae = policy.macro_vae
    assert vae is not None
    sums = {name: np.zeros(3) for name in FAMILIES}
    with torch.no_grad():
        states = policy.normalize(rollout.observation[:-1])
        every = [vae.encode(states[t, b], rollout.task_belief[t, b]).mean for t in range(T) for b in range(B)]
        average = torch.stack(every).mean(0)
        for b in range(B):
            for t in range(T):
                state = policy.normalize(rollout.observation[t, b])
                later = policy.normalize(rollout.observation[int(goal[t, b]), b])
                ego = state[list(EGO)]
                moved = later[list(EGO)] - ego
                z = vae.encode(state, rollout.task_belief[t, b]).mean
                each = [vae.decode(ego, z) - moved, vae.decode(ego, average) - moved, moved]
                terms = np.array([float(e.square().sum()) for e in each])
                sums[FAMILIES[int(rollout.family[b])]] += terms
    errors = {name: [s[0] / s[2], s[1] / s[2]] for name, s in sums.items()}
    return {**errors, "all": np.mean(list(errors.values()), axis=0).tolist()}


def decoder_errors(
    policy: HierarchicalPolicy, config: MacroVAEConfig, rollout: Rollout
) -> tuple[dict[str, float], dict[str, float]]:
    found = analyse(policy, config, rollout, EGO).macro
    assert found is not None
    return found.decoder_error, found.decoder_error_without_z


@pytest.mark.parametrize("goal", STRATEGIES)
def test_decoder_errors_are_recomputed_by_hand(goal: GoalStrategy) -> None:
    module = build_module(encoder_config(), vae_config(goal_state=goal, dropout=0.5))
    policy, config = module.policy.eval(), module.vae_config
    assert config is not None
    assert policy.macro_vae is not None
    with torch.no_grad():
        for weights in policy.macro_vae.decoder.parameters():
            weights *= 3  # so that z matters
    rollout = random_rollout()
    beliefs = policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting())
    goals = goal_steps(goal, beliefs.probabilities, config.n)
    informed, uninformed = decoder_errors(policy, config, rollout)
    expected = expected_errors(module, rollout, goals)
    assert informed.keys() == uninformed.keys() == expected.keys()
    for name, (with_z, without_z) in expected.items():
        assert informed[name] == pytest.approx(with_z, rel=1e-4)
        assert uninformed[name] == pytest.approx(without_z, rel=1e-4)
        assert informed[name] != pytest.approx(uninformed[name], rel=1e-2)  # z says something here


@pytest.mark.parametrize("goal", STRATEGIES)
def test_decoder_errors_are_those_that_training_logs(goal: GoalStrategy) -> None:
    module = build_module(encoder_config(), vae_config(goal_state=goal))
    policy, config = module.policy.eval(), module.vae_config
    assert config is not None
    rollout = random_rollout()
    sequence = policy.encode_episodes(rollout.observation, rollout.action, rollout.reward, Acting())
    rollout = replace(rollout, task_belief=sequence.belief.detach())
    informed, uninformed = decoder_errors(policy, config, rollout)
    groups = {"all": torch.ones(B, dtype=torch.bool)}
    groups |= {name: rollout.family == i for i, name in enumerate(FAMILIES)}
    for name, mine in groups.items():
        _, logged = macro_vae_loss(policy, trajectories(rollout).select(mine), config, Acting())
        assert informed[name] == pytest.approx(float(logged["vae/decoder_error"]), rel=1e-5)
        if name == "all":  # else the average z is another one
            assert uninformed[name] == pytest.approx(float(logged["vae/decoder_error_without_z"]), rel=1e-5)


# --- everything about a split --------------------------------------------------------------------


def test_findings_of_both_levels() -> None:
    module = full_module()
    rollout = random_rollout(success=torch.zeros(T, B, dtype=torch.bool))
    rollout.success[[3, 5], 1] = True  # the first episode of "push"
    rollout.success[1, 2] = True  # the second of "reach"
    found = analyse(module.policy.eval(), module.vae_config, rollout, EGO)
    assert (found.families, found.episodes) == (FAMILIES, B)
    assert found.probe.keys() == {"z", "y", "ego_state", "observation", "chance"}
    assert found.probe["chance"] == 0.5
    family = rollout.family.numpy()
    assert found.probe["z"] == family_probe(rollout.macro_action.numpy(), family)
    assert found.probe["y"] == family_probe(rollout.task_belief[:-1].numpy(), family)
    assert found.probe["ego_state"] == family_probe(rollout.observation[:-1, :, list(EGO)].numpy(), family)
    assert found.probe["observation"] == family_probe(rollout.observation[:-1].numpy(), family)
    assert found.success_step == {"reach": None, "push": 3}
    for b, name in enumerate(FAMILIES):
        np.testing.assert_array_equal(found.belief[name], rollout.task_belief[:, b])
    np.testing.assert_array_equal(found.arrays()["belief"][1], rollout.task_belief[:, 1])
    assert found.arrays()["belief"].shape == (len(FAMILIES), T + 1, K)


def test_without_a_macro_vae_nothing_is_said_about_z() -> None:
    module = build_module(encoder_config(), None)
    rollout = random_rollout(macro_action=torch.zeros(T, B, 0))
    found = analyse(module.policy.eval(), module.vae_config, rollout, EGO)
    assert found.macro is None
    assert found.probe.keys() == {"y", "ego_state", "observation", "chance"}
    assert found.arrays().keys() == {"belief"}
    assert scalars({"train": found}).keys() == {f"latents/probe/{name}" for name in found.probe}


def test_without_a_task_encoder_nothing_is_said_about_y() -> None:
    module = build_module(None, vae_config())
    rollout = random_rollout(task_belief=torch.zeros(T + 1, B, 0))
    found = analyse(module.policy.eval(), module.vae_config, rollout, EGO)
    assert found.macro is not None
    assert found.belief == {}
    assert found.probe.keys() == {"z", "ego_state", "observation", "chance"}
    assert found.arrays().keys() == {"macro_action", "displacement"}


def test_another_agents_episodes_say_nothing_about_this_ones_levels() -> None:
    """A scripted expert's, when the policy that is loaded has all levels."""
    module = full_module()
    rollout = random_rollout(macro_action=torch.zeros(T, B, 0), task_belief=torch.zeros(T + 1, B, 0))
    found = analyse(module.policy.eval(), module.vae_config, rollout, EGO)
    assert found.macro is None
    assert found.belief == {}
    assert found.probe.keys() == {"ego_state", "observation", "chance"}


def test_what_is_logged_names_the_split() -> None:
    module = full_module()
    train, test = (
        analyse(module.policy.eval(), module.vae_config, random_rollout(seed=seed), EGO) for seed in (0, 1)
    )
    assert train.macro is not None
    assert test.macro is not None
    values = scalars({"train": train, "test": test})
    assert {k: v for k, v in values.items() if "probe" in k} == {
        f"latents/probe/{name}": accuracy for name, accuracy in train.probe.items()
    }
    for split, macro in (("train", train.macro), ("test", test.macro)):
        assert values[f"latents/decoder_error/{split}"] == macro.decoder_error["all"]
        assert values[f"latents/decoder_error_without_z/{split}"] == macro.decoder_error_without_z["all"]
        assert values[f"latents/correlation/{split}"] == pytest.approx(sum(macro.correlation) / A)
        assert values[f"latents/agreement/{split}"] == macro.agreement
    assert len(values) == 5 + 10


@pytest.mark.parametrize("episodes", [1, 2])
def test_the_first_trials_of_each_family_are_taken_in_order(episodes: int) -> None:
    """Families of four trials: 0 1 0 1, then 1 1 0 0; three of each."""
    first, second = (
        replace(random_rollout(seed=seed), episodes=episodes, env_steps=4 * T) for seed in (0, 1)
    )
    first.final_success, second.final_success = torch.rand(2, episodes * 4) < 0.5
    second = replace(second, family=torch.tensor([1, 1, 0, 0]))
    assert first.family.tolist() == [0, 1, 0, 1]
    taken = first_trials([first, second], 3)
    assert (taken.episodes, taken.families, taken.env_steps) == (episodes, FAMILIES, 6 * T)
    assert taken.family.tolist() == [0, 1, 0, 1, 1, 0]
    for name in ("observation", "action", "log_prob", "reward", "task_belief", "macro_action", "success"):
        expected = torch.cat([getattr(first, name), getattr(second, name)[:, [0, 2]]], dim=1)
        assert torch.equal(getattr(taken, name), expected), name
    final = [r.final_success.view(episodes, 4) for r in (first, second)]
    assert torch.equal(taken.final_success.view(episodes, 6), torch.cat([final[0], final[1][:, [0, 2]]], 1))
    assert torch.equal(taken.ever_success, taken.outcomes().success)
    before = taken.observation.clone()
    first.observation.zero_()
    assert torch.equal(taken.observation, before)  # a copy


# --- figures -------------------------------------------------------------------------------------


def test_belief_panels_show_each_belief_and_when_it_was_solved() -> None:
    beliefs = {f"family {i}": RNG(i).dirichlet(np.ones(4), size=9) for i in range(7)}
    figure = figures.belief_panels(beliefs, dict.fromkeys(beliefs) | {"family 6": 5})
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert list(panels) == [f"family {i}" for i in range(6)] + ["family 6, solved"]
    for i, ax in enumerate(panels.values()):
        np.testing.assert_array_equal(ax.images[0].get_array(), beliefs[f"family {i}"].T)
        assert ax.images[0].get_clim() == (0, 1)
        assert [line.get_xdata()[0] for line in ax.lines] == ([5] if i == 6 else [])


def macro_findings(**changes: Any) -> MacroFindings:
    nothing = np.zeros((1, 1))
    return replace(MacroFindings({}, {}, (0,), 0, 0, nothing, nothing), **changes)


def test_scatter_shows_z_against_displacement() -> None:
    z = {"train": RNG(0).normal(size=(20, 2)), "test": RNG(1).normal(size=(10_000, 2))}
    moved = {split: 0.1 * v for split, v in z.items()}
    moved["test"][7] = 50  # one that must not flatten the rest
    correlation = {"train": (0.25, -0.5), "test": (0.125, 1)}
    figure = figures.displacement_scatter(
        {s: macro_findings(macro_action=z[s], displacement=moved[s], correlation=correlation[s]) for s in z}
    )
    axes = figure.axes
    titles = ["train, axis x: r = 0.25", "train, axis y: r = -0.50"]
    assert [ax.get_title() for ax in axes] == [*titles, "test, axis x: r = 0.12", "test, axis y: r = 1.00"]
    points = [next(c for c in ax.collections if isinstance(c, PathCollection)).get_offsets() for ax in axes]
    np.testing.assert_allclose(points[1], np.stack([z["train"][:, 1], moved["train"][:, 1]], axis=1))
    assert 1000 < len(points[2]) <= 3000
    assert all(0.2 < ax.get_ylim()[1] < 1 for ax in axes)


def test_bars_show_decoder_errors_with_and_without_z() -> None:
    given = {"train": {"reach": 0.5, "push": 0.6}, "test": {"lever-pull": 1.5}}
    without = {"train": {"reach": 0.7, "push": 0.8}, "test": {"lever-pull": 1.9}}
    (ax,) = figures.decoder_bars(
        {s: macro_findings(decoder_error=given[s], decoder_error_without_z=without[s]) for s in given}
    ).axes
    assert [patch.get_height() for patch in ax.patches] == [0.5, 0.6, 1.5]
    (marks,) = (c for c in ax.collections if isinstance(c, PathCollection))
    np.testing.assert_allclose(marks.get_offsets(), [[0, 0.7], [1, 0.8], [2, 1.9]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["reach", "push", "lever-pull"]
    assert ax.get_ylim()[1] > 1.9


def test_bars_show_probes_and_chance() -> None:
    accuracy = {
        "train": {"z": 0.2, "y": 0.9, "ego_state": 0.4, "chance": 0.1},
        "test": {"z": 0.3, "y": 0.8, "ego_state": 0.5, "chance": 0.25},
    }
    (ax,) = figures.probe_bars(accuracy).axes
    assert [patch.get_height() for patch in ax.patches] == [0.2, 0.9, 0.4, 0.3, 0.8, 0.5]
    centres = [patch.get_x() + patch.get_width() / 2 for patch in ax.patches]
    np.testing.assert_allclose(centres, [-0.2, 0.8, 1.8, 0.2, 1.2, 2.2])
    assert [line.get_ydata()[0] for line in ax.lines] == [0.1, 0.25]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["z", "y", "ego-state"]


def test_macro_findings_split_into_numbers_and_arrays() -> None:
    module = full_module()
    found = analyse(module.policy.eval(), module.vae_config, random_rollout(), EGO)
    assert isinstance(found.macro, MacroFindings)
    numbers = found.numbers()
    kept = {"families", "episodes", "probe", "success_step"}
    macro = {"decoder_error", "decoder_error_without_z", "correlation", "agreement", "agreement_by_chance"}
    macro |= {"over_families"}
    assert numbers.keys() == kept | macro
    assert numbers["agreement"] == found.macro.agreement
