"""How scripts end: status and sentence for each way."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.cli import run
from engine.lock import LOCK
from utils.errors import DataError, Interrupted


def ending(main: Callable[[None], None], folder: Path | None = None) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        run(main, None, folder)
    return caught.value.code


def test_project_errors_are_one_sentence() -> None:
    def main(_: None) -> None:
        raise DataError("a.png: found nothing")

    assert ending(main) == "error: a.png: found nothing"


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    def main(_: None) -> None:
        (tmp_path / "missing" / "file").write_text("")

    assert str(ending(main)).startswith(
        f"error: {tmp_path}/missing/file: cannot be written (No such file or directory). "
    )


def test_other_errors_keep_their_traceback() -> None:
    def main(_: None) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main, None)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    left = []

    def main(_: None) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            left.append("cleared away")

    before = signal.getsignal(signal.SIGTERM)
    assert ending(main) == status and left == ["cleared away"]
    assert "continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_stopped_by_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: None) -> None:
        try:
            raise Interrupted("stopped after step 5 of 8", signal.SIGTERM)
        except Exception:  # what goes on after errors does not go on after this
            raise AssertionError("swallowed") from None

    assert ending(main) == 143 and "stopped after step 5 of 8" in capsys.readouterr().err


def test_folder_is_locked_within(tmp_path: Path) -> None:
    seen = []
    run(lambda _: seen.append((tmp_path / "run" / LOCK).read_text()), None, tmp_path / "run")
    assert seen[0].startswith(f"process {os.getpid()} on ")
