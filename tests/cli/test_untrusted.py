"""Tests that loading, resuming, evaluating and plotting intruder runs executes no code."""

import dataclasses
import importlib
import json
import pathlib
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import hogwild_rl
from hogwild_rl import a3c, td3
from hogwild_rl.config import cli
from hogwild_rl.errors import UserError
from hogwild_rl.runs import files
from hogwild_rl.runs.checkpoint import Checkpoint
from tests import envs
from tests.cli.conftest import PROGRAMS, Command

FURTHER = ("--total-timesteps", "10000")
MARK = "executed"


@pytest.fixture
def mark(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """Path of a file created when module `intruder` is imported or a `Payload` is unpickled."""
    mark = tmp_path / MARK
    text = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef make(space): ...\n"
    (tmp_path / "intruder.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("intruder", None)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: pathlib.Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return pathlib.Path.touch, (self._mark,)


def change_settings(run: pathlib.Path, **values: Any) -> None:
    """Changes settings in settings.json and in all checkpoints of a run."""
    document = json.loads((run / "settings.json").read_text())
    document["settings"].update(values)
    (run / "settings.json").write_text(json.dumps(document))
    for path in run.glob("*.pt"):
        saved = Checkpoint.load(path)
        settings = {**saved.settings, **values}
        dataclasses.replace(saved, settings=settings).save(path)


def test_mark_detects_executed_code(mark: pathlib.Path) -> None:
    """Positive control for the other tests."""
    importlib.import_module("intruder")
    assert mark.exists()
    mark.unlink()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("program", ["a3c", "evaluate"])
def test_module_named_by_a_run_is_not_imported(
    program: str, refused: Command, run: pathlib.Path, mark: pathlib.Path
) -> None:
    """The error contains the module and the flag that allows the import."""
    change_settings(run, env="intruder:CartPole-v1")
    flags = ["--resume", str(run), *FURTHER] if program == "a3c" else [str(run)]
    err = refused(program, *flags)
    assert "names env 'intruder:CartPole-v1', for which module 'intruder' would be imported" in err
    assert "if you trust it, give --allow-import (allow_import=True in Python), or give env" in err
    assert not mark.exists()


def test_printed_evaluate_command_allows_the_import(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It contains --allow-import, since the user specified the module."""
    run = str(tmp_path / "run")
    a3c.train(a3c.Config(env="tests.envs:Chain-v0", workers=1, total_timesteps=500, run_dir=run))
    printed = re.search(r"next: .*hogwild_rl\.(evaluate .*)\n", capsys.readouterr().out)
    assert printed
    program, *flags = printed[1].split()
    assert "--allow-import" in flags
    monkeypatch.setattr(sys, "argv", [program, *flags])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(PROGRAMS[program])
    assert exit_info.value.code == 0
    assert "over 20 episodes" in capsys.readouterr().out


def test_module_is_imported_if_allowed(
    run: pathlib.Path,
    mark: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By --allow-import or by an explicit --env."""
    change_settings(run, env="intruder:CartPole-v1")
    resumed = ["a3c", "--resume", str(run), "--quiet"]
    for argv in (
        ["evaluate", str(run), "--episodes", "1", "--allow-import"],
        ["evaluate", str(run), "--episodes", "1", "--env", "intruder:CartPole-v1"],
        [*resumed, "--total-timesteps", "10000", "--allow-import"],
        [*resumed, "--total-timesteps", "20000", "--env", "intruder:CartPole-v1"],
    ):
        monkeypatch.setattr(sys, "argv", argv)
        sys.modules.pop("intruder", None)
        with pytest.raises(SystemExit) as exit_info:
            cli.run(PROGRAMS[argv[0]])
        assert exit_info.value.code == 0, capsys.readouterr()
        assert mark.exists()
        mark.unlink()
    saved = Checkpoint.load(run / "checkpoint.pt").settings | json.loads(
        (run / "settings.json").read_text()
    )
    assert "allow_import" not in str(saved)


def test_python_interface_requires_allow_import(run: pathlib.Path, mark: pathlib.Path) -> None:
    change_settings(run, env="intruder:CartPole-v1")
    agent = hogwild_rl.load(run)
    with pytest.raises(UserError, match="module 'intruder' would be imported"):
        agent.evaluate(1)
    with pytest.raises(UserError, match="module 'intruder' would be imported"):
        agent.make_env()
    with pytest.raises(UserError, match="module 'intruder' would be imported"):
        a3c.Config(resume=str(run), total_timesteps=10_000)
    assert agent.evaluate(1, env="CartPole-v1").shape == (1,)
    assert not mark.exists()
    assert hogwild_rl.load(run, allow_import=True).evaluate(1).shape == (1,)
    assert mark.exists()


@pytest.mark.parametrize("program", ["a2c", "a3c", "ddpg", "ppo", "reinforce", "td3"])
def test_allow_import_in_a_run_file_has_no_effect(
    program: str, refused: Command, run: pathlib.Path, mark: pathlib.Path
) -> None:
    """For every algorithm in settings.json."""
    change_settings(run, env="intruder:CartPole-v1", allow_import=True)
    document = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps({**document, "algorithm": program}))
    error = refused(program, "--resume", str(run), *FURTHER)
    assert "module 'intruder' would be imported" in error
    assert not mark.exists()


@pytest.mark.parametrize(
    "env", ["intruder:CartPole-v1", ":intruder:CartPole-v1", "intruder:", "CartPole-v1:intruder:x"]
)
@pytest.mark.parametrize("where", ["settings", "checkpoint"])
def test_no_form_of_env_id_imports_a_module(
    env: str, where: str, refused: Command, run: pathlib.Path, mark: pathlib.Path
) -> None:
    """Only settings.json or only the checkpoints contain the id."""
    claimed = run.parent / "claimed"
    run.rename(claimed)
    before = (claimed / "settings.json").read_text()
    saved = {path: path.read_bytes() for path in claimed.glob("*.pt")}
    change_settings(claimed, env=env)
    if where == "checkpoint":
        (claimed / "settings.json").write_text(before)
    else:
        for path, content in saved.items():
            path.write_bytes(content)
    refused("a3c", "--resume", str(claimed), *FURTHER)
    if where == "checkpoint":
        refused("evaluate", str(claimed))
    assert not mark.exists()


@pytest.mark.parametrize("network", ["intruder:make", "intruder.make", "intruder"])
def test_network_function_named_by_a_run_is_not_imported(
    network: str, refused: Command, run: pathlib.Path, mark: pathlib.Path
) -> None:
    change_settings(run, network=network)
    printed = f"network {network} is"
    assert printed in refused("evaluate", str(run))
    assert printed in refused("a3c", "--resume", str(run), *FURTHER)
    with pytest.raises(UserError, match=re.escape(printed)):
        hogwild_rl.load(run)
    assert not mark.exists()


def test_plot_of_a_run_imports_nothing(
    run: pathlib.Path,
    mark: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It reads settings.json and progress.csv, but no checkpoint."""
    change_settings(run, env="intruder:CartPole-v1", network="intruder:make")
    for path in run.glob("*.pt"):
        path.write_bytes(pickle.dumps(Payload(mark)))
    monkeypatch.setattr(sys, "argv", ["plot", str(run), "--output", str(tmp_path / "curves.png")])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(PROGRAMS["plot"])
    assert exit_info.value.code == 0
    assert not mark.exists()


def save_with_torch(content: Any, path: pathlib.Path) -> None:
    torch.save(content, path)


def save_with_pickle(content: Any, path: pathlib.Path) -> None:
    path.write_bytes(pickle.dumps(content))


FIELDS = ("format", "settings", "action_space", "parameters", "optimizer", "counters", "more")


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.previous.pt", "best.pt"])
@pytest.mark.parametrize("save", [save_with_torch, save_with_pickle])
@pytest.mark.parametrize("field", [*FIELDS, ""])
def test_checkpoint_cannot_execute_code(
    name: str,
    save: Callable[[Any, pathlib.Path], None],
    field: str,
    refused: Command,
    run: pathlib.Path,
    mark: pathlib.Path,
) -> None:
    """The digest is valid, so that only the unpickler can reject the file."""
    (run / "raw.pt").write_bytes(files.read_with_digest(run / "checkpoint.pt"))
    document = torch.load(run / "raw.pt", weights_only=True)
    payload = Payload(mark)
    save({**document, field: payload} if field else payload, run / "raw.pt")
    if name != "best.pt":
        for other in ("checkpoint.pt", "checkpoint.previous.pt"):
            (run / other).unlink(missing_ok=True)
    files.write_with_digest(run / name, (run / "raw.pt").read_bytes())
    printed = "is not a checkpoint of hogwild_rl, or it is damaged"
    assert printed in refused("evaluate", str(run / name))
    assert printed in refused("a3c", "--resume", str(run), *FURTHER)
    with pytest.raises(UserError, match=printed):
        hogwild_rl.load(run / name)
    assert not mark.exists()


@pytest.mark.parametrize("save", [save_with_torch, save_with_pickle])
def test_replay_buffer_cannot_execute_code(
    save: Callable[[Any, pathlib.Path], None],
    refused: Command,
    tmp_path: pathlib.Path,
    mark: pathlib.Path,
) -> None:
    run = tmp_path / "run"
    few = {"total_timesteps": 300, "learning_starts": 100, "hidden": (8,), "buffer_size": 1000}
    options = {"batch_size": 8, "save_replay": True, "quiet": True, "run_dir": str(run)}
    td3.train(td3.Config(env="Pendulum-v1", **few, **options))
    state = torch.load(run / "replay_0.pt", weights_only=True)
    save({**state, "_row": Payload(mark)}, run / "replay_0.pt")
    error = refused("td3", "--resume", str(run), "--total-timesteps", "500")
    assert "replay_0.pt is not a valid replay buffer" in error
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("env", "../../../{outside}"),
        ("env", "{outside}"),
        ("run_dir", "{outside}"),
        ("resume", "{outside}"),
        ("tensorboard", "{outside}"),
    ],
)
def test_paths_in_run_settings_create_no_files(
    name: str, value: str, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The setting may be rejected or ignored."""
    outside = tmp_path / "outside"
    change_settings(run, **{name: value.format(outside=outside)})
    inside = {path.name for path in tmp_path.iterdir()}
    try:
        a3c.train(a3c.Config(resume=str(run), total_timesteps=5_000, quiet=True))
    except UserError as error:
        assert name in ("env", "tensorboard"), error  # noqa: PT017  either may happen
    assert {path.name for path in tmp_path.iterdir()} == inside


LINKED = ("failures.log", "staleness.csv", "progress.csv", "settings.json", ".probe", "best.pt")


@pytest.mark.parametrize("name", LINKED)
def test_symlink_in_a_run_folder_is_not_followed(
    name: str, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """An intruder folder may contain a symlink to a file of the user."""
    target = tmp_path / "target"
    target.write_bytes((run / name).read_bytes() if (run / name).exists() else b"content")
    before = target.read_bytes()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    a3c.train(a3c.Config(resume=str(run), total_timesteps=8_000, quiet=True))
    assert target.read_bytes() == before


def test_append_text_does_not_follow_symlinks(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target"
    target.write_text("content")
    (run / "failures.log").symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic link|[Ss]ymlink|loop"):
        files.append_text(run / "failures.log", "worker 0 failed\n")
    assert target.read_text() == "content"
    files.append_text(run / "other.log", "one\n")
    files.append_text(run / "other.log", "two\n")
    assert (run / "other.log").read_text() == "one\ntwo\n"


def test_trained_agent_evaluates_without_allow_import(tmp_path: pathlib.Path) -> None:
    """The program itself specified the environment."""
    settings: dict[str, Any] = {"workers": 1, "total_timesteps": 500, "quiet": True}
    for number, env in enumerate(("tests.envs:Chain-v0", envs.Chain)):
        run = str(tmp_path / f"run{number}")
        agent = a3c.train(a3c.Config(env=env, run_dir=run, **settings))
        assert agent.evaluate(2).shape == (2,)
