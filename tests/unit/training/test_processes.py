"""Which strategy holds the processes together, and who is told that it cannot work."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from hmrl.system.errors import UserError
from hmrl.training.lightning_private import devices_of
from hmrl.training.processes import launch_options, settle

DDP = "ddp_find_unused_parameters_true"


@pytest.fixture(autouse=True)
def _no_launcher_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    gpus(0, monkeypatch)


def gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def strategy_for(strategy: Any, accelerator: Any, devices: Any, num_nodes: int) -> Any:
    given = {"strategy": strategy, "accelerator": accelerator, "devices": devices, "num_nodes": num_nodes}
    return launch_options(given)["strategy"]


# --- strategies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accelerator", "devices", "num_nodes"),
    [
        ("cpu", 2, 1),
        ("cpu", "2", 1),
        ("auto", 3, 1),
        ("cpu", 1, 2),
        ("auto", "auto", 2),
    ],
)
def test_automatically_several_processes_step_one_level_at_a_time(
    accelerator: Any, devices: Any, num_nodes: int
) -> None:
    assert strategy_for("auto", accelerator, devices, num_nodes) == DDP


@pytest.mark.parametrize(
    ("accelerator", "devices"), [("cpu", 1), ("cpu", "1"), ("cpu", "auto"), ("auto", "auto")]
)
def test_automatically_one_process_needs_nothing(accelerator: Any, devices: Any) -> None:
    assert strategy_for("auto", accelerator, devices, 1) == "auto"


def test_apples_gpus_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch_options({})["accelerator"] == "cpu"
    gpus(1, monkeypatch)
    assert (
        launch_options({})["accelerator"] == launch_options({"accelerator": "gpu"})["accelerator"] == "cuda"
    )


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        "ddp_find_unused_parameters_false",
        "ddp_spawn",
        "fsdp",
        "deepspeed",
        DDPStrategy(),
        DDPStrategy(find_unused_parameters=False),
        DDPStrategy(static_graph=True),
        SingleDeviceStrategy(),
    ],
    ids=lambda s: s if isinstance(s, str) else f"{type(s).__name__}{getattr(s, '_ddp_kwargs', '')}",
)
def test_a_strategy_under_which_levels_drift_apart_is_refused(strategy: Any, devices: int) -> None:
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    with pytest.raises(UserError, match=f"trainer.strategy is {name}.* use auto or {DDP}"):
        strategy_for(strategy, "cpu", devices, 1)


@pytest.mark.parametrize(
    "strategy",
    [
        *(f"ddp_{how}_find_unused_parameters_true" for how in ("spawn", "fork", "notebook")),
        DDPStrategy(find_unused_parameters=True, start_method="fork"),
    ],
    ids=lambda s: s if isinstance(s, str) else "object",
)
def test_a_strategy_that_copies_this_process_is_refused_for_that(strategy: Any) -> None:
    with pytest.raises(UserError, match=f"which starts processes as copies of this one.* use auto or {DDP}"):
        strategy_for(strategy, "cpu", 2, 1)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("strategy", [DDP, DDPStrategy(find_unused_parameters=True)], ids=["name", "object"])
def test_the_right_strategy_may_be_chosen(strategy: Any, devices: int) -> None:
    assert strategy_for(strategy, "cpu", devices, 1) is strategy


# --- devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accelerator", "devices", "count"),
    [
        ("gpu", "auto", 4),
        ("cuda", -1, 4),
        ("auto", "-1", 4),
        ("auto", "auto", 4),
        ("gpu", 1, 1),
        ("gpu", 4, 4),
        ("auto", 3, 3),
        ("gpu", [0, 2], 2),
        ("gpu", [3], 1),
        ("gpu", (0, 1, 3), 3),
        ("gpu", "0,2", 2),
        ("gpu", "3,", 1),
        ("cpu", "auto", 1),
        ("cpu", 7, 7),
    ],
)
def test_a_process_for_every_device_that_is_asked_for(
    accelerator: Any, devices: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(4, monkeypatch)
    assert devices_of(accelerator, devices, 1) == count
    assert strategy_for("auto", accelerator, devices, 1) == (DDP if count > 1 else "auto")


@pytest.mark.parametrize("devices", [5, "5", 0, -2])
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "auto"])
def test_more_devices_than_there_are_gpus_are_refused(
    accelerator: str, devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(4, monkeypatch)
    with pytest.raises(UserError, match=f"trainer.devices {devices}, trainer.num_nodes 1: "):
        strategy_for("auto", accelerator, devices, 1)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_where_there_is_none_is_refused(accelerator: str) -> None:
    with pytest.raises(UserError, match=f"trainer.accelerator {accelerator}, .*can not run on your system"):
        strategy_for("auto", accelerator, 1, 1)


@pytest.mark.parametrize("devices", [0, "0", -3])
def test_no_process_at_all_is_refused(devices: Any) -> None:
    with pytest.raises(UserError, match=f"trainer.devices {devices}, .*devices"):
        strategy_for("auto", "cpu", devices, 1)


# --- processes that srun has not started ---------------------------------------------------------


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A script in a job of four tasks."""
    for name, value in (("NTASKS", "4"), ("JOB_ID", "7"), ("JOB_NAME", "train")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    return monkeypatch


@pytest.mark.parametrize(("tasks", "devices"), [(4, 1), (4, 4), (1, 2)])
def test_a_script_in_a_slurm_job_that_srun_did_not_start_is_told_what_to_unset(
    tasks: int, devices: int, slurm: pytest.MonkeyPatch
) -> None:
    slurm.setenv("SLURM_NTASKS", str(tasks))
    with pytest.raises(UserError, match=f"SLURM_NTASKS is {tasks} .*unset SLURM_NTASKS"):
        strategy_for("auto", "cpu", devices, 1)


def test_one_task_needs_no_srun(slurm: pytest.MonkeyPatch) -> None:
    slurm.setenv("SLURM_NTASKS", "1")
    assert strategy_for("auto", "cpu", 1, 1) == "auto"


def test_what_srun_starts_and_a_shell_in_a_slurm_job_are_right(slurm: pytest.MonkeyPatch) -> None:
    slurm.setenv("SLURM_STEP_ID", "0")
    assert strategy_for("auto", "cpu", 4, 1) == DDP
    slurm.delenv("SLURM_STEP_ID")
    slurm.setenv("SLURM_JOB_NAME", "bash")
    assert strategy_for("auto", "cpu", 2, 1) == DDP


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"])
def test_an_inherited_variable_of_a_launcher_that_is_not_there_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one process of its own; of a command in its environment, test_terminal.py."""
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    monkeypatch.setenv(variable, "2")
    with pytest.raises(UserError, match=rf"{variable} is 2 in the environment.* unset {variable}, or start"):
        settle(trainer)


def test_a_launcher_must_start_as_many_processes_as_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    expected = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in expected.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        trainer._accelerator_connector, "cluster_environment", TorchElasticEnvironment(), raising=True
    )
    with pytest.raises(UserError, match=r"does not fit the launcher.* world size \(4\)"):
        settle(trainer)
