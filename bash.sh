#!/usr/bin/env bash
# Stages 1, 2, 3 and the evaluation of one configuration:  bash bash.sh [CONFIG] [--key value ...]
# CONFIG is configs/demo.yaml by default; every further argument goes to all stages, e.g. --seed 1 --out runs/demo_seed1.
# The method is asda, unless --method names another file of configs/methods/.
# Safe to repeat: what is finished is left, what is unfinished is continued.
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

echo "== source-only baseline"
python train_teacher.py "$@" --method source_only --teacher.name source_only --teacher.alignment none  # whatever "$@" says
echo "== stage 1: teacher"
python train_teacher.py "$@"
echo "== stage 2: entropy split"
python split_entropy.py "$@"
echo "== stage 3: student"
python train_intra.py "$@"
echo "== evaluation"
python eval.py "$@"
