"""Which belief to act on in a trial: a search among those of the training families, by rewards alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmrl.himeta.policy import HierarchicalPolicy, Imposed
from hmrl.system.errors import UserError
from hmrl.types import Carry, FloatArray

Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int_]
OWN = 0  # the candidate that is the agent's own belief


class BeliefSearch:
    """The rule, for B environments at once, each for itself.

    Candidate 0 is the agent's own belief, the others are the average beliefs of training families. Of n
    adaptation episodes

    1. the first is played on the agent's own belief;
    2. the next ones, up to n - n // 3 in all, are each played on the likeliest belief that is untried;
    3. the others are each played on the belief with the highest mean return so far;
    4. evaluation is played on the belief with the highest mean return in the end.

    The likeliest belief is the one whose squared error of predicted rewards is the least, over the
    transitions of the trial so far, whatever belief was acted on. Of equals, the first one counts. When no
    belief is untried, 3 begins.

    Args:
        others: number of candidates beside the agent's own belief.
        count: B.
        episodes: of adaptation, n.

    Attributes:
        chosen: the candidate that each environment acts on now. ``[B]``
    """

    def __init__(self, others: int, count: int, episodes: int) -> None:
        self._repeated_from = episodes - episodes // 3
        self._error = np.zeros((1 + others, count))  # that of the own belief is not asked for
        self._tries = np.zeros((1 + others, count), dtype=int)
        self._total = np.zeros((1 + others, count))  # return
        self.chosen = np.full(count, OWN)

    def explain(self, error: FloatArray, where: Mask) -> None:
        """A transition of the environments ``where`` ``[B]``.

        Args:
            error: squared, of each candidate but the own one. ``[C - 1, B]``
        """
        self._error[1:] += np.where(where, error, 0)

    def record(self, ended: Mask, total: FloatArray) -> None:
        """Episodes ``ended`` ``[B]`` with returns ``total`` ``[B]``: choose for what follows."""
        column = np.arange(len(ended))
        self._tries[self.chosen, column] += ended
        self._total[self.chosen, column] += np.where(ended, total, 0)
        untried = self._tries == 0
        untried[OWN] = False
        explores = untried.any(0) & (self._tries.sum(0) < self._repeated_from)
        likeliest = np.where(untried, self._error, np.inf).argmin(0)
        self.chosen = np.where(ended, np.where(explores, likeliest, self._best()), self.chosen)

    def _best(self) -> Index:
        mean = np.where(self._tries > 0, self._total / self._tries.clip(1), -np.inf)
        best: Index = mean.argmax(0)
        return best


class Candidates:
    """The beliefs that are searched among, as a policy acts on them and predicts rewards with them.

    An estimate of the goal, with which a belief may end, stays the policy's own: an average over a family's
    goals tells nothing of this one.

    Args:
        policy: whose they are, with a task encoder that has a decoder of rewards.
        averages: of training families, by decision of an episode. ``[C - 1, T, belief_dim]``
    """

    def __init__(self, policy: HierarchicalPolicy, averages: Tensor) -> None:
        self._policy = policy
        assert policy.task_encoder is not None
        own = averages.new_zeros(1, *averages.shape[1:])  # stands for what memory says, and is never read
        beliefs = torch.cat([own, averages]).to(policy.ego_indices.device)
        self._beliefs = beliefs[..., : beliefs.shape[-1] - policy.task_encoder.goal_dim]

    @property
    def others(self) -> int:
        """How many there are beside the agent's own belief."""
        return len(self._beliefs) - 1

    def imposed(self, chosen: Index, decision: Index) -> Imposed:
        """The beliefs of candidates ``chosen`` ``[B]`` at decisions ``decision`` ``[B]`` of an episode."""
        belief = self._beliefs[self._tensor(chosen), self._tensor(decision)]
        return Imposed(self._tensor(chosen != OWN), belief)

    @torch.no_grad()
    def errors(
        self, acted: Tensor, before: Carry, after: Carry, reward: Tensor, decision: Index
    ) -> FloatArray:
        """Squared errors of predicted rewards, as contexts hold them, but of the own one. ``[C - 1, B]``

        Args:
            acted: the belief of the last decision, whose estimate of the goal all share. ``[B, belief_dim]``
            before, after: the policy's memory of the last decision and of this one.
            reward: raw, between the two. ``[B]``
            decision: of an episode, the last one's number. ``[B]``
        """
        encoder = self._policy.task_encoder
        assert encoder is not None
        belief = self._beliefs[1:, self._tensor(decision)]
        shared = acted[:, belief.shape[-1] :].expand(len(belief), -1, -1)
        belief = torch.cat([belief, shared], dim=-1)
        seen = (before.observation, before.action.clamp(-1, 1), after.observation)
        predicted = encoder.predicted_reward(belief, *(x.expand(len(belief), -1, -1) for x in seen))
        error = (predicted - self._policy.normalize_reward(reward)).square()
        return error.double().cpu().numpy()

    def _tensor(self, x: Index | Mask) -> Tensor:
        return torch.from_numpy(x).to(self._beliefs.device)


def check_beliefs(policy: HierarchicalPolicy, averages: Tensor | None, decisions: int) -> None:
    """Refuse an agent that cannot search among beliefs.

    Args:
        averages: those of training families, ``[F, T, belief_dim]``; None where they are yet to be learnt.
        decisions: of an episode that is played.

    Raises:
        UserError: naming what it lacks, or for another T or belief_dim.
    """
    what = "data.meta_world.adaptation is beliefs, but "
    if policy.task_encoder is None:
        raise UserError(f"{what}this agent has none (model.task_encoder is null): use memory")
    if policy.task_encoder.reward_decoder is None:
        raise UserError(
            f"{what}this agent predicts no rewards, by which they are ordered "
            "(model.task_encoder.reward_coef is 0): use memory"
        )
    if averages is None:
        return
    if not len(averages):
        raise UserError(
            f"{what}the checkpoint holds no average beliefs of its training families: test the copy that "
            "scripts/average_beliefs.py makes of it, or use memory"
        )
    if averages.shape[2] != policy.task_encoder.belief_dim:
        raise UserError(
            f"{what}average beliefs of the checkpoint have {averages.shape[2]} entries, and those of this "
            f"agent {policy.task_encoder.belief_dim}: make them anew with scripts/average_beliefs.py"
        )
    if averages.shape[1] != decisions:
        raise UserError(
            f"{what}those of the checkpoint are of episodes of {averages.shape[1]} decisions, and here there "
            f"are {decisions} (data.horizon over model.decision_interval): use the horizon of training, or "
            "memory"
        )
