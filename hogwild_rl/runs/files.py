"""Atomic writes, and files with a digest that detects damage."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO, TextIO

from hogwild_rl.config.cli import print_line
from hogwild_rl.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
FULL = (OSError, RuntimeError)  # raised on a full disk; torch.save raises RuntimeError
_DIGEST = b"hogwild_rl sha256 "
_DIGEST_BYTES = len(_DIGEST) + 64 + 1


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, previous: pathlib.Path | None = None) -> Iterator[BinaryIO]:
    """Opens a temporary file, and at the end flushes it to disk and renames it to `path`.

    An existing file is moved to `previous`, if given.

    Raises:
        OSError: the file cannot be written; an existing file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: pathlib.Path) -> None:
    """Flushes a folder's entries to disk, against power loss, where folders can be opened."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class BestEffortWrites:
    """Writes that may fail: repeated failures are printed once, until a write succeeds."""

    def __init__(self) -> None:
        self._failing = False

    @contextlib.contextmanager
    def at(self, path: pathlib.Path) -> Iterator[None]:
        """Context in which the file is written; write errors are suppressed."""
        try:
            yield
            self._failing = False
        except FULL as error:
            if not self._failing:
                reason = getattr(error, "strerror", None) or error
                print_line(
                    f"{path} cannot be written ({reason}): the old file is kept, training "
                    "continues",
                    error=True,
                )
            self._failing = True


def remove_temporaries(folder: pathlib.Path) -> None:
    """Removes temporary files of processes that were killed while writing."""
    for path in folder.glob(".*.*"):
        if path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def lock(folder: pathlib.Path) -> TextIO:
    """Locks a folder until the returned file is closed or this process ends.

    Raises:
        UserError: another process, or another run of this one, has locked it.
        OSError: the folder cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    file = open(os.open(folder / LOCK_FILE, flags, 0o644), "r+")  # noqa: PTH123, SIM115
    try:
        with contextlib.suppress(AttributeError):  # not on Windows
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with file:
            owner = file.read()
        raise UserError(
            f"run {folder} is in use by process {owner}: wait until it has ended"
        ) from error
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def append_text(path: pathlib.Path, text: str) -> None:
    """Appends to a text file; follows no symbolic link, as the folder may be untrusted.

    Raises:
        OSError: the file cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o644), "a", encoding="utf-8") as file:  # noqa: PTH123  pathlib has no such flag
        file.write(text)


def write_with_digest(
    path: pathlib.Path, content: bytes | memoryview, previous: pathlib.Path | None = None
) -> None:
    """Writes a file atomically, with a digest before its content; see `atomic_write`."""
    with atomic_write(path, previous) as file:
        file.write(_DIGEST + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)


def read_with_digest(path: pathlib.Path) -> bytes:
    """Reads the content of a file with a digest.

    Raises:
        OSError: the file cannot be read.
        ValueError: the digest is missing or does not match.
    """
    data = path.read_bytes()
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if digest != _DIGEST + hashlib.sha256(content).hexdigest().encode() + b"\n":
        raise ValueError(f"{path} is damaged")
    return content
