"""Files that are either whole or as they were before, and that can tell whether they are whole."""

import contextlib
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import BinaryIO

FULL = (OSError, RuntimeError)  # what a full disk raises; torch.save makes the latter of it
_DIGEST = b"hogwild_rl sha256 "
_DIGEST_BYTES = len(_DIGEST) + 64 + 1


class DamagedError(ValueError):
    """A sealed file is not what was written, or was never sealed."""


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, previous: pathlib.Path | None = None) -> Iterator[BinaryIO]:
    """Opens a file beside `path` to write; at the end it is flushed to disk and takes that name.

    Args:
        path: of the file.
        previous: the name that what was at `path` is kept under.

    Raises:
        OSError: it cannot be written; what was at `path` is still there.
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
        with contextlib.suppress(OSError):  # the first error is the one to be printed
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: pathlib.Path) -> None:
    """Makes names last through a loss of power, where folders can be opened."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class BestEffortWrites:
    """Writes that a run can do without: a failure is printed once, until a write succeeds."""

    def __init__(self) -> None:
        self._failing = False

    @contextlib.contextmanager
    def at(self, path: pathlib.Path) -> Iterator[None]:
        """Inside, a file is written."""
        try:
            yield
            self._failing = False
        except FULL as error:
            if not self._failing:
                reason = getattr(error, "strerror", None) or error
                with contextlib.suppress(OSError):
                    print(
                        f"{path} cannot be written ({reason}): what was there is kept, and "
                        "training goes on",
                        file=sys.stderr,
                        flush=True,
                    )
            self._failing = True


def remove_temporaries(folder: pathlib.Path) -> None:
    """Removes what processes that were killed while they wrote left behind."""
    for path in folder.glob(".*.*"):
        if path.suffix[1:].isdigit():
            path.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole."""
    with atomic_write(path) as file:
        file.write(text.encode())


def append_text(path: pathlib.Path, text: str) -> None:
    """Adds to a text file; a link is not followed: the folder may come from elsewhere.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o644), "a") as file:  # noqa: PTH123  paths have no such flag
        file.write(text)


def write_with_digest(
    path: pathlib.Path, content: bytes | memoryview, previous: pathlib.Path | None = None
) -> None:
    """Writes a file whole, with a digest of its content in front; see `replacing`."""
    with atomic_write(path, previous) as file:
        file.write(_DIGEST + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)


def read_with_digest(path: pathlib.Path) -> bytes:
    """The content of a sealed file.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is not whole.
    """
    whole = path.read_bytes()
    seal, content = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
    if seal != _DIGEST + hashlib.sha256(content).hexdigest().encode() + b"\n":
        raise DamagedError(str(path))
    return content
