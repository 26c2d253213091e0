"""Beginning from another run's weights: what is taken over, what begins anew, and what does not learn."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmrl.results.file import digest
from hmrl.system.errors import UserError
from hmrl.training.callbacks import success_rate
from hmrl.training.checkpoint import FORMAT
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting
from support.agents import (
    FAMILIES,
    build_module,
    encoder_config,
    fit,
    full_module,
    iteration_batch,
    play,
    vae_config,
)
from support.runs import assert_same

OTHERS = ("drawer-open", "push", "sweep")
TOLD = {"networks": {"critic_input": "task"}, "goal_dim": 2}
LEVELS = ("task_encoder", "macro_vae", "actor", "critic")


def write(module: HierarchicalMetaRL, path: Path, **changes: Any) -> Path:
    """A weights-only export of ``module``, after training of 700 environment steps."""
    module.env_steps.fill_(700)
    module.iteration.fill_(3)
    module.reward_scaler.moments.update(torch.randn(9, 1), torch.arange(9) % len(module.families))
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "format": FORMAT}
    torch.save(content | changes, path)
    return path


def fresh(families: tuple[str, ...] = OTHERS, **changes: Any) -> HierarchicalMetaRL:
    """Another agent of the same kind, with other weights and moments, for other families."""
    module = full_module(families=families, **changes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    module.policy.observe(torch.randn(20, 7), torch.randn(20), torch.randn(20, 2))
    return module


def learn(module: HierarchicalMetaRL) -> Any:
    """One iteration of an agent for :data:`FAMILIES`; its trainer."""
    return fit(module, [iteration_batch(play(module, key=[5]))])


def parts(state: dict[str, Any], *prefixes: str) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k.startswith(prefixes)}


def copied(module: HierarchicalMetaRL) -> dict[str, Any]:
    return copy.deepcopy(dict(module.state_dict()))


@pytest.mark.parametrize("told", [{}, TOLD], ids=["belief", "told"])
def test_networks_and_normaliser_are_taken_over_and_the_rest_begins_anew(
    told: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, module = full_module(**told), fresh(**told)
    path, before = write(source, tmp_path / "agent.ckpt"), copied(module)
    module.init_from(path)
    own = ["reward_scaler.", "env_steps", "iteration", *(["policy.critic."] if told else [])]
    state, there = copied(module), dict(source.state_dict())
    assert_same(parts(state, *own), parts(before, *own))
    taken = [k for k in state if not k.startswith(tuple(own))]
    assert_same({k: state[k] for k in taken}, {k: there[k] for k in taken})
    assert all(not torch.equal(before[k], there[k]) for k in taken if k.endswith(("weight", "bias", "mean")))
    moments = ["policy.observation_moments.mean", "policy.reward_moments.var"]
    assert {*moments, *(["policy.goal_moments.count"] if told else [])} <= {*taken}
    assert (module.initial or {})["weights"] == digest(there)
    assert ("the critic begins anew" in capsys.readouterr().out) == bool(told)


def test_a_told_critic_is_taken_over_where_families_are_the_same(tmp_path: Path) -> None:
    source, module = full_module(**TOLD), fresh(FAMILIES, **TOLD)
    module.init_from(write(source, tmp_path / "agent.ckpt"))
    assert_same(copied(module.policy), copied(source.policy))  # type: ignore[arg-type]


def test_what_training_began_from_is_in_its_checkpoints(tmp_path: Path) -> None:
    path = write(full_module(seed=4), tmp_path / "agent.ckpt", git={"revision": "abc", "modified": False})
    module, checkpoint = fresh(), dict[str, Any]()
    module.on_save_checkpoint(checkpoint)
    assert "init_from" not in checkpoint
    module.init_from(path)
    module.on_save_checkpoint(checkpoint)
    again = fresh()
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "format": FORMAT}
    again.on_load_checkpoint({**state, **checkpoint})
    assert again.initial == {
        "path": str(path),
        "weights": digest(torch.load(path, weights_only=True)["state_dict"]),
        "env_steps": 700,
        "seed": 4,
        "families": list(FAMILIES),
        "goals_shown": False,
        "git": {"revision": "abc", "modified": False},
        "init_from": None,
    }


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        ({"task_encoder": None}, {}, "model.task_encoder is left out there and not here"),
        ({"macro_vae": None}, {}, "model.macro_vae is left out there and not here"),
        ({"decision_interval": 3}, {}, "model.decision_interval is 3 there and 2 here"),
        ({"networks": {"actor_hidden": (9,)}}, {}, "actor_critic.actor_hidden is [9] there and [8] here"),
        ({"task_encoder": {"hidden": 9}}, {}, "model.task_encoder.hidden is 9 there and 8 here"),
        ({"task_encoder": {"reward_coef": 1.0}}, {}, "policy.task_encoder.reward_decoder.0.bias has shape"),
        (TOLD, {}, "model.actor_critic.critic_input is 'task' there and 'belief' here"),
        ({}, TOLD, "model.actor_critic.critic_input is 'belief' there and 'task' here"),
        (TOLD, {**TOLD, "frozen": ["critic"]}, "the critic is told other families and begins anew"),
        ({"format": 1}, {"acting": Acting(macro_action="sample")}, "when standard deviations were clamped"),
        ({"hyper_parameters": {"families": []}}, {}, "another version of hmrl"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    source: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"task_encoder": {}, "macro_vae": {}} | source
    content = {key: options.pop(key) for key in ("format", "hyper_parameters") if key in options}
    for name, config in (("task_encoder", encoder_config), ("macro_vae", vae_config)):
        options[name] = None if options[name] is None else config(**options[name])
    path = write(build_module(**options), tmp_path / "agent.ckpt", **content)
    module = fresh(**changes)
    before = copied(module)
    with pytest.raises(UserError, match=re.escape(said)) as refusal:
        module.init_from(path)
    assert str(refusal.value).startswith(f"init_from is {path}: ")
    assert module.initial is None
    assert_same(copied(module), before)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint at .*: init_from must be a \.ckpt file$"):
        fresh().init_from(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("agent", ["default", "flat"])
def test_the_published_agents_can_be_begun_from(agent: str) -> None:
    path = Path(__file__).parents[3] / f"results/ml10-20m/{agent}/agent.weights.ckpt"
    content = torch.load(path, weights_only=True)
    module = HierarchicalMetaRL(**{**content["hyper_parameters"], "families": OTHERS})
    module.init_from(path)
    assert_same(parts(copied(module), "policy."), parts(dict(content["state_dict"]), "policy."))
    assert (int(module.env_steps), (module.initial or {})["env_steps"]) == (0, 20_000_000)


# --- frozen levels -------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", ["isolated", "joint"])
@pytest.mark.parametrize(
    "frozen",
    [
        ["task_encoder", "macro_vae"],
        ["macro_vae"],
        ["critic", "task_encoder"],
        ["task_encoder", "macro_vae", "critic"],
        ["actor", "critic", "macro_vae"],
    ],
    ids=", ".join,
)
def test_frozen_levels_and_the_normaliser_keep_their_bits(
    frozen: list[str], gradients: str, tmp_path: Path
) -> None:
    source = full_module()
    levels = encoder_config(target_kl=None), vae_config(target_kl=None)
    ppo = {"target_kl": 1e-9, "weight_decay": 0.1}
    options: dict[str, Any] = {"gradients": gradients, "ppo": ppo, "families": FAMILIES}
    module = build_module(*levels, frozen=frozen, networks={"log_std_range": (-2.0, -0.5)}, **options)
    module.init_from(write(source, tmp_path / "agent.ckpt"))
    before = copied(module)
    trainer = learn(module)
    after = copied(module)
    kept = [f"policy.{level}." for level in frozen]
    kept += ["policy.observation_moments.", "policy.reward_moments."]
    assert_same(parts(after, *kept), parts(before, *kept))
    learning = [level for level in LEVELS if level not in frozen]
    for level in learning:
        changed = parts(after, f"policy.{level}.")
        assert any(not torch.equal(value, before[name]) for name, value in changed.items()), level
    assert not torch.equal(after["reward_scaler.moments.count"], before["reward_scaler.moments.count"])
    held = {id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
    own = {id(p) for level in learning for p in module.policy.get_submodule(level).parameters()}
    assert held == own
    assert len(trainer.optimizers) == len(learning)


def test_without_frozen_levels_the_normaliser_moves(tmp_path: Path) -> None:
    module = fresh(FAMILIES)
    module.init_from(write(full_module(), tmp_path / "agent.ckpt"))
    before = copied(module)
    learn(module)
    after = copied(module)
    for name in ("policy.observation_moments.mean", "policy.reward_moments.mean", "policy.actor.log_std"):
        assert not torch.equal(after[name], before[name])


@pytest.mark.parametrize(
    ("frozen", "levels", "said"),
    [
        (
            ["actr"],
            2,
            "model.frozen names 'actr', but it must be some of task_encoder, macro_vae, actor, critic",
        ),
        (["macro_vae"], 1, "model.frozen names macro_vae, but model.macro_vae is null"),
        (["task_encoder"], 0, "model.frozen names task_encoder, but model.task_encoder is null"),
        (["actor", "critic"], 0, "so that nothing would learn"),
        ([*LEVELS], 2, "so that nothing would learn"),
    ],
)
def test_frozen_levels_that_cannot_be_are_refused(frozen: list[str], levels: int, said: str) -> None:
    upper = (encoder_config() if levels > 0 else None), (vae_config() if levels > 1 else None)
    with pytest.raises(UserError, match=re.escape(said)):
        build_module(*upper, frozen=frozen)


def test_levels_that_nothing_has_learnt_cannot_be_frozen() -> None:
    module = full_module(frozen=["macro_vae"])
    before = copied(module)
    with pytest.raises(
        UserError, match=r"model.frozen is \['macro_vae'\], but nothing has learnt their weights"
    ):
        learn(module)
    assert_same(copied(module), before)


def test_a_checkpoint_that_does_not_say_has_nothing_frozen() -> None:
    module = full_module(frozen=["macro_vae"])
    saved = dict(full_module().hparams)
    assert saved.pop("frozen") == []
    checkpoint = {"state_dict": dict(module.state_dict()), "hyper_parameters": saved, "format": FORMAT}
    module.on_load_checkpoint(checkpoint)  # to act, nothing is asked of it
    assert HierarchicalMetaRL(**saved).frozen == ()


def test_an_agent_that_was_shown_the_number_of_its_family_stays_with_its_families(tmp_path: Path) -> None:
    path = write(full_module(), tmp_path / "agent.ckpt", datamodule_hyper_parameters={"families_shown": True})
    module = fresh()
    before = copied(module)
    with pytest.raises(UserError, match="was shown the number of its training family"):
        module.init_from(path)
    assert_same(copied(module), before)
    fresh(FAMILIES).init_from(path)


@pytest.mark.parametrize("shown", [True, False])
def test_shown_goals_are_recorded(shown: bool, tmp_path: Path) -> None:
    module = fresh()
    source = {"datamodule_hyper_parameters": {"goals_shown": shown}}
    module.init_from(write(full_module(), tmp_path / "agent.ckpt", **source))
    assert (module.initial or {})["goals_shown"] is shown


@pytest.mark.parametrize("frozen", [[], ["actor", "critic"]])
def test_the_kl_stops_joint_training_around_a_frozen_actor(frozen: list[str], tmp_path: Path) -> None:
    """The policy moves through y and z."""
    module = fresh(FAMILIES, gradients="joint", frozen=frozen, ppo={"target_kl": 1e-9, "epochs": 3})
    module.init_from(write(full_module(), tmp_path / "agent.ckpt"))
    assert float(learn(module).callback_metrics["ppo/epochs"]) == 1


@pytest.mark.parametrize(
    ("trained", "before", "train", "test"),
    [
        (["a", "b"], None, None, None),
        (["c"], ["a", "b"], "a, b trained on before fine-tuning alone", "c trained on"),
        (["a"], ["c"], "b not trained on", "c trained on before fine-tuning"),
        (["a", "b"], ["c"], None, "c trained on before fine-tuning"),
        (["a"], ["b"], "b trained on before fine-tuning alone", None),
    ],
)
def test_results_say_what_a_fine_tuned_agent_has_learnt_and_when(
    trained: list[str], before: list[str] | None, train: str | None, test: str | None
) -> None:
    """Tested on training families a and b, and on c as held out."""
    module = full_module()
    module.training_hparams = {**module.hparams, "families": trained}
    module.initial = {"families": before, "init_from": None} if before else None
    data = SimpleNamespace(
        test=SimpleNamespace(agent="policy"),
        modes={},
        families=("a", "b"),
        benchmark=SimpleNamespace(test=("c",)),
    )
    trainer = SimpleNamespace(state=SimpleNamespace(fn="test"), datamodule=data)
    expected = {"train families": train, "test families": test}
    found = success_rate._differs(trainer, module)  # type: ignore[arg-type]
    assert found == {what: words for what, words in expected.items() if words}
