"""Atari games with standard preprocessing: 84×84 greyscale, 4 stacked frames, frameskip 4.

Episodes are full games with raw scores: rewards are not clipped here, and a lost life does not end
an episode. Settings other than these are the id's own: `ALE/Pong-v5` has sticky actions,
`PongNoFrameskip-v4` has not.

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

FRAMESKIP = 4  # emulator frames per step; observations are the maximum of the last two
_STACK, _SIZE, _NOOPS = 4, 84, 30
_FIRE = 1
_OURS = {"game", "frameskip", "obs_type"}  # kwargs of a spec that are set or checked here
_PASSED_ON = {"repeat_action_probability", "full_action_space", "max_num_frames_per_episode"}


def installed() -> bool:
    """True if ale-py is installed."""
    return importlib.util.find_spec("ale_py") is not None


def register() -> None:
    """Registers the games with gymnasium if ale-py is installed."""
    if installed():
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner, once per process
        with contextlib.suppress(AttributeError):  # older versions register on import
            gymnasium.register_envs(ale_py)


def from_ale(env: Any) -> bool:
    """True for environments of the Arcade Learning Environment."""
    return isinstance(env, EnvSpec) and str(env.entry_point).startswith("ale_py")


def is_game(env: Any) -> TypeGuard[EnvSpec]:
    """True for unwrapped ALE specs with RGB observations and discrete actions."""
    return (
        from_ale(env)
        and not env.additional_wrappers
        and env.kwargs.get("obs_type", "rgb") == "rgb"
        and not env.kwargs.get("continuous")
    )


def make(spec: EnvSpec, noops: int = _NOOPS, **rendering: Any) -> gymnasium.Env[Any, Any]:
    """Makes one game, with gymnasium's preprocessing wrappers.

    Args:
        spec: spec for which `is_game` is true.
        noops: maximum number of no-op actions at an episode's start.
        rendering: `render_mode`, if any.
    """
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    register()
    env = gymnasium.make(spec, disable_env_checker=True, frameskip=1, **rendering)
    env = AtariPreprocessing(_Fire(env), noop_max=noops, frame_skip=FRAMESKIP, screen_size=_SIZE)
    return FrameStackObservation(env, _STACK, padding_type="zero")


def make_vector(
    spec: EnvSpec, num_envs: int, threads: int, noops: int = _NOOPS
) -> VectorEnv[Any, Any, Any] | None:
    """Makes ale-py's vector environment with C++ threads and NEXT_STEP autoreset.

    Returns None if it lacks a setting of the spec, such as a game's mode.
    """
    settings = {name: value for name, value in spec.kwargs.items() if name not in _OURS}
    if any(value for name, value in settings.items() if name not in _PASSED_ON):
        return None
    from ale_py.vector_env import AtariVectorEnv

    register()

    class Games(AtariVectorEnv):
        """ALE vector environment with the methods of `vectorize.AsyncVectorEnv`."""

        def step_async(self, actions: Any) -> None:
            self.send(actions)

        def step_wait(self) -> Any:
            return self.recv()

    size: dict[str, Any] = {"img_height": _SIZE, "img_width": _SIZE, "stack_num": _STACK}
    return Games(
        spec.kwargs["game"],
        num_envs,
        num_threads=min(threads, num_envs),
        frameskip=FRAMESKIP,
        noop_max=noops,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        **size,
        **{name: settings[name] for name in _PASSED_ON & settings.keys()},
    )


class _Fire(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that presses FIRE for one frame after a reset in games that start with FIRE."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        meanings: Any = self.env.unwrapped
        if meanings.get_action_meanings()[_FIRE] == "FIRE":
            observation, _, _, _, info = self.env.step(_FIRE)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        return self.env.step(np.int64(action))
