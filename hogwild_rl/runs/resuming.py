"""Going on with a run: what of it is taken up, and when that is refused."""

import pathlib
import sys
from typing import Any

from hogwild_rl import UserError
from hogwild_rl.envs import vector
from hogwild_rl.envs.actions import one_line
from hogwild_rl.runs import metrics, settings
from hogwild_rl.runs.checkpoint import BEST_FILE, PREVIOUS_FILE, Checkpoint, Counters, newest

# Settings that say what the saved parameters mean: a resumed run cannot change them.
_FIXED = {
    "env",
    "network",
    "hidden",
    "activation",
    "shared_trunk",
    "lstm",
    "critics",
    "normalize_observations",
    "state_dependent_std",
    "rescale_actions",
}


def checkpoint(config: settings.RunSettings, facts: vector.EnvFacts) -> Checkpoint | None:
    """The newest checkpoint of the run to resume; None for a new run.

    Raises:
        UserError: there is none, or it cannot go on with these settings in this environment.
    """
    if config.resume is None:
        return None
    folder = pathlib.Path(config.resume)
    saved, path = newest(folder)
    metrics.read_log(folder)  # now, when nothing has been changed yet
    if path.name == PREVIOUS_FILE and not config.quiet:
        print(f"the newest checkpoint is damaged or missing: going on from {path}", file=sys.stderr)
    wanted = config.to_json()
    for name in _FIXED & wanted.keys():
        before, now = (_plain(values.get(name)) for values in (saved.settings, wanted))
        if now != before:
            raise UserError(
                f"{name} of run {config.resume} is {before}, got {now}: leave it out, or start a "
                "new run"
            )
    for space in ("observation_space", "action_space"):
        if getattr(saved, space) != getattr(facts, space):
            raise UserError(
                f"{space} of {facts.name} is {one_line(getattr(facts, space))}, but run "
                f"{config.resume} was trained with {one_line(getattr(saved, space))}"
            )
    if saved.counters.steps >= config.total_timesteps:
        raise UserError(
            f"run {config.resume} has taken {saved.counters.steps} of "
            f"{config.total_timesteps} steps: give a larger total_timesteps"
        )
    return saved


def recalled(saved: Checkpoint | None, config: settings.RunSettings) -> dict[str, Any] | None:
    """What the run's only worker was in the middle of, unless another seed is asked for."""
    if saved is None or saved.settings.get("seed") != config.seed:
        return None
    return saved.recall


def best_return(folder: pathlib.Path, before: Counters) -> float | None:
    """The best mean return on record; best.pt may be newer than the checkpoint that is resumed."""
    if not (folder / BEST_FILE).exists():
        return before.best_return
    saved = Checkpoint.load(folder / BEST_FILE).counters.best_return
    return max((best for best in (saved, before.best_return) if best is not None), default=None)


def _plain(value: Any) -> Any:
    """Sizes given as a list from Python are kept as one, and read back as a tuple."""
    return tuple(value) if isinstance(value, list) else value
