"""The configuration: layering, messages about what is wrong, and the shipped files."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from config.fields import flatten
from config.load import load_compare_config, load_config, to_yaml
from config.schema import Config, GeneratedConfig
from utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOMAINS = ["--source.root", "s", "--target.root", "t"]
PAIRS = sorted((ROOT / "configs").glob("*.yaml"))
METHODS = sorted((ROOT / "configs/methods").glob("*.yaml"))

Write = Callable[..., list[str]]


@pytest.fixture
def file(tmp_path: Path) -> Write:
    """Write YAML and return its arguments."""

    def write(text: str, name: str = "given.yaml") -> list[str]:
        (tmp_path / name).write_text(text)
        return ["--config", str(tmp_path / name)]

    return write


def fault_of(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([*DOMAINS, *arguments])
    return str(caught.value)


# layering


def test_defaults_then_files_in_order_then_command_line(file: Write) -> None:
    first = file("teacher: {steps: 11, batch: 12}\nintra: {augment: {jitter: 0.1, hue: 0.2}}\nseed: 13", "a.yaml")
    second = file("teacher: {batch: 22}\nintra: {augment: {hue: 0.3}}", "b.yaml")
    config = load_config([*first, *second, *DOMAINS, "--seed", "33"])
    assert (config.teacher.steps, config.teacher.batch, config.seed) == (11, 22, 33)
    assert (config.intra.augment.jitter, config.intra.augment.hue) == (0.1, 0.3)
    assert config.intra.augment.hflip == Config().intra.augment.hflip
    swapped = load_config([*second, *first, *DOMAINS])
    assert (swapped.teacher.batch, swapped.intra.augment.hue, swapped.seed) == (12, 0.2, 13)


def test_one_precedence_for_a_typed_command_and_bash_sh(file: Write, tmp_path: Path) -> None:
    """The pair, then the method, then the command line, wherever each of them stands; tests/test_compare.py goes on."""
    pair = file("split: {ratio: 0.1}\nteacher: {jaccard: 0.1, focal: 0.1}", "pair.yaml")[1]
    method = file("teacher: {jaccard: 0.2, focal: 0.2}\nintra: {floor: 0.2}", "method.yaml")[1]
    own = ["--teacher.focal", "0.3", *DOMAINS]
    _, *of_bash = called("bash.sh", tmp_path, pair, *own, "--method", method)[1]
    _, *of_eval = called("eval.sh", tmp_path, pair, "--method", method, *own)[0]
    typed = [*own, "--method", "advent", "--method", method, "--config", pair]
    resolved = load_config(typed)
    assert (resolved.split.ratio, resolved.teacher.jaccard, resolved.teacher.focal) == (0.1, 0.2, 0.3)
    assert (resolved.intra.floor, resolved.intra.enabled) == (0.2, True)  # of the last method alone
    assert load_config(of_bash) == load_config(of_eval) == load_config([*typed[-4:], *own]) == resolved


def test_overrides_of_a_comparison_stand_between_method_and_command_line(file: Write) -> None:
    override = file("teacher: {alignment: minent, adv_main: 0.5, adv_aux: 0.5}")[1]
    words = ["--teacher.adv_aux=0.7", "--override", override, "--method", "advent", *DOMAINS]
    teacher = load_config(words).teacher
    assert (teacher.alignment, teacher.adv_main, teacher.adv_aux) == ("minent", 0.5, 0.7)


def test_the_last_method_counts_alone() -> None:
    words = ["--method", "source_only", *DOMAINS]
    assert load_config([*words, "--method=advent"]) == load_config([*DOMAINS, "--method", "advent"])
    assert "method" not in to_yaml(load_config(words))


def test_a_method_is_not_given_as_config_and_has_to_exist() -> None:
    for words in (["--config", "configs/methods/advent.yaml"], [f"--config={ROOT / 'configs/methods/advent.yaml'}"]):
        assert fault_of(*words).endswith("is a method, which wins over every --config; give it as --method advent")
    assert fault_of("--config", "mine/methods/x.yaml").endswith("give it as --method mine/methods/x.yaml")
    assert fault_of("--method", "adsa") == (
        "command line: there is no method 'adsa'; did you mean 'asda'?; or give a YAML file"
    )
    assert "no.yaml: cannot be read (No such file or directory); expected a YAML file after --method" in fault_of(
        "--method", "no.yaml"
    )
    assert "there is no method ''; known here: adaptsegnet, advent" in fault_of("--method")
    assert "unknown option '--metod'; did you mean '--method'" in fault_of("--metod", "asda")


def test_values_get_their_types(file: Write) -> None:
    config = load_config(
        [
            *DOMAINS,
            *file(
                "source: {label_map: {0: 0, 128: 1, 255: 255}}\n"
                "net: {mean: [0, 0, 0], std: [1, 1, 1]}\n"
                "generated: {train: 3}"
            ),
            "--optim.lr=1e-3",
            "--net.output_stride=null",
            "--intra.enabled=false",
            "--teacher.epochs=2",
        ]
    )
    assert config.source.label_map == {0: 0, 128: 1, 255: 255}
    assert config.net.mean == [0.0, 0.0, 0.0] and config.net.output_stride is None
    assert config.optim.lr == 1e-3 and config.intra.enabled is False and config.teacher.epochs == 2.0
    assert config.generated == GeneratedConfig(train=3)
    assert Config().source.label_map is None  # the default is not shared


# faults of a file


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("teacher: {stepz: 3}", "'teacher.stepz'", "'teacher.steps'"),
        ("sead: 3", "'sead'", "'seed'"),
        ("net:\n  wieghts: hub", "'net.wieghts'", "'net.weights'"),
        ("intra: {augment: {hflipp: 1}}", "'intra.augment.hflipp'", "'intra.augment.hflip'"),
        ("generated: {sise: 64}", "'generated.sise'", "'generated.size'"),
    ],
)
def test_unknown_key(file: Write, text: str, key: str, near: str) -> None:
    assert fault_of(*file(text)).endswith(f"given.yaml: unknown key {key}; did you mean {near}?")


def test_unknown_key_like_nothing_lists_what_is_known(file: Write) -> None:
    message = fault_of(*file("zzzz: 1"))
    assert "given.yaml: unknown key 'zzzz'; known here: out, seed, device, generated" in message


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("teacher: {steps: many}", "teacher.steps", "many"),
        ("seed: 1.5", "seed", "1.5"),
        ("net: {layout: vgg}", "net.layout", "vgg"),
        ("source: {label_map: {cloud: 1}}", "source.label_map", "cloud"),
        ("intra: {enabled: 3}", "intra.enabled", "3"),
    ],
)
def test_wrong_type_names_file_key_and_value(file: Write, text: str, key: str, found: str) -> None:
    message = fault_of(*file("seed: 2", "good.yaml"), *file(text, "bad.yaml"))
    assert "bad.yaml: " in message and f'"{key}"' in message and found in message and "good.yaml" not in message


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [("teacher: 3", "teacher", "int"), ("net: [1]", "net", "list"), ("split:", "split", "NoneType")],
)
def test_a_section_that_is_no_mapping_is_not_ignored(file: Write, text: str, key: str, found: str) -> None:
    assert fault_of(*file(text)).endswith(f"key '{key}': found {found}, expected a mapping of keys to values")


@pytest.mark.parametrize(
    ("text", "key"),
    [("seed: null", "seed"), ("net: {init: }", "net.init"), ("intra: {fuse: ~}", "intra.fuse")],
)
def test_null_where_a_value_is_needed(file: Write, text: str, key: str) -> None:
    message = fault_of(*file(text))
    assert message.endswith(f"given.yaml: key '{key}': found null, expected a value; leave the key out for its default")


def test_generated_may_be_null(file: Write) -> None:
    pair = file("generated: {train: 3}", "a.yaml")
    assert load_config([*DOMAINS, *pair, *file("generated: null", "b.yaml")]).generated is None


@pytest.mark.parametrize(("text", "found"), [("- a", "list"), ("", "NoneType"), ("words", "str")])
def test_file_that_is_no_mapping(file: Write, text: str, found: str) -> None:
    assert fault_of(*file(text)).endswith(f"given.yaml: found {found}, expected a mapping of keys to values")


def test_invalid_yaml_and_missing_file(file: Write, tmp_path: Path) -> None:
    message = fault_of(*file("seed: 1\nout: [a"))
    assert "given.yaml: is not valid YAML" in message and "line 2" in message
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe\x00")
    assert "picture.yaml: is not valid YAML" in fault_of("--config", str(tmp_path / "picture.yaml"))
    for arguments in (["--config", "no.yaml"], ["--config=no.yaml"]):
        assert "no.yaml: cannot be read (No such file or directory); expected a YAML" in fault_of(*arguments)
    assert "expected a YAML file after --config" in fault_of("--config")


# faults of the command line


@pytest.mark.parametrize(
    ("option", "near"),
    [("--teacher.stepz", "--teacher.steps"), ("--sed", "--seed"), ("--teacher.step", "--teacher.steps")],
)
def test_unknown_option(option: str, near: str) -> None:
    """An abbreviation counts as unknown: a new key would change what it means."""
    expected = f"command line: unknown option '{option}'; did you mean '{near}'?"
    assert fault_of(option, "3") == fault_of(f"{option}=3") == expected


def test_wrong_values_of_options() -> None:
    message = fault_of("--teacher.steps", "many")
    assert message.startswith("command line: ") and "teacher.steps" in message and "many" in message
    message = fault_of("--data.geometry", "stretch")
    assert "data.geometry" in message and "letterbox" in message and "stretch" in message
    assert "--seed: expected one argument" in fault_of("--seed")
    assert "stray" in fault_of("stray")


IMPOSSIBLE = [
    ("--split.ratio", "1", "split.ratio is 1.0, expected a number between 0 and 1"),
    ("--data.size", "16", "data.size is 16, expected 32 or more"),
    ("--source.label_map", "{0: 7}", "source.label_map is {0: 7}, expected classes 0 (clear), 1 (cloud)"),
    ("--target.label_map", "{300: 1}", "target.label_map is {300: 1}, expected label values in 0..255"),
    ("--seed", "-1", "seed is -1, expected 0 or more"),
    ("--teacher.batch", "0", "teacher.batch is 0, expected 1 or more"),
    ("--intra.steps", "0", "intra.steps is 0, expected 1 or more"),
    ("--intra.epochs", "0", "intra.epochs is 0.0, expected a number above 0"),
    ("--log.pictures", "0", "log.pictures is 0, expected 1 or more"),
    ("--optim.lr", "0", "optim.lr is 0.0, expected a number above 0"),
    ("--teacher.augment.hflip", "1.5", "teacher.augment.hflip is 1.5, expected a number in [0, 1]"),
    ("--intra.ema_decay", "1", "intra.ema_decay is 1.0, expected a number in [0, 1)"),
    ("--net.mean", "[0, 0, 0]", "expected both net.mean and net.std"),
    ("--net.output_stride", "4", "net.output_stride is 4, expected 8, 16, 32 or null"),
    ("--data.workers", "-1", "data.workers is -1, expected 0 or more"),
    ("--source.root", "", "source.root is '', expected the folder of the labelled domain"),
]


def test_all_impossible_values_in_one_message() -> None:
    message = fault_of(*(f"{key}={value}" for key, value, _ in IMPOSSIBLE))
    assert message.startswith("configuration: ") and len(message.split("; ")) >= len(IMPOSSIBLE)
    assert [expected for _, _, expected in IMPOSSIBLE if expected not in message] == []


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--split.ratio=0", "split.ratio is 0.0, expected a number between 0 and 1"),
        ("--intra.self_training=[classmix]", "intra.pseudo_label is 'online', expected stored where self_training"),
        ("--speed.pieces=0", "speed.pieces is 0, expected 1 or more"),
        ("--target.label_map={}", "target.label_map is {}, expected classes"),
        ("--target.label_map={-1: 1}", "target.label_map is {-1: 1}, expected label values in 0..255"),
    ],
)
def test_one_impossible_value_is_enough(argument: str, expected: str) -> None:
    message = fault_of(argument)
    assert message.startswith(f"configuration: {expected}") and len(message.split(" is ")) == 2


def test_both_domains_are_required() -> None:
    with pytest.raises(ConfigError, match=r"source\.root is ''.*target\.root is ''"):
        load_config([])


# round trip and shipped files


def test_to_yaml_round_trip(file: Write) -> None:
    config = load_config(
        [
            *DOMAINS,
            "--source.root=dätä/with space",
            "--source.label_map={0: 0, 7: 255, 9: 1}",
            "--optim.lr=1e-5",
            "--net.mean=[0.1, 0.2, 0.3]",
            "--net.std=[1, 1, 1]",
            "--net.output_stride=null",
            "--teacher.epochs=2.5",
            "--generated.train=9",
        ]
    )
    assert load_config(file(to_yaml(config))) == config
    plain = load_config(DOMAINS)
    assert load_config(file(to_yaml(plain))) == plain and plain != config


VALUES = ("label_map", "options")  # mappings that are values, not sections


def test_flatten_has_every_leaf_once() -> None:
    config = replace(Config(), generated=GeneratedConfig(seed=5), seed=4)
    leaves = flatten(config)
    assert leaves["seed"] == 4 and leaves["generated.seed"] == 5 and leaves["intra.augment.jitter"] == 0.5
    assert leaves["source.label_map"] is None and leaves["generated.root"] == "data/demo"
    assert not any(dataclasses.is_dataclass(value) for value in leaves.values())
    assert flatten(Config())["generated"] is None

    def count(values: dict[str, object]) -> int:
        return sum(count(v) if isinstance(v, dict) and k not in VALUES else 1 for k, v in values.items())

    assert len(leaves) == count(dataclasses.asdict(config))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda path: path.stem)
def test_every_pair_loads_with_every_method(pair: Path) -> None:
    alone = load_config(["--config", str(pair)])
    assert alone.out == f"runs/{pair.stem}"
    for method in METHODS:
        config = load_config(["--config", str(pair), "--method", method.stem])
        asked = _leaves(yaml.safe_load(method.read_text()))
        assert {key: flatten(config)[key] for key in asked} == asked
        unasked = flatten(alone).keys() - asked.keys()
        assert {key: flatten(config)[key] for key in unasked} == {key: flatten(alone)[key] for key in unasked}


def _leaves(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key not in VALUES
        found |= _leaves(value, f"{prefix}{key}.") if nested else {prefix + key: value}  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("pair", PAIRS, ids=lambda path: path.stem)
def test_released_preset_brings_its_own_network(pair: Path) -> None:
    net = load_config(["--config", str(pair), "--method", "asda_released"]).net
    assert (net.backbone, net.layout, net.output_stride, net.discriminator_width) == ("resnet50", "deeplab_v2", 8, 64)


def test_there_are_pairs_and_methods() -> None:
    assert {"demo", "whu_to_ms"} <= {path.stem for path in PAIRS}
    assert {"source_only", "advent", "intrada", "asda", "asda_released", "oracle"} <= {path.stem for path in METHODS}


def test_plain_asda_states_the_defaults() -> None:
    assert load_config([*DOMAINS, "--method", "asda_plain"]) == load_config(DOMAINS)


@pytest.mark.parametrize("name", ["asda", "asda_plain"])
def test_asda_has_the_ingredients_of_the_abstract(name: str) -> None:
    """In stage 1 the alignment of entropies; in stage 3 anchor and EMA, alignment, contrast and consistency."""
    config = load_config([*DOMAINS, "--method", name])
    teacher, intra = config.teacher, config.intra
    assert (teacher.alignment, intra.alignment, intra.domains) == ("entropy", "entropy", "easy_hard")
    assert intra.pseudo_label == "online" and intra.fuse not in ("anchor", "ema")
    assert (intra.contrast, intra.consistency, intra.export) == ("hec", "logits", "ema")
    assert min(teacher.adv_main, intra.adv_main, intra.contrast_weight, intra.consistency_weight) > 0


def called(script: str, folder: Path, *words: str) -> list[list[str]]:
    """The words of each Python command that a shell script starts, without running any."""
    python = folder / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$CALLED"\n')
    python.chmod(0o755)
    for name in (script, "setup_env.sh"):
        (folder / name).write_text((ROOT / name).read_text("utf-8") if name == script else "")
    search = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLED": str(folder / "log")}
    subprocess.run(["bash", str(folder / script), *words], check=True, env=search, capture_output=True)
    lines = (folder / "log").read_text().splitlines()
    (folder / "log").unlink()
    return [line.split() for line in lines]


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ([], "asda"),
        (["configs/hrc_to_biome.yaml", "--seed", "3"], "asda"),
        (["--method", "advent", "--teacher.alignment", "minent", "--teacher.name", "teacher"], "advent"),
    ],
)
@pytest.mark.parametrize("script", ["bash.sh", "eval.sh"])
def test_scripts_choose_the_method(
    script: str, words: list[str], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ASDA unless an argument names another; the source-only baseline is that, whatever the arguments say."""
    monkeypatch.chdir(ROOT)
    lines = called(script, tmp_path, *words)
    assert [line.pop(0) for line in lines] == {
        "bash.sh": ["train_teacher.py", "train_teacher.py", "split_entropy.py", "train_intra.py", "eval.py"],
        "eval.sh": ["eval.py"],
    }[script]
    pair, rest = (words[0], words[1:]) if words[:1] == ["configs/hrc_to_biome.yaml"] else ("configs/demo.yaml", words)
    if script == "bash.sh":
        seed = [word for word in rest if method == "asda"]
        assert load_config(lines.pop(0)) == load_config(["--config", pair, *seed, "--method", "source_only"])
    given = [word for word in rest if word not in ("--method", "advent")]
    assert all(load_config(line) == load_config(["--config", pair, "--method", method, *given]) for line in lines)


