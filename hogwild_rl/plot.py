"""Plots learning curves of runs; runs that differ only in the seed are one group.

python -m hogwild_rl.plot runs/first
python -m hogwild_rl.plot runs/* --output curves.png --x seconds
"""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare()

import csv
import dataclasses
import pathlib
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

# Settings that do not affect learning, and the seed: runs of one group may differ in them.
_NOT_COMPARED = {"seed", "stop_when_solved", "checkpoint_every", "tensorboard", "quiet"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the plot."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs."""
    output: str = "curves.png"
    """New image file: .png, .pdf or .svg."""
    x: Axis | None = None
    """Plot returns over steps or seconds only; default: both, side by side."""
    labels: tuple[str, ...] = ()
    """One label per run, runs with equal labels are a group; default: from the settings."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no run given: give the folder of at least one run")
        if pathlib.Path(self.output).suffix not in FORMATS:
            raise UserError(f"output must end in {', '.join(FORMATS)}, got {self.output}")
        if self.labels and len(self.labels) != len(self.runs):
            raise UserError(f"{len(self.runs)} runs need one label each, got {len(self.labels)}")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Learning curve of a run, [N] each: steps, seconds, mean return of 100 episodes."""

    steps: Array
    seconds: Array
    returns: Array


Groups: TypeAlias = Mapping[str, Sequence[Curve]]


@dataclasses.dataclass(frozen=True)
class Run:
    """Algorithm, environment, settings and learning curve of a run."""

    algorithm: str
    env: str
    settings: dict[str, Any]
    curve: Curve


def read(folder: pathlib.Path) -> Run:
    """Reads a run's folder; the run may still be active.

    Raises:
        UserError: the run does not exist, cannot be read, or has no finite return.
    """
    algorithm, values = base.read_settings(folder)
    path = folder / logger.PROGRESS_FILE
    try:
        with path.open(newline="") as file:
            full = [row for row in csv.DictReader(file) if None not in row.values()]
        rows = [[float(row[name]) for name in ("steps", "time_s", "return_mean")] for row in full]
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {path.name}: give the folder of a run") from error
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    finite = [row for row in rows if np.isfinite(row).all()]
    if not finite:
        raise UserError(f"{path} has no finite return yet: wait until an episode has ended")
    return Run(algorithm, str(values.get("env")), values, Curve(*np.array(finite).T))


def labels(runs: Sequence[Run]) -> list[str]:
    """Label per run: algorithm, environment, and settings that differ among runs of these."""
    texts = []
    for run in runs:
        comparable = [r.settings for r in runs if (r.algorithm, r.env) == (run.algorithm, run.env)]
        differing = [
            f"{name} {value}"
            for name, value in run.settings.items()
            if name not in _NOT_COMPARED and any(other.get(name) != value for other in comparable)
        ]
        texts.append(", ".join([f"{run.algorithm} {run.env}", *differing]))
    return texts


def quartiles(curves: Sequence[Curve], x: Axis, points: Array) -> Array:
    """Lower quartile, median and upper quartile of the returns of several curves.

    Curves are interpolated linearly.

    Args:
        curves: at least one curve.
        x: unit of `points`.
        points: x values at which to evaluate, [N].

    Returns:
        Quartiles, [3, N]; NaN where a curve has no value.

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
    """Registered mean return that counts as solved, or None."""
    if ":" in env:
        return None  # its module would have to be imported
    try:
        return gymnasium.spec(env).reward_threshold
    except gymnasium.error.Error:
        return None


def figure_of(groups: Groups, axes: Sequence[Axis], thresholds: Iterable[float]) -> "Figure":
    """Learning curves: a thin line per run, median and interquartile band per group.

    Median and band end where the shortest run of a group ends. Each x axis has a
    panel; dashed lines mark the thresholds.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure, ticker
    except ImportError as error:
        message = f"plots need matplotlib: {sys.executable} -m pip install matplotlib"
        raise UserError(message) from error
    image = figure.Figure(figsize=(6 * len(axes), 4), layout="constrained")
    panels = image.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, x in zip(panels, axes, strict=True):
        for index, (label, curves) in enumerate(groups.items()):
            _plot_group(panel, x, curves, f"C{index % 10}", label.replace("$", r"\$"))
        for value in thresholds:
            panel.axhline(value, color="gray", linestyle="--", label=f"threshold {value:g}")
        panel.set_xlabel(x)
        panel.xaxis.set_major_formatter(ticker.EngFormatter())
    panels[0].set_ylabel("mean return of 100 episodes")
    panels[0].legend(fontsize="small", loc="lower right")
    return image


def _plot_group(panel: "Axes", x: Axis, curves: Sequence[Curve], color: str, label: str) -> None:
    points = np.unique(np.concatenate([getattr(curve, x) for curve in curves]))
    lower, median, upper = quartiles(curves, x, points)
    panel.plot(points, median, color=color, label=label)
    panel.fill_between(points, lower, upper, color=color, alpha=0.2, linewidth=0)
    for curve in curves:
        marker = "." if len(curve.returns) == 1 else None  # a line needs two rows
        xs = getattr(curve, x)
        panel.plot(xs, curve.returns, color=color, marker=marker, alpha=0.3, linewidth=0.5)


def save(
    groups: Groups, path: pathlib.Path, axes: Sequence[Axis], thresholds: Iterable[float]
) -> None:
    """Writes the figure to a file in one of `FORMATS`; an existing file is replaced.

    Raises:
        UserError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    image = figure_of(groups, axes, thresholds)
    with files.atomic_write(path) as file:
        image.savefig(file, format=path.suffix[1:], dpi=150)


def plot(config: Config) -> dict[str, list[Curve]]:
    """Reads and plots the runs, and returns their curves by group.

    Raises:
        UserError: a run cannot be read, or the output exists or cannot be written.
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
        save(groups, path, axes, sorted(thresholds))
    except OSError as error:
        raise UserError(f"output {path} cannot be written ({error.strerror})") from error
    return groups


def main() -> None:
    """Command line: ``python -m hogwild_rl.plot --help``."""
    config = cli.parse(Config, "plot", "Plots learning curves of one or more runs.")
    for label, curves in plot(config).items():
        last = [curve.returns[-1] for curve in curves]
        print(
            f"{label}: mean return at the end: median {np.median(last):.1f}, "
            f"min {min(last):.1f}, max {max(last):.1f}, runs {len(last)}"
        )
    print(f"written: {config.output}")


if __name__ == "__main__":
    cli.run(main)
