"""Reading: one precedence, and messages about what is wrong with a file or a command line."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from config.load import load_config, to_yaml
from config.schema import Config, GeneratedConfig
from utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOMAINS = ["--source.root", "s", "--target.root", "t"]
Write = Callable[..., list[str]]


def fault_of(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([*DOMAINS, *arguments])
    return str(caught.value)


def test_defaults_then_files_in_order_then_command_line(file: Write) -> None:
    first = file("teacher: {steps: 11, batch: 12}\nintra: {augment: {jitter: 0.1, hue: 0.2}}\nseed: 13", "a.yaml")
    second = file("teacher: {batch: 22}\nintra: {augment: {hue: 0.3}}", "b.yaml")
    config = load_config([*first, *second, *DOMAINS, "--seed", "33"])
    assert (config.teacher.steps, config.teacher.batch, config.seed) == (11, 22, 33)
    assert (config.intra.augment.jitter, config.intra.augment.hue) == (0.1, 0.3)
    assert config.intra.augment.hflip == Config().intra.augment.hflip
    swapped = load_config([*second, *first, *DOMAINS])
    assert (swapped.teacher.batch, swapped.intra.augment.hue, swapped.seed) == (12, 0.2, 13)


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
    [("seed: null", "seed"), ("net: {layout: }", "net.layout"), ("intra: {fuse: ~}", "intra.fuse")],
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


# round trip


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