# scripts


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


SCRIPT = """
import runpy, sys
script = sys.argv[1]
sys.argv = sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    heavy = sorted({"torch", "timm", "cv2"} & set(sys.modules))
    print(f"\\nSTATUS {end.code!r} HEAVY {heavy}")
"""


def test_help_lists_every_key_with_its_text_and_needs_no_torch() -> None:
    done = _python(SCRIPT, "train_teacher.py", "--help")
    assert done.stdout.endswith("STATUS 0 HEAVY []\n") or done.stdout.endswith("STATUS None HEAVY []\n")
    text = " ".join(done.stdout.split("options:")[1].split())
    assert "OUT/teacher/" in done.stdout
    keys = [key for key in flatten(Config()) if key != "generated"]
    assert len(keys) > 80
    for key in keys:
        place = text.index(f" --{key} ")
        entry = text[place : text.index("(type: ", place)]  # ends where the type stands
        words = entry.removeprefix(f" --{key} ").split()
        assert len([word for word in words if word.islower()]) >= 2, f"--{key} has no text"
    assert "seed of initial weights, sampling and augmentation (type: int, default: 0)" in text
    assert "share of the target images that becomes the easy split (type: float, default: 0.67)" in text


def test_a_fault_ends_a_script_with_one_sentence_before_torch() -> None:
    done = _python(SCRIPT, "train_intra.py", "--teacher.stepz", "3")
    assert "STATUS \"error: command line: unknown option '--teacher.stepz'; did you mean" in done.stdout
    assert done.stdout.endswith("HEAVY []\n") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        "--net.discriminator_width=0",
        "--intra.augment.hue=0.6",
        "--intra.augment.brightness=1.5",
        "--teacher.adv_main=-1",
        "--teacher.name=",
        "--teacher.name=a/b",
    ],
)
def test_values_that_only_fail_later_are_refused_at_once(option: str) -> None:
    key = option.split("=")[0].removeprefix("--")
    with pytest.raises(ConfigError, match=re.escape(key)):
        load_config(["--source.root", "a", "--target.root", "b", option])


