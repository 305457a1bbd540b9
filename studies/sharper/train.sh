#!/bin/bash
# The models of the study of sharper attacks: bash studies/sharper/train.sh RAW work. Every stage is kept as work/NAME-STEPS; a call resumes.
set -euo pipefail
raw=$1 work=$2
[ -f "$work/cifar10-512-split.json" ] || python studies/prepare.py "$raw" "$work"
stages() {  # NAME SPLIT STEPS...: one training, of which every stage is kept
    name=$1 split=$2
    shift 2
    for steps in "$@"; do
        [ -d "$work/$name-$steps" ] && continue
        diffleak train -C studies/sharper/train.yaml --data "$work/cifar10.npy" --split "$work/$split" -o "$work/$name" --steps "$steps"
        rm -rf "$work/$name-$steps.part"
        mkdir "$work/$name-$steps.part"
        cp -r "$work/$name"/{unet,scheduler,split.json,train.json} "$work/$name-$steps.part"
        mv "$work/$name-$steps.part" "$work/$name-$steps"
    done
}
stages cifar10-128 cifar10-split.json 500 1000 1500 2000 2500 3000 3500 4000
stages cifar10-512 cifar10-512-split.json 1000 2000 3000 4000 5000 6000 7000 8000 9000 10000
