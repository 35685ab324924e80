"""Plays a saved run: returns and lengths of whole episodes, on screen or as video if asked for.

python -m hogwild_rl.evaluate runs/a3c_CartPole-v1_20260101-120000 --episodes 20
python -m hogwild_rl.evaluate cartpole.pt --video videos
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C needs no words

import contextlib
import dataclasses
import importlib.util
import pathlib
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Literal

import gymnasium
import numpy as np
import tyro
from gymnasium.wrappers import RecordVideo

from hogwild_rl.config import cli, validation
from hogwild_rl.envs import checks, make
from hogwild_rl.errors import UserError
from hogwild_rl.runs import agent, checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to play and how."""

    run: tyro.conf.Positional[str]
    """Folder of a run, or a file that Agent.save wrote."""
    episodes: int = 20
    """How many episodes to play."""
    best: bool = False
    """Play the run's best parameters instead of its last ones."""
    sample: bool = False
    """Sample actions instead of taking the likeliest."""
    seed: int = 0
    """Seed of the environment and the sampled actions."""
    env: str | None = None
    """Where to play; by default where the run was trained."""
    allow_import: bool = False
    """Let the run name an env module:Id, whose module can run anything."""
    render: Literal["human"] | None = None
    """human: show the episodes in a window."""
    video: str | None = None
    """New folder for one video per episode."""

    def __post_init__(self) -> None:
        validation.at_least("episodes", self.episodes, 1)
        validation.at_least("seed", self.seed, 0)
        if self.render is not None and self.video is not None:
            raise UserError("render and video exclude each other: give one of them")


def evaluate(config: Config) -> agent.Episodes:
    """Plays the episodes and returns them.

    Raises:
        UserError: the run, the environment or the folder for videos cannot be used.
    """
    path = pathlib.Path(config.run)
    if config.best:
        path = path / checkpoint.BEST_FILE
    player = agent.load(path, allow_import=config.allow_import)
    with _environment(player, config) as env:
        return player.play(
            config.episodes, deterministic=not config.sample, seed=config.seed, env=env
        )


@contextlib.contextmanager
def _environment(player: agent.Agent, config: Config) -> Iterator[make.Env]:
    if config.video is not None:
        _check_video(config.video)
    render_mode = "rgb_array" if config.video is not None else config.render
    name = config.env or str(player.checkpoint.settings.get("env"))
    what = "making it" if render_mode is None else f"making it with render_mode {render_mode}"
    with warnings.catch_warnings():
        if render_mode is not None:
            warnings.simplefilter("ignore")  # what cannot be shown is printed below, in one line
        env = checks.called(name, what, lambda: player.make_env(config.env, render_mode))
    try:
        checks.check(env, name, played=False)
        if render_mode is not None:
            _check_shown(env, name, config)
        if config.video is not None:
            env = RecordVideo(env, config.video, episode_trigger=lambda _: True)
        yield env
    finally:
        env.close()


def _check_shown(env: make.Env, name: str, config: Config) -> None:
    """Begins an episode and looks at it, which is to show nothing but that it can be shown."""
    try:
        checks.called(name, "showing it", lambda: env.reset(seed=config.seed))
        picture = checks.called(name, "render()", env.render)
    except UserError as error:
        if isinstance(error.__cause__, gymnasium.error.DependencyNotInstalled):
            printed = f"rendering needs a package that is not installed: {error.__cause__}"
            raise UserError(printed) from error
        raise
    if config.video is not None and not isinstance(picture, np.ndarray):
        raise UserError(
            f"environment {name}: with render_mode rgb_array render() must give an array, got "
            f"{checks.describe_type(picture)}"
        )


def _check_video(folder: str) -> None:
    if importlib.util.find_spec("moviepy") is None:
        raise UserError(f"video needs an extra: {sys.executable} -m pip install moviepy pygame-ce")
    if pathlib.Path(folder).exists():
        raise UserError(f"video folder {folder} exists: name a new one")


def main() -> None:
    """The command line: ``python -m hogwild_rl.evaluate --help``."""
    config = cli.parse(Config, "evaluate", "Plays a saved run.")
    episodes = evaluate(config)
    for name, values in (("return", episodes.returns), ("length", episodes.lengths)):
        print(
            f"{name}: mean {values.mean():.1f}, standard deviation {values.std():.1f}, "
            f"min {values.min():.1f}, max {values.max():.1f}"
        )
    actions = "sampled" if config.sample else "greedy"
    print(f"over {config.episodes} episodes with {actions} actions, seed {config.seed}")
    if config.video is not None:
        print(f"videos: {config.video}")


if __name__ == "__main__":
    cli.run(main)
