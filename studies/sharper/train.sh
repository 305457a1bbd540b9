#!/bin/bash
# The models of the study of sharper attacks: bash studies/sharper/train.sh RAW work. Every stage is kept as work/NAME-STEPS; a call resumes.
set -euo pipefail
raw=$1 work=$2
[ -f "$work/cifar10-reference-split.json" ] || python studies/prepare.py "$raw" "$work"
[ -d "$work/emoji" ] || python studies/text/prepare.py "$raw/captioned/noto-emoji-128.zip" "$work"
stages() {  # NAME STEPS... -- FLAGS: one training, of which every stage is kept
    name=$1 steps=()
    shift
    while [ "$1" != -- ]; do
        steps+=("$1")
        shift
    done
    shift
    for count in "${steps[@]}"; do
        [ -d "$work/$name-$count" ] && continue
        diffleak train "$@" -o "$work/$name" --steps "$count"
        rm -rf "$work/$name-$count.part"
        cp -r "$work/$name" "$work/$name-$count.part"
        rm -rf "$work/$name-$count.part/checkpoint"
        mv "$work/$name-$count.part" "$work/$name-$count"
    done
}
pixels="-C studies/sharper/train.yaml --data $work/cifar10.npy"
latents="-C studies/cifar10-vae/train.yaml --data $work/cifar10.npy --autoencoder $work/cifar10-vae"
emoji="--data $work/emoji --resize 32"
case ${3:-all} in
latents | all)
    stages cifar10-vae 1500 -- -C studies/cifar10-vae/autoencoder.yaml --data "$work/cifar10.npy" --split "$work/cifar10-latent-split.json"
    stages cifar10-latent-vae 1250 2500 3750 -- $latents
    stages cifar10-latent-vae-reference 2500 -- $latents --split "$work/cifar10-reference-split.json"
    ;;&
pixels | all)
    stages cifar10-128 500 1000 1500 2000 2500 3000 3500 4000 -- $pixels --split "$work/cifar10-split.json"
    stages cifar10-128-seed1 2500 -- $pixels --split "$work/cifar10-split.json" --seed 1
    stages cifar10-128-reference 2500 -- $pixels --split "$work/cifar10-128-reference-split.json"
    stages cifar10-128-seed2 2500 -- $pixels --split "$work/cifar10-split.json" --seed 2
    ;;&
tiny-imagenet | all)
    stages tiny-imagenet-128 2500 -- -C studies/sharper/train.yaml --data "$work/tiny-imagenet.npy" --split "$work/tiny-imagenet-split.json"
    ;;&
sizes | all)  # at 25, 50 and 100 epochs each, and the small sets for as many steps as the large ones
    small="-C studies/sharper/sizes.yaml --data $work/cifar10-16.npy"
    stages cifar10-16-128 100 200 400 1600 6250 -- $small --split "$work/cifar10-16-128-split.json"
    stages cifar10-16-512 400 800 1600 6250 -- $small --split "$work/cifar10-16-512-split.json"
    stages cifar10-16-2000 1562 3125 6250 -- $small --split "$work/cifar10-16-2000-split.json"
    stages cifar10-16-8000 6250 12500 25000 -- $small --split "$work/cifar10-16-8000-split.json"
    ;;&
text | all)
    stages e-vae 2500 -- --preset vae $emoji --split "$work/emoji-others-split.json" --flip --threads 1 --checkpoint-every 250
    stages e-base "$(sed -n 's/^steps: //p' studies/text/base.yaml)" -- -C studies/text/base.yaml $emoji --autoencoder "$work/e-vae" --split "$work/emoji-others-split.json"
    stages e-all 2500 5000 -- -C studies/text/fine-tune.yaml $emoji --base "$work/e-base" --split "$work/emoji-split.json"
    ;;
esac
