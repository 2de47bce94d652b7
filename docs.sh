#!/usr/bin/env bash
# The documents as a site, site/html/index.html, with the reference written from the code:  bash docs.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup_env.sh

if ! cmp -s requirements-docs.txt .venv-docs/installed.txt; then
    echo "== making .venv-docs and installing requirements-docs.txt (once)"
    python -m venv .venv-docs
    .venv-docs/bin/python -m pip install --quiet --requirement requirements-docs.txt
    cp requirements-docs.txt .venv-docs/installed.txt  # last: an interrupted installation is repeated
fi
echo "== pages"
python -m docs.pages site/pages
echo "== site"
NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --clean  # without the theme's notice about its successor
echo "site/html/index.html; its search needs a server, such as: python -m http.server --directory site/html"
