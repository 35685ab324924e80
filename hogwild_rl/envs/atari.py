"""Atari games as the literature plays them: 84×84 grey, 4 frames stacked, every 4th frame seen.

Full games with true scores: neither are rewards clipped here, nor does a lost life end an episode.
Every number is the id's own but those that all the literature shares: `ALE/Pong-v5` repeats an
action by chance ("sticky"), `PongNoFrameskip-v4` does not.

Source: Mnih et al. 2015 (Nature 518), methods; sticky actions: Machado et al. 2018
(arXiv:1709.06009), section 5.
"""

import contextlib
import importlib.util
from typing import Any, SupportsFloat, TypeGuard

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

FRAMESKIP = 4  # frames of the emulator for one step; the last two are maximised over
_STACK, _SIZE, _NOOPS = 4, 84, 30
_FIRE = 1
_OURS = {"game", "frameskip", "obs_type"}  # of an id's settings, those that are set or checked here
_PASSED_ON = {"repeat_action_probability", "full_action_space", "max_num_frames_per_episode"}


def installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("ale_py") is not None


def register() -> None:
    """Makes gymnasium know the games, where ale-py is installed."""
    if installed():
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # it greets, once per process
        with contextlib.suppress(AttributeError):  # importing it was enough in older forms
            gymnasium.register_envs(ale_py)


def from_ale(env: Any) -> bool:
    """Whether an environment is one of the Arcade Learning Environment's."""
    return isinstance(env, EnvSpec) and str(env.entry_point).startswith("ale_py")


def is_game(env: Any) -> TypeGuard[EnvSpec]:
    """Whether it is a game, as registered, that is seen on a screen and played with buttons."""
    return (
        from_ale(env)
        and not env.additional_wrappers
        and env.kwargs.get("obs_type", "rgb") == "rgb"
        and not env.kwargs.get("continuous")
    )


def make(spec: EnvSpec, noops: int = _NOOPS, **rendering: Any) -> gymnasium.Env[Any, Any]:
    """One game, through gymnasium's wrappers.

    Args:
        spec: `is_game`.
        noops: at most so many steps of doing nothing begin an episode.
        rendering: `render_mode`, where wanted.
    """
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    register()
    env = gymnasium.make(spec, disable_env_checker=True, frameskip=1, **rendering)
    env = AtariPreprocessing(_Fire(env), noop_max=noops, frame_skip=FRAMESKIP, screen_size=_SIZE)
    return FrameStackObservation(env, _STACK, padding_type="zero")


def make_vector(
    spec: EnvSpec, num_envs: int, threads: int, noops: int = _NOOPS
) -> VectorEnv[Any, Any, Any] | None:
    """Many games, stepped in C++ by this many threads, with NEXT_STEP autoreset.

    None where C++ has no setting for what the spec asks for, such as a game's mode.
    """
    settings = {name: value for name, value in spec.kwargs.items() if name not in _OURS}
    if any(value for name, value in settings.items() if name not in _PASSED_ON):
        return None
    from ale_py.vector_env import AtariVectorEnv

    register()

    class Games(AtariVectorEnv):
        """With the halves of a step that `vector.SteppingAlone` names."""

        def step_async(self, actions: Any) -> None:
            self.send(actions)

        def step_wait(self) -> Any:
            return self.recv()

    return Games(
        spec.kwargs["game"],
        num_envs,
        num_threads=min(threads, num_envs),
        img_height=_SIZE,
        img_width=_SIZE,
        stack_num=_STACK,
        frameskip=FRAMESKIP,
        noop_max=noops,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        **{name: settings[name] for name in _PASSED_ON & settings.keys()},
    )


class _Fire(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE once, for one frame, where a game waits for it to begin."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        meanings: Any = self.env.unwrapped
        if meanings.get_action_meanings()[_FIRE] == "FIRE":
            observation, _, _, _, info = self.env.step(_FIRE)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        return self.env.step(np.int64(action))
