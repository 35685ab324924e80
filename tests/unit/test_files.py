"""Files are whole, or as they were, and say which."""

import pathlib

import pytest

from hogwild_rl.runs import files


def test_a_sealed_file_gives_its_content_back(tmp_path: pathlib.Path) -> None:
    for content in (b"", b"x", bytes(range(256)) * 100):
        files.write_with_digest(tmp_path / "file", content)
        assert files.read_with_digest(tmp_path / "file") == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_byte_of_a_sealed_file_can_change_or_be_missing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    files.write_with_digest(path, b"content" * 10)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(files.DamagedError):
            files.read_with_digest(path)
        path.write_bytes(whole[:at])
        with pytest.raises(files.DamagedError):
            files.read_with_digest(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(files.DamagedError):
        files.read_with_digest(path)


def test_what_was_there_is_kept_under_the_name_asked_for(tmp_path: pathlib.Path) -> None:
    path, previous = tmp_path / "new", tmp_path / "old"
    for content in (b"1", b"2", b"3"):
        files.write_with_digest(path, content, previous)
    assert (files.read_with_digest(path), files.read_with_digest(previous)) == (b"3", b"2")


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    files.write_text(path, "before")
    with pytest.raises(TypeError), files.atomic_write(path) as file:
        file.write("half of it, then no bytes")  # type: ignore[arg-type]
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_swept_away_and_nothing_else(tmp_path: pathlib.Path) -> None:
    keep = {"checkpoint.pt", ".hidden", ".probe.txt", "note.7"}
    for name in (*keep, ".checkpoint.pt.4711", ".settings.json.1"):
        (tmp_path / name).touch()
    files.remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == keep
