#!/bin/bash
# The models of the study of sharper attacks: bash studies/sharper/train.sh RAW work. Every stage is kept as work/NAME-STEPS; a call resumes.
set -euo pipefail
raw=$1 work=$2
[ -f "$work/cifar10-split.json" ] || python studies/prepare.py "$raw" "$work"
stages() {  # NAME CONFIG STEPS... -- FLAGS: one training, of which every stage is kept
    name=$1 config=$2 steps=()
    shift 2
    while [ "$1" != -- ]; do
        steps+=("$1")
        shift
    done
    shift
    for count in "${steps[@]}"; do
        [ -d "$work/$name-$count" ] && continue
        diffleak train -C "$config" --data "$work/cifar10.npy" -o "$work/$name" --steps "$count" "$@"
        rm -rf "$work/$name-$count.part"
        mkdir "$work/$name-$count.part"
        for part in unet scheduler vae split.json train.json; do
            [ -e "$work/$name/$part" ] && cp -r "$work/$name/$part" "$work/$name-$count.part"
        done
        mv "$work/$name-$count.part" "$work/$name-$count"
    done
}
pixels=studies/sharper/train.yaml
stages cifar10-128 $pixels 500 1000 1500 2000 2500 3000 3500 4000 -- --split "$work/cifar10-split.json"
stages cifar10-vae studies/cifar10-vae/autoencoder.yaml 1500 -- --split "$work/cifar10-latent-split.json"
stages cifar10-latent-vae studies/cifar10-vae/train.yaml 1250 2500 -- --autoencoder "$work/cifar10-vae"
