#!/bin/bash
# How much epsilon, at least? 600 CIFAR-10 images of 16 pixels (the lossy copy, studies/prepare.py), sides drawn by coin; one model undefended, one
# by DP-SGD.     bash studies/decisions/epsilon_cifar10.sh WORK     WORK holds cifar10-16.npy; a call resumes; about fifteen minutes on one core.
set -eu
work=$1
here=$(cd "$(dirname "$0")" && pwd)
run() { python -m diffleak "$@"; }

data=$work/cifar10-16-600.npy
[ -f "$data" ] || python -c 'import sys, numpy as np; np.save(sys.argv[2], np.load(sys.argv[1])[:600])' "$work/cifar10-16.npy" "$data"
train() { run train -C "$here/../sharper/sizes.yaml" --data "$data" --split-coin --device cpu "$@"; }
train --steps 6250 -o "$work/coin-undefended"
train --steps 200 --mixed-precision no --dp-epsilon 8 --dp-delta 1e-4 -o "$work/coin-dp"
for model in undefended dp; do
    run audit "$work/coin-$model" --data "$data" --split "$work/coin-$model/split.json" --sweep all --device cpu --threads 1 \
        --attacks loss,pia,sima,secmi --timesteps 20:200:20 -o "$work/run-coin-$model"
    run epsilon "$work/run-coin-$model" --delta 1e-4
    run epsilon "$work/run-coin-$model" --delta 1e-4 --json > "$here/epsilon-cifar10-$model.json"
done
