"""Evidence about z and y in runs of the real trainer: what is logged, drawn and written, and what is not."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hmrl.analysis.latents import analyse, first_trials
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.config import MacroVAEConfig
from hmrl.himeta.formulas import agreement
from hmrl.system.errors import UserError
from hmrl.training.callbacks.latent_analysis import LatentAnalysis
from hmrl.training.trainer import make_trainer
from hmrl.types import Rollout
from support.runs import Recorder, Run, assert_same, fit_iterations, learning_state
from support.toy import STEPS, tiny_module, toy_data

PROBES = {f"latents/probe/{name}" for name in ("z", "y", "ego_state", "observation", "chance")}
MACRO = {
    f"latents/{name}/{split}"
    for name in (
        "decoder_error",
        "decoder_error_without_z",
        "correlation",
        "agreement",
        "agreement_by_chance",
    )
    for split in ("train", "test")
}
BODY = (0, 1, 2, 3, 18, 19, 20, 21)
FIGURES = ("belief", "displacement", "decoder_error", "probe")
FLAT = {"task_encoder": None, "macro_vae": None}


def latents_of(row: dict[str, str]) -> set[str]:
    return {name for name in row if name.startswith("latents/")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_iterations(tmp_path_factory.mktemp("plain"), 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("latents")
    return fit_iterations(folder, 2, callbacks=[LatentAnalysis(str(folder))])


@pytest.mark.slow
def test_every_evaluation_is_logged_by_environment_steps(run: Run) -> None:
    rows = [row for row in run.rows if latents_of(row)]
    assert [int(float(row["step"])) for row in rows] == [STEPS, 2 * STEPS]
    for row in rows:
        assert latents_of(row) == PROBES | MACRO
        assert float(row["latents/probe/chance"]) == pytest.approx(1 / 10)
        assert float(row["latents/probe/observation"]) <= 1
    assert not (run.folder / "latents").exists()  # files are for tests


def test_training_is_what_it_is_without(run: Run, plain: Run) -> None:
    assert_same(learning_state(run.last), learning_state(plain.last))
    assert run.recorder.checksums == plain.recorder.checksums
    without = [{k: v for k, v in row.items() if not k.startswith("latents/")} for row in run.rows]
    assert without == plain.rows


@pytest.mark.slow
def test_figures_are_in_tensorboard(run: Run) -> None:
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["images"]) == {f"latents/{name}" for name in FIGURES}
    for name in FIGURES:
        assert [image.step for image in board.Images(f"latents/{name}")] == [STEPS, 2 * STEPS]
    assert {tag for tag in board.Tags()["scalars"] if tag.startswith("latents/")} == PROBES | MACRO


@pytest.mark.slow
def test_not_every_evaluation_and_the_same_ones_after_a_break(tmp_path: Path) -> None:
    def steps(folder: str, *parts: int) -> list[int]:
        for part, iterations in enumerate(parts):
            latents = LatentAnalysis(None, every_n_evaluations=2)
            run = fit_iterations(tmp_path / folder, iterations, resume=part > 0, callbacks=[latents])
        return [int(float(row["step"])) for row in run.rows if latents_of(row)]

    assert steps("straight", 3) == steps("broken", 1, 3) == [2 * STEPS]


def evaluate(
    run: Run, what: str, data: Any, latents: LatentAnalysis
) -> tuple[dict[str, float], list[Rollout]]:
    recorder = Recorder()
    trainer = make_trainer(
        str(run.folder), 1, [latents, recorder], logger=False, accelerator="cpu", devices=1, overwrite=True
    )
    logged = getattr(trainer, what)(run.module, datamodule=data, verbose=False)
    return {k: v for metrics in logged for k, v in metrics.items()}, recorder.evaluated


def first_ten(rollouts: list[Rollout], split: str) -> Rollout:
    """The sampled episodes of a split, ten of the twelve of each family."""
    sampled = [r for r in rollouts if (r.split, r.mode) == (split, "sampled")]
    families = Counter(int(family) for r in sampled for family in r.family)
    assert set(families.values()) == {12}
    return first_trials(sampled, 10)


def test_a_test_writes_what_it_found(plain: Run, tmp_path: Path) -> None:
    data = toy_data(test=EvaluationConfig(12, 4))
    logged, rollouts = evaluate(plain, "test", data, LatentAnalysis(str(tmp_path / "here")))
    folder = tmp_path / "here" / "latents"
    files = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}
    assert {file.name for file in folder.iterdir()} == files | {"latents.json", "latents.npz"}
    for name in FIGURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    numbers = json.loads((folder / "latents.json").read_text())
    assert numbers["env_steps"] == int(plain.module.env_steps) == 2 * STEPS
    plain.module.policy.eval()
    with np.load(folder / "latents.npz") as arrays:
        for split, count in (("train", 10), ("test", 5)):
            episodes = first_ten(rollouts, split)
            expected = analyse(plain.module.policy, plain.module.vae_config, episodes, BODY)
            assert numbers[split]["episodes"] == 10 * count
            assert numbers[split] == json.loads(json.dumps(expected.numbers()))
            assert arrays[f"{split}/belief"].shape == (count, len(episodes.observation), 8 * 3)
            z = episodes.macro_action[..., :3].flatten(0, 1)
            np.testing.assert_array_equal(arrays[f"{split}/macro_action"], z)
            went = float(agreement(episodes.action, episodes.macro_action).mean())
            assert logged[f"latents/agreement/{split}"] == pytest.approx(went)
            assert logged[f"latents/decoder_error/{split}"] == pytest.approx(
                numbers[split]["decoder_error"]["all"]
            )
        assert len(arrays.files) == 6
    assert logged["latents/probe/y"] == numbers["train"]["probe"]["y"]


def test_a_validation_is_looked_at_whatever_its_number(plain: Run) -> None:
    logged, _ = evaluate(plain, "validate", toy_data(), LatentAnalysis(None, every_n_evaluations=5))
    assert latents_of(logged) == PROBES | MACRO  # type: ignore[arg-type]


@pytest.mark.slow
def test_too_few_episodes_to_probe(plain: Run, tmp_path: Path) -> None:
    data = toy_data(test=EvaluationConfig(1, 1))
    logged, _ = evaluate(plain, "test", data, LatentAnalysis(str(tmp_path)))
    assert latents_of(logged) == MACRO  # type: ignore[arg-type]
    assert not (tmp_path / "latents" / "probe.png").exists()
    assert json.loads((tmp_path / "latents" / "latents.json").read_text())["train"]["probe"] == {}


def flat_run(networks: dict[str, Any], latents: LatentAnalysis) -> dict[str, float]:
    data = toy_data(test=EvaluationConfig(2, 2))
    module = tiny_module(data, **networks)
    trainer = make_trainer("unused", 1, [latents], logger=False, accelerator="cpu", devices=1)
    (first, *more) = trainer.test(module, datamodule=data, verbose=False)
    return {k: v for logged in (first, *more) for k, v in logged.items()}


def test_a_flat_agent_has_nothing_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logged = flat_run(FLAT, LatentAnalysis(str(tmp_path)))
    assert "success/test/mean" in logged
    assert not any(name.startswith("latents/") for name in logged)
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("absent", "logged", "drawn"),
    [
        ("macro_vae", PROBES - {"latents/probe/z"}, {"belief", "probe"}),
        ("task_encoder", (PROBES | MACRO) - {"latents/probe/y"}, set(FIGURES) - {"belief"}),
    ],
)
def test_an_absent_level_is_left_out(
    absent: str, logged: set[str], drawn: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {
        k for k in flat_run({absent: None}, LatentAnalysis(str(tmp_path))) if k.startswith("latents/")
    } == logged
    assert {file.stem for file in (tmp_path / "latents").glob("*.png")} == drawn


# --- by hand -------------------------------------------------------------------------------------


def by_hand(latents: LatentAnalysis, module: Any, outputs: list[Any], first: bool = True) -> dict[str, float]:
    """A test's hooks, without a trainer; returns what was logged."""
    logged: dict[str, Any] = {}
    module.log_dict = lambda values, **_: logged.update(values)
    state = SimpleNamespace(fn="test")
    trainer: Any = SimpleNamespace(is_global_zero=first, loggers=[], datamodule=toy_data(), state=state)
    latents.on_test_epoch_start(trainer, module)
    for i, output in enumerate(outputs):
        latents.on_test_batch_end(trainer, module, output, output, i)
    latents.on_test_epoch_end(trainer, module)
    return {name: float(value) for name, value in logged.items()}


