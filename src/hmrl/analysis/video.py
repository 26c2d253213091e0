"""Films of episodes: pictures while the one collection loop steps, captions afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hmrl.system.errors import UserError
from hmrl.types import EnvStep, FloatArray, Rollout, TaskEnvs

Picture = npt.NDArray[np.uint8]  # [H, W, 3]

SIZE = 320  # pixels, of a picture's sides
STRIP = 96  # pixels, height of the captions under it; both together are what the video codec divides by 16
STEPS_PER_SECOND = 80  # a simulator step is 12.5 ms


# --- is there what it takes? ---------------------------------------------------------------------

_DRAWS = """
import mujoco
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

scene = "<mujoco><worldbody><light pos='0 0 1'/><geom size='0.1'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
raise SystemExit(not MujocoRenderer(model, data, width=16, height=16).render("rgb_array").any())
"""


def require_film_tools() -> None:
    """Find a renderer and a video encoder; sets ``MUJOCO_GL``, which MuJoCo reads, where it is not set.

    Raises:
        UserError: with what to install.
    """
    if find_spec("imageio_ffmpeg") is None:
        raise UserError(
            "a video needs the package imageio-ffmpeg: pip install 'imageio[ffmpeg]', or leave video.record "
            "false"
        )
    chosen = os.environ.get("MUJOCO_GL")
    renderers = [chosen] if chosen else ["egl", "osmesa", "glfw"]
    for renderer in renderers:
        if _draws(renderer):
            os.environ["MUJOCO_GL"] = renderer
            return
    raise UserError(
        f"MuJoCo cannot draw here (tried {', '.join(renderers)}): "
        + ("unset MUJOCO_GL, so that a working renderer is looked for, or " if chosen else "")
        + "install a renderer (Debian: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6) and set "
        "MUJOCO_GL=egl or MUJOCO_GL=osmesa, or leave video.record false"
    )


def _draws(renderer: str) -> bool:
    """Try it in another process, which Ctrl-C spares: a renderer that does not work may end its own."""
    command, environment = [sys.executable, "-c", _DRAWS], {**os.environ, "MUJOCO_GL": renderer}
    with suppress(subprocess.SubprocessError):
        subprocess.run(
            command, env=environment, capture_output=True, timeout=60, check=True, start_new_session=True
        )
        return True
    return False


# --- pictures ------------------------------------------------------------------------------------


def camera_on(simulator: Any) -> Any:
    """A renderer that looks at Meta-World's table from the robot's right, where little hides what happens."""
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

    view = {"distance": 1.35, "azimuth": 160.0, "elevation": -30.0, "lookat": np.array([0.0, 0.65, 0.15])}
    return MujocoRenderer(simulator.model, simulator.data, view, SIZE, SIZE)


class FilmedEnvs:
    """Environments of which the first has its picture taken every few steps of an episode.

    Args:
        envs: which.
        camera: of Gymnasium's renderers, on the first of them.
        every: simulator steps between two pictures; there is one of the start and one of the end, too.
    """

    def __init__(self, envs: TaskEnvs, camera: Any, every: int) -> None:
        self.families, self.horizon = envs.families, envs.horizon
        self._envs, self._camera, self._every = envs, camera, every
        self.pictures: dict[int, Picture] = {}  # of this episode, by simulator steps

    def reset(self, episode: int) -> FloatArray:
        """Start episode number ``episode`` everywhere; returns observations ``[B, S]``."""
        observation = self._envs.reset(episode)
        self._elapsed, self.pictures = 0, {0: self._camera.render("rgb_array")}
        return observation

    def step(self, action: FloatArray) -> EnvStep:
        """One simulator step with actions ``[B, A]``."""
        taken = self._envs.step(action)
        self._elapsed += 1
        if self._elapsed % self._every == 0 or self._elapsed == self.horizon:
            self.pictures[self._elapsed] = self._camera.render("rgb_array")
        return taken

    def close(self) -> None:
        """Free the simulators."""
        self._envs.close()


# --- captions ------------------------------------------------------------------------------------


class Caption(NamedTuple):
    """What is said under a picture."""

    title: str
    step: int  # simulator steps since the episode began
    solved: bool  # at this step or before
    belief: Sequence[float]  # that the agent acts on, a probability a category


def caption(rollout: Rollout, step: int, decision_interval: int, categories: int) -> Caption:
    """The caption of the first environment after ``step`` simulator steps of a one-episode rollout.

    Success is known per decision, so that it may show some simulator steps early, fewer than a decision has.

    Args:
        categories: how many entries of the belief are probabilities, the first ones.
    """
    title = f"{rollout.split} {rollout.families[int(rollout.family[0])]}"
    decided = -(-step // decision_interval)
    belief = rollout.task_belief[step // decision_interval, 0, :categories]
    return Caption(title, step, bool(rollout.success[:decided, 0].any()), belief.tolist())


_BACKGROUND, _TEXT, _BAR, _LARGEST = (24, 24, 28), (235, 235, 235), (90, 140, 200), (240, 180, 60)
_SOLVED, _UNSOLVED = (90, 200, 110), (170, 170, 170)


def captioned(picture: Picture, said: Caption) -> Picture:
    """``picture`` ``[H, W, 3]`` with a strip under it: title, time, success, and a bar a belief category."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + STRIP), _BACKGROUND)
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(16), ImageFont.load_default(11)
    elapsed = f"step {said.step} ({said.step / STEPS_PER_SECOND:.1f} s)"
    draw.text((6, height + 3), said.title, _TEXT, font)
    draw.text((width - 6, height + 3), elapsed, _TEXT, font, anchor="ra")
    success = ("solved", _SOLVED) if said.solved else ("not solved yet", _UNSOLVED)
    draw.text((6, height + 23), *success, font)
    bars = "task belief" if said.belief else "no categorical belief"
    draw.text((width - 6, height + 26), bars, _TEXT, small, anchor="ra")
    top, bottom = height + 46, height + 80
    slot = (width - 8) / max(len(said.belief), 1)
    gap = 2 if slot > 8 else 1
    for k, p in enumerate(said.belief):
        left, color = 4 + k * slot, _LARGEST if p == max(said.belief) else _BAR
        right = max(left + gap, left + slot - gap - 1)  # a pixel at least
        draw.rectangle((left + gap, bottom - round(p * (bottom - top)), right, bottom), color)
        if slot >= 26:  # else numbers would overlap
            draw.text((left + slot / 2, bottom + 2), f"{p:.2f}", _TEXT, small, anchor="ma")
    return np.asarray(canvas)


def write(path: Path, pictures: Sequence[Picture], every: int) -> None:
    """An mp4 that plays as fast as the robot moves, with a picture every so many simulator steps."""
    import imageio.v3 as iio

    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, np.stack(pictures), plugin="FFMPEG", fps=STEPS_PER_SECOND / every)
