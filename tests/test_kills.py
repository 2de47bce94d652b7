"""Runs that are killed or asked to stop, and then started again with the same command."""

import contextlib
import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

import split_entropy
import train_intra
import train_teacher
from config.load import load_config
from config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
STAGES: dict[str, tuple[Callable[[Config], None], str]] = {  # stage -> what runs it, and its last file
    "teacher": (train_teacher.train_teacher, "teacher.safetensors"),
    "split": (split_entropy.split_entropy, "entropy.csv"),
    "intra": (train_intra.train_intra, "student.safetensors"),
}
Written = Callable[[Path], dict[str, bytes]]


def fork(stage: str, arguments: list[str], out: Path, workers: int = 0) -> ForkProcess:
    """The stage in a process of its own, without the seconds that a new interpreter takes."""

    def work() -> None:
        with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            STAGES[stage][0](load_config([*arguments, "--out", str(out), "--data.workers", str(workers)]))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def finish(stage: str, arguments: list[str], out: Path, workers: int = 0) -> float:
    began = time.monotonic()
    process = fork(stage, arguments, out, workers)
    process.join()
    assert process.exitcode == 0 and (out / stage / STAGES[stage][1]).exists()
    return time.monotonic() - began


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_started_again_ends_with_the_same_bytes(
    stage: str,
    kills: int,
    tmp_path: Path,
    tiny_arguments: Callable[..., list[str]],
    make_domain: Callable[..., Path],
    written: Written,
) -> None:
    """SIGKILL at random moments, the first and each second one after it while a file is half-written: weights,
    optimizers, EMA, split and metrics are those of the uninterrupted run, with loader processes and without."""
    make_domain(tmp_path / "target", count=40)
    lengths = {"teacher.steps": 16, "intra.steps": 16, "log.checkpoint": 2, "log.every": 1}
    arguments = tiny_arguments(tmp_path, *(word for key, value in lengths.items() for word in (f"--{key}", str(value))))
    whole, rng, halves = tmp_path / "whole", random.Random(stage), 0
    for earlier in STAGES:
        if earlier == stage:
            break
        finish(earlier, arguments, whole)
    before = tmp_path / "before"
    shutil.copytree(whole, before) if whole.exists() else before.mkdir()
    seconds = finish(stage, arguments, whole)
    for number in range(kills):
        killed = tmp_path / f"killed_{number}"
        shutil.copytree(before, killed)
        process = fork(stage, arguments, killed, workers=2 * (number // 2 % 2))
        time.sleep(rng.uniform(0, 0.9 * seconds))
        while not number % 2 and process.is_alive() and not list((killed / stage).rglob("*.tmp")):
            time.sleep(0.0002)
        process.kill()
        process.join()
        halves += bool(list((killed / stage).rglob("*.tmp")))
        finish(stage, arguments, killed, workers=2 * (number % 2))
        assert written(killed / stage) == written(whole / stage)
        shutil.rmtree(killed)
    print(f"{stage}: {kills} kills, {halves} of them beside a half-written file; the same bytes each time")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_asked_to_stop_a_stage_ends_its_step_and_goes_on_later(
    number: signal.Signals, status: int, tmp_path: Path, tiny_arguments: Callable[..., list[str]]
) -> None:
    out, steps = tmp_path / "run", 4000
    arguments = tiny_arguments(tmp_path, "--teacher.steps", str(steps), "--log.checkpoint", str(steps))
    command = [sys.executable, str(ROOT / "train_teacher.py"), *arguments, "--data.workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (out / "teacher/metrics.jsonl").exists() or not (out / "teacher/metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    second = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert second.returncode == 1 and f"in use by process {process.pid} on " in second.stderr
    os.killpg(process.pid, number)  # as a terminal or a batch system does, loader processes included
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status and "Traceback" not in said
    assert f"{out}/teacher: stopped after step" in said and f"of {steps}; the same command continues" in said
    assert (out / "teacher/checkpoint.pt").exists() and not list(out.rglob("*.tmp"))


def test_a_terminal_that_is_closed_ends_a_stage_as_sigterm_does(
    tmp_path: Path, tiny_arguments: Callable[..., list[str]]
) -> None:
    arguments = tiny_arguments(tmp_path, "--teacher.steps", "4000", "--log.checkpoint", "4000")
    command = [sys.executable, str(ROOT / "train_teacher.py"), *arguments]
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # else there is no room for a bar
    process = subprocess.Popen(command, cwd=ROOT, stderr=terminal, stdout=subprocess.DEVNULL)
    os.close(terminal)
    log = tmp_path / "run/teacher/metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    os.close(screen)
    assert process.wait(120) == 128 + signal.SIGTERM and (tmp_path / "run/teacher/checkpoint.pt").exists()
    assert not list(tmp_path.rglob("*.tmp"))
