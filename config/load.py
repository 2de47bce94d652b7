"""From YAML files and a command line to a checked configuration.

    config = load_config(["--config", "configs/demo.yaml", "--method", "asda", "--seed", "1"])

One precedence, whoever starts a run and wherever a word stands: defaults < --config FILE, in their order < --method
NAME < --key value.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from config.checks import config_faults
from config.comparison import CompareConfig, comparison_faults
from config.fields import flatten, nearest
from config.schema import KEYS, Config
from utils.errors import ConfigError
from utils.version import VERSION

METHODS = Path(__file__).resolve().parents[1] / "configs" / "methods"
LARGEST, VALUES, LEVELS = 2**20, 100_000, 50  # of a YAML file: characters; values and levels, aliases written out
FAULTS: dict[type, Callable[[Any], Iterator[str]]] = {Config: config_faults, CompareConfig: comparison_faults}
T = TypeVar("T")


def load_config(arguments: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Read `--config FILE` (any number), `--method NAME_OR_FILE` and `--key value` into a checked `Config`.

    The last `--method` counts. compare.py adds `--override FILE`, which wins over the method. An unknown key, a wrong
    type or an impossible value raises ConfigError, with file, key and nearest match.
    """
    given, rest = _taken(arguments, "--config", "--method", "--override")
    for file in map(Path, given["--config"]):
        if file.absolute().parent.name == "methods":
            name = file.stem if file.resolve().parent == METHODS else file
            raise ConfigError(f"{file}: is a method, which wins over every --config; give it as --method {name}")
    given["--method"] = [_method_file(name) for name in given["--method"][-1:]]
    return _load(Config, given, rest, description)


def load_compare_config(arguments: Sequence[str] | None = None, description: str | None = None) -> CompareConfig:
    """Read `--config FILE` (any number) and `--key value` into a checked comparison; errors as `load_config`."""
    return _load(CompareConfig, *_taken(arguments, "--config"), description)


def _taken(arguments: Sequence[str] | None, *options: str) -> tuple[dict[str, list[str]], list[str]]:
    """What each of these options is given, and the other words."""
    given: dict[str, list[str]] = {option: [] for option in options}
    rest: list[str] = []
    words = iter(sys.argv[1:] if arguments is None else arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option in given:
            given[option].append(value if equals else next(words, ""))
        else:
            rest.append(word)
    return given, rest


def _method_file(name: str) -> str:
    """The file of a method that is given by its name, or as a file."""
    if Path(name).suffix in (".yaml", ".yml"):
        return name
    known = sorted(path.stem for path in METHODS.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"command line: there is no method {name!r}{nearest(name, known)}; or give a YAML file")
    return str(METHODS / f"{name}.yaml")


@cache
def _parser(schema: Any, description: str | None) -> Any:
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"asda {VERSION}", help="print the version, and end")
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file; may be given several times, later wins")
    if schema is Config:
        parser.add_argument("--method", help="name of a file of configs/methods/, or a YAML file; wins over --config")
    parser.add_class_arguments(schema, None)
    return parser


def _load(schema: type[T], files: Mapping[str, Sequence[str]], words: list[str], description: str | None) -> T:
    """Read the files, in their order, and then the words, and check what they make together."""
    parser = _parser(schema, description)  # type: ignore[arg-type]
    layers = [(option, file) for option, given in files.items() for file in given]
    for option, file in layers:
        values = read_mapping(Path(file), f"a YAML file after {option}", "a mapping of keys to values")
        for fault in _key_faults(values, schema):
            raise ConfigError(f"{file}: {fault}")
    try:
        namespace = parser.parse_args([*(f"--config={file}" for _, file in layers), *words])
    except (Exception, SystemExit) as error:  # jsonargparse raises several types here
        if isinstance(error, SystemExit) and not error.code:
            raise
        for _, file in layers:  # each alone, so that the message can name the file
            try:
                parser.parse_path(file)
            except Exception as fault_of_file:
                raise ConfigError(f"{file}: {' '.join(str(fault_of_file).split())}") from None
        raise ConfigError(f"command line: {_explain(str(error), words, schema)}") from None
    values = vars(parser.instantiate(namespace))
    config = schema(**{key: value for key, value in values.items() if key not in ("config", "method")})
    if sentences := "; ".join(FAULTS[schema](config)):
        raise ConfigError(f"configuration: {sentences}")
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def read_mapping(path: Path, file: str, mapping: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; one that cannot be read, is no YAML, or holds something else raises
    ConfigError, in which `file` and `mapping` say what was expected."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(LARGEST + 1)
        values = yaml.safe_load(text) if len(text) <= LARGEST else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected {file}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of text, numbers, and too many levels
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if len(text) > LARGEST or _is_bomb(values):
        limits = f"{LARGEST:,} characters, {VALUES:,} values and {LEVELS} levels, aliases written out"
        raise ConfigError(f"{path}: is too large, expected up to {limits}")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected {mapping}")
    return values


def recorded_config(path: Path) -> dict[str, Any]:
    """What the config.yaml of a stage holds; errors as `read_mapping`."""
    return read_mapping(path, "the config.yaml of a stage", "a mapping of keys to values")


def _is_bomb(values: Any) -> bool:
    """Whether a few aliases stand for more than anybody writes."""
    waiting, count = [(values, 0)], 0
    while waiting:
        value, level = waiting.pop()
        count += 1
        if count > VALUES or level > LEVELS:
            return True
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(part, level + 1) for part in parts]
    return False


def _key_faults(values: dict[str, Any], schema: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            yield f"unknown key {prefix + str(key)!r}{nearest(prefix + str(key), [prefix + name for name in hints])}"
            continue
        options = getattr(hints[key], "__args__", (hints[key],))
        branches = [t for t in options if dataclasses.is_dataclass(t)]
        if branches and isinstance(value, dict):
            yield from _key_faults(value, branches[0], f"{prefix}{key}.")  # type: ignore[arg-type]
        elif branches and not (value is None and type(None) in options):
            yield f"key {prefix + key!r}: found {type(value).__name__}, expected a mapping of keys to values"
        elif value is None and type(None) not in options:  # jsonargparse takes null for any key of a file
            yield f"key {prefix + key!r}: found null, expected a value; leave the key out for its default"


def _explain(message: str, words: Sequence[str], schema: type) -> str:
    known = ["--config", *(f"--{key}" for key in (("method", *KEYS) if schema is Config else flatten(schema())))]
    for word in (word.split("=")[0] for word in words if word.startswith("--")):
        if word not in known and f"unrecognized arguments: {word}" in message:
            return f"unknown option {word!r}{nearest(word, known)}"
    return " ".join(message.split())
