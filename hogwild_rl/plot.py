"""Draws learning curves of runs; those that differ in nothing but the seed are one group.

python -m hogwild_rl.plot runs/first
python -m hogwild_rl.plot runs/* --output curves.png --x seconds
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C needs no words

import csv
import dataclasses
import pathlib
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import gymnasium
import numpy as np
import tyro

from hogwild_rl.config import base, cli
from hogwild_rl.errors import UserError
from hogwild_rl.runs import files, logger

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Axis: TypeAlias = Literal["steps", "seconds"]

AXES: tuple[Axis, ...] = ("steps", "seconds")
FORMATS = (".png", ".pdf", ".svg")

# Settings that leave what is learnt as it is, or tell the members of one group apart.
_ASIDE = {"seed", "stop_when_solved", "checkpoint_every", "tensorboard", "quiet"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to draw and where to."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs."""
    output: str = "curves.png"
    """New file for the picture: .png, .pdf or .svg."""
    x: Axis | None = None
    """Draw returns against steps or seconds only; without it both, side by side."""
    labels: tuple[str, ...] = ()
    """One for each run: runs of one label are a group. By default the settings tell."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no run to draw: give the folder of one at least")
        if pathlib.Path(self.output).suffix not in FORMATS:
            raise UserError(f"output must end in {', '.join(FORMATS)}, got {self.output}")
        if self.labels and len(self.labels) != len(self.runs):
            raise UserError(f"{len(self.runs)} runs want as many labels, got {len(self.labels)}")


@dataclasses.dataclass(frozen=True)
class Curve:
    """How a run learnt, [N] each: mean returns of 100 episodes, after so many steps and seconds."""

    steps: Array
    seconds: Array
    returns: Array


Groups: TypeAlias = Mapping[str, Sequence[Curve]]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder says: who made it with which settings, and how it learnt."""

    algorithm: str
    env: str
    settings: dict[str, Any]
    curve: Curve


def read(folder: pathlib.Path) -> Run:
    """Reads a run's folder; the run may still be going on.

    Raises:
        UserError: there is no run, it cannot be read, or none of its rows has a finite return.
    """
    algorithm, values = base.read_settings(folder)
    path = folder / logger.PROGRESS_FILE
    try:
        with path.open(newline="") as file:
            whole = [row for row in csv.DictReader(file) if None not in row.values()]
        rows = [[float(row[name]) for name in ("steps", "time_s", "return_mean")] for row in whole]
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {path.name}: give the folder of a run") from error
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    finite = [row for row in rows if np.isfinite(row).all()]
    if not finite:
        raise UserError(f"{path} has no finite return yet: wait until an episode has ended")
    return Run(algorithm, str(values.get("env")), values, Curve(*np.array(finite).T))


def labels(runs: Sequence[Run]) -> list[str]:
    """What each run is: algorithm, environment, and settings in which runs of these two differ."""
    texts = []
    for run in runs:
        kin = [r.settings for r in runs if (r.algorithm, r.env) == (run.algorithm, run.env)]
        differing = [
            f"{name} {value}"
            for name, value in run.settings.items()
            if name not in _ASIDE and any(other.get(name) != value for other in kin)
        ]
        texts.append(", ".join([f"{run.algorithm} {run.env}", *differing]))
    return texts


def quartiles(curves: Sequence[Curve], x: Axis, points: Array) -> Array:
    """Lower quartile, median and upper quartile of the returns of several curves.

    Curves are straight lines between their rows.

    Args:
        curves: at least one.
        x: what `points` count.
        points: where to look, [N].

    Returns:
        [3, N]; NaN where not every curve has a value.

    >>> ends = np.array([0.0, 4.0])
    >>> curves = [Curve(ends, ends, np.array(returns)) for returns in ([0, 8], [2, 2])]
    >>> quartiles(curves, "steps", np.array([2.0, 4.0, 5.0]))
    array([[2.5, 3.5, nan],
           [3. , 5. , nan],
           [3.5, 6.5, nan]])
    """
    returns = [
        np.interp(points, getattr(curve, x), curve.returns, left=np.nan, right=np.nan)
        for curve in curves
    ]
    return np.asarray(np.quantile(returns, (0.25, 0.5, 0.75), axis=0))


