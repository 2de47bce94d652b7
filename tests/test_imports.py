"""Imports point one way: from the scripts down to utils. This reads them, and holds it."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What each folder may import, beside itself. A script is a file at the top, or the __main__ of a folder.
BELOW_ENGINE = {"losses", "nets", "datasets", "config", "utils"}
ALLOWED = {
    "utils": set(),
    "nets": {"utils"},
    "datasets": {"utils"},
    "losses": {"nets", "utils"},
    "config": {"datasets", "utils"},
    "engine": BELOW_ENGINE,
    "methods": {"engine", *BELOW_ENGINE},
    "scenes": {"engine", *BELOW_ENGINE},
    "report": {"engine", "scenes", *BELOW_ENGINE},
    "comparison": {"report", "engine", *BELOW_ENGINE},
    "script": {"comparison", "report", "scenes", "methods", "engine", *BELOW_ENGINE},
}
# Heavy packages, and modules of ours that import torch, may be imported where they are first needed.
LATE = {"torch", "rasterio", "matplotlib", "jsonargparse", "onnx", "onnxscript", "onnxruntime", "tensorboardX"}
NAMES = {"losses.registry"}  # a module of names that imports nothing, so that anybody may
LATE_OURS = {"nets.segmenter", "nets.weights", "scenes.export"}


def product() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    found = listed or [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")]
    outside = ("tests", "bench", "asset", "docs", "runs", "data")
    return [Path(name) for name in found if Path(name).parts[0] not in outside and not name.startswith(".")]


FILES = [path for path in product() if (ROOT / path).exists()]
SCRIPTS = {path.stem for path in FILES if len(path.parts) == 1}


def room(path: Path) -> str:
    return "script" if len(path.parts) == 1 or path.name == "__main__.py" else path.parts[0]


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Every module that a file imports, the line, and whether it is within a function."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    inner = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [node.module or ""]
            if (ROOT / (node.module or "")).is_dir():  # from engine import processes
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((name, getattr(node, "lineno", 0), id(node) in inner) for name in names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path) -> None:
    for module, line, _ in imports(path):
        first = module.split(".")[0]
        where = f"{path}:{line} imports {module}"
        assert first not in SCRIPTS, f"{where}, a script"
        if (ROOT / first).is_dir() and first != path.parts[0] and module not in NAMES:
            assert first in ALLOWED[room(path)], f"{where}; {room(path)} may import {sorted(ALLOWED[room(path)])}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_stand_at_the_top_but_for_start_up_time(path: Path) -> None:
    for module, line, within in imports(path):
        late = module.split(".")[0] in LATE or module in LATE_OURS
        assert not within or late, f"{path}:{line} imports {module} within a function; put it at the top"


@pytest.mark.parametrize("module", sorted(NAMES))
def test_names_import_nothing(module: str) -> None:
    assert not list(imports(Path(*module.split(".")).with_suffix(".py")))


def test_no_modules_import_one_another() -> None:
    names = {path.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path for path in FILES}
    graph = {name: {module for module, _, _ in imports(path) if module in names} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a cycle of imports: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for module in sorted(graph[name]):
                visit(module, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] in ("losses", "nets")], ids=str)
def test_networks_and_losses_know_no_configuration_and_no_processes(path: Path) -> None:
    text = (ROOT / path).read_text("utf-8")
    strings = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    key = re.compile(r"\b(net|teacher|intra|optim|split|data|eval|speed)\.[a-z_]+\b")
    told = [found[0] for string in strings if isinstance(string, str) and (found := key.search(string))]
    assert not told, f"{path} names keys of the configuration: {told}"
    assert "torch.distributed" not in text and "processes" not in text


def test_rooms_and_files_are_small() -> None:
    lines = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path in FILES}
    utils = {path: count for path, count in lines.items() if path.parts[0] == "utils"}
    assert max(utils.values()) <= 150, max(utils, key=lambda path: utils[path])
    assert sum(utils.values()) < 0.1 * sum(lines.values())
    data = {Path("datasets/readers.py"), Path("datasets/generated.py"), Path("datasets/landcover.py")}
    assert [str(path) for path, count in lines.items() if count > 400 and path not in data] == []
    stages = ("train_teacher", "split_entropy", "train_intra", "eval", "compare", "predict")
    assert [name for name in stages if lines[Path(f"{name}.py")] > 200] == []
