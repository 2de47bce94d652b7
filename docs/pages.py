"""All pages of the site in one folder: the documents, README and other files of the root, pictures, the reference.

    python -m docs.pages site/pages

docs.sh runs it, and mkdocs makes the site of that folder. In the repository links lead from docs/ to asset/ and from
README.md to docs/; here they are turned to where the pages lie in the folder.
"""

import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

from docs.reference import ROOT, pages

# Files of the root, and what they are in the site. What else a document links to is copied to its place.
RENAMED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:)([^)\s#]+)(?=[)#])")


def gather(folder: Path) -> None:
    """Write every page, and every file that one links to, below `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in [*(ROOT / name for name in RENAMED), *sorted((ROOT / "docs").glob("*.md"))]:
        turned = LINK.sub(partial(_turned, page=path, folder=folder), path.read_text("utf-8"))
        _write(folder / place(path), turned)
    for name, text in pages().items():
        _write(folder / name, text)


def place(path: Path) -> str:
    """Where a file of the repository is in the site, below its root."""
    name = path.relative_to(ROOT).as_posix()
    return RENAMED.get(name, name.removeprefix("docs/"))


def _turned(link: re.Match[str], page: Path, folder: Path) -> str:
    """A link as it is in the site; what is no page is copied there. What leads nowhere stays, for mkdocs to tell."""
    file = (page.parent / link[1]).resolve()
    if not file.exists():
        return link[1]
    where = place(file)
    if file.suffix != ".md" and not (folder / where).exists():
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / where)
    return Path(os.path.relpath(where, Path(place(page)).parent)).as_posix()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
