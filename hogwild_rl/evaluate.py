"""Evaluates a saved run: returns and lengths of episodes, optionally on screen or as videos.

python -m hogwild_rl.evaluate runs/a3c_CartPole-v1_20260101-120000 --episodes 20
python -m hogwild_rl.evaluate cartpole.pt --video videos
"""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare()

import contextlib
import dataclasses
import importlib.util
import pathlib
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
    """Settings of the evaluation."""

    run: tyro.conf.Positional[str]
    """Folder of a run, or a file of Agent.save."""
    episodes: int = 20
    """Number of episodes."""
    best: bool = False
    """Use the run's best parameters instead of the last ones."""
    sample: bool = False
    """Sample actions instead of taking the most likely ones."""
    max_steps: int = agent.MAX_STEPS
    """Steps after which an episode is cut."""
    seed: int = 0
    """Seed of the environment and the sampled actions."""
    env: str | None = None
    """Environment; default: the training environment."""
    allow_import: bool = False
    """Let the run name an env module:Id, whose module can run any code."""
    render: Literal["human"] | None = None
    """Render mode; human: show the episodes in a window."""
    video: str | None = None
    """New folder for one video per episode."""

    def __post_init__(self) -> None:
        for name in ("episodes", "max_steps"):
            validation.at_least(name, getattr(self, name), 1)
        validation.at_least("seed", self.seed, 0)
        if self.render is not None and self.video is not None:
            raise UserError("render and video are mutually exclusive: give one of them")


def evaluate(config: Config) -> agent.Episodes:
    """Plays the episodes and returns their returns and lengths.

    Raises:
        UserError: the run, the environment or the video folder is invalid.
    """
    path = pathlib.Path(config.run)
    if config.best:
        path = path / checkpoint.BEST_FILE
    player = agent.load(path, allow_import=config.allow_import)
    with _environment(player, config) as env:
        return player.play(
            config.episodes,
            deterministic=not config.sample,
            seed=config.seed,
            env=env,
            max_steps=config.max_steps,
        )


@contextlib.contextmanager
def _environment(player: agent.Agent, config: Config) -> Iterator[make.Env]:
    render_mode: str | None = config.render
    if config.video is not None:
        render_mode = "rgb_array"
        if importlib.util.find_spec("moviepy") is None:
            install = f"{sys.executable} -m pip install moviepy pygame-ce"
            raise UserError(f"video needs moviepy: {install}")
        if pathlib.Path(config.video).exists():
            raise UserError(f"video folder {config.video} exists: name a new one")
    name = make.name_of(config.env or str(player.checkpoint.settings.get("env")))
    what = "making it" if render_mode is None else f"making it with render_mode {render_mode}"
    with warnings.catch_warnings():
        if render_mode is not None:
            warnings.simplefilter("ignore")  # render errors are reported below, in one line
        env = checks.called(name, what, lambda: player.make_env(config.env, render_mode))
    try:
        checks.check(env, name, played=False)
        if render_mode is not None:
            _check_render(env, name, config)
        if config.video is not None:
            env = RecordVideo(env, config.video, episode_trigger=lambda _: True)
        yield env
    finally:
        env.close()


def _check_render(env: make.Env, name: str, config: Config) -> None:
    """Resets the environment and renders one frame, to check that rendering works."""
    try:
        checks.called(name, "showing it", lambda: env.reset(seed=config.seed))
        frame = checks.called(name, "render()", env.render)
    except UserError as error:
        if isinstance(error.__cause__, gymnasium.error.DependencyNotInstalled):
            message = f"rendering needs a package that is not installed: {error.__cause__}"
            raise UserError(message) from error
        raise
    if config.video is not None and not isinstance(frame, np.ndarray):
        raise UserError(
            f"environment {name}: with render_mode rgb_array render() must return an array, got "
            f"{checks.describe_type(frame)}"
        )


def main() -> None:
    """Command line: ``python -m hogwild_rl.evaluate --help``."""
    config = cli.parse(Config, "evaluate", "Evaluates a saved run.")
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
