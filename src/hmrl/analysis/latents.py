"""What the macro-action z and the task belief y turn out to be: evidence from whole episodes.

HiMeta claims that z is task-agnostic ("which way my own body goes") and that y tells tasks apart. Here
is what can be measured of that; nothing is learnt from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hmrl.himeta.config import MacroVAEConfig
from hmrl.himeta.formulas import agreement, chance_agreement, goal_steps
from hmrl.himeta.losses import decoded_with_and_without, displacement, relative_error
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.types import Acting, FloatArray, Rollout

_PROBE_DECISIONS = 200  # of each episode: neighbouring ones say the same
_AXES = 3  # of the hand's position, the first numbers of ego-state and macro-action
_TIME_MAJOR = ("observation", "action", "log_prob", "task_belief", "macro_action", "reward", "success")


def first_trials(rollouts: Sequence[Rollout], per_family: int) -> Rollout:
    """Of each family the first ``per_family`` trials of ``rollouts``, which are of one kind; on the CPU."""
    one, family = rollouts[0], torch.cat([r.family for r in rollouts])
    nth = one_hot(family).cumsum(0).gather(1, family.unsqueeze(1)).squeeze(1)
    chosen = nth <= per_family
    final = torch.cat([r.final_success.unflatten(0, (one.episodes, -1)) for r in rollouts], 1)
    joined = {name: torch.cat([getattr(r, name) for r in rollouts], 1) for name in _TIME_MAJOR}
    tensors: dict[str, Any] = {name: values[:, chosen] for name, values in joined.items()}
    return replace(
        one,
        **tensors,
        final_success=final[:, chosen].flatten(),
        family=family[chosen],
        env_steps=one.env_steps // len(one.family) * int(chosen.sum()),
        goal=None,
    ).to(torch.device("cpu"))


@dataclass
class MacroFindings:
    """What one split's episodes show of the macro-action.

    Correlation and agreement are means over families: pooled, they would also be of what lies between them.
    """

    decoder_error: dict[str, float]  # in units of predicting no motion; by family, and "all", their mean
    decoder_error_without_z: dict[str, float]  # the same given the average z at every step
    correlation: tuple[float, ...]  # of z with the hand's displacement to the goal step, by axis
    agreement: float  # mean over dimensions and decisions of 1[a_d z_d >= 0]
    agreement_by_chance: float  # of actions and z with each family's signs that are independent
    macro_action: FloatArray  # z along the axes of the hand. [T * N, axes]
    displacement: FloatArray  # of the hand to the goal step, in metres. [T * N, axes]


@dataclass
class Findings:
    """What one split's episodes show."""

    families: tuple[str, ...]
    episodes: int  # over all families
    probe: dict[str, float]  # of "z", "y", "ego_state", "observation", as far as there, and "chance"
    belief: dict[str, FloatArray]  # y over the first episode of each family, if there is y. [T+1, K] each
    success_step: dict[str, int | None]  # the decision at which that episode was solved first
    macro: MacroFindings | None  # None without a macro-VAE

    def numbers(self) -> dict[str, Any]:
        """What fits into a JSON file: everything but the arrays.

        ``over_families`` is "mean": files of before, which lack it, have some numbers pooled over families.
        """
        found: dict[str, Any] = {name: getattr(self, name) for name in ("families", "episodes", "probe")}
        if self.macro:
            found |= {k: v for k, v in vars(self.macro).items() if not isinstance(v, np.ndarray)}
            found["over_families"] = "mean"
        return found | {"success_step": self.success_step}

    def arrays(self) -> dict[str, FloatArray]:
        """ "belief" ``[F, T+1, K]``, "macro_action" and "displacement" ``[T * N, axes]``, as far as there."""
        arrays = {"belief": np.stack(list(self.belief.values()))} if self.belief else {}
        return arrays | {k: v for k, v in vars(self.macro or self).items() if isinstance(v, np.ndarray)}


def scalars(findings: Mapping[str, Findings]) -> dict[str, float]:
    """The numbers to log, by name, of what is found per split; probes are of the training families."""
    probe = findings["train"].probe if "train" in findings else {}
    values = {f"latents/probe/{name}": accuracy for name, accuracy in probe.items()}
    for split, found in findings.items():
        if macro := found.macro:
            values[f"latents/decoder_error/{split}"] = macro.decoder_error["all"]
            values[f"latents/decoder_error_without_z/{split}"] = macro.decoder_error_without_z["all"]
            values[f"latents/correlation/{split}"] = float(np.mean(macro.correlation))
            values[f"latents/agreement/{split}"] = macro.agreement
            values[f"latents/agreement_by_chance/{split}"] = macro.agreement_by_chance
    return values


