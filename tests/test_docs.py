"""What the documents point to exists, the commands that they show are understood, and the site has all of them."""

import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from config.comparison import CompareConfig
from config.load import load_compare_config, load_config
from config.schema import KEYS
from docs.pages import gather, place
from docs.reference import STAGES, pages, settings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEMPLATES = sorted((ROOT / ".github").glob("**/*.md"))
SHELL = {"bash.sh", "eval.sh"}
OWN_COMMAND_LINE = {"predict.py": "predict", "export.py": "export"}
STARTS = re.compile(r"(OMP_NUM_THREADS=1 )?(bash|python|torchrun) ")
PLACEHOLDERS = {"configs/mine.yaml", "my.yaml", "CONFIG", "FILE", "configs/NAME.yaml", "..."}  # the reader's own
MADE_BY_AN_EXAMPLE = {"hard_entropy": "hec"}  # a name that is there once the example is followed -> one that is
LONGEST = 120


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", without_code(document.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(document: Path) -> list[str]:
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text("utf-8"))):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            path = (document.parent / file).resolve() if file else document
            if not path.exists() or (anchor and anchor not in anchors(path)):
                found.append(target)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_exist(document: Path) -> None:
    assert not dead_links(document)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_short(document: Path) -> None:
    lines = document.read_text("utf-8").splitlines()
    texts = [re.sub(r"\]\([^)]*\)", "]", line) for line in lines if not line.startswith("|")]
    assert not [line for line in texts if len(line) > LONGEST]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def commands() -> list[str]:
    """Lines of the fenced blocks and of the scripts' docstrings, and code in the text, that start one of the project's
    programs."""
    blocks, lines = [], []
    for path in [*DOCUMENTS, *TEMPLATES]:
        text = path.read_text("utf-8")
        blocks += re.findall(r"^ *```(?:bash|sh|console)?\n(.*?)```", text, re.S | re.M)
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_code(text))]
    blocks += [(ROOT / script).read_text("utf-8").split('"""')[1] for script in (*STAGES, *OWN_COMMAND_LINE)]
    lines += [
        part.strip()
        for text in blocks
        for line in text.replace("\\\n", " ").splitlines()
        for part in re.split(r";| do |\|", line)
    ]
    return [re.split(r"\s+#", line)[0] for line in sorted({line for line in lines if STARTS.match(line)})]


def test_commands_are_found_everywhere() -> None:
    found = " ".join(commands())
    assert len(commands()) > 60 and all(script in found for script in (*STAGES, *OWN_COMMAND_LINE, *SHELL))
    assert all(name in found for name in ("torchrun", "docs.sh", "test.sh", "bench/", "-m datasets", "-m report."))


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command.replace("$s", "1").replace("$S", "1").removeprefix("OMP_NUM_THREADS=1 "))
    if words[0] == "torchrun":
        words = [word for word in words if word != "--"]
        words = ["python", *words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]]
    script, *arguments = words[1:]
    if script == "-m":
        understood_module(*arguments)
        return
    assert (ROOT / script).is_file()
    if script in SHELL and arguments and not arguments[0].startswith("--"):
        arguments = ["--config", *arguments]
    arguments = [str(ROOT / "configs/demo.yaml") if word in PLACEHOLDERS else word for word in arguments]
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
    arguments = [MADE_BY_AN_EXAMPLE.get(word, word) for word in arguments]
    if "--version" in arguments or "--help" in arguments:
        return
    if script == "compare.py":
        load_compare_config(arguments)
    elif script in SHELL or script in STAGES:
        load_config(arguments if "--config" in arguments else [*arguments, "--config", str(ROOT / "configs/demo.yaml")])
    elif script in OWN_COMMAND_LINE and arguments:
        module = importlib.import_module(OWN_COMMAND_LINE[script])
        monkeypatch.setattr(module, "best_model", lambda run: FinishedRun())
        module.read_request(arguments)


class FinishedRun:
    """Of a run that a document names, which nobody has made here."""

    def weights(self, run: Path) -> Path:
        return run / "student.safetensors"


def understood_module(name: str, *arguments: str) -> None:
    if name == "pytest":
        files = [word for word in arguments if word.endswith(".py")]
        assert files and all((ROOT / file).is_file() for file in files)
        return
    module = ROOT / name.replace(".", "/")
    assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()
    if name == "datasets":
        assert arguments[0] == "check"
        words = ["configs/demo.yaml" if word in PLACEHOLDERS else word for word in arguments[1:]]
        load_config([str(ROOT / word) if word.startswith("configs/") else word for word in words])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_example_configurations_load(document: Path, tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", document.read_text("utf-8"), re.S)):
        if re.search(r"^out:", block, re.M) and "methods:" not in block:
            path = tmp_path / f"{number}.yaml"
            path.write_text(block, "utf-8")
            load_config(["--config", str(path)])


# The site, without the program that builds it


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    gather(folder)
    return folder


def test_every_link_of_the_site_resolves(site: Path) -> None:
    found = {path.relative_to(site).as_posix(): dead_links(path) for path in site.rglob("*.md")}
    assert len(found) > len(DOCUMENTS) and not {page: links for page, links in found.items() if links}


def test_the_navigation_has_every_page(site: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    navigation = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    named = [file for entry in navigation for file in leaves(entry)]
    assert sorted(named) == sorted(path.relative_to(site).as_posix() for path in site.rglob("*.md"))
    assert {place(path) for path in DOCUMENTS} | {*pages()} == {*named}


def leaves(entry: dict | list | str) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(part)]


def test_the_reference_has_every_setting_with_its_text() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \|.*\| ([^|]*) \|$", settings(), re.M))
    wanted = {*KEYS} | {one.name for one in fields(CompareConfig)}
    assert {*rows} == wanted and not [key for key, text in rows.items() if not text.strip()]


def test_the_reference_has_scripts_and_functions(site: Path) -> None:
    commands_page = (site / "reference/commands.md").read_text("utf-8")
    assert all(f"## {script}\n" in commands_page for script in (*STAGES, *OWN_COMMAND_LINE))
    assert "--min-cloud" in commands_page
    functions = (site / "reference/python.md").read_text("utf-8")
    for name in ("predict_scene", "soft_jaccard", "EntropyHistogram", "Segmenter"):
        assert f"`{name}`" in functions
    assert not re.search(r"\*\*(class )?`(\w+\.)?_", functions)
