"""Films of Meta-World itself: which goals, the right way up, and files that play."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hmrl.analysis import video
from hmrl.analysis.video import SIZE, STRIP, FilmedEnvs, camera_on
from hmrl.envs import benchmark, make_envs
from hmrl.envs.benchmarks import Goals
from hmrl.envs.metaworld import MetaWorldEnvs
from hmrl.evaluation.baselines import RandomAgent, ScriptedExpert
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.rollouts.collect import collect
from hmrl.system.errors import UserError
from hmrl.training.callbacks.record_video import Video
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.types import Acting, Rollout, Split

pytestmark = [pytest.mark.slow, pytest.mark.simulator]

BENCH = benchmark("custom", ["reach", "door-open"], ["lever-pull", "push"])  # few families are made sooner


@pytest.fixture
def _renderer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(video, "find_spec", lambda name: name)  # the encoder is another matter
    before = os.environ.get("MUJOCO_GL")
    try:
        video.require_film_tools()
    except UserError as error:
        pytest.skip(f"no renderer: {error}")
    yield
    os.environ.pop("MUJOCO_GL")
    if before is not None:
        os.environ["MUJOCO_GL"] = before


def one(family: str, horizon: int, split: Split = "train") -> MetaWorldEnvs:
    return MetaWorldEnvs((family,), Goals(split, 3, 1, 0), [0], 1, horizon, True, bench=BENCH)


def by_the_expert(envs: Any) -> Rollout:
    return collect(
        envs,
        ScriptedExpert(envs.families),
        episode=0,
        acting=Acting(),
        families=BENCH.train,
        split="train",
        mode="sampled",
    )


@pytest.mark.usefixtures("_renderer")
def test_the_picture_is_the_right_way_up_and_shows_the_table() -> None:
    with closing(one("reach", 10)) as envs:
        envs.reset(0)
        with closing(camera_on(envs.simulators[0])) as camera:
            picture = camera.render("rgb_array").astype(int)
    assert picture.shape == (SIZE, SIZE, 3)
    warmth = picture[..., 0] - picture[..., 2]  # wood is brown
    assert warmth[-60:, 100:250].mean() > 30, "the table is at the bottom"
    assert abs(warmth[:40, -80:].mean()) < 15, "the grey background is at the top"


@pytest.mark.usefixtures("_renderer")
def test_the_picture_moves_with_the_robot_which_does_not_notice() -> None:
    with closing(one("reach", 40)) as envs:
        plain = by_the_expert(envs)
        with closing(camera_on(envs.simulators[0])) as camera:
            filmed = FilmedEnvs(envs, camera, 20)
            seen = by_the_expert(filmed)
    assert torch.equal(plain.observation, seen.observation)
    assert torch.equal(plain.reward, seen.reward)
    first, _, last = (picture.astype(int) for picture in filmed.pictures.values())
    assert (np.abs(first - last).max(-1) > 60).mean() > 0.01


def evaluated(agent: str, horizon: int, **options: Any) -> tuple[Any, Any]:
    """What the callback is given after an evaluation of ``agent``."""
    test = EvaluationConfig(50, 5, "metaworld", agent=agent)  # type: ignore[arg-type]
    data = MetaWorldDataModule(
        "custom", BENCH.train, BENCH.test, test=test, horizon=horizon, seed=3, **options
    )
    module = SimpleNamespace(policy=None, iteration=torch.tensor(0))
    return SimpleNamespace(is_global_zero=True, datamodule=data, progress_bar_callback=None), module


class Blind:
    """A camera without a renderer."""

    def __init__(self, simulator: Any) -> None:
        pass

    def render(self, mode: str) -> np.ndarray:
        return np.zeros((SIZE, SIZE, 3), dtype=np.uint8)

    def close(self) -> None:
        pass


def unfilmed(trainer: Any, module: Any, family: str, monkeypatch: pytest.MonkeyPatch, path: Path) -> Rollout:
    """The rollout of what would have been filmed."""
    filmed: list[Rollout] = []
    monkeypatch.setattr("hmrl.training.callbacks.record_video.camera_on", Blind)
    monkeypatch.setattr(
        "hmrl.training.callbacks.record_video.caption", lambda rollout, *_: filmed.append(rollout)
    )
    monkeypatch.setattr("hmrl.training.callbacks.record_video.captioned", lambda *_: None)
    monkeypatch.setattr("hmrl.training.callbacks.record_video.write", lambda *_: None)
    Video(str(path), record=True, families=[family], every=2).on_test_end(trainer, module)
    return filmed[0]


@pytest.mark.parametrize(
    ("agent", "goals_shown", "seen"),
    [("random", False, False), ("random", True, True), ("expert", False, True)],
)
def test_films_show_goals_to_whom_evaluations_show_them(
    agent: str, goals_shown: bool, seen: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer, module = evaluated(agent, 2, goals_shown=goals_shown)
    module.policy = SimpleNamespace(decision_interval=1)
    rollout = unfilmed(trainer, module, "reach", monkeypatch, tmp_path)
    assert (rollout.observation[..., 36:39] != 0).any().item() is seen


def test_films_tell_the_family_to_whom_evaluations_tell_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer, module = evaluated("policy", 2, families_shown=True)
    module.policy = RandomAgent(1)
    told = unfilmed(trainer, module, "door-open", monkeypatch, tmp_path).observation[..., 39:]
    assert torch.equal(told, torch.tensor([0.0, 1.0]).expand_as(told))


def test_the_first_test_goal_of_each_family_is_filmed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goals are read off the simulators while they are filmed, and off those of an evaluation."""
    trainer, module = evaluated("expert", 2)
    goals: dict[str, Any] = {}
    written: list[tuple[str, int, int]] = []

    class Spy:
        def __init__(self, simulator: Any) -> None:
            self.simulator = simulator

        def render(self, mode: str) -> np.ndarray:
            goals[type(self.simulator).__name__] = self.simulator._last_rand_vec.copy()
            return np.zeros((SIZE, SIZE, 3), dtype=np.uint8)

        def close(self) -> None:
            pass

    monkeypatch.setattr("hmrl.training.callbacks.record_video.camera_on", Spy)
    monkeypatch.setattr(
        "hmrl.training.callbacks.record_video.write",
        lambda path, pictures, every: written.append((path.name, len(pictures), every)),
    )
    families = ["reach", "door-open", "lever-pull"]
    Video(str(tmp_path), record=True, families=families, every=2).on_test_end(trainer, module)
    names = ["train-reach", "train-door-open", "test-lever-pull"]
    assert written == [(f"{name}.mp4", 2, 2) for name in names]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"video {i} of 3: {tmp_path / 'videos' / name}.mp4 (not solved)" for i, name in enumerate(names, 1)
    ]
    assert len(goals) == 3
    splits: tuple[Split, Split] = ("train", "test")
    for split in splits:
        # Goal number 0 of 50 is what the first environment of a family meets in episode 0 of the test.
        test_goals = trainer.datamodule.test.goals_of(split, 3, "envpool", None, training=0, stream=3)
        with closing(make_envs("metaworld", BENCH, test_goals, 1, horizon=2)) as envs:
            assert isinstance(envs, MetaWorldEnvs)
            envs.reset(0)
            for family, simulator in zip(envs.families, envs.simulators, strict=True):
                if family in families:
                    assert np.array_equal(goals.pop(type(simulator).__name__), simulator._last_rand_vec)
    assert not goals


@pytest.mark.usefixtures("_renderer")
@pytest.mark.skipif(not find_spec("imageio_ffmpeg"), reason="imageio-ffmpeg is not installed")
def test_the_file_plays_and_shows_that_the_expert_succeeds(tmp_path: Path) -> None:
    import imageio.v3 as iio

    trainer, module = evaluated("expert", 80)
    Video(str(tmp_path), record=True, families=["reach"], every=8).on_test_end(trainer, module)
    path = tmp_path / "videos" / "train-reach.mp4"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    frames = iio.imread(path, plugin="FFMPEG").astype(int)
    assert frames.shape == (11, SIZE + STRIP, SIZE, 3)
    assert iio.immeta(path, plugin="FFMPEG")["fps"] == 10  # 80 simulator steps a second

    def green(frame: np.ndarray) -> int:
        shown = frame[SIZE + 20 : SIZE + 45, :120]
        return int((shown[..., 1] > shown[..., [0, 2]].max(-1) + 30).sum())

    assert green(frames[0]) == 0
    assert green(frames[-1]) > 50, "solved"
