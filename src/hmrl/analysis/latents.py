"""What the macro-action z and the task belief y turn out to be: evidence from whole episodes.

HiMeta claims that z is task-agnostic ("which way my own body goes") and that y tells tasks apart. Here
is what can be measured of that; nothing is learnt from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hmrl.himeta.config import MacroVAEConfig
from hmrl.himeta.formulas import agreement, chance_agreement, goal_steps
from hmrl.himeta.losses import decoded_with_and_without, displacement, relative_error
from hmrl.himeta.policy import HierarchicalPolicy
from hmrl.types import Acting, FloatArray, Rollout

_PROBE_DECISIONS = 200  # of each episode: neighbouring ones say the same
_AXES = 3  # of the hand's position, the first numbers of ego-state and macro-action


@dataclass
class Episodes:
    """Whole episodes, or trials of several, of one split: what the analysis needs of rollouts."""

    observation: Tensor  # [T+1, N, S], raw
    action: Tensor  # [T, N, A]
    reward: Tensor  # [T, N], raw
    task_belief: Tensor  # [T+1, N, K]
    macro_action: Tensor  # [T, N, A or 0]
    success: Tensor  # [T, N] bool
    family: Tensor  # [N] long, index into ``families``
    families: tuple[str, ...]
    episodes: int = 1  # of a trial

    @classmethod
    def of(cls, rollout: Rollout, chosen: Sequence[int]) -> Self:
        """A copy, on the CPU, of the episodes (trials) with indices ``chosen``."""
        index = torch.tensor(chosen, dtype=torch.long, device=rollout.family.device)
        picked = {n: getattr(rollout, n).index_select(_batch_dim(n), index).cpu() for n in _TENSORS}
        return cls(**picked, families=rollout.families, episodes=rollout.episodes)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One after the other; they must have the same families and number of decisions."""
        joined: dict[str, Any] = {
            n: torch.cat([getattr(p, n) for p in parts], dim=_batch_dim(n)) for n in _TENSORS
        }
        return replace(parts[0], **joined)

    def to(self, device: torch.device) -> Self:
        """A copy with every tensor on ``device``."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, **moved)


_TENSORS = tuple(f.name for f in fields(Episodes) if f.name not in ("families", "episodes"))


def _batch_dim(name: str) -> int:
    return 0 if name == "family" else 1


@dataclass
class MacroFindings:
    """What one split's episodes show of the macro-action.

    Args:
        decoder_error: given z's mean, in units of the error of predicting no motion; per family, and their
            mean, "all".
        decoder_error_without_z: the same given the average z at every step.
        correlation: of z with the displacement of the hand to the goal step, per axis. This and the next two
            are means over families: pooled, they would also be of what lies between families.
        agreement: mean over dimensions and decisions of 1[a_d z_d >= 0].
        agreement_by_chance: what it would be if z and the action, each with the signs that it has in the
            family, had nothing to do with each other.
        macro_action: z along the axes of the hand. ``[T * N, axes]``
        displacement: of the hand to the goal step, in the observation's units (metres). ``[T * N, axes]``
    """

    decoder_error: dict[str, float]
    decoder_error_without_z: dict[str, float]
    correlation: tuple[float, ...]
    agreement: float
    agreement_by_chance: float
    macro_action: FloatArray
    displacement: FloatArray


@dataclass
class Findings:
    """What one split's episodes show.

    Args:
        families: their names.
        episodes: their number, over all families.
        probe: balanced accuracy of telling the family from "z", "y", "ego_state" and "observation" by a
            linear classifier, on episodes that it was not fitted on, and "chance"; without absent levels,
            and empty where episodes are too few.
        belief: y over the first episode of each family, ``[T+1, K]`` each; empty without a task encoder.
        success_step: the decision at which that episode was solved first, or None.
        macro: None without a macro-VAE.
    """

    families: tuple[str, ...]
    episodes: int
    probe: dict[str, float]
    belief: dict[str, FloatArray]
    success_step: dict[str, int | None]
    macro: MacroFindings | None

    def numbers(self) -> dict[str, Any]:
        """What fits into a JSON file: everything but the arrays.

        ``over_families`` is "mean": files of before, which lack it, have some numbers pooled over families.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in ("families", "episodes", "probe")}
        if self.macro:
            values |= {k: v for k, v in vars(self.macro).items() if not isinstance(v, np.ndarray)}
            values["over_families"] = "mean"
        return {**values, "success_step": self.success_step}

    def arrays(self) -> dict[str, FloatArray]:
        """ "belief" ``[F, T+1, K]``, "macro_action" and "displacement" ``[T * N, axes]``, as far as there."""
        arrays = {"belief": np.stack(list(self.belief.values()))} if self.belief else {}
        if self.macro:
            arrays |= {k: v for k, v in vars(self.macro).items() if isinstance(v, np.ndarray)}
        return arrays


