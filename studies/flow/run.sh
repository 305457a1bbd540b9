#!/bin/bash
# A defence of flow-matching models, timesteps drawn away from the middle of the path: bash studies/flow/run.sh work. A call resumes.
set -euo pipefail
work=$1
for seed in 0 1 2; do
    for how in uniform u-shaped; do
        name=flow-$how-$seed
        [ -f "$work/$name/unet/config.json" ] ||
            diffleak train -C studies/flow/train.yaml --train-size 256 --timesteps $how --seed $seed -o "$work/$name"
        [ -f "$work/$name-run/audit.json" ] ||
            diffleak audit "$work/$name" --data digits --split "$work/$name/split.json" --limit 600 --attacks loss,sima,pia \
                --threads 1 -o "$work/$name-run"
        [ -f "$work/$name-run/quality.json" ] ||
            diffleak quality "$work/$name" --data digits --split "$work/$name/split.json" --extractor pixels --images 512 --steps 25 \
                -o "$work/$name-run"
    done
done
for seed in 0 1 2; do
    diffleak compare "uniform=$work/flow-uniform-$seed-run" "u-shaped=$work/flow-u-shaped-$seed-run" -o "$work/flow-compare-$seed"
    cp "$work/flow-compare-$seed/compare.json" "studies/flow/compare-$seed.json"
done