@torch.no_grad()
def analyse(
    policy: HierarchicalPolicy, vae: MacroVAEConfig | None, rollout: Rollout, body: Sequence[int]
) -> Findings:
    """Everything about one split.

    Args:
        policy: the agent that acted, in evaluation mode.
        vae: the configuration of its macro-VAE, None without one.
        rollout: on any device.
        body: which dimensions of an observation are the body's own, whatever the decoder predicts, the
            hand's position first.
    """
    rollout = rollout.to(policy.ego_indices.device)
    family = rollout.family.cpu().numpy()
    features = {
        "z": rollout.macro_action,
        "y": rollout.task_belief[:-1],
        "ego_state": rollout.observation[:-1][..., list(body)],
        "observation": rollout.observation[:-1],
    }
    probes = {n: family_probe(x.cpu().numpy(), family) for n, x in features.items() if x.shape[-1]}
    probe = {name: accuracy for name, accuracy in probes.items() if accuracy is not None}
    if probe:
        probe["chance"] = 1 / len(np.unique(family))
    first = {name: int(mine.nonzero()[0]) for name, mine in _families(rollout).items()}  # never a chosen one
    belief = rollout.task_belief[..., : policy.categorical_entries].cpu().numpy()
    solved = {name: rollout.success[:, n].nonzero().flatten().tolist() for name, n in first.items()}
    return Findings(
        families=tuple(first),
        episodes=len(family),
        probe=probe,
        belief={name: belief[:, n] for name, n in first.items()} if belief.shape[-1] else {},
        success_step={name: steps[0] if steps else None for name, steps in solved.items()},
        macro=_macro_findings(policy, vae, rollout, body) if vae and rollout.macro_action.shape[-1] else None,
    )


def _families(rollout: Rollout) -> dict[str, Tensor]:
    """Which trials are of each family that is there. name -> ``[N]`` bool"""
    marks = {name: rollout.family == i for i, name in enumerate(rollout.families)}
    return {name: mine for name, mine in marks.items() if mine.any()}


def _macro_findings(
    policy: HierarchicalPolicy, vae: MacroVAEConfig, rollout: Rollout, body: Sequence[int]
) -> MacroFindings:
    """Decoder errors are as ``vae/decoder_error`` in training, given the belief that acted."""
    assert policy.macro_vae is not None
    belief, action, z = rollout.task_belief, rollout.action, rollout.macro_action
    probabilities = belief  # for its shape: only sub-tasks depend on more
    if vae.goal_state == "sub_task":  # what acted may be a noisy sample of them
        probabilities = policy.encode_episodes(
            rollout.observation, action, rollout.reward, Acting(task_belief="probabilities")
        ).probabilities
    goal = goal_steps(vae.goal_state, probabilities, vae.n, episodes=rollout.episodes)
    axes = min(_AXES, len(body), action.shape[-1])
    moved, along = displacement(rollout.observation[..., list(body[:axes])], goal), z[..., :axes]

    state = policy.normalize(rollout.observation)
    ego = state[..., policy.ego_indices]
    mean = policy.macro_action(state[:-1], belief[:-1], Acting(macro_action="mean"))  # not held
    decoded = decoded_with_and_without(policy.macro_vae, ego[:-1], mean, mean.mean((0, 1)))
    target = displacement(ego, goal)

    errors: list[dict[str, float]] = [{}, {}]
    correlations, agreed, by_chance = [], [], []
    for name, mine in _families(rollout).items():
        for of_families, predicted in zip(errors, decoded, strict=True):
            of_families[name] = float(relative_error(predicted[:, mine], target[:, mine]))
        correlations.append(pearson(*(x[:, mine].flatten(0, 1).cpu().numpy() for x in (along, moved))))
        agreed.append(float(agreement(action[:, mine], z[:, mine]).mean()))
        signs = [(x[:, mine] >= 0).double().mean((0, 1)) for x in (action, z)]
        by_chance.append(float(chance_agreement(*signs)))
    given_z, without_z = ({"all": fmean(found.values()), **found} for found in errors)
    return MacroFindings(
        given_z,
        without_z,
        correlation=tuple(map(fmean, zip(*correlations, strict=True))),
        agreement=fmean(agreed),
        agreement_by_chance=fmean(by_chance),
        macro_action=along.flatten(0, 1).cpu().numpy(),
        displacement=moved.flatten(0, 1).cpu().numpy(),
    )


def pearson(x: FloatArray, y: FloatArray) -> tuple[float, ...]:
    """Correlation of each column of ``x`` ``[M, D]`` with that of ``y``; 0 where one of them is constant."""
    varies = (np.ptp(x, axis=0) > 0) & (np.ptp(y, axis=0) > 0)
    x, y = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (x, y))
    scale = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return tuple(np.where(varies, (x * y).sum(0) / np.where(varies, scale, 1), 0).tolist())


def family_probe(features: FloatArray, family: np.ndarray[Any, Any]) -> float | None:
    """How well a linear classifier tells the family: balanced accuracy; chance is 1 / families.

    Logistic regression on standardised features. Of each family every other episode is fitted and the rest
    is scored, so that no episode is on both sides: features that only identify an episode give chance.

    Args:
        features: ``[T, N, D]``.
        family: of each episode, ``[N]``.

    Returns:
        None where there are fewer than two families, or a family has fewer than two episodes.
    """
    # Loaded here: training that never evaluates should not wait for it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    names, counts = np.unique(family, return_counts=True)
    if len(names) < 2 or counts.min() < 2:
        return None
    scored = np.concatenate([np.flatnonzero(family == name)[1::2] for name in names])
    fitted = np.setdiff1d(np.arange(len(family)), scored)
    steps = np.linspace(0, len(features) - 1, min(len(features), _PROBE_DECISIONS)).round().astype(int)

    def rows(episodes: np.ndarray[Any, Any]) -> tuple[FloatArray, np.ndarray[Any, Any]]:
        chosen = features[np.ix_(steps, episodes)]
        return chosen.reshape(-1, features.shape[-1]), np.tile(family[episodes], len(steps))

    probe = make_pipeline(StandardScaler(), LogisticRegression())
    # On such small matrices several threads take many times as long as one.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # Families that can be told apart have no finite optimum worth waiting for.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(*rows(fitted))
    x, truth = rows(scored)
    return float(balanced_accuracy_score(truth, probe.predict(x)))
