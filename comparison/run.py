"""The processes of a comparison: one for each job, some at a time, and the progress of all."""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess

import torch

from comparison.jobs import Job
from comparison.results import finished, write_result
from comparison.scoring import make_result
from comparison.stages import steps_done
from config.comparison import CompareConfig
from engine.lock import one_writer
from engine.run import make_generated
from utils.output import progress_bar

JOB_LOCK = ".job.lock"  # beside the lock of the stages' scripts, which each of them takes for itself


def run_jobs(jobs: Sequence[Job], planned: int, config: CompareConfig) -> list[Job]:
    """Run each of these unfinished jobs, of `planned` ones, in a process of its own; return those that failed.

    One after another, or `workers` at a time; with several GPUs, one on each.
    """
    gpus = 0 if all(job.config.device == "cpu" for job in jobs) else torch.cuda.device_count()
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    workers = config.workers or max(1, gpus)
    threads = config.threads or max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited by the jobs
    os.environ["LOCAL_WORLD_SIZE"] = str(workers)  # likewise, for their loader processes
    print(f"{planned} runs, {planned - len(jobs)} of them finished before; {workers} at a time, {threads} threads")
    for pair in {job.pair: job for job in jobs}.values():
        make_generated(pair.config)
    waiting, failed = list(jobs), list[Job]()
    lengths = {job.folder: job.steps for job in jobs}
    running: dict[int, tuple[Job, BaseProcess]] = {}
    spawn = multiprocessing.get_context("spawn")
    with progress_bar(
        total=sum(lengths.values()), desc="compare", unit="step", smoothing=0.02, disable=not jobs
    ) as bar:
        bar.update(sum(steps_done(folder) for folder in lengths))
        bar.unpause()
        try:
            while waiting or running:
                for slot, (job, process) in list(running.items()):
                    if not process.is_alive():
                        del running[slot]
                        if process.exitcode:
                            failed.append(job)
                            why = f"status {process.exitcode}" + ", killed: out of memory?" * (process.exitcode == -9)
                            bar.write(f"FAILED ({why}): {job.name}; see the end of {job.folder / 'log.txt'}")
                for slot in set(range(workers)) - set(running):
                    unsettled = {job.folder for job in (*waiting, *(job for job, _ in running.values()))}
                    ready = next((job for job in waiting if job.after not in unsettled), None)
                    if ready is None:
                        break
                    waiting.remove(ready)
                    process = spawn.Process(target=work, args=(ready, cards[slot % gpus] if gpus else None))
                    process.start()
                    running[slot] = (ready, process)
                now = "; ".join(f"{job.method} {job.config.seed}" for job, _ in running.values())
                bar.set_postfix_str(now, refresh=False)
                time.sleep(0.5)
                bar.update(sum(min(steps_done(folder), lengths[folder]) for folder in lengths) - bar.n)
        finally:
            for _, process in running.values():
                process.terminate()
                process.join()
    return failed


def work(job: Job, gpu: str | None) -> None:
    """What the process of one job does; it ends when compare.py ends."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            with one_writer(job.folder, wait=True, name=JOB_LOCK):
                if not finished(job):
                    write_result(job, make_result(job))
        except BaseException:
            traceback.print_exc()
            sys.exit(1)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
