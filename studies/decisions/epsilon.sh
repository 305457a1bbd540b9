#!/bin/bash
# How much epsilon, at least? Two models of scikit-learn's digits whose training images were drawn by coin: one undefended, one by DP-SGD.
#   bash studies/decisions/epsilon.sh WORK      about a quarter of an hour on one core; leaves epsilon-*.json beside this script
set -eu
work=$1
here=$(cd "$(dirname "$0")" && pwd)
run() { python -m diffleak "$@"; }

run train --preset digits --data digits --split-coin --steps 4000 --device cpu -o "$work/undefended"
run train --preset digits --data digits --split-coin --steps 1500 --device cpu --dp-epsilon 8 --dp-delta 1e-4 -o "$work/dp"
for model in undefended dp; do
    run audit "$work/$model" --data digits --split "$work/$model/split.json" --device cpu \
        --attacks "loss,secmi,pia,sima,sima_mc(m=4)" --timesteps 20:200:20 -o "$work/run-$model"
    run epsilon "$work/run-$model" --delta 1e-4
    run epsilon "$work/run-$model" --delta 1e-4 --json > "$here/epsilon-$model.json"
done
