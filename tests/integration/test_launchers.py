"""Several processes from the command line: by hmrl itself and by torchrun; and all of them end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.launch import TORCHRUN, free_port, run_together, still_running
from support.paths import TESTS, TINY
from support.runs import assert_same, learning_state, read_rows
from support.toy import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TOY = str(TESTS / "support" / "toy_command.py")
OPTIONS = [
    *("--data.validation.envs_per_family", "2"),  # one of each process
    *("--last_checkpoint.every_n_iterations", "1"),
]


def fit(run_dir: Path, devices: int, num_nodes: int = 1) -> list[str]:
    processes = ["--trainer.devices", str(devices), "--trainer.num_nodes", str(num_nodes)]
    return [TOY, "fit", *TINY, *OPTIONS, *processes, "--run_dir", str(run_dir)]


def torchrun(node: int, nodes: int, processes: int, port: str) -> list[str]:
    where = ["--node-rank", str(node), "--nnodes", str(nodes), "--nproc-per-node", str(processes)]
    return [*TORCHRUN, *where, "--master-addr", "127.0.0.1", "--master-port", port]


def strategies(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("strategy-*.json"))]


@pytest.fixture(scope="module")
def by_hmrl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations of two processes that hmrl starts."""
    folder = tmp_path_factory.mktemp("hmrl")
    (ended,) = run_together([[sys.executable, *fit(folder / "run", 2)]], 120, TOY_FOLDER=str(folder))
    assert ended.code == 0, ended.err[-4000:]
    assert not still_running(folder)
    return folder


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of two nodes, each with one process that torchrun starts."""
    folder, port = tmp_path_factory.mktemp("torchrun"), free_port()
    nodes = [[*torchrun(node, 2, 1, port), *fit(folder / "run", 1, 2)] for node in (0, 1)]
    for ended in run_together(nodes, 120, TOY_FOLDER=str(folder)):
        assert ended.code == 0, ended.err[-4000:]
    assert not still_running(folder)
    return folder


@pytest.mark.parametrize("launcher", ["by_hmrl", "by_torchrun"])
def test_two_processes_are_held_together_one_level_at_a_time(
    launcher: str, request: pytest.FixtureRequest
) -> None:
    """Without a word about strategies in the configuration."""
    said = strategies(request.getfixturevalue(launcher))
    assert len(said) == 2
    for rank in said:
        assert rank["strategy"] == "DDPStrategy"
        assert rank["options"]["find_unused_parameters"] is True
        assert rank["world_size"] == 2


def test_two_nodes_train_what_one_node_with_two_processes_does(by_hmrl: Path, by_torchrun: Path) -> None:
    """Bit by bit: weights, optimizers, normaliser, replays; and the log."""
    states = [
        learning_state(torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True))
        for folder in (by_hmrl, by_torchrun)
    ]
    assert int(states[0]["weights and buffers"]["iteration"]) == 2
    assert_same(*states)
    logs = [read_rows(folder / "run") for folder in (by_hmrl, by_torchrun)]
    assert [int(float(row["step"])) for row in logs[0]] == [STEPS, STEPS, 2 * STEPS, 2 * STEPS]
    assert logs[0] == logs[1]


def test_more_processes_than_the_configuration_knows_of_are_refused(tmp_path: Path) -> None:
    """Each would believe itself alone, and all would write to one directory."""
    command = [*torchrun(0, 1, 2, free_port()), *fit(tmp_path / "run", 1)]
    (ended,) = run_together([command], 120, TOY_FOLDER=str(tmp_path))
    assert ended.code != 0
    sentences = [line for line in ended.err.splitlines() if line.startswith("hmrl: error: ")]
    assert len(sentences) >= 1
    assert "does not fit the launcher: You set `devices=1`" in sentences[0]
    assert "world size (2)" in sentences[0]
    assert list(tmp_path.iterdir()) == []
    assert not still_running(tmp_path)


def test_a_mistake_on_the_second_rank_ends_both(tmp_path: Path) -> None:
    """It gets an observation that is not a number, in the second iteration."""
    (ended,) = run_together(
        [[sys.executable, *fit(tmp_path / "run", 2)]], 120, TOY_FOLDER=str(tmp_path), TOY_FAULT="nan"
    )
    assert ended.code == 2
    assert ended.err.count("hmrl: error:") == 1  # the first rank speaks for both
    assert (
        "hmrl: error: the observation of family reach is not finite at simulator step 1 of episode 1 "
        "(training, train split)"
    ) in ended.err
    assert "Traceback" not in ended.err
    assert not still_running(tmp_path)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert int(last["state_dict"]["iteration"]) == 1


def test_a_fault_of_ours_on_the_second_rank_ends_both_with_a_traceback(tmp_path: Path) -> None:
    (ended,) = run_together(
        [[sys.executable, *fit(tmp_path / "run", 2)]], 120, TOY_FOLDER=str(tmp_path), TOY_FAULT="bug"
    )
    assert ended.code != 0
    assert "ZeroDivisionError: a fault of ours" in ended.err
    assert not still_running(tmp_path)
