"""Are the tests able to fail? Breaks one line of the package at a time and runs tests that should notice.

    python tests/mutations.py                 # all of them
    python tests/mutations.py gae seed        # those whose name contains one of these words

Only tests of `make test` count. What is mutated is a copy of the package in a temporary directory.
Without a mutation all tests must pass, with each one a test must fail; otherwise the exit code is 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FORMULAS, LOSSES = "unit/himeta/test_formulas.py", "unit/himeta/test_losses.py"
ISOLATION = "unit/himeta/test_gradient_isolation.py"


class Mutation(NamedTuple):
    """One line of ``src/hmrl/FILE``, what is put in its place, and the test files that should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "fine-tuning: the normaliser moves under frozen levels",
        "training/module.py",
        "if not self.frozen:",
        "if True:",
        ("unit/training/test_fine_tuning.py",),
    ),
    Mutation(
        "fine-tuning: a frozen actor's deviation is brought into its range",
        "training/module.py",
        "                if learns:",
        "                if True:",
        ("unit/training/test_fine_tuning.py",),
    ),
    Mutation(
        "fine-tuning: the environment steps of the other run are taken over",
        "training/module.py",
        '["reward_scaler.", "env_steps", "iteration"]',
        '["reward_scaler.", "iteration"]',
        ("unit/training/test_fine_tuning.py",),
    ),
    Mutation(
        "fine-tuning: its success is in one table with that of other agents",
        "results/runs.py",
        'AFTER_FINE_TUNING = " after fine-tuning"',
        'AFTER_FINE_TUNING = ""',
        ("unit/results/test_fine_tuning.py",),
    ),
    Mutation(
        "beliefs are chosen by the sum of returns",
        "evaluation/belief_search.py",
        "self._total / self._tries.clip(1)",
        "self._total",
        ("unit/evaluation/test_belief_search.py",),
    ),
    Mutation(
        "beliefs are to explain what follows a reset",
        "evaluation/metaworld_protocol.py",
        "within = decision > 0",
        "within = due",
        ("integration/test_belief_trials.py",),
    ),
    Mutation(
        "minGRU: its gradient does not go through time",
        "himeta/formulas.py",
        "later = of_state[t] * keep[t]",
        "later = torch.zeros_like(start)",
        ("unit/himeta/test_networks.py",),
    ),
    Mutation(
        "goals that a critic is told are shown to the agent",
        "envs/wrappers/shown.py",
        "observation[:, self._indices] = 0",
        "pass",
        ("integration/test_own_world.py",),
    ),
    Mutation(
        "GAE: lambda left out",
        "himeta/formulas.py",
        "discounted_sums(delta.flip(0), gamma * lam)",
        "discounted_sums(delta.flip(0), gamma)",
        (FORMULAS,),
    ),
    Mutation(
        "clipped loss: the larger of both instead of the smaller",
        "himeta/formulas.py",
        "loss = -torch.min(ratio * advantage,",
        "loss = -torch.max(ratio * advantage,",
        (FORMULAS,),
    ),
    Mutation(
        "goal steps: one decision too far at the end of an episode of a trial",
        "himeta/formulas.py",
        "end = torch.where(start + length == last, last, start + length - 1)",
        "end = start + length",
        (FORMULAS, "unit/himeta/test_trials.py"),
    ),
    Mutation(
        "normaliser: variance between old and new samples forgets how many there were",
        "himeta/normalizer.py",
        "+ delta.square() * old * n / new",
        "+ delta.square() * n / new",
        ("unit/himeta/test_normalizer.py",),
    ),
    Mutation(
        "isolation: the encoder's loss reaches through its target",
        "himeta/losses.py",
        "gae(scaled_reward, value.detach(), ppo.gamma, ppo.gae_lambda)",
        "gae(scaled_reward, value, ppo.gamma, ppo.gae_lambda)",
        (LOSSES, ISOLATION),
    ),
    Mutation(
        "isolation: the prior of the macro-action learns from imputation",
        "himeta/formulas.py",
        "fixed = Normal(prior.loc.detach(),",
        "fixed = Normal(prior.loc,",
        (FORMULAS, ISOLATION),
    ),
    Mutation(
        "isolation: other levels are not held constant",
        "training/module.py",
        "if len(levels) == 1 else nullcontext()",
        "if len(levels) == 0 else nullcontext()",
        ("unit/training/test_module.py", ISOLATION),
    ),
    Mutation(
        "seed: goals of training and validation are the same",
        "envs/benchmarks.py",
        "key = (self.stream, int(",
        "key = (0, int(",
        ("contract/test_goals.py",),
    ),
    Mutation(
        "seed: every iteration learns with the same random numbers",
        "training/module.py",
        "seeded(self.seed, _STREAM, rank, int(self.iteration))",
        "seeded(self.seed, _STREAM, rank, 0)",
        ("unit/training/test_module.py",),
    ),
    Mutation(
        "seed: every rollout acts with the same noise",
        "rollouts/collector.py",
        "seeded(self.seed, self.stream, rank, trial)",
        "seeded(self.seed, self.stream, rank, 0)",
        ("integration/test_streaming.py",),
    ),
    Mutation(
        "checkpoint: without the replay",
        "training/datamodule.py",
        'return {"replays": gather(self.replay.state_dict())}',
        'return {"replays": gather({**self.replay.state_dict(), "size": 0})}',
        ("integration/test_resume.py",),
    ),
    Mutation(
        "checkpoint: the export lacks the configuration",
        "training/checkpoint.py",
        '"hyper_parameters", "datamodule_hyper_parameters"',
        '"datamodule_hyper_parameters"',
        ("integration/test_checkpoints.py",),
    ),
    Mutation(
        "success: only of the last step of an interval",
        "rollouts/collect.py",
        "succeeded |= success_now",
        "succeeded = success_now",
        ("unit/rollouts/test_collect.py",),
    ),
    Mutation(
        "success: at the last step instead of at any",
        "evaluation/metrics.py",
        "won = episodes.success\n",
        "won = episodes.final_success\n",
        ("unit/evaluation/test_metrics.py",),
    ),
    Mutation(
        "EnvPool: later goals of drifting families are those of the first episode",
        "envs/envpool.py",
        "[(slot, generation, target) for slot in self.slots]",
        "[(slot, generation) for slot in self.slots]",
        ("contract/test_goals.py",),
    ),
    Mutation(
        "EnvPool: the agent sees the goal",
        "envs/envpool.py",
        "partially_observable=not self.goal_visible",
        "partially_observable=False",
        ("contract/test_goals.py",),
    ),
    Mutation(
        "configuration: another clip range",
        "himeta/config.py",
        "    clip: Positive = 0.2",
        "    clip: Positive = 0.3",
        ("unit/himeta/test_config.py",),
    ),
    Mutation(
        "command line: a mistake ends with exit code 1",
        "cli/messages.py",
        "raise SystemExit(2) from None",
        "raise SystemExit(1) from None",
        ("unit/test_front_door.py",),
    ),
)


