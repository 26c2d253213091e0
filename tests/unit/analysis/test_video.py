"""Filming and captions, without a renderer; what is missing is said before anything is evaluated."""

from __future__ import annotations

import subprocess
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hmrl.analysis import video
from hmrl.analysis.video import SIZE, STRIP, Caption, FilmedEnvs, caption, captioned, require_film_tools
from hmrl.envs import benchmark
from hmrl.rollouts.collect import collect, seeded
from hmrl.system.errors import UserError
from hmrl.training.callbacks.record_video import Video
from hmrl.types import Acting, Rollout, TaskEnvs
from support.agents import FAMILIES, ToyEnvs, build_module, encoder_config, random_rollout

# --- pictures ------------------------------------------------------------------------------------


class Counter:
    """A camera whose n-th picture shows n."""

    def __init__(self) -> None:
        self.taken = 0

    def render(self, mode: str) -> np.ndarray:
        self.taken += 1
        return np.full((2, 2, 3), self.taken, dtype=np.uint8)


def roll(envs: TaskEnvs) -> Rollout:
    policy = build_module(encoder_config(), decision_interval=2).policy
    with seeded(1):
        return collect(
            envs, policy, episode=3, acting=Acting(), families=FAMILIES, split="test", mode="sampled"
        )


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [*range(8)]), (3, [0, 3, 6, 7]), (7, [0, 7]), (9, [0, 7])]
)
def test_pictures_are_taken_at_the_start_every_few_steps_and_at_the_end(
    every: int, expected: list[int]
) -> None:
    filmed = FilmedEnvs(ToyEnvs(horizon=7), Counter(), every)
    roll(filmed)
    assert list(filmed.pictures) == expected
    assert [int(picture[0, 0, 0]) for picture in filmed.pictures.values()] == [*range(1, len(expected) + 1)]


def test_an_episode_has_pictures_of_its_own() -> None:
    filmed = FilmedEnvs(ToyEnvs(horizon=7), Counter(), 3)
    roll(filmed)
    roll(filmed)
    assert list(filmed.pictures) == [0, 3, 6, 7]
    assert [int(picture[0, 0, 0]) for picture in filmed.pictures.values()] == [5, 6, 7, 8]


