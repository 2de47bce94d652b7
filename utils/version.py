"""The one place of this project's version, which `--version`, runs, masks and pyproject.toml take from here."""

VERSION = "0.2.0"