@torch.no_grad()
def analyse(
    policy: HierarchicalPolicy, vae: MacroVAEConfig | None, episodes: Episodes, body: Sequence[int]
) -> Findings:
    """Everything about one split.

    Args:
        policy: the agent that acted, in evaluation mode.
        vae: the configuration of its macro-VAE, None without one.
        episodes: on any device; they are moved to the policy's.
        body: which dimensions of an observation are the body's own, whatever the decoder predicts, the
            hand's position first.
    """
    episodes = episodes.to(policy.ego_indices.device)
    family = episodes.family.cpu().numpy()
    features = {
        "z": episodes.macro_action,
        "y": episodes.task_belief[:-1],
        "ego_state": episodes.observation[:-1][..., list(body)],
        "observation": episodes.observation[:-1],
    }
    probe = {
        name: accuracy
        for name, values in features.items()
        if values.shape[-1] and (accuracy := family_probe(values.cpu().numpy(), family)) is not None
    }
    if probe:
        probe["chance"] = 1 / len(np.unique(family))
    present = {name: family == i for i, name in enumerate(episodes.families) if (family == i).any()}
    first = {name: int(np.flatnonzero(mine)[0]) for name, mine in present.items()}  # never a chosen one
    belief = episodes.task_belief[..., : policy.categorical_entries].cpu().numpy()
    success = episodes.success.cpu().numpy()
    return Findings(
        families=tuple(present),
        episodes=len(family),
        probe=probe,
        belief={name: belief[:, n] for name, n in first.items()} if belief.shape[-1] else {},
        success_step={
            name: int(success[:, n].argmax()) if success[:, n].any() else None for name, n in first.items()
        },
        macro=_macro_findings(policy, vae, episodes, body)
        if vae and episodes.macro_action.shape[-1]
        else None,
    )


def _macro_findings(
    policy: HierarchicalPolicy, vae: MacroVAEConfig, episodes: Episodes, body: Sequence[int]
) -> MacroFindings:
    axes = min(_AXES, len(body), episodes.action.shape[-1])
    hand = episodes.observation[..., list(body[:axes])]
    moved = displacement(hand, _goals(policy, vae, episodes))
    action, z = episodes.action, episodes.macro_action
    correlations, agreed, by_chance = [], [], []
    for mine in _families(episodes).values():
        of_one = [x[:, mine].flatten(0, 1) for x in (z[..., :axes], moved)]
        correlations.append(pearson(*(x.cpu().numpy() for x in of_one)))
        agreed.append(float(agreement(action[:, mine], z[:, mine]).mean()))
        signs = [(x[:, mine] >= 0).double().mean((0, 1)) for x in (action, z)]
        by_chance.append(float(chance_agreement(*signs)))
    return MacroFindings(
        *decoder_errors(policy, vae, episodes),
        correlation=tuple(map(fmean, zip(*correlations, strict=True))),
        agreement=fmean(agreed),
        agreement_by_chance=fmean(by_chance),
        macro_action=z[..., :axes].flatten(0, 1).cpu().numpy(),
        displacement=moved.flatten(0, 1).cpu().numpy(),
    )


def _families(episodes: Episodes) -> dict[str, Tensor]:
    """Which episodes are of each family that is there. name -> ``[N]`` bool"""
    marks = {name: episodes.family == i for i, name in enumerate(episodes.families)}
    return {name: mine for name, mine in marks.items() if mine.any()}


# --- does the decoder transfer? ------------------------------------------------------------------


