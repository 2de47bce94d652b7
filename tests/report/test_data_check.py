"""`python -m datasets check`: what is reported, and that one pass names every broken file and misreads none."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image

from config.load import load_config
from config.schema import Config
from datasets.scaling import Stretch
from engine.domains import training_images
from report.data_check import check
from utils.errors import AsdaError, DataError

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Path]
SIZE = (40, 48)


def configured(tmp_path: Path, *extra: str) -> Config:
    roots = [f"--{role}.root={tmp_path / role}" for role in ("source", "target")]
    return load_config([*roots, f"--out={tmp_path / 'run'}", *extra])


def report_of(config: Config) -> dict:
    with contextlib.suppress(DataError):
        check(config)
    return json.loads((Path(config.out) / "check/report.json").read_text())


def test_counts_sizes_ranges_and_shares(tmp_path: Path, make_domain: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make_domain(tmp_path / "source", count=4)
    make_domain(tmp_path / "target", count=3, size=(20, 30), labels=False)
    pixels = cv2.imread(str(tmp_path / "source/images/scene_00.png"))
    pixels[:10] = 0
    cv2.imwrite(str(tmp_path / "source/images/scene_00.png"), pixels)
    config = configured(tmp_path, "--source.nodata=all_zero", "--source.eval_share=0.25")
    check(config)
    report = json.loads((tmp_path / "run/check/report.json").read_text())
    parts = report["source"]["parts"]
    assert parts["train"]["images"] == 3 and parts["eval"]["images"] == 1
    images = [cv2.imread(str(p)) for p in sorted((tmp_path / "source/images").iterdir())]
    labels = [cv2.imread(str(p), -1) for p in sorted((tmp_path / "source/labels").iterdir())]
    known = [(image > 0).any(2) for image in images]
    missing = {name: part["no_data_share"] * part["images"] * 40 * 48 for name, part in parts.items()}
    assert sum(missing.values()) == pytest.approx(sum((~k).sum() for k in known)) and sum(missing.values()) >= 480
    cloud = sum(int((label[k] > 0).sum()) for label, k in zip(labels, known, strict=True))
    pixels_known = {name: (1 - part["no_data_share"]) * part["images"] * 40 * 48 for name, part in parts.items()}
    assert sum(parts[n]["cloud_share"] * pixels_known[n] for n in parts) == pytest.approx(cloud)
    low, high = (f([f(i[k][:, 2]) for i, k in zip(images, known, strict=True)]) for f in (min, max))
    ranges = [part["values"]["red"] for part in parts.values()]
    assert min(r[0] for r in ranges) == low and max(r[1] for r in ranges) == high
    target = report["target"]["parts"]["train"]
    assert target["labelled"] == 0 and target["cloud_share"] is None and target["sizes"] == "30x20 (3)"
    text = capsys.readouterr().out
    assert "## source" in text and (tmp_path / "run/check/report.md").read_text() in text
    assert cv2.imread(str(tmp_path / "run/check/source.png")).shape[0] > 300


def test_leaks_and_doubles_are_warned_of(tmp_path: Path, make_domain: Make) -> None:
    for role in ("source", "target"):
        make_domain(tmp_path / role, count=4)
    root = tmp_path / "source"
    (root / "images/scene_03.png").write_bytes((root / "images/scene_00.png").read_bytes())
    rows = [f"images/scene_0{i}.png labels/scene_0{i}.png\n" for i in range(4)]
    (root / "train.txt").write_text("".join(rows[:2]))
    (root / "eval.txt").write_text("".join(rows[2:]))
    config = configured(tmp_path, "--source.train=train.txt", "--source.eval=eval.txt", r"--source.scene=_\d")
    notes = report_of(config)["source"]["notes"]
    assert any("1 image(s) are in train and eval, such as scene_00 (train) and scene_03 (eval)" in n for n in notes)
    assert any("1 scene(s) are in train and eval, such as _0" in n and "eval_share" in n for n in notes)


def test_a_missing_label_does_not_look_like_a_leak(tmp_path: Path, make_domain: Make) -> None:
    for role in ("source", "target"):
        make_domain(tmp_path / role, count=10)
    (tmp_path / "source/labels/scene_04.png").unlink()
    report = report_of(configured(tmp_path, "--source.eval_share=0.3"))["source"]
    assert not report["notes"] and len(report["problems"]) == 1
    assert "scene_04.png: has no label" in report["problems"][0]
    assert sum(part["images"] for part in report["parts"].values()) == 10


@pytest.mark.parametrize("trouble", ["shift8", "gamma", "one scene", "nothing"])
def test_what_training_would_refuse_is_a_problem_in_a_written_report(
    trouble: str, tmp_path: Path, make_domain: Make
) -> None:
    for role in ("source", "target"):
        make_domain(tmp_path / role, count=2)
    options, says = {
        "shift8": ("--source.scaling=shift8", "expected 16 bits for scaling shift8"),
        "gamma": ("--source.gamma=2.2", "give scaling: train"),
        "one scene": ("--source.eval_share=0.5", "found 1 scene(s), expected two or more"),
        "nothing": ("--source.nodata=all_zero", "hold a valid pixel"),
    }[trouble]
    extra = ["--source.scene=scene"] if trouble == "one scene" else []
    if trouble == "nothing":
        for path in (tmp_path / "source/images").iterdir():
            cv2.imwrite(str(path), np.zeros((40, 48, 3), np.uint16))
    config = configured(tmp_path, options, *extra)
    problems = report_of(config)["source"]["problems"]
    assert any(says in line for line in problems), problems
    assert (tmp_path / "run/check/report.md").exists()
    with pytest.raises(AsdaError):
        training_images(config, "source", labels=True)


def deep_domain(root: Path, change: Callable[[np.ndarray], np.ndarray], **tags: object) -> None:
    """Two images of 16 bits with labels, the same on each call but for the change."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(2):
        pixels = np.random.default_rng(i).integers(300, 9000, (3, 40, 48)).astype(np.uint16)
        pixels = change(pixels)
        shape = {"height": 40, "width": 48, "count": 3, "dtype": pixels.dtype}
        with rasterio.open(root / f"images/{i}.tif", "w", driver="GTiff", **shape) as file:
            file.write(pixels)
            for name, value in tags.items():
                setattr(file, name, value)
        cv2.imwrite(str(root / f"labels/{i}.png"), np.where(pixels[0] > 5000, 255, 0).astype(np.uint8))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_domains_that_differ_by_an_offset_or_by_tags_are_told(tmp_path: Path) -> None:
    deep_domain(tmp_path / "source", lambda p: p)
    deep_domain(tmp_path / "target", lambda p: p + np.uint16(1000))
    notes = report_of(configured(tmp_path))["target"]["notes"]
    assert any("all bands of the target are about +1000 off the source's" in note for note in notes), notes
    assert any("0: the file does not name its bands" in note and "and so 1 more" in note for note in notes)
    mended = report_of(configured(tmp_path, "--target.offset=-1000", "--source.offset=0"))["target"]["notes"]
    assert not any("off the source's" in note for note in mended)
    deep_domain(tmp_path / "tags/target", lambda p: p + np.uint16(1000), scales=[1e-4] * 3, offsets=[-0.1] * 3)
    options = f"--target.root={tmp_path / 'tags/target'}"
    notes = report_of(configured(tmp_path, options))["target"]["notes"]
    assert any("the source's images: none (2); of the target's: 0.0001 and -0.1 (2)" in note for note in notes), notes
    images = training_images(configured(tmp_path, options, f"--out={tmp_path / 'b'}"), "target", labels=False)
    assert isinstance(images.decoder.scaling, Stretch) and max(images.decoder.scaling.high) < 1


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_values_that_look_like_mistakes_are_told(tmp_path: Path) -> None:
    def spoilt(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.astype(np.int16)
        pixels[:, ::10, ::10] = -9999
        pixels[1, 5, :24] = 0
        return pixels

    deep_domain(tmp_path / "source", lambda p: p)
    deep_domain(tmp_path / "target", spoilt)
    report = report_of(configured(tmp_path, "--source.scaling=[0, 1]"))
    assert report["target"]["parts"]["train"]["some_bands_zero_share"] == pytest.approx(24 / 1920)
    assert any("pixels hold -9999, far from all other" in note for note in report["target"]["notes"])
    assert report["target"]["parts"]["train"]["values"]["red"][0] >= 300
    assert any("most values lie outside" in problem for problem in report["source"]["problems"])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_all_that_is_odd_is_one_list_a_line_for_each_file(tmp_path: Path) -> None:
    """Links, orders of bands and units, in one pass; every line has its file, what was found and what was expected."""
    for role in ("source", "target"):
        deep_domain(tmp_path / role, lambda p: p)
    images = tmp_path / "target/images"
    deep_domain(tmp_path / "percent", lambda p: p // np.uint16(100))
    deep_domain(tmp_path / "turned", lambda p: p, descriptions=("blue", "green", "red"))
    for name in ("percent", "turned"):
        (tmp_path / name / "images/0.tif").rename(images / f"{name}.tif")
        (tmp_path / name / "labels/0.png").rename(tmp_path / f"target/labels/{name}.png")
    (images / "far").symlink_to(tmp_path / "percent")
    report = report_of(configured(tmp_path, "--target.bands=[red, green, blue]"))["target"]
    link, turned = report["problems"]
    assert link.startswith(f"{images / 'far'}: leads out of {tmp_path / 'target'} by a symbolic link; copy it there")
    assert turned.startswith(f"{images / 'turned.tif'}: found the bands blue, green, red by the file itself, expected")
    unit = "its values are of another order than those of most; if it is in another unit, give it scale and offset tags"
    [note] = [note for note in report["notes"] if unit in note]
    assert note.startswith("train: percent: ") and note.endswith("(found up to 89, expected 8998)")
    [note] = [note for note in report["notes"] if "the file does not name its bands" in note]
    assert note.endswith("mend the domain's bands, and so 2 more: 1, percent")


def test_published_facts_are_compared(
    tmp_path: Path, make_tree: Callable[[str, Path], Path], make_domain: Make
) -> None:
    make_tree("hrc_whu", tmp_path / "target")
    make_domain(tmp_path / "source", count=2)
    config = configured(tmp_path, "--target.reader=hrc_whu", "--target.train=train", "--target.eval=test")
    notes = report_of(config)["target"]["notes"]
    assert any(note.startswith("train: 8 images, published: 120") for note in notes)
    assert any(note.startswith("test: 2 images, published: 30") for note in notes)
    assert any("published: 40.87 %" in note for note in notes)


def test_the_command(tmp_path: Path, make_domain: Make) -> None:
    for role in ("source", "target"):
        make_domain(tmp_path / role, count=2)
    words = [
        f"--source.root={tmp_path / 'source'}",
        f"--target.root={tmp_path / 'target'}",
        f"--out={tmp_path / 'run'}",
    ]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "datasets", *arguments]
        return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run("check", *words).returncode == 0
    (tmp_path / "target/images/scene_01.png").write_bytes(b"")
    broken = run("check", *words)
    assert (
        broken.returncode == 1
        and "scene_01.png: cannot be decoded" in broken.stdout
        and "Traceback" not in broken.stderr
    )
    assert "found 'chek', expected: python -m datasets check" in run("chek").stderr


# The zoo: each animal is read correctly or named, all in one pass.


def zoo(root: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Write one domain of broken and odd files.

    Returns:
        name -> what its problem says, of those that cannot be used; name -> its RGB pixels, of those that can.
    """
    rng = np.random.default_rng(0)
    problems: dict[str, str] = {}
    sound: dict[str, np.ndarray] = {}

    def rgb(height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
        return rng.integers(1, 255, (height, width, 3), np.uint8)

    def label(name: str, pixels: np.ndarray | None = None, size: tuple[int, int] = SIZE) -> None:
        mask = np.zeros(size, np.uint8) if pixels is None else pixels
        path = root / "labels" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)

    def image(name: str, save: Callable[[Path], object], says: str | None = None, suffix: str = ".png") -> None:
        path = root / "images" / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
        if name not in done:
            label(name)
        if says is not None:
            problems[name] = says

    done: set[str] = set()
    plain = rgb()
    image("plain", lambda p: Image.fromarray(plain).save(p))
    sound["plain"] = plain
    label("plain", np.repeat(np.array([0, 255], np.uint8), SIZE[0] // 2)[:, None].repeat(SIZE[1], 1))

    for name, keep in (("truncated", 0.6), ("zero_bytes", 0.0)):
        image(name, lambda p: Image.fromarray(rgb()).save(p), "cannot be decoded")
        path = root / "images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    image("truncated_jpeg", lambda p: Image.fromarray(rgb()).save(p), "cannot be decoded", ".jpg")
    path = root / "images/truncated_jpeg.jpg"
    path.write_bytes(path.read_bytes()[:400])
    image("no_image", lambda p: p.write_text("I am a text"), "cannot be decoded")
    image("cmyk", lambda p: Image.fromarray(rgb()).convert("CMYK").save(p), "CMYK", ".jpg")

    alpha = np.dstack([plain, np.full(SIZE, 255, np.uint8)])
    alpha[:, :5, 3] = 0
    image("alpha", lambda p: Image.fromarray(alpha, "RGBA").save(p))
    sound["alpha"] = np.where(alpha[..., 3:] > 0, plain, 0)
    palette = Image.fromarray(plain).quantize(16)
    image("palette", lambda p: palette.save(p))
    sound["palette"] = np.asarray(palette.convert("RGB"))
    sound["one_pixel"] = rgb(1, 1)
    image("one_pixel", lambda p: Image.fromarray(sound["one_pixel"]).save(p))
    label("one_pixel", size=(1, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    image("exif_rotated", lambda p: Image.fromarray(rgb()).save(p, exif=exif), "EXIF orientation 6", ".jpg")

    image("label_size", lambda p: Image.fromarray(rgb()).save(p), "found 47x40 pixels, expected 48x40")
    label("label_size", size=(40, 47))
    image("label_value", lambda p: Image.fromarray(rgb()).save(p), "found label value(s) 7")
    label("label_value", np.full(SIZE, 7, np.uint8))
    image("label_colours", lambda p: Image.fromarray(rgb()).save(p), "expected one band")
    label("label_colours", rgb())
    image("label_truncated", lambda p: Image.fromarray(rgb()).save(p), "cannot be decoded")
    path = root / "labels/label_truncated.png"
    path.write_bytes(path.read_bytes()[:50])
    image("no_label", lambda p: Image.fromarray(rgb()).save(p), "has no label")
    (root / "labels/no_label.png").unlink()

    def tiff(path: Path, pixels: np.ndarray) -> None:
        shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": pixels.shape[2], "dtype": pixels.dtype}
        with rasterio.open(path, "w", driver="GTiff", **shape) as file:
            file.write(pixels.transpose(2, 0, 1))

    image("missing_band", lambda p: tiff(p, rgb()[..., :2]), "found 2 band", ".tif")
    image("deep", lambda p: tiff(p, rgb().astype(np.uint16)), "found uint16 pixels", ".tif")
    image("not_a_number", lambda p: tiff(p, np.full((*SIZE, 3), np.nan, np.float32)), "found float32 pixels", ".tif")
    image("jpeg_called_tif", lambda p: Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(p, "JPEG"), None, ".tif")
    sound["jpeg_called_tif"] = np.full((*SIZE, 3), 90, np.uint8)
    image("grüße an alle", lambda p: Image.fromarray(plain).save(p))
    sound["grüße an alle"] = plain
    (root / "secret.tif").write_bytes(b"")
    tiff(root / "secret.tif", rgb())
    virtual = (
        '<VRTDataset rasterXSize="48" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{root / 'secret.tif'}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    image("reads_another_file", lambda p: p.write_text(virtual), "expected PNG, JPEG, BMP, TIFF", ".tif")
    image("twice", lambda p: Image.fromarray(rgb()).save(p))
    image("twice", lambda p: Image.fromarray(rgb()).save(p), "share one name", ".jpg")
    return problems, sound


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_zoo(tmp_path: Path, make_domain: Make) -> None:
    make_domain(tmp_path / "target", count=2)
    problems, sound = zoo(tmp_path / "source")
    config = configured(tmp_path)
    found = report_of(config)["source"]["problems"]
    for name, says in problems.items():
        assert any(f"{name}." in line and says in line for line in found), (name, says, found)
    assert len(found) == len(problems)  # nobody else is blamed
    assert len(problems) + len(sound) >= 20

    with pytest.raises(DataError) as caught:  # training names them as well, before its first step
        training_images(config, "source", labels=True)
    assert "fault(s)" in str(caught.value)
    listing = "".join(
        f"images/{p.name}\tlabels/{p.stem}.png\n" for p in (tmp_path / "source/images").iterdir() if p.stem in sound
    )
    (tmp_path / "source/sound.txt").write_text(listing)
    images = training_images(configured(tmp_path, "--source.train=sound.txt"), "source", labels=True)
    assert {item.name for item in images} == sound.keys()
    for item in images:
        decoded = images.read(item)
        assert np.array_equal(decoded.placed(decoded.image, 0), sound[item.name]), item.name


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_not_a_number_among_floats_is_no_data(tmp_path: Path, make_domain: Make) -> None:
    make_domain(tmp_path / "target", count=2)
    folder = make_domain(tmp_path / "source", count=2) / "images"
    for path in sorted(folder.iterdir()):
        pixels = cv2.imread(str(path))[..., ::-1].astype(np.float32) / 255
        pixels[3:5, 7, 1] = np.nan
        pixels[9, 9, 0] = np.inf
        shape = {"height": 40, "width": 48, "count": 3, "dtype": "float32"}
        with rasterio.open(path.with_suffix(".tif"), "w", driver="GTiff", **shape) as file:
            file.write(pixels.transpose(2, 0, 1))
        path.unlink()
    report = report_of(configured(tmp_path))["source"]
    assert not report["problems"] and report["parts"]["train"]["no_data_share"] == pytest.approx(3 / (40 * 48))
    images = training_images(configured(tmp_path), "source", labels=True)
    decoded = images.read(images[0])
    assert not decoded.valid[3:5, 7].any() and not decoded.valid[9, 9] and (~decoded.valid).sum() == 3
    assert decoded.label is not None and (decoded.label[~decoded.valid] == 255).all()


def test_lists_of_the_zoo(tmp_path: Path, make_domain: Make) -> None:
    """A list with a byte order mark, CRLF, blank lines, odd names, and rows that lead nowhere or out of the root."""
    make_domain(tmp_path / "target", count=2)
    root = make_domain(tmp_path / "source", count=3)
    (root / "images/scene_02.png").rename(root / "images/à b c.png")
    (root / "labels/scene_02.png").rename(root / "labels/à b c.png")
    rows = [
        "images/scene_00.png labels/scene_00.png",
        "",
        "images/à b c.png labels/à b c.png",
        "../target/images/scene_00.png labels/scene_00.png",
        "images/gone.png labels/scene_01.png",
        "  ",
        "images/scene_01.png labels/scene_01.png",
    ]
    (root / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    report = report_of(configured(tmp_path, "--source.train=train.txt"))["source"]
    assert report["parts"]["train"]["images"] == 3
    assert len(report["problems"]) == 2
    assert "line 4: found ../target" in report["problems"][1] or "line 4: found ../target" in report["problems"][0]
    assert any("line 5: the image" in line and "gone.png does not exist" in line for line in report["problems"])


def test_names_of_any_bytes_are_reported(tmp_path: Path, make_domain: Make) -> None:
    for role in ("source", "target"):
        make_domain(tmp_path / role, count=2)
    (tmp_path / "target/images/scene_00.png").rename(tmp_path / "target/images/sc\udcffne.png")
    with pytest.raises(DataError, match=r"2 problem\(s\) in the data"):
        check(configured(tmp_path))
    text = (tmp_path / "run/check/report.md").read_text("utf-8")
    assert "sc\\udcffne.png': has a control character in its name" in text


def test_labels_that_may_mean_something_else_are_noted_by_file(tmp_path: Path, make_domain: Make) -> None:
    for role in ("source", "target"):
        make_domain(tmp_path / role, count=4)
    labels = sorted((tmp_path / "source/labels").iterdir())
    three = np.zeros(SIZE, np.uint8)
    three[:9], three[9:20] = 1, 255
    cv2.imwrite(str(labels[0]), three)
    painted = Image.fromarray((cv2.imread(str(labels[3]), -1) > 0).astype(np.uint8), "P")
    painted.putpalette([255, 255, 255, 0, 0, 0])
    painted.save(labels[3])
    options = ["--source.label_map={0: 0, 1: 1, 255: 255}", "--target.label_map={0: 0, 255: 0}"]
    report = report_of(configured(tmp_path, *options))
    notes = report["source"]["notes"]
    for label in labels[1:3]:
        mine = [note for note in notes if note.startswith(f"{label}: ")]
        assert len(mine) == 1 and f"found 255 without 1, expected values as in {labels[0]}, which holds both" in mine[0]
    contradicted = "found the value 0, clear by the label_map, painted white by its palette, expected white for cloud"
    assert [note for note in notes if contradicted in note] == [
        f"{labels[3]}: {contradicted}; mend the domain's label_map, or the palette"
    ]
    assert len(notes) == 3
    assert "train: all labelled pixels are clear; is label_map right?" in report["target"]["notes"]
    nothing = report_of(configured(tmp_path, "--target.label_map={0: 255, 255: 255}"))["target"]["notes"]
    assert "train: no label holds a pixel that is clear or cloud; is label_map right?" in nothing
