# Sourced by bash.sh, eval.sh and test.sh: an active environment is used as it is, otherwise .venv, made on the first run.
if [ -z "${VIRTUAL_ENV:-}" ] && { [ -z "${CONDA_PREFIX:-}" ] || [ "${CONDA_DEFAULT_ENV:-}" = base ]; }; then
    if ! cmp -s requirements.txt .venv/installed.txt; then
        echo "== making .venv and installing requirements.txt (once; torch is large)"
        python3 -c 'import sys; sys.exit(f"Python 3.10 or newer is needed, found {sys.version}" if sys.version_info < (3, 10) else 0)'
        python3 -m venv .venv
        .venv/bin/python -m pip install --quiet --requirement requirements.txt
        cp requirements.txt .venv/installed.txt  # last: an interrupted installation is repeated
    fi
    export PATH="$PWD/.venv/bin:$PATH"
elif ! python -c 'import torch, torchvision, timm, jsonargparse, segmentation_models_pytorch' 2>/dev/null; then
    echo "the active environment lacks packages; run: pip install -r requirements.txt, or deactivate it to get .venv" >&2
    exit 1
fi
