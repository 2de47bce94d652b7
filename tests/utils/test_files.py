"""Files that are whole or not there."""

import errno
import os
from pathlib import Path

import pytest

from utils.errors import DataError
from utils.files import whole, write_bytes, write_text

FAULTS = (
    OSError(errno.ENOSPC, "No space left on device"),
    MemoryError("no memory"),
    RuntimeError("of torch"),
    KeyboardInterrupt(),
)


def test_content_mode_and_nothing_beside(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Größe\n")
    write_bytes(tmp_path / "b.bin", b"\x00\xff")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a.txt": "Größe\n".encode(),
        "b.bin": b"\x00\xff",
    }
    usual = tmp_path / "usual"
    usual.write_text("")
    assert (tmp_path / "b.bin").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("earlier", [None, b"earlier"])
@pytest.mark.parametrize("moment", ["begin", "half", "sync", "rename"])
def test_a_failure_at_any_moment_leaves_what_was_there(
    moment: str, earlier: bytes | None, fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise fault

    path = tmp_path / "result.png"
    if earlier is not None:
        path.write_bytes(earlier)
    if moment in ("sync", "rename"):
        monkeypatch.setattr(f"os.{'fsync' if moment == 'sync' else 'replace'}", fails)
    expected = DataError if isinstance(fault, OSError) else type(fault)
    with pytest.raises(expected) as caught, whole(path, 8) as temporary:
        if moment == "begin":
            fails()
        temporary.write_bytes(b"half")
        if moment == "half":
            fails()
        temporary.write_bytes(b"complete")
    if expected is DataError:
        assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device); 8 bytes are needed")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if earlier is None else [earlier])


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda file: (steps.append(f"sync {os.fstat(file).st_size}"), sync(file)))
    monkeypatch.setattr("os.replace", lambda *paths: (steps.append("rename"), replace(*paths)))
    write_bytes(tmp_path / "a", b"12345")
    assert steps == ["sync 5", "rename"]


@pytest.mark.parametrize(("place", "reason"), [("missing/a", "No such file"), ("file/a", "Not a directory")])
def test_a_folder_that_is_none_is_named(place: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=rf"{place}: cannot be written \({reason}.*; 3 bytes are needed"):
        write_text(tmp_path / place, "abc")


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    with whole(tmp_path / "a") as temporary:
        pass_by = temporary
        temporary.write_bytes(b"x")
    pass_by.write_bytes(b"left by a killed process, and longer")
    write_bytes(tmp_path / "a", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_several_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    with whole(tmp_path / "a", shared=True) as first, whole(tmp_path / "a", shared=True) as second:
        first.write_bytes(b"content")
        second.write_bytes(b"content")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"content"]
