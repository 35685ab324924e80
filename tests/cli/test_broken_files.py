"""Tests of unusable files and folders: a one-line error, and nothing is changed."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import hogwild_rl
from hogwild_rl import a3c, td3
from hogwild_rl.errors import UserError
from hogwild_rl.runs import files
from hogwild_rl.runs.checkpoint import FORMAT, Checkpoint
from tests.cli.conftest import Command

Damage = Callable[[pathlib.Path], None]
FURTHER = ("--total-timesteps", "10000")


def write(name: str, content: bytes | str) -> Damage:
    """Replaces the content of a file."""
    plain = content.encode() if isinstance(content, str) else content
    return lambda run: (run / name).write_bytes(plain) and None


def truncate(name: str) -> Damage:
    return lambda run: (run / name).write_bytes(b"") and None


def make_folder(name: str) -> Damage:
    """Replaces a file by a folder of the same name."""

    def damage(run: pathlib.Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return damage


def set_option(name: str, value: Any) -> Damage:
    """Changes a value in settings.json."""

    def damage(run: pathlib.Path) -> None:
        document = json.loads((run / "settings.json").read_text())
        document["settings"][name] = value
        (run / "settings.json").write_text(json.dumps(document))

    return damage


def save(run: pathlib.Path, document: Any, name: str = "checkpoint.pt") -> None:
    """Writes a file with any content and a valid digest."""
    with (run / "torch.pt").open("wb") as file:
        torch.save(document, file)
    files.write_with_digest(run / name, (run / "torch.pt").read_bytes())
    (run / "torch.pt").unlink()


def load_document(run: pathlib.Path) -> Any:
    with (run / "torch.pt").open("wb") as file:
        file.write(files.read_with_digest(run / "checkpoint.pt"))
    document = torch.load(run / "torch.pt", weights_only=True)
    (run / "torch.pt").unlink()
    return document


def set_field(name: str, value: Any) -> Damage:
    """Changes a field of the checkpoint, or deletes it if the value is None."""

    def damage(run: pathlib.Path) -> None:
        document = load_document(run)
        if value is None:
            del document[name]
        else:
            document[name] = value
        save(run, document)

    return damage


def set_item(name: str, key: str, value: Any) -> Damage:
    """Changes an item of such a field, or deletes it if the value is None."""

    def damage(run: pathlib.Path) -> None:
        document = load_document(run)
        if value is None:
            del document[name][key]
        else:
            document[name][key] = value
        save(run, document)

    return damage


NO_CHECKPOINT = "is not a checkpoint of hogwild_rl, or it is damaged"

# Damage to a checkpoint and the error printed by both --resume and evaluate.
CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    "empty": (truncate("checkpoint.pt"), NO_CHECKPOINT),
    "text": (write("checkpoint.pt", "not a checkpoint"), NO_CHECKPOINT),
    "a folder": (make_folder("checkpoint.pt"), "checkpoint.pt cannot be read (Is a directory)"),
    "no digest": (lambda run: torch.save({}, run / "checkpoint.pt"), NO_CHECKPOINT),
    "no fields": (lambda run: save(run, {}), NO_CHECKPOINT),
    "a tensor": (lambda run: save(run, torch.zeros(3)), NO_CHECKPOINT),
    "an older version": (
        set_field("format", "hogwild_rl-2"),
        f"has format 'hogwild_rl-2', this version reads {FORMAT}: read it with the version that",
    ),
    "a newer version": (set_field("format", "hogwild_rl-99"), "has format 'hogwild_rl-99', this"),
    "another program's format": (set_field("format", "other-1"), NO_CHECKPOINT),
    "no format": (set_field("format", None), NO_CHECKPOINT),
    "no parameters": (set_field("parameters", None), NO_CHECKPOINT),
    "a list of parameters": (set_field("parameters", [1.0]), NO_CHECKPOINT),
    "settings of another type": (set_field("settings", "fast"), NO_CHECKPOINT),
    "no counters": (set_field("counters", None), NO_CHECKPOINT),
    "counters of strings": (set_item("counters", "steps", "many"), NO_CHECKPOINT),
    "unknown counters": (set_item("counters", "colour", 3), NO_CHECKPOINT),
    "no space": (set_field("action_space", None), NO_CHECKPOINT),
    "a space of unknown type": (set_item("action_space", "kind", "Sphere"), NO_CHECKPOINT),
    "a space of negative size": (set_item("action_space", "n", -1), NO_CHECKPOINT),
    "a space of strings": (set_item("action_space", "n", "two"), NO_CHECKPOINT),
    "a space of objects": (set_item("observation_space", "dtype", "object"), NO_CHECKPOINT),
    "a parameter is missing": (
        set_item("parameters", "value_head.bias", None),
        "the checkpoint's parameters do not fit its settings",
    ),
    "a parameter of another shape": (
        set_item("parameters", "value_head.bias", torch.zeros(7)),
        "the checkpoint's parameters do not fit its settings",
    ),
    "a parameter is a string": (
        set_item("parameters", "value_head.bias", "large"),
        "the checkpoint's parameters do not fit its settings",
    ),
}

# Damage to any file read by --resume, and its error.
RUNS: dict[str, tuple[Damage, str]] = {
    "settings.json empty": (truncate("settings.json"), "settings.json cannot be read"),
    "settings.json truncated": (write("settings.json", "{"), "settings.json cannot be read"),
    "settings.json a list": (write("settings.json", "[]"), "settings.json cannot be read"),
    "settings.json of bytes": (write("settings.json", b"\xff\xfe\x00"), "cannot be read"),
    "settings.json a number": (
        write("settings.json", '{"algorithm": "a3c", "settings": 3}'),
        "settings.json cannot be read",
    ),
    "settings.json deep": (write("settings.json", "[" * 100_000), "settings.json cannot be read"),
    "settings.json a folder": (make_folder("settings.json"), "settings.json cannot be read"),
    "no settings.json": (lambda run: (run / "settings.json").unlink(), "has no settings.json"),
    "an unknown setting": (set_option("colour", "red"), "unknown settings ['colour']"),
    "workers many": (set_option("workers", "many"), "workers must be an integer, got 'many'"),
    "workers 1.5": (set_option("workers", 1.5), "workers must be an integer, got 1.5"),
    "gamma null": (set_option("gamma", None), "gamma must be a number, got None"),
    "gamma true": (set_option("gamma", True), "gamma must be a number, got True"),
    "hidden wide": (set_option("hidden", "wide"), "hidden must be integers, got 'wide'"),
    "hidden nested": (set_option("hidden", [[64]]), "hidden must be integers, got"),
    "activation a list": (set_option("activation", ["tanh"]), "activation must be tanh, relu, got"),
    "env a number": (set_option("env", 7), "must be a string, got 7"),
    "env unknown": (set_option("env", "CartPol-v1"), "unknown environment 'CartPol-v1'"),
    "env of many lines": (set_option("env", "Cart\nPole-v1"), "unknown environment 'Cart"),
    "another env": (set_option("env", "Acrobot-v1"), "env of run"),
    "quiet maybe": (set_option("quiet", "maybe"), "quiet must be true or false, got 'maybe'"),
    "progress.csv of bytes": (write("progress.csv", b"\xff\xfe"), "progress.csv cannot be read"),
    "progress.csv a folder": (make_folder("progress.csv"), "progress.csv cannot be read"),
    "progress.csv of strings": (
        write("progress.csv", 2 * ("many," * 14 + "many\n")),
        "repair or remove it",
    ),
    "optimizer state empty": (set_field("optimizer", {"state": {}}), "do not fit its settings"),
    "worker_state a string": (set_field("worker_state", "late"), NO_CHECKPOINT),
    "best.pt damaged": (write("best.pt", "damaged"), f"best.pt {NO_CHECKPOINT}"),
    "best.pt a folder": (make_folder("best.pt"), "best.pt cannot be read"),
}


def contents_of(run: pathlib.Path) -> dict[str, bytes | None]:
    return {p.name: None if p.is_dir() else p.read_bytes() for p in run.iterdir()}


@pytest.mark.parametrize(("damage", "printed"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_damaged_checkpoint_gives_a_one_line_error(
    damage: Damage, printed: str, refused: Command, run: pathlib.Path
) -> None:
    """For resume, evaluate and load; nothing is changed."""
    (run / "checkpoint.previous.pt").unlink(missing_ok=True)
    damage(run)
    before = contents_of(run)
    assert printed in refused("a3c", "--resume", str(run), *FURTHER)
    assert printed in refused("evaluate", str(run))
    with pytest.raises(UserError):
        hogwild_rl.load(run)
    assert contents_of(run) == before


@pytest.mark.parametrize(("damage", "printed"), RUNS.values(), ids=RUNS)
def test_damaged_run_gives_a_one_line_error(
    damage: Damage, printed: str, refused: Command, run: pathlib.Path
) -> None:
    """For resume; nothing is changed."""
    damage(run)
    before = contents_of(run)
    assert printed in refused("a3c", "--resume", str(run), *FURTHER)
    assert contents_of(run) == before


@pytest.mark.parametrize(
    "worker_state",
    [
        {},
        {"carried": 3, "envs": []},
        {"carried": {}, "envs": [{}], "generator": "seed", "discounted": None},
        {"envs": [{"is": "object", "parts": {"envs": {"is": "plain", "value": "none"}}}]},
    ],
)
def test_invalid_worker_state_is_ignored(worker_state: Any, run: pathlib.Path) -> None:
    """The run continues with new episodes."""
    saved = load_document(run)["worker_state"]
    set_field("worker_state", {**saved, **worker_state} if worker_state else {})(run)
    agent = a3c.train(a3c.Config(resume=str(run), total_timesteps=5_000, quiet=True))
    assert agent.checkpoint.counters.steps >= 5_000
    assert not (run / "failures.log").exists()


@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_damaged_replay_buffer_gives_a_one_line_error(
    content: bytes | None, refused: Command, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    few = {"total_timesteps": 300, "learning_starts": 100, "hidden": (8,), "buffer_size": 1000}
    options = {"batch_size": 8, "save_replay": True, "quiet": True, "run_dir": str(run)}
    td3.train(td3.Config(env="Pendulum-v1", **few, **options))
    if content is None:
        torch.save(torch.zeros(3), run / "replay_0.pt")
    else:
        (run / "replay_0.pt").write_bytes(content)
    before = contents_of(run)
    error = refused("td3", "--resume", str(run), "--total-timesteps", "500")
    assert "replay_0.pt is not a valid replay buffer: remove it to start" in error
    assert contents_of(run) == before


@pytest.mark.parametrize("seed", range(60))
def test_checkpoint_with_changed_bytes_is_loaded_or_rejected(
    seed: int, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The digest is recomputed, so that it cannot reveal the change."""
    rng = np.random.default_rng(seed)
    content = bytearray(files.read_with_digest(trained / "checkpoint.pt"))
    document = content.index(b"format")  # the pickle comes first
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(max(0, document - 100), document + 4000)] = rng.integers(256)
    files.write_with_digest(tmp_path / "changed.pt", bytes(content))
    with contextlib.suppress(UserError):
        hogwild_rl.load(tmp_path / "changed.pt")