def failing(source: Path, tests: tuple[str, ...], *options: str) -> list[str]:
    """Which tests fail with the package in ``source``."""
    files = [str(ROOT / "tests" / name) for name in tests]
    fixed = ["-q", "-m", "not slow", "--numprocesses", "0", "-p", "no:cacheprovider", "--disable-warnings"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *files, *fixed, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(source)},  # before whatever is installed
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode not in (0, 1):  # pytest itself failed, or there was nothing to run
        raise SystemExit(ended.stdout[-3000:] + ended.stderr[-3000:])
    return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", ended.stdout, re.MULTILINE)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word.lower() in m.name.lower() for word in words)]
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)  # follows the link to the configurations
        broken = failing(source, tuple(dict.fromkeys(name for m in chosen for name in m.tests)))
        for name in broken:
            print(f"fails without any mutation and does not count: {name}", flush=True)
        for mutation in chosen:
            file = source / "hmrl" / mutation.file
            text = file.read_text()
            if text.count(mutation.old) != 1:
                raise SystemExit(f"{mutation.name}: its line is not in {mutation.file} exactly once")
            file.write_text(text.replace(mutation.old, mutation.new))
            noticed = failing(source, mutation.tests, "-x", *(f"--deselect={name}" for name in broken))
            file.write_text(text)
            survived += not noticed
            print(f"{'red' if noticed else 'SURVIVED':8}  {mutation.name}  {' '.join(noticed)}", flush=True)
    return int(bool(broken) or survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
