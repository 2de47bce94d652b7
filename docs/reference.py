"""The reference pages, written from the code: the settings' own texts, the scripts' own help, public docstrings.

Nothing of these pages stands in the repository, so they cannot say other than the code. docs/pages.py writes them.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from config.comparison import CompareConfig
from config.schema import Config, GeneratedConfig

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("train_teacher.py", "split_entropy.py", "train_intra.py", "eval.py", "compare.py")
OPTIONS = ("predict.py", "export.py")  # with command lines of their own
PACKAGES = ("scenes", "losses", "nets", "methods", "datasets", "engine", "report", "comparison", "config", "utils")


def pages() -> dict[str, str]:
    """Every page of the reference, by its place below the site's root."""
    return {
        "reference/settings.md": settings(),
        "reference/commands.md": commands(),
        "reference/python.md": "".join(python()),
    }


def settings() -> str:
    """The keys of a run and of a comparison: type, default, what is allowed, and the text that `--help` shows."""
    parts = [
        "# Settings\n\nThe keys of a YAML file, and of the command line as `--key value`. Written from "
        "`config/schema.py` and `config/comparison.py`.\n",
        *_section(Config(generated=GeneratedConfig()), "", _texts("config/schema.py")),
        "\n## compare.py\n",
        *_section(CompareConfig(), "", _texts("config/comparison.py")),
    ]
    return "".join(parts)


def _section(config: Any, prefix: str, texts: dict[str, dict[str, tuple[str, str]]]) -> Iterator[str]:
    """The table of one dataclass, and then those of the dataclasses in it."""
    if prefix:
        yield f"\n## {prefix.rstrip('.')}\n\n{_escaped((type(config).__doc__ or '').strip())}\n"
    known = texts[type(config).__name__]
    values = {one: getattr(config, one.name) for one in fields(config)}
    rows = []
    for one, value in values.items():
        if not is_dataclass(value):
            kind, text = known[one.name]
            allowed = "; ".join(expected for _, expected in one.metadata.get("rules", ()))
            cells = (f"`{prefix}{one.name}`", f"`{kind}`", f"`{_as_yaml(value)}`", _escaped(allowed), _escaped(text))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    if rows:
        yield "\n| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n"
        yield from rows
    for one, value in values.items():
        if is_dataclass(value):
            yield from _section(value, f"{prefix}{one.name}.", texts)


def _texts(file: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Of each class in a file: type and text, the string below it, of each field."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = keys = {}
            for one, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    keys[one.target.id] = (ast.unparse(one.annotation), _string(following))
    return found


def _string(node: ast.AST | None) -> str:
    """The text of a statement that is only a string, in one line; else nothing."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return " ".join(node.value.value.split()) if is_text else ""  # type: ignore[union-attr]


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    return text if text != "''" else '""'


def commands() -> str:
    """What each script says of itself and, where it has options beside the settings, its `--help`."""
    parts = [
        "# Commands\n\nWhat the scripts say of themselves. Stages, evaluation and comparison take the keys of "
        "[settings](settings.md).\n"
    ]
    for script in (*STAGES, "datasets/__main__.py"):
        title = script.replace("datasets/__main__.py", "python -m datasets check")
        parts.append(f"\n## {title}\n\n```text\n{_module_text(ROOT / script)}\n```\n")
    for script in OPTIONS:
        command, width = [sys.executable, script, "--help"], {**os.environ, "COLUMNS": "110", "NO_COLOR": "1"}
        text = subprocess.run(command, cwd=ROOT, env=width, capture_output=True, text=True, check=True).stdout
        parts.append(f"\n## {script}\n\n```text\n{text.rstrip()}\n```\n")
    return "".join(parts)


def python() -> Iterator[str]:
    """Every public function and class of every package with its docstring, in the order of the files."""
    yield "# Python\n\nPublic functions and classes, by folder and file, with their docstrings. `scenes` is the one "
    yield "to use from other programs ([how](../predict.md#from-python)); the others are for those who change it.\n"
    for package in PACKAGES:
        yield f"\n## {package}\n"
        for path in sorted((ROOT / package).glob("*.py")):
            members = "".join(_members(ast.parse(path.read_text("utf-8"))))
            text = _module_text(path)
            if path.stem == "__init__":
                yield f"\n{_prose(text)}\n{members}"
            elif members:
                yield f"\n### {package}/{path.name}\n\n{_prose(text)}\n{members}"


def _members(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield _member(node, "")
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and ast.get_docstring(inner):
                    yield _member(inner, f"{node.name}.")


def _member(node: ast.FunctionDef | ast.ClassDef, owner: str) -> str:
    """A heading-like line, the signature, and the docstring."""
    function = node if isinstance(node, ast.FunctionDef) else None
    for inner in node.body if function is None else []:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            function = inner
    signature = ""
    if function is not None:
        returns = f" -> {ast.unparse(function.returns)}" if function.returns and function is node else ""
        arguments = re.sub(r"^self(, )?", "", ast.unparse(function.args))
        signature = f"\n```python\n{owner}{node.name}({arguments}){returns}\n```\n"
    kind = "class " if isinstance(node, ast.ClassDef) else ""
    return f"\n**{kind}`{owner}{node.name}`**\n{signature}\n{_prose(ast.get_docstring(node) or '')}\n"


def _module_text(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").strip()


def _prose(text: str) -> str:
    """A docstring as Markdown: paragraphs as they are, what is indented or in sections as it stands."""
    lines = text.splitlines()
    plain = next((i for i, line in enumerate(lines) if line.startswith(" ") or re.match(r"\w+:$", line)), len(lines))
    prose, rest = "\n".join(lines[:plain]).strip(), "\n".join(lines[plain:]).rstrip()
    return _escaped(prose) + (f"\n\n```text\n{rest}\n```" if rest else "")


def _escaped(text: str) -> str:
    """Text in which Markdown finds nothing but `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<>\[\]#])", r"\\\1", part) for part in parts)
