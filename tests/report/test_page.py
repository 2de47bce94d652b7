"""report.html: complete, escaped, and closed to the network."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config.schema import Config, DomainConfig
from engine.pictures import write_png
from report.page import write_report
from report.records import Picture, remember_pictures
from utils.errors import DataError

SCORES = {
    "iou": {"clear": 0.5, "cloud": 0.25},
    "precision": {"clear": 0.5, "cloud": None},
    "recall": {"clear": 0.5, "cloud": 0.5},
    "f1": {"clear": 0.5, "cloud": 0.5},
    "pixel_accuracy": 0.5,
    "balanced_accuracy": 0.5,
    "miou": 0.375,
    "miou_interval": [0.3, 0.45],
    "ece": 0.2,
}
BETTER = SCORES | {"miou": 0.625, "ece": 0.1, "gain": 0.25, "gain_interval": [0.1, 0.3]}
EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Config:
    """A run's directory with everything that a report is made of."""
    folder = tmp_path / "run/eval"
    folder.mkdir(parents=True)
    domain = {
        "root": EVIL,
        "images": 4,
        "labelled": 4,
        "protocol": "held-back images",
        "cloud_share": 0.4,
        "interval": {"over": "images", "groups": 4},
        "models": {"source_only": SCORES, "student": BETTER, "all_clear": SCORES | {"miou": 0.99}},
        "signs": {"student": {"mean_entropy": 0.5, "head_agreement": 0.25, "cloud_share": 0.125}},
        "agreement": {"source_only and student": 0.75},
    }
    (folder / "metrics.json").write_text(json.dumps({"domains": {"target": domain}}))
    write_png(folder / "masks/target.png", np.full((20, 30, 3), (10, 200, 30), np.uint8))
    (tmp_path / "run/teacher").mkdir()
    rows = [{"step": step, "lr": 0.1, "loss": 1.0, "raw/seg_main": 1 / step, "stats/entropy": 0.5} for step in (1, 2)]
    (tmp_path / "run/teacher/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run/split").mkdir()
    lines = ["name,score,rank,split,cloud_fraction"]
    lines += [f"{EVIL if i == 7 else f'image{i}'},0.{i},{i},{'easy' if i < 5 else 'hard'},0.5" for i in range(8)]
    (tmp_path / "run/split/entropy.csv").write_text("\n".join(lines) + "\n")
    return Config(out=str(tmp_path / "run"), target=DomainConfig(root=EVIL))


def written(config: Config, failures: dict[str, str] | None = None) -> str:
    folder = Path(config.out) / "eval"
    figures = [Picture("masks/target.png", "Masks", f"how to read {EVIL}"), Picture("gone.png", "Gone", "not there")]
    remember_pictures(folder, "masks", figures)
    write_report(folder, config, failures or {})
    return (folder / "report.html").read_text("utf-8")


