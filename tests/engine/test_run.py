"""A run's directory is continued or refused, never deleted; and networks start the same for the same seed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from config.load import load_config
from config.schema import Config
from engine.build import build_segmenter, trained, training_stream
from engine.domains import decoder_of, training_images
from engine.layout import read_warnings
from engine.run import make_generated, open_stage
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
from utils.errors import ConfigError, DataError, WeightsError
from utils.files import write_text

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, tiny_arguments: Callable[..., list[str]]) -> Load:
    """The configuration of a tiny run with some options changed."""
    return lambda *extra: load_config(tiny_arguments(tmp_path, *extra))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# the directory of a stage


def test_new_stage_records_its_configuration(tmp_path: Path, load: Load) -> None:
    config = load("--seed", "5")
    folder = open_stage(config, "teacher", "teacher")
    assert folder == tmp_path / "run/teacher"
    assert load_config(["--config", str(folder / "config.yaml")]) == config
    assert f"torch {torch.__version__}" in (folder / "config.yaml").read_text().splitlines()[0]


def test_same_settings_continue(load: Load) -> None:
    folder = open_stage(load(), "teacher", "teacher")
    (folder / "checkpoint.pt").write_text("kept")
    before = content(folder)
    assert open_stage(load(), "teacher", "teacher") == folder
    assert content(folder) == before


@pytest.mark.parametrize("stage", ["teacher", "split", "intra"])
def test_what_does_not_decide_the_result_may_change(load: Load, stage: str) -> None:
    folder = open_stage(load(), stage, stage)  # type: ignore[arg-type]
    other = load("--log.every=7", "--data.workers=2", "--eval.head=mean", "--target.eval=x.txt", "--device=cuda")
    assert open_stage(other, stage, stage) == folder  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "refusing"),
    [
        ("--seed=9", {"teacher", "split", "intra"}),
        ("--source.label_map={0: 1, 255: 0}", {"teacher", "split", "intra"}),
        ("--target.train=list.txt", {"teacher", "split", "intra"}),
        ("--teacher.augment.hflip=0.3", {"teacher", "split", "intra"}),
        ("--generated.seed=1", {"teacher", "split", "intra"}),
        ("--split.ratio=0.5", {"split", "intra"}),
        ("--intra.fuse=mean", {"intra"}),
    ],
)
def test_a_stage_depends_on_its_own_and_earlier_settings(load: Load, option: str, refusing: set[str]) -> None:
    first, second = load(), load(option)
    refused = set()
    for stage in ("teacher", "split", "intra"):
        (open_stage(first, stage, stage) / "checkpoint.pt").touch()  # type: ignore[arg-type]
        try:
            open_stage(second, stage, stage)  # type: ignore[arg-type]
        except ConfigError:
            refused.add(stage)
    assert refused == refusing


def test_refusal_names_every_changed_key_and_leaves_the_files(load: Load) -> None:
    folder = open_stage(load("--seed=1"), "teacher", "teacher")
    (folder / "checkpoint.pt").write_text("weeks of work")
    before = content(folder)
    with pytest.raises(ConfigError) as caught:
        open_stage(load("--seed=2", "--optim.lr=0.5", "--net.mean=[0,0,0]", "--net.std=[1,1,1]"), "teacher", "teacher")
    message = str(caught.value)
    assert message.startswith(f"{folder}: begun with other settings: ") and "another --out" in message
    for change in ("seed was 1, is 2", "optim.lr was 0.00025, is 0.5", "net.mean was None, is [0.0, 0.0, 0.0]"):
        assert change in message
    assert message.count(" was ") == 4
    assert content(folder) == before


@pytest.mark.parametrize("made", ["checkpoint.pt", "teacher.safetensors", "entropy.csv", "snapshots/step_1"])
def test_until_something_is_made_settings_may_change(tmp_path: Path, load: Load, made: str) -> None:
    """A failed start, such as one without the right label_map, does not bind the folder; what it measured goes."""
    open_stage(load(), "teacher", "teacher")
    scaling = tmp_path / "run/scaling_target.json"
    write_text(scaling, "measured without the nodata that was forgotten")
    (tmp_path / "run/teacher/metrics.jsonl").touch()
    changed = load("--source.label_map={0: 0, 7: 1}", "--target.nodata=0")
    folder = open_stage(changed, "teacher", "teacher")
    assert load_config(["--config", str(folder / "config.yaml")]) == changed and not scaling.exists()
    (folder / made).parent.mkdir(exist_ok=True)
    (folder / made).touch()
    write_text(scaling, "used")
    with pytest.raises(ConfigError, match="begun with other settings"):
        open_stage(load(), "teacher", "teacher")
    open_stage(load(), "split", "split")
    open_stage(changed, "split", "split")  # bound by nothing of its own, beside a teacher with that scaling
    assert scaling.exists()


def test_the_same_settings_written_another_way_are_the_same(load: Load) -> None:
    open_stage(load("--optim.lr=1e-5", "--source.label_map={0: 0, 7: 1}"), "teacher", "teacher")
    open_stage(load("--optim.lr=0.00001", "--source.label_map={7: 1, 0: 0}"), "teacher", "teacher")


@pytest.mark.parametrize("stage", ["teacher", "split", "intra"])
def test_no_stage_trains_with_the_weights_that_are_evaluated(tmp_path: Path, load: Load, stage: str) -> None:
    with pytest.raises(ConfigError, match=r"eval\.weights is 'some\.safetensors': it is for eval\.py alone"):
        open_stage(load("--eval.weights", "some.safetensors"), stage, stage)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_foreign_folder_is_refused(tmp_path: Path, load: Load) -> None:
    folder = tmp_path / "run/teacher"
    folder.mkdir(parents=True)
    assert open_stage(load(), "teacher", "teacher") == folder  # an empty one is taken
    foreign = tmp_path / "run/split"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        open_stage(load(), "split", "split")
    assert str(caught.value).startswith(f"{foreign}: exists without config.yaml") and "--out" in str(caught.value)
    assert content(foreign) == {"thesis.txt": b"mine"}


def test_write_text_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def crash(handle: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("utils.files.os.fsync", crash)
        with pytest.raises(DataError, match="disk full"):
            write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "neu: ä")
    assert path.read_text("utf-8") == "neu: ä"


# networks


def test_same_seed_same_network(load: Load) -> None:
    first, other = build_segmenter(load("--seed=1")), build_segmenter(load("--seed=2"))
    torch.rand(7)  # what was drawn before has no influence
    again = build_segmenter(load("--seed=1"))
    states = [network.state_dict() for network in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["head_main.weight"], states[2]["head_main.weight"])


def test_network_starts_from_a_file_of_this_project(tmp_path: Path, load: Load) -> None:
    kept = build_segmenter(load("--seed=1"))
    save_segmenter(tmp_path / "kept.safetensors", kept)
    loaded = build_segmenter(load("--seed=2", f"--net.checkpoint={tmp_path / 'kept.safetensors'}"))
    assert all(torch.equal(value, kept.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_checkpoint_of_another_network(tmp_path: Path, load: Load) -> None:
    path = tmp_path / "other.safetensors"
    save_segmenter(path, Segmenter("mobilenetv3_small_075"))
    with pytest.raises(WeightsError) as caught:
        build_segmenter(load(f"--net.checkpoint={path}"))
    message = str(caught.value)
    assert message.startswith(f"net: {path}: does not fit") and "mis-shaped" in message
    assert "mobilenetv3_small_050" in message and "mobilenetv3_small_075" in message


def test_checkpoint_that_is_missing_or_foreign(tmp_path: Path, load: Load) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pt: no such weights file; mend checkpoint"):
        build_segmenter(load(f"--net.checkpoint={tmp_path / 'gone.pt'}"))
    (tmp_path / "foreign.pt").write_text("text")
    with pytest.raises(ConfigError, match=r"foreign\.pt: is no file of this project.*decoder and layout deeplab_v2"):
        build_segmenter(load(f"--net.checkpoint={tmp_path / 'foreign.pt'}"))


def test_trained(tmp_path: Path, load: Load) -> None:
    config = load()
    path = tmp_path / "run/teacher/teacher.safetensors"
    with pytest.raises(DataError) as caught:
        trained(config, "teacher")
    assert str(caught.value).startswith(f"{path}: does not exist; run the stage") and "--out" in str(caught.value)
    segmenter = build_segmenter(config)
    path.parent.mkdir(parents=True)
    save_segmenter(path, segmenter)
    loaded = trained(config, "teacher")
    assert not loaded.training
    assert all(torch.equal(value, segmenter.state_dict()[key]) for key, value in loaded.state_dict().items())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"teacher\.safetensors: cannot be read"):
        trained(config, "teacher")


def test_images_that_are_held_back_bind_a_stage(tmp_path: Path, load: Load) -> None:
    """Another share, or other scenes of a share, would train on what was held back."""
    folder = open_stage(load("--target.eval_share=0.4"), "teacher", "teacher")
    (folder / "checkpoint.pt").touch()
    with pytest.raises(ConfigError, match=r"target\.eval_share was 0\.4, is 0\.2"):
        open_stage(load("--target.eval_share=0.2"), "teacher", "teacher")
    with pytest.raises(ConfigError, match=r"target\.scene was None, is 'x'"):
        open_stage(load("--target.eval_share=0.4", "--target.scene=x"), "teacher", "teacher")
    assert open_stage(load("--target.eval_share=0.4", "--source.scene=x"), "teacher", "teacher") == folder


def test_the_meaning_of_target_labels_binds_the_oracle_alone(load: Load) -> None:
    changed = "--target.label_map={0: 1, 255: 0}"
    folder = open_stage(load(), "teacher", "teacher")
    assert open_stage(load(changed), "teacher", "teacher") == folder
    oracle = (
        "--teacher.name=oracle",
        "--teacher.supervise=target",
        "--teacher.alignment=none",
        "--intra.enabled=false",
    )
    (open_stage(load(*oracle), "teacher", "oracle") / "checkpoint.pt").touch()
    with pytest.raises(ConfigError, match=r"target\.label_map was None, is \{0: 1, 255: 0\}"):
        open_stage(load(*oracle, changed), "teacher", "oracle")


# data


def test_training_images_are_checked_and_named(tmp_path: Path, load: Load) -> None:
    config = load()
    assert [item.label for item in training_images(config, "target", labels=False)] == [None] * 6
    (tmp_path / "target/images/scene_03.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        training_images(config, "target", labels=False)
    assert str(caught.value).startswith(f"target ({tmp_path / 'target'}) has 1 fault(s)")
    assert "scene_03.png: cannot be decoded as an image" in str(caught.value)


def test_training_stream_follows_the_configuration(load: Load) -> None:
    config = load("--data.size=36", "--data.geometry=crop", "--seed=4")
    turned = load("--data.size=36", "--data.geometry=crop", "--seed=4", "--source.label_map={0: 1, 255: 0}")
    plain, other = (
        training_stream(c, training_images(c, "source", labels=True), "source", c.teacher.augment)
        for c in (config, turned)
    )
    assert plain[0]["image"].shape == (3, 36, 36)
    assert torch.equal(plain[0]["label"], 1 - other[0]["label"])
    reseeded = training_stream(load("--data.size=36", "--seed=5"), plain.images, "source", config.teacher.augment)
    assert [plain.index(i) for i in range(12)] != [reseeded.index(i) for i in range(12)]


def test_generated_pair_is_drawn_where_asked_for(tmp_path: Path, load: Load) -> None:
    make_generated(load())
    assert not (tmp_path / "pair").exists()
    values = {"root": tmp_path / "pair", "train": 2, "evaluation": 1, "size": 48}
    make_generated(load(*(f"--generated.{key}={value}" for key, value in values.items())))
    assert sorted(p.name for p in (tmp_path / "pair").iterdir() if p.is_dir()) == ["source", "target"]
    for role in ("source", "target"):
        assert len(list((tmp_path / "pair" / role / "images").glob("*.png"))) == 3


# damaged records


@pytest.mark.parametrize("text", ["seed: [", "just a word", "a: &a {b: *a}", "- 1", "seed: 2001-13-45", "[" * 9999])
def test_a_damaged_configuration_of_a_stage_is_named(load: Load, text: str) -> None:
    folder = open_stage(load(), "teacher", "teacher")
    write_text(folder / "config.yaml", text)
    with pytest.raises(ConfigError, match=r"teacher/config\.yaml: (is not valid YAML|found \w+|is too large)"):
        open_stage(load(), "teacher", "teacher")
    assert (folder / "config.yaml").read_text() == text


def test_damaged_warnings_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    (tmp_path / "warnings.txt").write_bytes(b"one\nt\xffo\n")
    assert read_warnings(tmp_path) == ["one", "t\ufffdo"]


@pytest.mark.parametrize(
    "change",
    [
        {"low": [1.0]},
        {"high": ["x"] * 3},
        {"high": [0.0] * 3},
        {"low": [float("nan")] * 3},
        {"dtype": "float99"},
        {"bands": None},
        {"low": None},
    ],
)
def test_a_damaged_scaling_is_named(tmp_path: Path, load: Load, change: dict[str, object]) -> None:
    config = load("--target.scaling=train")
    decoder_of(config, "target")
    path = tmp_path / "run/scaling_target.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=r"scaling_target\.json: (is not a measured scaling|measured for)"):
        decoder_of(config, "target")


def test_a_scaling_like_the_source_is_measured_once_and_tied_to_it(tmp_path: Path, load: Load) -> None:
    config = load("--target.scaling=source")
    first = decoder_of(config, "target")
    assert first.scaling is not None and decoder_of(config, "source").scaling is None
    record = tmp_path / "run/scaling_target_like_source.json"
    assert json.loads(record.read_text())["like"] == config.source.root
    for path in Path(config.source.root).rglob("*.png"):
        path.unlink()  # it is read, not measured again
    assert decoder_of(config, "target") == first
    for other in (f"--source.root={tmp_path}", "--target.gamma=2.2", "--source.scaling=[0, 100]"):
        with pytest.raises(ConfigError, match=r"like_source\.json: measured for .* like .*; give another --out"):
            decoder_of(load("--target.scaling=source", other), "target")
    assert decoder_of(load("--target.scaling=train"), "target") != first  # a record of its own


@pytest.mark.parametrize("data", ["{", "[]", '{"target": {"scaling": [[0, 0, 0], [1, 1]]}}', "[" * 9999])
def test_a_damaged_scaling_in_a_weights_file_is_named(tmp_path: Path, load: Load, data: str) -> None:
    path = tmp_path / "w.safetensors"
    save_segmenter(path, build_segmenter(load()), {"data": data})
    with pytest.raises(WeightsError, match=r"w\.safetensors: is not a weights file with a sound record"):
        decoder_of(load(f"--eval.weights={path}"), "target")
