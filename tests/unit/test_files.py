"""Tests of files with digests and of atomic writes."""

import pathlib

import pytest

from hogwild_rl.runs import files


def test_file_with_digest_returns_its_content(tmp_path: pathlib.Path) -> None:
    for content in (b"", b"x", bytes(range(256)) * 100):
        files.write_with_digest(tmp_path / "file", content)
        assert files.read_with_digest(tmp_path / "file") == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_any_changed_or_missing_byte_is_detected(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    files.write_with_digest(path, b"content" * 10)
    intact = path.read_bytes()
    for index in range(len(intact)):
        path.write_bytes(intact[:index] + bytes([intact[index] ^ 1]) + intact[index + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            files.read_with_digest(path)
        path.write_bytes(intact[:index])
        with pytest.raises(ValueError, match="damaged"):
            files.read_with_digest(path)
    path.write_bytes(intact + b"x")
    with pytest.raises(ValueError, match="damaged"):
        files.read_with_digest(path)


def test_previous_content_is_kept_under_the_given_name(tmp_path: pathlib.Path) -> None:
    path, previous = tmp_path / "new", tmp_path / "old"
    for content in (b"1", b"2", b"3"):
        files.write_with_digest(path, content, previous)
    assert (files.read_with_digest(path), files.read_with_digest(previous)) == (b"3", b"2")


def test_failed_write_leaves_the_file_unchanged(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    files.write_text(path, "before")
    with pytest.raises(TypeError), files.atomic_write(path) as file:
        file.write("not bytes")  # type: ignore[arg-type]
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_only_temporary_files_of_killed_writers_are_removed(tmp_path: pathlib.Path) -> None:
    keep = {"checkpoint.pt", ".hidden", ".probe.txt", "note.7"}
    for name in (*keep, ".checkpoint.pt.4711", ".settings.json.1"):
        (tmp_path / name).touch()
    files.remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == keep
