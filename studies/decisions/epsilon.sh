#!/bin/bash
# How much epsilon, at least? Two models of 800 of scikit-learn's digits whose training images were drawn by coin: one undefended, one by
# DP-SGD.     bash studies/decisions/epsilon.sh WORK     takes about ten minutes on one core and leaves epsilon-*.json beside this script.
set -eu
work=$1
here=$(cd "$(dirname "$0")" && pwd)
run() { python -m diffleak "$@"; }

mkdir -p "$work"
python - "$work/digits.npy" <<'PY'
import sys
import numpy as np
from sklearn.datasets import load_digits

images = np.clip(load_digits().images * 16, 0, 255).astype(np.uint8)
np.save(sys.argv[1], images[np.random.default_rng(0).permutation(len(images))[:800]])
PY
train() { run train --preset digits --data "$work/digits.npy" --split-coin --device cpu --threads 1 "$@"; }
train --steps 1500 -o "$work/undefended"
train --steps 60 --dp-epsilon 8 --dp-delta 1e-4 -o "$work/dp"
for model in undefended dp; do
    run audit "$work/$model" --data "$work/digits.npy" --split "$work/$model/split.json" --sweep all --device cpu --threads 1 \
        --attacks loss,pia,sima --timesteps 40:200:40 -o "$work/run-$model"
    run epsilon "$work/run-$model" --delta 1e-4
    run epsilon "$work/run-$model" --delta 1e-4 --json > "$here/epsilon-$model.json"
done