def threshold(env: str) -> float | None:
    """The mean return at which an environment counts as solved, where one is registered."""
    if ":" in env:
        return None  # to know it, its module would have to be imported
    try:
        return gymnasium.spec(env).reward_threshold
    except gymnasium.error.Error:
        return None


def picture(groups: Groups, axes: Sequence[Axis], thresholds: Iterable[float]) -> "Figure":
    """Learning curves: each run as a thin line, each group's median with a band of quartiles.

    Median and band end where the first of a group's runs ends.

    Args:
        groups: curves by label.
        axes: one panel for each.
        thresholds: returns that get a dashed line.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure, ticker
    except ImportError as error:
        printed = f"plots need an extra: {sys.executable} -m pip install matplotlib"
        raise UserError(printed) from error
    drawn = figure.Figure(figsize=(6 * len(axes), 4), layout="constrained")
    panels = drawn.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, x in zip(panels, axes, strict=True):
        for index, (label, curves) in enumerate(groups.items()):
            _draw_group(panel, x, curves, f"C{index % 10}", label.replace("$", r"\$"))
        for value in thresholds:
            panel.axhline(value, color="gray", linestyle="--", label=f"threshold {value:g}")
        panel.set_xlabel(x)
        panel.xaxis.set_major_formatter(ticker.EngFormatter())
    panels[0].set_ylabel("mean return of 100 episodes")
    panels[0].legend(fontsize="small", loc="lower right")
    return drawn


def _draw_group(panel: "Axes", x: Axis, curves: Sequence[Curve], color: str, label: str) -> None:
    points = np.unique(np.concatenate([getattr(curve, x) for curve in curves]))
    lower, median, upper = quartiles(curves, x, points)
    panel.plot(points, median, color=color, label=label)
    panel.fill_between(points, lower, upper, color=color, alpha=0.2, linewidth=0)
    for curve in curves:
        marker = "." if len(curve.returns) == 1 else None  # one row makes no line
        xs = getattr(curve, x)
        panel.plot(xs, curve.returns, color=color, marker=marker, alpha=0.3, linewidth=0.5)


def draw(
    groups: Groups, path: pathlib.Path, axes: Sequence[Axis], thresholds: Iterable[float]
) -> None:
    """Writes the `picture` to a file of one of `FORMATS`, which is replaced if it exists.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    drawn = picture(groups, axes, thresholds)
    with files.atomic_write(path) as file:
        drawn.savefig(file, format=path.suffix[1:], dpi=150)


def plot(config: Config) -> dict[str, list[Curve]]:
    """Reads the runs, draws them, and returns their groups.

    Raises:
        UserError: a run cannot be read, the output exists or cannot be written.
    """
    runs = [read(pathlib.Path(run)) for run in config.runs]
    groups: dict[str, list[Curve]] = {}
    for label, run in zip(config.labels or labels(runs), runs, strict=True):
        groups.setdefault(label, []).append(run.curve)
    thresholds = {value for run in runs if (value := threshold(run.env)) is not None}
    path = pathlib.Path(config.output)
    try:
        if path.exists():
            raise UserError(f"output {path} exists: name a new one")
        axes = AXES if config.x is None else (config.x,)
        draw(groups, path, axes, sorted(thresholds))
    except OSError as error:
        raise UserError(f"output {path} cannot be written ({error.strerror})") from error
    return groups


def main() -> None:
    """The command line: ``python -m hogwild_rl.plot --help``."""
    config = cli.parse(Config, "plot", "Draws learning curves of one or more runs.")
    for label, curves in plot(config).items():
        last = [curve.returns[-1] for curve in curves]
        print(
            f"{label}: mean return at the end: median {np.median(last):.1f}, "
            f"min {min(last):.1f}, max {max(last):.1f}, runs {len(last)}"
        )
    print(f"written: {config.output}")


if __name__ == "__main__":
    cli.run(main)