def test_no_random_stream_and_no_mode_is_touched(plain: Run, tmp_path: Path) -> None:
    data = toy_data()
    module = tiny_module(data, macro_vae=MacroVAEConfig((8,), (8,), dropout=0.5, n=2))
    module.policy.eval()  # as Lightning has it while it evaluates
    modes = [part.training for part in module.modules()]

    def streams() -> list[Any]:
        numpys = np.random.get_state()  # noqa: NPY002
        return [torch.get_rng_state().tolist(), numpys[1].tolist(), numpys[2], random.getstate()]

    before = streams()
    rollouts = plain.recorder.evaluated
    once = by_hand(LatentAnalysis(str(tmp_path)), module, rollouts)
    assert streams() == before
    assert [part.training for part in module.modules()] == modes
    assert by_hand(LatentAnalysis(None), module, rollouts) == once  # dropout would differ
    assert once.keys() == PROBES | MACRO | {"step"}


def test_only_rollouts_of_the_analysed_mode_count(plain: Run) -> None:
    sampled = [r for r in plain.recorder.evaluated if r.mode == "sampled"]
    permuted = [replace(r, mode="permuted", action=-r.action) for r in sampled]
    once = by_hand(LatentAnalysis(None), plain.module, sampled)
    assert by_hand(LatentAnalysis(None), plain.module, [None, *permuted, *sampled, "score"]) == once
    latents = LatentAnalysis(None)
    assert by_hand(latents, plain.module, [None, *permuted]) == {}
    assert latents.findings == {}


