"""Tests of learning curves: reading runs, grouping them, and plotting them."""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hogwild_rl import a3c, plot
from hogwild_rl.config import base
from hogwild_rl.runs import logger
from hogwild_rl.runs.logger import Progress

# Old versions of matplotlib call functions that new ones of pyparsing deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.* deprecated - use:DeprecationWarning")

Row = tuple[float, int, float]  # seconds, steps, return


def write(folder: pathlib.Path, rows: Sequence[Row], **flags: Any) -> pathlib.Path:
    """Creates the folder of a run whose progress.csv has these rows."""
    folder.mkdir()
    config = a3c.Config(workers=1, quiet=True, **flags)
    document = {"algorithm": "a3c", "settings": config.to_json()}
    (folder / base.SETTINGS_FILE).write_text(json.dumps(document))
    reporter = logger.Reporter(folder, config, Progress())
    zeros = dict.fromkeys([field.name for field in dataclasses.fields(logger.Snapshot)], 0)
    for time_s, steps, value in rows:
        row = {**zeros, "time_s": time_s, "steps": steps, "return_mean": value}
        reporter.report(logger.Snapshot(**row), final=True)  # type: ignore[arg-type]
    reporter.close()
    return folder


def curve(xs: Sequence[float], returns: Sequence[float]) -> plot.Curve:
    return plot.Curve(np.array(xs), np.array(xs) / 10, np.array(returns))


def test_read_skips_rows_without_a_return_and_an_incomplete_last_row(
    tmp_path: pathlib.Path,
) -> None:
    folder = write(tmp_path / "run", [(0.5, 50, math.nan), (1.0, 100, 20.5), (2.0, 250, 30.0)])
    with (folder / "progress.csv").open("a") as file:
        file.write("3.0,300,7")
    run = plot.read(folder)
    assert (run.algorithm, run.env) == ("a3c", "CartPole-v1")
    assert run.curve.steps.tolist() == [100, 250]
    assert run.curve.seconds.tolist() == [1.0, 2.0]
    assert run.curve.returns.tolist() == [20.5, 30.0]


def test_read_returns_the_curve_of_a_trained_run(tmp_path: pathlib.Path) -> None:
    a3c.train(a3c.Config(workers=1, total_timesteps=3000, run_dir=str(tmp_path), quiet=True))
    run = plot.read(tmp_path)
    assert run.curve.steps[-1] >= 3000
    assert 5 < run.curve.returns[-1] <= 500
    assert run.settings["hidden"] == (64, 64)


def test_quartiles_interpolate_curves_with_different_rows() -> None:
    curves = [
        curve([0, 100, 200], [0, 10, 20]),
        curve([0, 200], [20, 40]),
        curve([50, 150, 250], [10, 10, 110]),
    ]
    points = np.array([0.0, 50.0, 100.0, 200.0, 250.0])
    # At 50 the returns are 5, 25 and 10; at 100: 10, 30, 10; at 200: 20, 40, 60.
    lower, median, upper = plot.quartiles(curves, "steps", points)
    np.testing.assert_allclose(lower, [np.nan, 7.5, 10, 30, np.nan])
    np.testing.assert_allclose(median, [np.nan, 10, 10, 40, np.nan])
    np.testing.assert_allclose(upper, [np.nan, 17.5, 20, 50, np.nan])
    in_seconds = plot.quartiles(curves, "seconds", points / 10)
    np.testing.assert_allclose(in_seconds, [lower, median, upper])


def test_quartiles_of_one_curve_equal_the_curve() -> None:
    single = curve([0, 100], [1, 3])
    np.testing.assert_allclose(plot.quartiles([single], "steps", single.steps), [[1, 3]] * 3)


def test_labels_group_seeds_and_name_different_settings(tmp_path: pathlib.Path) -> None:
    rows = [(1.0, 100, 20.0)]
    folders = [
        write(tmp_path / "a", rows, seed=0, learning_rate=1e-3),
        write(tmp_path / "b", rows, seed=1, learning_rate=1e-3, stop_when_solved=True),
        write(tmp_path / "c", rows, seed=0, learning_rate=2e-3),
        write(tmp_path / "d", rows, env="Acrobot-v1"),
    ]
    assert plot.labels([plot.read(folder) for folder in folders]) == [
        "a3c CartPole-v1, learning_rate 0.001",
        "a3c CartPole-v1, learning_rate 0.001",
        "a3c CartPole-v1, learning_rate 0.002",
        "a3c Acrobot-v1",
    ]
    runs = tuple(map(str, folders))
    groups = plot.plot(plot.Config(runs=runs, output=str(tmp_path / "curves.png")))
    assert [len(curves) for curves in groups.values()] == [2, 1, 1]
    labeled = plot.Config(runs=runs, output=str(tmp_path / "2.png"), labels=("x", "y", "y", "$y"))
    assert {k: len(v) for k, v in plot.plot(labeled).items()} == {"x": 1, "y": 2, "$y": 1}


def test_threshold_is_that_of_the_registry_and_imports_no_module() -> None:
    assert plot.threshold("CartPole-v1") == 475
    for unknown in ("Pendulum-v1", "CartPol-v1", "tests.envs.Chain", "no_such_module:Id-v0", ""):
        assert plot.threshold(unknown) is None
    assert plot.threshold("antigravity:CartPole-v1") is None
    assert "antigravity" not in sys.modules


def test_the_figure_has_median_band_seeds_and_threshold() -> None:
    seeds = [curve([0, 100], [0, 10]), curve([0, 100, 200], [20, 30, 40])]
    groups = {"several": seeds, "single": [curve([0, 150], [1, 2])]}
    figure = plot.figure_of(groups, plot.AXES, [475.0])
    assert [panel.get_xlabel() for panel in figure.axes] == ["steps", "seconds"]
    for panel in figure.axes:
        lines = {line.get_label(): line for line in panel.get_lines()}
        np.testing.assert_allclose(lines["several"].get_ydata(), [10, 20, np.nan])
        assert lines["threshold 475"].get_linestyle() == "--"
        seed_lines = [line for line in panel.get_lines() if line.get_linewidth() < 1]
        assert len(seed_lines) == 3
        band = panel.collections[0].get_paths()[0].vertices
        assert {5.0, 15.0, 25.0} <= set(np.asarray(band)[:, 1])
    assert len(plot.figure_of(groups, ["seconds"], []).axes) == 1


def test_a_curve_of_one_row_is_plotted_as_a_dot() -> None:
    figure = plot.figure_of({"short": [curve([100], [5])]}, ["steps"], [])
    assert "." in [line.get_marker() for line in figure.axes[0].get_lines()]


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG\r\n"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_the_format_matches_the_suffix(tmp_path: pathlib.Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"curves{suffix}"
    for _ in range(2):  # the second call replaces the file
        plot.save({"a": [curve([0, 100], [0, 10])]}, path, plot.AXES, [])
        assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]