def test_unreadable_file_gives_a_one_line_error(
    run: pathlib.Path, public: pathlib.Path, refused_unprivileged: Command
) -> None:
    """Runs as an unprivileged user, since root can read every file."""
    copy = public_copy(run, public / "run")
    (copy / "checkpoint.pt").chmod(0)
    (copy / "checkpoint.previous.pt").unlink(missing_ok=True)
    printed = "checkpoint.pt cannot be read (Permission denied)"
    assert printed in refused_unprivileged("evaluate", str(copy))
    assert printed in refused_unprivileged("a3c", "--resume", str(copy), *FURTHER)
    (copy / "settings.json").chmod(0)
    printed = "settings.json cannot be read"
    assert printed in refused_unprivileged("a3c", "--resume", str(copy), *FURTHER)


def test_read_only_folder_gives_a_one_line_error(
    run: pathlib.Path, public: pathlib.Path, refused_unprivileged: Command
) -> None:
    """Applies to resuming a run in it and to starting a new one."""
    copy = public_copy(run, public / "run")
    copy.chmod(0o555)
    before = contents_of(copy)
    printed = "cannot be written (Permission denied)"
    assert printed in refused_unprivileged("a3c", "--resume", str(copy), *FURTHER)
    assert printed in refused_unprivileged("a3c", "--run-dir", str(public / "new"))
    assert printed in refused_unprivileged("a3c", "--run-dir", str(copy / "new"))
    assert contents_of(copy) == before


def public_copy(run: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """Copy of a run that every user can read."""
    to.mkdir()
    for path in run.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
        (to / path.name).chmod(0o644)
    to.chmod(0o755)
    return to


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("file", "cannot be written (File exists)"),
        ("file/run", "cannot be written (Not a directory)"),
        ("full", "full is not empty: name a new folder, or --resume"),
        ("x" * 300, "cannot be written (File name too long)"),
        ("", "is not empty: name a new folder"),
    ],
)
def test_unusable_run_dir_gives_a_one_line_error(
    name: str, printed: str, refused: Command, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    assert printed in refused("a3c", "--run-dir", str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine"]


def test_integer_setting_accepts_scientific_notation() -> None:
    config = a3c.Config(total_timesteps=1e6)
    assert config.total_timesteps == 1_000_000
    assert type(config.total_timesteps) is int


def test_checkpoint_omits_run_dir_resume_and_allow_import(trained: pathlib.Path) -> None:
    saved = dataclasses.asdict(Checkpoint.load(trained / "checkpoint.pt"))["settings"]
    assert not saved.keys() & {"run_dir", "resume", "allow_import"}