@pytest.mark.parametrize("every", [0, -1])
def test_how_often_must_be_at_least_once(every: int) -> None:
    with pytest.raises(UserError, match=rf"every_n_evaluations is {every}: use 1 or more"):
        LatentAnalysis(None, every_n_evaluations=every)


def one_of_two(rank: int, folder: Path) -> None:
    """A process with its share of the episodes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module, shares = torch.load(folder / "given.pt", weights_only=False)
    own = folder / f"rank{rank}"
    latents = LatentAnalysis(str(own))
    logged = by_hand(latents, module, shares[rank], first=rank == 0)
    torch.save((logged, {k: f.episodes for k, f in latents.findings.items()}), folder / f"said{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_look_at_everybodys_episodes(plain: Run, tmp_path: Path) -> None:
    """One episode a family each: too few for a probe alone."""
    module = tiny_module(toy_data())
    sampled = [r for r in plain.recorder.evaluated if r.mode == "sampled"][-4:]  # of one evaluation
    shares = [[r for i, r in enumerate(sampled) if i % 2 == rank] for rank in (0, 1)]
    for share in shares:
        assert [len(r.family) for r in share] == [10, 5]
    together = by_hand(LatentAnalysis(None), module, [*shares[0], *shares[1]])
    alone = by_hand(LatentAnalysis(None), module, shares[0])
    assert together.keys() > alone.keys()
    module.__dict__.pop("log_dict")
    torch.save((module, shares), tmp_path / "given.pt")
    mp.spawn(one_of_two, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        logged, episodes = torch.load(tmp_path / f"said{rank}.pt", weights_only=False)
        assert logged == pytest.approx(together, rel=1e-5)
        assert episodes == {"train": 20, "test": 10}
        assert (tmp_path / f"rank{rank}" / "latents").exists() == (rank == 0)
