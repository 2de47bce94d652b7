"""Streams that are closed while a script writes to them, and progress where there is no terminal."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils import output
from utils.output import progress_bar

ROOT = Path(__file__).resolve().parents[2]
WRITES = """
import signal, sys, time
from engine.cli import configure, run
def main(_):
    for _ in range(1000):
        print("x" * 9000, file=sys.{stream}, flush=True)
        time.sleep(0.01)
run(main, configure("", lambda description: None))
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_without_its_reader_ends_a_script_as_sigterm_does(stream: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITES.format(stream=stream)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    gone, other = (child.stdout, child.stderr) if stream == "stdout" else (child.stderr, child.stdout)
    assert gone is not None and other is not None
    assert gone.read(5) == b"xxxxx"
    gone.close()
    said = other.read().decode()
    assert child.wait(120) == 128 + signal.SIGTERM and "Traceback" not in said
    assert ("terminated; the same command continues" in said) == (stream == "stdout")


def test_a_stream_that_is_closed_from_the_start_is_no_file_of_ours(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom engine.cli import configure\nconfigure('', lambda description: None)\n"
        f"with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "    print('to nowhere', file=sys.stderr, flush=True)\n    os.write(2, b'nor this')\n"
    )
    subprocess.run(["bash", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code], cwd=ROOT, check=True)
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk_below_a_log_is_no_traceback() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [sys.executable, "-c", WRITES.format(stream="stdout")],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert child.returncode == 128 + signal.SIGTERM and "Traceback" not in child.stderr


def test_progress_in_a_log_is_a_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for _ in progress_bar(range(5000), desc="scenes", unit="scene"):
        with progress_bar(desc="a", unit="window", leave=False) as windows:
            windows.update()
    assert log.getvalue() == ""  # a second is nothing to report on
    monkeypatch.setattr(output, "EVERY", 0.01)
    for _ in progress_bar(range(3), desc="[A]", unit="step"):
        time.sleep(0.05)
    lines = log.getvalue().splitlines()
    assert 1 <= len(lines) < 6 and all(line.startswith("[A]: ") for line in lines) and "[A]: 3/3 [" in lines[-1]
    assert not set("\r\x1b█") & set(log.getvalue())
