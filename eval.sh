#!/usr/bin/env bash
# Scores, masks, entropy maps, t-SNE, Grad-CAM and report.html of a finished run:  bash eval.sh [CONFIG] [--key value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup_env.sh

config=configs/demo.yaml
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    config=$1
    shift
fi

echo "== evaluation of $config"
python eval.py --config "$config" "$@"