@torch.no_grad()
def decoder_errors(
    policy: HierarchicalPolicy, vae: MacroVAEConfig, episodes: Episodes
) -> tuple[dict[str, float], dict[str, float]]:
    """Relative error of the decoder per family and their mean, "all", given z's mean and one z for all steps.

    As ``vae/decoder_error`` of :func:`hmrl.himeta.losses.macro_vae_loss`, given the belief that acted.
    """
    assert policy.macro_vae is not None
    state = policy.normalize(episodes.observation)
    ego = state[..., policy.ego_indices]
    target = displacement(ego, _goals(policy, vae, episodes))
    z = policy.macro_action(state[:-1], episodes.task_belief[:-1], Acting(macro_action="mean"))  # not held
    informed, uninformed = decoded_with_and_without(policy.macro_vae, ego[:-1], z, z.mean((0, 1)))
    errors = [
        {
            name: float(relative_error(p[:, mine], target[:, mine]))
            for name, mine in _families(episodes).items()
        }
        for p in (informed, uninformed)
    ]
    informed_error, uninformed_error = ({"all": fmean(found.values()), **found} for found in errors)
    return informed_error, uninformed_error


def _goals(policy: HierarchicalPolicy, vae: MacroVAEConfig, episodes: Episodes) -> Tensor:
    """Goal steps of the VAE's strategy ``[T, N]``; only sub-tasks take the belief's probabilities."""
    probabilities = episodes.task_belief  # for its shape
    if vae.goal == "sub_task":  # what acted may be a noisy sample of them
        probabilities = policy.encode_episodes(
            episodes.observation, episodes.action, episodes.reward, Acting(task_belief="probabilities")
        ).probabilities
    return goal_steps(vae.goal, probabilities, vae.n, vae.n_max, episodes.episodes)


def pearson(x: FloatArray, y: FloatArray) -> tuple[float, ...]:
    """Correlation of each column of ``x`` ``[M, D]`` with that of ``y``; 0 where one of them is constant."""
    varies = (np.ptp(x, axis=0) > 0) & (np.ptp(y, axis=0) > 0)
    x, y = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (x, y))
    scale = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return tuple(np.where(varies, (x * y).sum(0) / np.where(varies, scale, 1), 0).tolist())


# --- what does it say about the family? ----------------------------------------------------------


def family_probe(features: FloatArray, family: np.ndarray[Any, Any]) -> float | None:
    """How well a linear classifier tells the family: balanced accuracy; chance is 1 / families.

    Logistic regression on standardised features. Of each family every other episode is fitted and the rest
    is scored, so that no episode is on both sides: features that only identify an episode give chance.
    Deterministic.

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
    fitted = np.zeros(len(family), dtype=np.bool_)
    for name in names:
        fitted[np.flatnonzero(family == name)[::2]] = True
    steps = np.linspace(0, len(features) - 1, min(len(features), _PROBE_DECISIONS)).round().astype(int)

    def rows(episodes: np.ndarray[Any, Any]) -> tuple[FloatArray, np.ndarray[Any, Any]]:
        chosen = features[steps][:, episodes]
        return chosen.reshape(-1, features.shape[-1]), np.tile(family[episodes], len(steps))

    probe = make_pipeline(StandardScaler(), LogisticRegression())
    # On such small matrices several threads take many times as long as one.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # Families that can be told apart have no finite optimum worth waiting for.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(*rows(fitted))
    x, truth = rows(~fitted)
    return float(balanced_accuracy_score(truth, probe.predict(x)))


def scalars(findings: Mapping[str, Findings]) -> dict[str, float]:
    """The numbers to log, by name, of what is found per split; probes are of the training families."""
    values: dict[str, float] = {}
    if "train" in findings:
        values |= {f"latents/probe/{name}": v for name, v in findings["train"].probe.items()}
    for split, found in findings.items():
        if macro := found.macro:
            values[f"latents/decoder_error/{split}"] = macro.decoder_error["all"]
            values[f"latents/decoder_error_without_z/{split}"] = macro.decoder_error_without_z["all"]
            values[f"latents/correlation/{split}"] = float(np.mean(macro.correlation))
            values[f"latents/agreement/{split}"] = macro.agreement
            values[f"latents/agreement_by_chance/{split}"] = macro.agreement_by_chance
    return values