def test_filming_changes_nothing() -> None:
    plain, filmed = roll(ToyEnvs(horizon=7)), roll(FilmedEnvs(ToyEnvs(horizon=7), Counter(), 3))
    for field in fields(Rollout):
        a, b = getattr(plain, field.name), getattr(filmed, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_closing_closes_the_simulators() -> None:
    closed = []
    envs = ToyEnvs()
    envs.close = lambda: closed.append(True)  # type: ignore[method-assign]
    FilmedEnvs(envs, Counter(), 1).close()
    assert closed == [True]


# --- captions ------------------------------------------------------------------------------------


def test_a_caption_tells_the_decision_that_is_under_way() -> None:
    """Eight simulator steps, decisions at 0, 2, 4 and 6, and one more belief at the end."""
    success = torch.tensor([[False, True], [False, True], [True, True], [False, True]])
    rollout = random_rollout(2, 4, success=success, split="test", family=torch.tensor([1, 0]))
    said = [caption(rollout, step, 2, 3) for step in range(9)]
    assert [s[:2] for s in said] == [(f"test {FAMILIES[1]}", step) for step in range(9)]
    for step, decision in enumerate([0, 0, 1, 1, 2, 2, 3, 3, 4]):
        assert said[step].belief == pytest.approx(rollout.task_belief[decision, 0].tolist())
    # The third decision, which starts at step 4, succeeds; what was solved stays solved.
    assert [s.solved for s in said] == [False] * 5 + [True] * 4


def test_a_caption_without_decision_interval_is_exact() -> None:
    rollout = random_rollout(1, 3, success=torch.tensor([[False], [True], [False]]))
    assert [caption(rollout, step, 1, 3).solved for step in range(4)] == [False, False, True, True]


def test_success_of_the_last_decision_cut_short_by_the_horizon_is_told() -> None:
    rollout = random_rollout(1, 2, success=torch.tensor([[False], [True]]))  # decisions at 0 and 5, horizon 7
    assert caption(rollout, 7, 5, 3).solved
    assert not caption(rollout, 5, 5, 3).solved


def test_only_what_is_a_probability_is_told() -> None:
    """A mixture's belief ends in means, which may be negative, and a continuous one has no categories."""
    rollout = random_rollout(1, 2)
    rollout.task_belief[..., 2:] = -0.5
    assert caption(rollout, 1, 1, 2).belief == pytest.approx(rollout.task_belief[1, 0, :2].tolist())
    assert caption(rollout, 1, 1, 0).belief == []


PICTURE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def strip(said: Caption) -> np.ndarray:
    drawn = captioned(PICTURE, said)
    assert (drawn.shape, drawn.dtype) == ((SIZE + STRIP, SIZE, 3), np.uint8)
    assert not any(side % 16 for side in drawn.shape[:2]), "what the codec divides by 16"
    assert np.array_equal(drawn[:SIZE], PICTURE), "the picture itself is left alone"
    return drawn[SIZE:].astype(int)


def bar_heights(drawn: np.ndarray, bars: int) -> list[int]:
    """Pixels of each bar in the column through its middle."""
    background, slot = drawn[-1, 0], (SIZE - 8) / bars
    columns = [drawn[46:81, round(4 + (k + 0.5) * slot)] for k in range(bars)]
    return [int((column != background).any(-1).sum()) for column in columns]


@pytest.mark.parametrize(
    "belief", [(0.5, 0.1, 0.4), (0.0, 0.0, 1.0, 0.0, 0.0), tuple([0.05] * 20), tuple([0.9, 0.1] * 32)]
)
def test_a_bar_is_as_high_as_its_category_is_believed(belief: tuple[float, ...]) -> None:
    heights = bar_heights(strip(Caption("train reach", 8, False, belief)), len(belief))
    assert heights == [pytest.approx(1 + 34 * p, abs=1) for p in belief]


def test_the_likeliest_category_stands_out() -> None:
    drawn = strip(Caption("train reach", 8, False, (0.3, 0.6, 0.1)))
    colors = [tuple(drawn[79, round(4 + (k + 0.5) * (SIZE - 8) / 3)]) for k in range(3)]
    assert colors[0] == colors[2] != colors[1]


def test_every_part_of_a_caption_is_seen() -> None:
    said = Caption("train reach", 8, False, (0.3, 0.7))
    drawn = strip(said)
    for changed in (
        said._replace(title="train push"),
        said._replace(step=12),
        said._replace(solved=True),
        said._replace(belief=(0.31, 0.69)),
        said._replace(belief=()),
    ):
        assert not np.array_equal(drawn, strip(changed)), changed


def test_success_is_green() -> None:
    def green(solved: bool) -> int:
        drawn = strip(Caption("train reach", 8, solved, ()))
        return int((drawn[..., 1] > drawn[..., [0, 2]].max(-1) + 40).sum())

    assert green(True) > 50
    assert green(False) == 0


# --- what it takes -------------------------------------------------------------------------------


@pytest.fixture
def _encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setenv("MUJOCO_GL", "")


def working(monkeypatch: pytest.MonkeyPatch, *renderers: str) -> list[str]:
    tried: list[str] = []

    def draws(renderer: str) -> bool:
        tried.append(renderer)
        return renderer in renderers

    monkeypatch.setattr(video, "_draws", draws)
    return tried


def test_a_missing_encoder_is_named_with_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = working(monkeypatch, "egl")
    monkeypatch.setattr(video, "find_spec", lambda name: None if name == "imageio_ffmpeg" else name)
    with pytest.raises(UserError, match=r"imageio-ffmpeg: pip install 'imageio\[ffmpeg\]'"):
        require_film_tools()
    assert tried == []


@pytest.mark.usefixtures("_encoder")
@pytest.mark.parametrize("renderer", ["egl", "osmesa", "glfw"])
def test_the_first_renderer_that_draws_is_chosen(renderer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = working(monkeypatch, renderer)
    require_film_tools()
    assert video.os.environ["MUJOCO_GL"] == renderer
    assert tried[-1] == renderer
    assert tried == ["egl", "osmesa", "glfw"][: len(tried)]


@pytest.mark.usefixtures("_encoder")
def test_the_users_choice_of_a_renderer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = working(monkeypatch, "egl", "osmesa")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    require_film_tools()
    assert (video.os.environ["MUJOCO_GL"], tried) == ("osmesa", ["osmesa"])


@pytest.mark.usefixtures("_encoder")
def test_a_missing_renderer_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    working(monkeypatch)
    with pytest.raises(UserError, match=r"cannot draw here \(tried egl, .*libegl1.*libosmesa6") as said:
        require_film_tools()
    assert "MUJOCO_GL=egl or MUJOCO_GL=osmesa" in str(said.value)
    assert video.os.environ["MUJOCO_GL"] == ""


@pytest.mark.usefixtures("_encoder")
def test_a_chosen_renderer_that_does_not_work_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    working(monkeypatch, "egl")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(UserError, match=r"cannot draw here \(tried osmesa\): unset MUJOCO_GL"):
        require_film_tools()


def test_a_renderer_is_tried_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> None:
        asked.append(options["env"]["MUJOCO_GL"])
        if len(asked) == 3:
            raise subprocess.TimeoutExpired(command, 60)
        if len(asked) == 2:
            raise subprocess.CalledProcessError(-11, command)

    monkeypatch.setattr(video.subprocess, "run", run)
    assert [video._draws(name) for name in ("egl", "osmesa", "glfw")] == [True, False, False]
    assert asked == ["egl", "osmesa", "glfw"]


def test_a_renderer_that_there_is_not_draws_nothing() -> None:
    assert not video._draws("no-such-renderer")


# --- the callback's checks -----------------------------------------------------------------------


def trainer(first: bool = True) -> Any:
    return SimpleNamespace(is_global_zero=first, datamodule=SimpleNamespace(benchmark=benchmark("ML10")))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    def check() -> None:
        made.append("checked")
        raise UserError("no renderer")

    monkeypatch.setattr("hmrl.training.callbacks.record_video.require_film_tools", check)
    return made


def test_what_is_missing_is_said_before_the_test(checks: list[str]) -> None:
    with pytest.raises(UserError, match="no renderer"):
        Video("runs/x", record=True).setup(trainer(), None, "test")


@pytest.mark.parametrize(
    ("record", "stage", "first"), [(False, "test", True), (True, "fit", True), (True, "test", False)]
)
def test_nothing_is_asked_for_without_need(record: bool, stage: str, first: bool, checks: list[str]) -> None:
    Video("runs/x", record=record).setup(trainer(first), None, stage)
    assert checks == []


def test_an_unknown_family_is_refused(checks: list[str]) -> None:
    with pytest.raises(UserError, match=r"video.families names 'reech'.*use some of reach, push.*lever-pull"):
        Video("runs/x", record=True, families=["drawer-open", "reech"]).setup(trainer(), None, "test")
    assert checks == []


def test_pictures_must_be_taken_some_steps_apart() -> None:
    with pytest.raises(UserError, match=r"video.every is 0.*at least 1"):
        Video("runs/x", every=0)


@pytest.mark.parametrize(("record", "first"), [(False, True), (True, False)])
def test_only_the_first_rank_films_and_only_if_asked(
    record: bool, first: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Video, "_film", lambda *args: pytest.fail("filmed"))
    Video(str(tmp_path), record=record).on_test_end(trainer(first), None)
    assert not any(tmp_path.iterdir())