def layers(first: str, layer: str, count: int = 12) -> str:
    """Each layer holds the one before it nine times: 9^12 parts in a kilobyte."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i + 1}: &a{i + 1} {layer.format(', '.join([f'*a{i}'] * 9))}" for i in range(count)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        layers("[x, x]", "[{}]"),
        layers("{x: {y: 1}}", "{{b: [{}]}}"),
        "a: &a [*a]",
        "a: &a {b: *a}",
        f"a: {'[' * 60}{']' * 60}",
        "\n" * 2**21,
    ],
)
def test_yaml_that_multiplies_holds_itself_or_is_huge_is_refused(file: Write, text: str) -> None:
    assert "given.yaml: is too large, expected up to" in fault_of(*file(text))


def test_merged_aliases_stay_few(file: Write) -> None:
    """Keys that are merged again and again are the same keys."""
    assert "given.yaml: unknown key 'a0'" in fault_of(*file(layers("{seed: 1}", "{{<<: [{}]}}", count=5)))


def test_aliases_are_read(file: Write) -> None:
    text = "source: &domain {root: a, gamma: 2}\ntarget: {<<: *domain, root: b}\n"
    config = load_config(file(text))
    assert (config.source.root, config.target.root, config.target.gamma) == ("a", "b", 2.0)


@pytest.mark.parametrize("text", ["out: 2001-13-45", "a: " + "9" * 5000, "? [a, b]\n: 1", "out: " + "[" * 9999])
def test_yaml_that_cannot_be_built_is_named(file: Write, text: str) -> None:
    assert "given.yaml: is not valid YAML: " in fault_of(*file(text))


def test_a_tag_that_would_run_code_is_refused(file: Write, tmp_path: Path) -> None:
    message = fault_of(*file(f"out: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]"))
    assert "given.yaml: is not valid YAML: could not determine a constructor" in message
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/x", "a\nb", "a\0b"])
@pytest.mark.parametrize("key", ["pairs", "methods", "name"])
def test_names_of_a_comparison_that_lead_out_of_its_folder_are_refused(file: Write, key: str, name: str) -> None:
    values = {"pairs": {"p": "p.yaml"}, "methods": {"asda": None}, "name": "table"}
    values[key] = name if key == "name" else {name: values[key].popitem()[1]}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="to name a folder below out"):
        load_compare_config(file(yaml.safe_dump(values)))


@pytest.mark.parametrize("where", ["methods: {asda: {%s}}", "protocol: {%s}", "set: {%s}"])
def test_a_comparison_does_not_call_what_it_names(file: Write, tmp_path: Path, where: str) -> None:
    made = tmp_path / "made"
    call = f"class_path: pathlib.Path.mkdir, init_args: {{self: {made}}}"
    with contextlib.suppress(ConfigError):
        load_compare_config(file(f"pairs: {{p: p.yaml}}\n{where % call}\n"))
    assert not made.exists()
