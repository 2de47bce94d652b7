#!/usr/bin/env bash
# Scores, masks, entropy maps, t-SNE, Grad-CAM and report.html of a finished run:  bash eval.sh [CONFIG] [--key value ...]
# The method is chosen as in bash.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup_env.sh
[[ " $* " != *" --version "* ]] || exec python eval.py --version

config=configs/demo.yaml
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    config=$1
    shift
fi
set -- --config "$config" --method asda "$@"

echo "== evaluation of $config"
python eval.py "$@"
