#!/bin/bash
# Members, and held-out images as if they were members, put in question: bash studies/decisions/inquire.sh work [OUT]. A call resumes.
# work is the folder of studies/sharper (models cifar10-512-4000 and cifar10-128-4000 with their splits); records go beside this file.
set -euo pipefail
work=$1 out=${2:-$1/inquire} kept=studies/decisions
mkdir -p "$out"
sides() {  # SPLIT NAME: arrays of 20, 50 and at most 200 members, of 200 controls and of 200 other held-out images
    [ -f "$out/$2-other.npy" ] || python - "$work/cifar10.npy" "$1" "$out/$2" <<'PYTHON'
import json, sys
import numpy as np
data, split, name = sys.argv[1:]
images, sides, rng = np.load(data), json.load(open(split)), np.random.default_rng(0)
members, heldout = (rng.permutation([int(i) for i in sides[side]]) for side in ("members", "nonmembers"))
for size in (20, 50, 200):  # the smaller model has 128
    np.save(f"{name}-{size}.npy", images[members[:size]])
np.save(f"{name}-control.npy", images[heldout[:200]])
np.save(f"{name}-other.npy", images[heldout[200:400]])
PYTHON
}
inquire() {  # MODEL NAME WHAT
    run=$out/$2-$3-run
    [ -f "$run/inquiry.json" ] ||
        diffleak inquire "$work/$1" --images "$out/$2-$3.npy" --control "$out/$2-control.npy" --attacks sima,loss,pia --timesteps 50:150:50 \
            --threads 1 -o "$run" || [ $? = 4 ]
    cp "$run/inquiry.json" "$kept/inquire-$2-$3.json"
}
sides "$work/cifar10-split.json" 128
sides "$work/cifar10-512-split.json" 512
for pair in 128:200 128:20 128:50 512:other 512:200 512:50 512:20 128:other; do
    inquire "cifar10-${pair%:*}-4000" "${pair%:*}" "${pair#*:}"
done
