"""Training families in blocks, one after another, and what becomes of those that were learnt before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hmrl.system.errors import UserError

_ONE_AFTER_ANOTHER = "one_after_another"


@dataclass
class CurriculumConfig:
    """Blocks of training; in each, environments are of some training families only.

    What the agent keeps from earlier blocks: networks, optimizers, the normaliser's moments, each family's
    reward deviation, and the replay until newer episodes have displaced the older ones. Task encoder and
    macro-VAE learn from the replay, which is a remedy for forgetting (Rolnick et al. 2019, experience
    replay); PPO learns from the fresh rollout alone.

    Args:
        blocks: the families of each block; "one_after_another": each family is a block of its own, in the
            benchmark's order. A family in no block is never trained, but evaluated.
        env_steps_per_block: simulator steps over all environments; an iteration belongs to the block in which
            it begins.
        cycles: how many times all blocks are gone through.
        clear_replay: begin each block with an empty replay.
    """

    blocks: list[list[str]] | str = _ONE_AFTER_ANOTHER
    env_steps_per_block: int = 500_000
    cycles: int = 1
    clear_replay: bool = False

    def __post_init__(self) -> None:
        for name in ("env_steps_per_block", "cycles"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"data.curriculum.{name} is {value}: use 1 or more")
        if isinstance(self.blocks, str) and self.blocks != _ONE_AFTER_ANOTHER:
            raise UserError(
                f"data.curriculum.blocks is {self.blocks!r}, but it must be {_ONE_AFTER_ANOTHER} or a list "
                "of lists of families"
            )

    def schedule(self, families: Sequence[str], envs_per_family: int, steps_of_environment: int) -> Schedule:
        """The blocks in the order of training; refuses unknown families, and empty or too short blocks.

        Args:
            families: all training families.
            envs_per_family: environments that each has on average, over all ranks.
            steps_of_environment: simulator steps that each makes in an iteration.
        """
        blocks = [[f] for f in families] if isinstance(self.blocks, str) else self.blocks
        environments = len(families) * envs_per_family
        if not blocks or not all(blocks):
            raise UserError(
                f"data.curriculum.blocks is {blocks}: name one or more blocks of one or more families, or "
                f"{_ONE_AFTER_ANOTHER}"
            )
        for block in blocks:
            if odd := [family for family in block if family not in families or block.count(family) > 1]:
                raise UserError(
                    f"data.curriculum.blocks names {odd[0]!r} twice in a block, or it is no training family: "
                    f"use some of {', '.join(families)}"
                )
        if self.env_steps_per_block < (least := environments * steps_of_environment):
            raise UserError(
                f"data.curriculum.env_steps_per_block is {self.env_steps_per_block:,}, but one iteration has "
                f"{least:,}: use that or more"
            )
        in_order = [tuple(f for f in families if f in block) for block in blocks] * self.cycles
        return Schedule(tuple(in_order), self.env_steps_per_block, environments, steps_of_environment)


@dataclass(frozen=True)
class Schedule:
    """Which block it is, as a function of the environment steps that were made, over all ranks.

    Args:
        blocks: families of each, in the order of training.
        env_steps_per_block: of each; the last one goes on if training does.
        environments: over all families and ranks; the same in every block.
        steps_of_environment: simulator steps that each makes in an iteration.
    """

    blocks: tuple[tuple[str, ...], ...]
    env_steps_per_block: int
    environments: int
    steps_of_environment: int

    def ended(self, env_steps: int) -> int:
        """How many blocks have ended."""
        return min(env_steps // self.env_steps_per_block, len(self.blocks))

    def number(self, env_steps: int) -> int:
        """The block, from 0, of the iteration that begins after so many steps."""
        return min(self.ended(env_steps), len(self.blocks) - 1)

    def begins(self, env_steps: int) -> bool:
        """Whether the iteration that begins after so many steps is its block's first one."""
        before = env_steps - self.environments * self.steps_of_environment
        return env_steps == 0 or self.number(before) != self.number(env_steps)

    def check(self, world_size: int) -> None:
        """Refuse blocks whose families cannot share the environments equally in every process."""
        for size in {len(block) for block in self.blocks}:
            if self.environments % (size * world_size):
                raise UserError(
                    f"data.curriculum.blocks has a block of {size} families, over which, in {world_size} "
                    f"process(es), the {self.environments} training environments do not divide: use blocks "
                    "of other sizes, or another data.envs_per_family"
                )

    def check_budget(self, env_steps: int) -> None:
        """Refuse to train on when the last block has ended."""
        if env_steps > (total := len(self.blocks) * self.env_steps_per_block):
            raise UserError(
                f"budget.env_steps is {env_steps:,}, but the {len(self.blocks)} blocks of data.curriculum "
                f"last {total:,}: use at most that, or raise data.curriculum.env_steps_per_block or cycles"
            )


# --- what becomes of earlier families --------------------------------------------------------------


def learnt_before(blocks: Sequence[Sequence[str]]) -> dict[str, int]:
    """Families that an earlier block has trained and the last one has not: by name, the last one that did."""
    *earlier, last = blocks
    learnt = {family: number for number, block in enumerate(earlier) for family in block}
    return {family: number for family, number in learnt.items() if family not in last}


def forgetting(success: Sequence[Mapping[str, float]], blocks: Sequence[Sequence[str]]) -> dict[str, float]:
    """f_j^k = max_{l < k} a_{l,j} - a_{k,j} for each family j learnt before the last block k.

    (Chaudhry et al. 2018, section 3.1; a_{l,j} is the success on j after block l.) Their F_k is the mean over
    j. 0: nothing was lost; negative: later blocks helped. A family that block k trains anew is left out.

    Args:
        success: after each block so far, by family.
        blocks: families that each of them trained.
    """
    return {j: max(row[j] for row in success[:-1]) - success[-1][j] for j in learnt_before(blocks)}


def backward_transfer(
    success: Sequence[Mapping[str, float]], blocks: Sequence[Sequence[str]]
) -> dict[str, float]:
    """R_{T,i} - R_{i,i} for each family i learnt before the last block T.

    (Lopez-Paz and Ranzato 2017, eq. 3; R_{t,i} is the success on i after block t.) Their BWT is the mean over
    i. Where several blocks trained a family, R_{i,i} is taken after the latest of them.

    Args:
        success, blocks: as for :func:`forgetting`.
    """
    return {i: success[-1][i] - success[block][i] for i, block in learnt_before(blocks).items()}
