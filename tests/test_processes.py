"""Two processes of torchrun, of half a batch each, do what one process does with the whole batch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import eval as evaluation
import split_entropy
import train_intra
import train_teacher
from config.load import load_config
from engine.cli import run
from predict import predict, read_request
from tests.conftest import make_domain as domain_maker
from utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
CLOSE = 1e-4  # of one step: rounding passes layers whose statistics are over four pixels of each image
LESS_CLOSE = 1e-3  # of four steps
DRIVER = """
import json, sys
import eval as evaluation, split_entropy, train_intra, train_teacher
from predict import predict, read_request
from engine.cli import run
from config.load import load_config
from utils.errors import ConfigError
from engine.processes import joined
with joined():
    for stage, words in json.loads(sys.argv[1]):
        if stage == "predict":
            predict(read_request(words))
        else:
            config = load_config(words)
            {"teacher": train_teacher.train_teacher, "split": split_entropy.split_entropy,
             "intra": train_intra.train_intra, "eval": evaluation.evaluate}[stage](config)
"""
Words = Callable[..., list[str]]


def torchrun(*command: object) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(start, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    """The command line of a run of one step of 8 images, below a folder of its own."""
    base = tmp_path_factory.mktemp("processes")
    for seed, role in enumerate(("source", "target")):
        domain_maker.__wrapped__()(base / role, count=9, size=(64, 72), seed=seed)

    def arguments(out: str, *extra: object) -> list[str]:
        values = {
            **{"out": base / out, "device": "cpu", "source.root": base / "source", "target.root": base / "target"},
            **{"data.size": 64, "net.backbone": "mobilenetv3_small_050", "net.discriminator_width": 8},
            **{"teacher.steps": 1, "teacher.batch": 8, "intra.steps": 1, "intra.batch": 8, "log.every": 1},
            **{"split.ratio": 0.5, "split.pseudo_label": "class_median"},
            **{"eval.parts": "scores,masks,entropy,report"},
        }
        return [str(word) for key, value in values.items() for word in (f"--{key}", value)] + [str(w) for w in extra]

    return arguments


def out_of(arguments: list[str]) -> Path:
    return Path(arguments[1])


@pytest.fixture(scope="module")
def runs(words: Words) -> dict[str, Path]:
    """`one` process; `two` processes from the same start; `later`: two of them with the teacher and split of one."""
    out = {
        name: out_of(words(name))
        for name in ("one", "two", "later", "split", "clan_one", "clan_two", "mic_one", "mic_two")
    }
    clan = ["--method", "clan"]
    mic = [
        "--teacher.name",
        "source_only",
        "--intra.step",
        "source_target",
        "--intra.self_training",
        "[masked, classmix]",
    ]
    steps = ["--teacher.steps", 4, "--log.checkpoint", 2]
    config = load_config(words("one"))
    train_teacher.train_teacher(config)
    split_entropy.split_entropy(config)
    train_intra.train_intra(config)
    evaluation.evaluate(config)
    train_teacher.train_teacher(load_config(words("clan_one", *clan)))
    train_teacher.train_teacher(load_config(words("mic_one", *mic)))
    train_intra.train_intra(load_config(words("mic_one", *mic)))
    train_teacher.train_teacher(load_config(words("steps_one", *steps)))
    predict(read_request(prediction(out["one"], words, "masks_one")))
    for name, parts in (("split", ["teacher"]), ("later", ["teacher", "split"])):
        for part in parts:
            shutil.copytree(out["one"] / part, out[name] / part)
    shutil.copytree(out["mic_one"] / "source_only", out["mic_two"] / "source_only")
    together = [
        ("teacher", words("two")),
        ("split", words("split")),
        ("intra", words("later")),
        ("eval", words("later")),
        ("teacher", words("clan_two", *clan)),
        ("intra", words("mic_two", *mic)),
        ("teacher", words("steps_two", *steps)),
        ("predict", prediction(out["one"], words, "masks_two")),
    ]
    driver = out["one"].parent / "driver.py"
    driver.write_text(DRIVER, "utf-8")
    with torchrun(driver, json.dumps(together)) as running:
        told = running.communicate(timeout=300)[1]
    assert running.returncode == 0, told
    return out


def prediction(run: Path, words: Words, out: str) -> list[str]:
    scenes = run.parent / "target" / "images"
    return [str(word) for word in (scenes, "--run", run, "--out", out_of(words(out)), "--probability")]


def state_of(stage: Path) -> dict[str, Mapping[str, Tensor]]:
    return torch.load(stage / "checkpoint.pt", weights_only=True)["networks"]


def require_close(stage: Path, other: Path, tolerance: float = CLOSE, *, logged: bool = True) -> None:
    """Every network of two checkpoints, as one vector, and all that was logged."""
    first, second = state_of(stage), state_of(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].keys() == second[name].keys()
        whole = [
            torch.cat([tensor.double().flatten() for tensor in network.values()])
            for network in (first[name], second[name])
        ]
        assert torch.dist(*whole) <= tolerance * whole[0].norm(), name
    rows = [json.loads((path / "metrics.jsonl").read_text("utf-8").splitlines()[-1]) for path in (stage, other)]
    assert not logged or rows[0] == pytest.approx(rows[1], rel=tolerance, abs=1e-9)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_step_of_the_teacher(runs: dict[str, Path]) -> None:
    require_close(runs["one"] / "teacher", runs["two"] / "teacher")


def test_a_step_of_the_student_with_ema_prototypes_and_bank(runs: dict[str, Path]) -> None:
    one, two = runs["one"] / "intra", runs["later"] / "intra"
    assert {"trainee", "ema", "contrast", "alignment"} < state_of(one).keys()
    assert float(state_of(one)["contrast"]["memory.prototypes"].norm()) > 0
    require_close(one, two)


def test_a_step_on_mixed_and_masked_images(runs: dict[str, Path]) -> None:
    # Its gradient passes batch normalisation over the few pixels that no block hides.
    require_close(runs["mic_one"] / "intra", runs["mic_two"] / "intra", 1e-3)


def test_a_loss_on_parameters_counts_once(runs: dict[str, Path]) -> None:
    require_close(runs["clan_one"] / "teacher", runs["clan_two"] / "teacher")


def test_the_split_is_the_same_bytes(runs: dict[str, Path]) -> None:
    one, two = (files_of(runs[name] / "split") for name in ("one", "split"))
    for files in (one, two):
        del files["config.yaml"]
    assert one == two and {"easy.txt", "hard.txt", "entropy.csv"} < one.keys()


def test_an_evaluation_counts_every_image_once(runs: dict[str, Path]) -> None:
    found = [json.loads((runs[name] / "eval/metrics.json").read_text("utf-8")) for name in ("one", "later")]
    teachers = [report["domains"]["target"]["models"]["teacher"] for report in found]
    assert teachers[0] == teachers[1] and sum(map(sum, teachers[0]["confusion"])) > 0
    for kind in ("masks", "errors", "entropy"):
        one, two = (files_of(runs[name] / "eval" / kind / "target/teacher") for name in ("one", "later"))
        assert one == two and len(one) == 9


def test_scenes_are_divided_and_the_summary_is_whole(runs: dict[str, Path], words: Words) -> None:
    one, two = (files_of(out_of(words(name))) for name in ("masks_one", "masks_two"))
    tables = [files.pop("summary.csv").decode().splitlines() for files in (one, two)]
    times = [[row.split(",")[:4] + row.split(",")[5:] for row in table] for table in tables]  # without the seconds
    assert times[0] == times[1] and len(times[0]) == 10
    one.pop(".lock", None), two.pop(".lock", None)
    assert one == two and len(one) == 19


def test_another_number_of_processes_continues_the_run(runs: dict[str, Path], words: Words) -> None:
    steps = ["--teacher.steps", 4, "--log.checkpoint", 2]
    one, two = out_of(words("steps_one")) / "teacher", out_of(words("steps_two")) / "teacher"
    require_close(one, two, LESS_CLOSE, logged=False)
    for name in ("checkpoint.pt", "teacher.safetensors"):
        (two / name).unlink()
    train_teacher.train_teacher(load_config(words("steps_two", *steps)))  # from step 2 on
    assert len((two / "metrics.jsonl").read_text("utf-8").splitlines()) == 4
    require_close(one, two, LESS_CLOSE, logged=False)


def test_a_batch_that_cannot_be_divided_is_told(words: Words) -> None:
    with pytest.raises(ConfigError, match=r"teacher.batch is 8, .* 3 parts \(1 processes, speed.pieces 3\)"):
        train_teacher.train_teacher(load_config(words("odd", "--speed.pieces", 3)))


def test_what_one_process_does_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="is for one process alone; start it without torchrun"):
        run(print, None, together=False)


def test_asked_to_stop_all_stop_after_the_same_step(words: Words) -> None:
    arguments = words("stopped", "--teacher.steps", 100_000)
    folder = out_of(arguments) / "teacher"
    with torchrun("train_teacher.py", *arguments) as running:
        while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        told = running.communicate(timeout=100)[1]
    assert running.returncode and "stopped after step" in told, told
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert f"stopped after step {step} of 100000" in told
