"""One writer a folder: refused or waited for while the first lives, taken over when it is dead."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from engine.lock import LOCK, one_writer
from utils.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")


def hold(folder: Path, told: Connection) -> None:
    with one_writer(folder):
        told.send("held")
        if os.fork() == 0:  # a loader process lives on when the run is killed
            time.sleep(3)
            os._exit(0)
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path):
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path / "run", theirs), daemon=True)
    process.start()
    assert ours.recv() == "held"
    yield process
    process.kill()
    process.join()


def test_second_process_is_refused_and_told_of_the_first(tmp_path: Path, holder) -> None:
    with (
        pytest.raises(ConfigError, match=rf"run: in use by process {holder.pid} on .*: .*another --out"),
        one_writer(tmp_path / "run"),
    ):
        raise AssertionError("two writers")
    with one_writer(tmp_path / "other"):  # another folder is free
        pass


def test_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path, holder) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with one_writer(tmp_path / "run"):
        assert f"process {os.getpid()} on " in (tmp_path / "run" / LOCK).read_text()


def test_free_again_after_leaving_even_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="oops"), one_writer(tmp_path):
        raise ValueError("oops")
    child = FORK.Process(target=hold_briefly, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 0


def hold_briefly(folder: Path) -> None:
    with one_writer(folder):
        pass


def test_waits_where_asked_to(tmp_path: Path, holder, capfd: pytest.CaptureFixture[str]) -> None:
    child = FORK.Process(target=wait_for, args=(tmp_path / "run",))
    child.start()
    child.join(0.5)
    assert child.is_alive()
    os.kill(holder.pid, signal.SIGKILL)
    child.join(10)
    assert child.exitcode == 0
    assert f"in use by process {holder.pid}" in capfd.readouterr().out


def wait_for(folder: Path) -> None:
    with one_writer(folder, wait=True):
        pass


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"file/run/\.lock: cannot be written \(Not a directory\)"),
        one_writer(tmp_path / "file" / "run"),
    ):
        raise AssertionError("no lock")


WINDOWS = """
import fcntl, subprocess, sys, time, types  # subprocess asks for msvcrt itself
from pathlib import Path
def locking(file, mode, count):
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 2**30)
    except OSError:
        raise PermissionError from None
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
sys.modules["fcntl"] = sys.modules["resource"] = None
import predict  # all that a mask needs
from engine.lock import one_writer
from engine.memory import process_peak_mib
from utils.errors import ConfigError
process_peak_mib()
try:
    with one_writer(sys.argv[1], wait=sys.argv[2] == "wait"):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
except ConfigError as error:
    print(error)
"""


def test_without_the_locks_of_posix_those_of_windows_serve(tmp_path: Path) -> None:
    """With a stand-in for msvcrt, which raises PermissionError as that does."""

    def start(how: str, seconds: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-c", WINDOWS, str(tmp_path / "run"), how, str(seconds)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    first = start("refuse", 3600)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    second, third = start("refuse", 0), start("wait", 0)
    assert f"run: in use by process {first.pid} on " in second.communicate()[0]
    assert third.stdout is not None and "waiting for it" in third.stdout.readline()
    first.kill()
    assert third.communicate()[0] == "held\n" and first.wait() == -signal.SIGKILL
