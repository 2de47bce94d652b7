"""The comparison as a user runs it, on tiny domains: plan, sharing, interruption, selection, table."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from compare import compare
from comparison.jobs import Job, plan
from comparison.published import read_published
from comparison.results import finished, gather
from comparison.run import work
from comparison.scoring import cross_validation
from comparison.tables import write
from config.comparison import CompareConfig
from config.load import load_compare_config, load_config
from report.metrics import scores
from utils.errors import ConfigError, EvaluationError

ROOT = Path(__file__).resolve().parents[1]
Make = Callable[..., Path]


@pytest.fixture
def comparison(tmp_path: Path, make_domain: Make) -> Callable[..., Path]:
    """Write a comparison of a tiny pair and return its file; `extra` replaces keys of it."""
    for seed, role in enumerate(("source", "target")):
        make_domain(tmp_path / role, seed=seed)
    pair = {
        "device": "cpu",
        "source": {"root": str(tmp_path / "source")},
        "target": {"root": str(tmp_path / "target")},
        "data": {"size": 32, "geometry": "crop"},
        "net": {"backbone": "mobilenetv3_small_050", "discriminator_width": 4},
        "teacher": {"steps": 6, "batch": 2},
        "intra": {"steps": 4, "batch": 2},
        "log": {"every": 1, "checkpoint": 2},
    }
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(pair))

    def write(methods: Sequence[str] = ("source_only", "advent", "asda"), **extra: Any) -> Path:
        values = {
            "out": str(tmp_path / "out"),
            "pairs": {"tiny": str(tmp_path / "pair.yaml")},
            "methods": dict.fromkeys(methods),
            "seeds": [0],
            "threads": 1,
        }
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump(values | extra, sort_keys=False))
        return path

    return write


def config_of(path: Path, *extra: str) -> CompareConfig:
    return load_compare_config(["--config", str(path), *extra])


def run_here(config: CompareConfig) -> list[Job]:
    """Every job in this process, in the order of the plan."""
    jobs = plan(config)
    for job in jobs:
        if not finished(job):
            work(job, None)
    return jobs


def start(path: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "compare.py"), "--config", str(path), *extra]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_killed_and_started_again_repeats_nothing_and_gives_the_same_table(
    tmp_path: Path, comparison: Callable[..., Path]
) -> None:
    path = comparison(("source_only", "asda"))
    whole = start(path, "--out", str(tmp_path / "whole"), "--workers", "2")
    text, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, text
    assert "| asda |" in text and "finished before; 2 at a time" in text

    out = tmp_path / "killed"
    first = start(path, "--out", str(out))
    while not list(out.glob("tiny/seed0/*/result.json")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = {file: file.stat().st_mtime_ns for file in out.glob("tiny/seed0/*/result.json")}
    weights = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert len(done) < 2
    time.sleep(1)  # the job ends with compare.py: nobody writes any more
    files = sorted(str(file) for file in out.rglob("*"))
    time.sleep(1)
    assert files == sorted(str(file) for file in out.rglob("*"))

    again = start(path, "--out", str(out))
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0, text
    assert f"2 runs, {len(done)} of them finished before" in text
    assert all(file.stat().st_mtime_ns == changed for file, changed in {**done, **weights}.items())
    tables = [json.loads((folder / "table/results.json").read_text()) for folder in (tmp_path / "whole", out)]
    for row in (row for found in tables for row in found["tiny"]["table"]):
        row["minutes"] = row["peak_mib"] = None
    assert tables[0]["tiny"]["table"] == tables[1]["tiny"]["table"]


def test_a_common_stage_is_trained_once(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    methods = ("source_only", "advent", "intrada", "esl", "asda_plain", "dacs")
    jobs = run_here(config_of(comparison(methods)))
    after = {job.method: None if job.after is None else job.after.name for job in jobs}
    assert after == dict.fromkeys(("source_only", "advent")) | dict.fromkeys(
        ("intrada", "esl", "asda_plain"), "advent"
    ) | {"dacs": "source_only"}
    runs = tmp_path / "out/tiny/seed0"
    teachers = {
        (runs / name / "teacher/teacher.safetensors").read_bytes()
        for name in ("advent", "intrada", "esl", "asda_plain")
    }
    assert len(teachers) == 1
    for name in ("intrada", "esl", "asda_plain"):
        assert "copied from" in (runs / name / "log.txt").read_text()
        assert not (runs / name / "teacher/checkpoint.pt").exists()
    assert (runs / "asda_plain/split").is_dir() and "asda_plain/split: copied" in (
        runs / "asda_plain/log.txt"
    ).read_text()  # IntraDA's
    assert "split: copied" not in (runs / "esl/log.txt").read_text()  # its masks leave pixels out
    results = {job.method: json.loads((job.folder / "result.json").read_text()) for job in jobs}
    assert {name: result["steps"] for name, result in results.items()} == {
        "source_only": 6,
        "advent": 6,
        "intrada": 12,
        "esl": 12,
        "asda_plain": 10,
        "dacs": 10,
    }
    assert all(result["seconds"] > 0 and result["peak_mib"] > 0 for result in results.values())


def test_the_protocol_wins_over_the_method_and_a_variant_over_its_base(comparison: Callable[..., Path]) -> None:
    path = comparison(
        methods=[],
        protocol={"net": {"backbone": "resnet18", "layout": "timm"}, "teacher": {"batch": 3}},
    )
    values = yaml.safe_load(path.read_text())
    values["methods"] = {
        "asda_released": None,
        "more": {"base": "asda_plain", "intra": {"seg_para": 7}, "teacher": {"batch": 9}},
    }
    path.write_text(yaml.safe_dump(values))
    extra = "{net.discriminator_width: 5, data.size: 40}"
    released, more = (job.config for job in plan(config_of(path, "--set", extra)))
    assert released.net.discriminator_width == 5 and more.data.size == 40
    assert released.net.backbone == "resnet18" and released.net.layout == "timm" and released.net.freeze_bn
    assert released.intra.contrast == "pix" and released.teacher.batch == 3
    assert more.intra.seg_para == 7 and more.intra.fuse == "union" and more.teacher.batch == 3
    assert Path(more.out).parts[-3:] == ("tiny", "seed0", "more")


def test_an_oracle_without_held_back_images_is_cross_validated(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    (job,) = run_here(config_of(comparison(["oracle"], folds=3)))
    result = json.loads((job.folder / "result.json").read_text())
    names = sorted(path.stem for path in (tmp_path / "target/images").iterdir())
    assert sorted(result["images"]) == names and result["selected"] == "last, cross-validated with 3 folds"
    for fold in range(3):
        parts = [(job.folder / f"fold{fold}of3" / f"{part}.txt").read_text().split() for part in ("train", "eval")]
        assert len(parts[0]) == 2 * 4 and len(parts[1]) == 2 * 2 and not set(parts[0]) & set(parts[1])
    assert np.array(result["matrices"]).sum((1, 2)).tolist() == [40 * 48] * 6
    with pytest.raises(ConfigError, match="too few for 7 folds"):
        list(cross_validation(job.config, 7))


@pytest.mark.slow
@pytest.mark.parametrize("methods", [["source_only"], ["source_only", "asda"]])
def test_selection_without_and_with_labels(methods: list[str], tmp_path: Path, comparison: Callable[..., Path]) -> None:
    path = comparison(methods, protocol={"log": {"snapshots": 2}}, best_on_labels=True, selection="entropy")
    config = config_of(path)
    jobs = run_here(config)
    for job in jobs:
        result = json.loads((job.folder / "result.json").read_text())
        assert result["selected"].startswith("lowest mean entropy of ")
        best, chosen = (np.array(result[key]).sum(0) for key in ("best", "matrices"))
        assert scores(best)["miou"] >= scores(chosen)["miou"]
    steps = sorted(file.stem for file in (tmp_path / "out/tiny/seed0/source_only/source_only/snapshots").iterdir())
    assert steps == ["step_00000002", "step_00000004"]
    write(tmp_path / "t", [gather("tiny", jobs, config)])
    text = (tmp_path / "t/table.md").read_text()
    assert "best on target labels (not a fair choice)" in text and "lowest mean entropy" in text
    # Another rule: the trained stages stay, the score is made again.
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")}
    last = run_here(config_of(path, "--selection", "last", "--best_on_labels", "false"))
    assert json.loads((last[0].folder / "result.json").read_text())["selected"] == "last"
    assert all(file.stat().st_mtime_ns == changed for file, changed in before.items())


@pytest.mark.slow
def test_target_labels_do_not_choose_by_entropy(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    """Other labels of the same images: the same checkpoint is chosen."""
    path = comparison(["source_only"], protocol={"log": {"snapshots": 1}}, selection="entropy")
    found = []
    for out in ("a", "b"):
        (job,) = run_here(config_of(path, "--out", str(tmp_path / out), "--best_on_labels", "true"))
        found.append(json.loads((job.folder / "result.json").read_text()))
        for label in (tmp_path / "target/labels").iterdir():
            pixels = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
            assert cv2.imwrite(str(label), 255 - pixels)
    assert found[0]["chosen"] == found[1]["chosen"]
    assert found[0]["best"] != found[1]["best"]  # the labels do decide what is best on them


def test_one_failure_leaves_the_others_standing(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    path = comparison(["source_only", "clan"])
    values = yaml.safe_load(path.read_text())
    values["methods"]["clan"] = {"teacher": {"options": {"clan": {"lambda": 1.0}}}}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(EvaluationError, match=r"1 of 2 runs failed: tiny, clan, seed 0 \(see .*log.txt\)"):
        compare(config_of(path))
    table = (tmp_path / "out/table/table.md").read_text()
    assert "clan: has no result" in table and "| source_only | 1 |" in table
    assert "options.clan.lambda: unknown" in (tmp_path / "out/tiny/seed0/clan/log.txt").read_text()


def test_faults_of_a_comparison_stop_it_before_anything_runs(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    path = comparison()
    for extra, reason in (
        (["--only", "asda,advnt"], "did you mean 'advent'"),
        (["--selection", "entropy"], "protocol.log.snapshots"),
        (["--seeds", "[0, 0]"], "each seed once"),
        (["--workers", "0"], "workers is 0"),
        (["--set", "{net.weihgts: null}"], "did you mean 'net.weights'"),
        (["--set", "{seed: 1}"], "which compare.py sets itself"),
        (["--reference", "adsa"], "did you mean 'asda'"),
        (["--name", "tiny"], "also a pair"),
        (["--protocol", "{log: null}"], "protocol.log is empty"),
        (["--sedes", "[0]"], "unknown option '--sedes'; did you mean '--seeds'"),
    ):
        with pytest.raises(ConfigError, match=reason):
            config_of(path, *extra)
    with pytest.raises(ConfigError, match=r"there is no nothing\.yaml in configs/methods"):
        plan(config_of(comparison(["nothing"])))
    with pytest.raises(ConfigError, match=r"unknown key 'intra\.contrst'"):
        values = yaml.safe_load(comparison().read_text())
        values["methods"] = {"asda": {"intra": {"contrst": "none"}}}
        path.write_text(yaml.safe_dump(values))
        plan(config_of(path))
    assert not (tmp_path / "out/tiny").exists()


def test_the_method_wins_over_the_pair_and_the_protocol_over_both(comparison: Callable[..., Path]) -> None:
    """As under bash.sh and for a typed command, whose `--key value` stand where the protocol stands here."""
    path = comparison(["asda"], protocol={"intra": {"fuse": "mean"}}, set={"released.split": True})
    pair = path.with_name("pair.yaml")
    own = {"intra": {"steps": 4, "batch": 2, "fuse": "ema", "seg_para": 7}, "split": {"scales": [2.0], "ratio": 0.5}}
    pair.write_text(yaml.safe_dump(yaml.safe_load(pair.read_text()) | own))
    (job,) = plan(config_of(path))
    found = job.config
    assert (found.split.ratio, found.intra.batch) == (0.5, 2)  # the pair's
    assert (found.split.scales, found.intra.seg_para) == ([0.7, 1.0, 1.5], 2.0)  # asda's
    assert (found.intra.fuse, found.released.split) == ("mean", True)  # the protocol's
    words = [
        "--intra.fuse",
        "mean",
        "--released.split",
        "true",
        "--out",
        found.out,
        "--method",
        "asda",
        "--config",
        str(pair),
    ]
    assert load_config(words) == found


def test_other_settings_under_the_same_name_are_refused(comparison: Callable[..., Path]) -> None:
    path = comparison(["source_only"])
    run_here(config_of(path))
    values = yaml.safe_load(path.read_text())
    values["protocol"] = {"optim": {"lr": 0.5}}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"optim.lr was 0.00025, is 0.5.*another name"):
        run_here(config_of(path))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/compare").glob("*.yaml")))
def test_shipped_comparisons_are_sound(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if name == "published":
        published = {
            pair: read_published(Path("configs/compare/published.yaml"), pair)
            for pair in ("ms_to_whu", "whu_to_95cloud")
        }
        assert all({"advent", "intrada", "asda"} <= {row.method for row in rows} for rows in published.values())
        return
    config = config_of(Path(f"configs/compare/{name}.yaml"), "--out", str(tmp_path / "out"))
    jobs = plan(config)
    assert len(jobs) == len(config.pairs) * len(config.seeds) * len(config.methods)
    assert config.reference in config.methods
    if name == "shifts":
        assert "asda_plus" in config.methods and {*config.pairs} == {
            p for pairs in config.groups.values() for p in pairs
        }
    if name in ("demo", "real", "paper"):
        shipped = {path.stem for path in (ROOT / "configs/methods").glob("*.yaml")}
        assert set(config.methods) == shipped - {"asda_plus"}  # a recipe with a network of its own
        nets = {json.dumps(vars(job.config.net) | {"aux_level": ""}, sort_keys=True) for job in jobs}
        views = {(job.config.data.size, job.config.data.geometry) for job in jobs}
        optims = {str(job.config.optim) for job in jobs}
        assert len(nets) == len(views) == len(optims) == 1


def test_shared_environment_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job sees the card that it is given, by the name that the user's own list has for it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    job: Any = type("J", (), {"folder": Path(os.devnull) / "no"})()
    with pytest.raises(OSError):
        work(job, "3")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_folds_of_another_number_are_other_runs(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    """Their oracles must not be scored on images that they were trained on."""
    results = []
    for folds in (2, 3):
        (job,) = run_here(config_of(comparison(["oracle"], folds=folds)))
        results.append(json.loads((job.folder / "result.json").read_text()))
        assert results[-1]["selected"] == f"last, cross-validated with {folds} folds"
        assert len(list(job.folder.glob(f"fold*of{folds}/oracle/oracle.safetensors"))) == folds
    for name in ("images", "labels"):
        (tmp_path / "target" / name / "scene_00.png").unlink()
    with pytest.raises(ConfigError, match="made from other images than there are now"):
        list(cross_validation(job.config, 3))


def test_a_linked_data_folder(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "target").rename(tmp_path / "elsewhere/deep/target")
    (tmp_path / "target").symlink_to(tmp_path / "elsewhere/deep/target")
    (job,) = run_here(config_of(comparison(["oracle"], folds=2)))
    assert (job.folder / "result.json").exists()


def test_a_score_that_cannot_be_made_again_is_a_failure_and_not_in_the_table(
    tmp_path: Path, comparison: Callable[..., Path]
) -> None:
    """Selection is asked for after runs without copies of the network: the old score must not stand for it."""
    path = comparison(["source_only"])
    run_here(config_of(path))
    config = config_of(path, "--selection", "entropy", "--set", "{log.snapshots: 2}")
    with pytest.raises(EvaluationError, match="1 of 1 runs failed"):
        compare(config)
    assert "holds no checkpoint to choose from" in (tmp_path / "out/tiny/seed0/source_only/log.txt").read_text()
    assert "source_only: has no result" in (tmp_path / "out/table/table.md").read_text()


def test_settings_that_are_no_mapping_are_named(comparison: Callable[..., Path]) -> None:
    path = comparison(["asda"], protocol={"net": {"output_stride": 16}})
    values = yaml.safe_load(path.read_text()) | {"methods": {"mine": {"base": "asda", "net": "resnet50"}}}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="net is 'resnet50', expected a mapping of keys to values"):
        plan(config_of(path))


def test_an_oracle_with_held_back_images_is_scored_on_them(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    """A share that is held back is as good as a list: the oracle is scored on what the others are scored on."""
    share = {"target": {"eval_share": 0.34}}
    config = config_of(comparison(["source_only", "oracle"], protocol=share, reference="source_only"))
    compare(config)
    source_only, oracle = plan(config)
    assert oracle.choice == source_only.choice and not list(oracle.folder.glob("fold*"))
    (row,) = [row for row in gather("tiny", [source_only, oracle], config).results if row.method == "oracle"]
    assert len(row.images) == 2 and row.selected == "last"
    assert "Protocol: held-back images." in (tmp_path / "out/table/table.md").read_text()


def test_the_oracle_of_the_paper_is_cross_validated_only_where_nothing_is_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    jobs = plan(config_of(Path("configs/compare/paper.yaml"), "--out", str(tmp_path / "out"), "--seeds", "[0]"))
    folds = {job.pair: job.choice.get("folds") for job in jobs if job.method == "oracle"}
    assert {job.pair: job.config.target.eval_share for job in jobs}["whu_to_95cloud"] > 0
    assert folds["whu_to_95cloud"] is None


def test_a_bad_result_costs_its_own_row_alone(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    """One method was scored on other images, another's result is damaged: the table has the rest, and says so."""
    methods = ["oracle", "source_only", "advent", "asda", "clan"]
    config = config_of(comparison(methods))
    values = {
        **{"images": ["a", "b"], "scenes": [], "matrices": [[[9, 1], [2, 8]], [[7, 3], [0, 10]]], "best": []},
        **{"steps": 2, "seconds": 0.2, "peak_mib": None, "warnings": [], "selected": "last"},
    }
    for job in plan(config):
        job.folder.mkdir(parents=True)
        images = {"images": ["a", "x"]} if job.method == "oracle" else {}
        result = json.dumps(values | images | {"choice": job.choice})
        (job.folder / "result.json").write_text("{" if job.method == "clan" else result)
    with pytest.raises(EvaluationError, match=r"left out of the tables: tiny, clan, seed 0: .*result\.json: is not .*"):
        compare(config)
    text = (tmp_path / "out/table/table.md").read_text()
    assert "WARNING: left out: oracle, seed 0: scored on other images than source_only" in text
    assert re.search(r"WARNING: left out: clan, seed 0: .*result\.json: is not the result of a run .*remove it", text)
    for method in ("source_only", "advent", "asda"):
        assert f"| {method} | 1 | " in text
    assert "| oracle | - |" in text and "| clan | - |" in text
    assert (tmp_path / "out/table/results.json").exists()


def test_published_scores_that_cannot_be_read_stop_it_before_anything_runs(comparison: Callable[..., Path]) -> None:
    path = comparison(["source_only"], published="nowhere.yaml")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        compare(config_of(path))
    assert not list(path.parent.glob("out/tiny"))


def test_a_script_that_fails_fails_the_job(tmp_path: Path, comparison: Callable[..., Path]) -> None:
    (job,) = plan(config_of(comparison(["source_only"], protocol={"net": {"checkpoint": "nowhere.pth"}})))
    with pytest.raises(SystemExit):
        work(job, None)
    last = (job.folder / "log.txt").read_text().splitlines()[-1]
    assert "train_teacher.py: error: net: nowhere.pth: no such weights file" in last