def test_it_asks_nothing_of_the_network(run: Config) -> None:
    page = written(run, {"tsne": "no pixels"})
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "", page))
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert name != "href" and not name.startswith("on")
            assert name != "src" or (value or "").startswith("data:image/webp;base64,")
    (policy,) = [a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_never_become_markup(run: Config) -> None:
    page = written(run, {"tsne": EVIL})
    assert EVIL not in page
    assert Page(page).text.count(EVIL) >= 4  # the root, the reason, the caption, the uncertain image


def test_the_best_trained_model_of_each_column_stands_out(run: Config) -> None:
    page = written(run)
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = re.findall(r"<tr( class=\"trivial\")?><td>([^<]*)</td>(.*?)</tr>", table)
    cells = {name: re.findall(r"<td( class=\"best\")?>([^<]*)</td>", row) for _, name, row in rows}
    best = {name: [text for mark, text in row if mark] for name, row in cells.items()}
    assert "62.50" in best["student"] and "10.00" in best["student"]  # highest mIoU, lowest ECE
    assert "37.50" not in best["source_only"] and "20.00" not in best["source_only"]
    assert best["all clear (trivial)"] == [] and ("", "99.00") in cells["all clear (trivial)"]
    assert "+25.0" in Page(page).text and "+10.0 to +30.0" in Page(page).text


def test_pictures_are_inside_with_captions_and_missing_ones_are_left_out(run: Config) -> None:
    page = written(run)
    sources = [a["src"] for t, a in Page(page).tags if t == "img"]
    assert len(sources) == 2 and "Gone" not in page  # the curves and the masks
    with Image.open(io.BytesIO(base64.b64decode((sources[1] or "").split(",")[1]))) as picture:
        assert picture.size == (30, 20)
        assert np.abs(np.asarray(picture).astype(int) - (10, 200, 30)).max() < 12
    assert all(a.get("alt") for t, a in Page(page).tags if t == "img")
    assert "how to read" in page


def test_split_failures_configuration_and_command(run: Config) -> None:
    text = Page(written(run, {"gradcam": "no such layer"})).text
    assert "calls 5 target images easy and 3 hard" in text
    assert "gradcam failed: no such layer" in text
    assert "image0" in text and "seed: 0" in text and "python " in text


def test_commands_of_stages_and_parts_with_equal_ones_together(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(run.out) / "eval"
    (Path(run.out) / "teacher/config.yaml").write_text(
        "# versions\n# command: python train_teacher.py --seed 3\nseed: 3\n"
    )
    monkeypatch.setattr("sys.argv", ["/somewhere/eval.py", "--eval.parts", "tsne"])
    remember_pictures(folder, "tsne", [])
    monkeypatch.setattr("sys.argv", ["/somewhere/eval.py"])
    text = Page(written(run)).text
    assert "teacher" in text and "python train_teacher.py --seed 3" in text
    assert "python eval.py --eval.parts tsne" in text and "masks, report" in text and "/somewhere" not in text


def test_scores_of_an_earlier_evaluation_do_not_stand_in_for_failed_ones(run: Config) -> None:
    assert "Scores on the target" in Page(written(run)).text
    assert "Scores on the target" not in Page(written(run, {"scores": "no memory"})).text


def test_a_gain_without_interval_and_one_that_may_be_none(run: Config) -> None:
    path = Path(run.out) / "eval/metrics.json"
    report = json.loads(path.read_text())
    student = report["domains"]["target"]["models"]["student"]
    for interval, mark in ((None, "<b>"), ([-0.1, 0.3], "<b>"), ([0.1, 0.3], '<b class="better">')):
        student["gain_interval"] = interval
        path.write_text(json.dumps(report))
        assert f"{mark}+25.0</b>" in written(run)


def test_an_empty_evaluation_still_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "run/eval").mkdir(parents=True)
    write_report(tmp_path / "run/eval", Config(out=str(tmp_path / "run")), {"scores": "no images"})
    assert "no images" in (tmp_path / "run/eval/report.html").read_text("utf-8")


def test_a_part_replaces_its_own_figures_and_keeps_those_of_others(tmp_path: Path) -> None:
    one, two, three = (Picture(f"{n}.png", n, n) for n in ("one", "two", "three"))
    remember_pictures(tmp_path, "masks", [one])
    remember_pictures(tmp_path, "tsne", [two])
    remember_pictures(tmp_path, "masks", [three])
    known = json.loads((tmp_path / "pictures.json").read_text())
    assert [figure["file"] for part in known.values() for figure in part] == ["three.png", "two.png"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("eval/pictures.json", "[1]"),
        ("eval/pictures.json", '{"masks": [{"file": "a.png"}]}'),
        ("eval/pictures.json", '{"masks": [{"file": 1, "title": "a", "caption": "b"}]}'),
        ("eval/commands.json", "{"),
        ("eval/metrics.json", '{"domains": {"target": {"models": {}}}}'),
        ("eval/scenes.json", '{"teacher": 1}'),
        ("teacher/metrics.jsonl", '{"lr": 1}\n'),
        ("teacher/metrics.jsonl", '{"step": 1, "lr": 1}\n{"step": 2}\n'),
        ("split/entropy.csv", "name,score,rank,split,cloud_fraction\na,0.5,0,easy,0.5\n"),
        ("split/entropy.csv", "name,score,rank,split,cloud_fraction\na,x,0,easy,0.5\nb,0.6,1,hard,0.5\n"),
    ],
)
def test_a_damaged_record_is_named(run: Config, file: str, content: str) -> None:
    path = Path(run.out) / file
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{path.name}: is not .*\); \w+"):
        write_report(Path(run.out) / "eval", run, {})
    assert not (Path(run.out) / "eval/report.html").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("cloud_share", "x"), ("interval", {}), ("agreement", {"a": "b"}), ("images", None)]
)
def test_damaged_facts_of_a_domain_are_named(run: Config, key: str, value: object) -> None:
    path = Path(run.out) / "eval/metrics.json"
    values = json.loads(path.read_text())
    values["domains"]["target"][key] = value
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"metrics\.json: is not the scores of an evaluation"):
        write_report(path.parent, run, {})


@pytest.mark.parametrize("place", ["../../outside.png", "/outside.png", "masks/../../../outside.png"])
def test_a_picture_outside_of_the_evaluation_is_not_shown(run: Config, place: str) -> None:
    folder = Path(run.out) / "eval"
    picture = {"file": place, "title": "a", "caption": "b"}
    (folder / "pictures.json").write_text(json.dumps({"masks": [picture]}))
    with pytest.raises(DataError, match=r"pictures\.json: .*expected a file below"):
        write_report(folder, run, {})


def test_a_damaged_picture_is_named(run: Config) -> None:
    path = Path(run.out) / "eval/masks/target.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"target\.png: .*; remove it, and run eval\.py again"):
        written(run)


def test_an_older_record_is_not_written_over_while_it_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "commands.json").write_text("[]")
    with pytest.raises(DataError, match=r"commands\.json: is not the commands of an evaluation"):
        remember_pictures(tmp_path, "masks", [])
    assert (tmp_path / "commands.json").read_text() == "[]"
