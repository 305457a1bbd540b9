#!/bin/bash
# Audits of stages that train.sh has kept: bash studies/sharper/audit.sh work [NAME...]. A call resumes; records and scores go beside this file.
set -euo pipefail
work=$1
shift
audit() {  # NAME FLAGS: the model work/NAME, or nothing where NAMEs were given and this is none of them
    name=$1
    [ ${#wanted[@]} = 0 ] || [[ " ${wanted[*]} " = *" $name "* ]] || return 0
    [ -f "$work/$name-run/report.html" ] ||
        diffleak audit "$work/$name" -C studies/sharper/audit.yaml "${@:2}" -o "$work/$name-run"
    mkdir -p "studies/sharper/$name"
    cp "$work/$name-run/audit.json" "studies/sharper/$name/"
    gzip -nc "$work/$name-run/samples.csv" >"studies/sharper/$name/samples.csv.gz"
}
wanted=("$@")
pixels="--data $work/cifar10.npy --split $work/cifar10-split.json --limit 600"
latents="--data $work/cifar10.npy --split $work/cifar10-latent-split.json --limit 1000"
audit cifar10-128-1500 $pixels
audit cifar10-128-2000 $pixels
audit cifar10-128-2500 $pixels --reference "$work/cifar10-128-reference-2500"
audit cifar10-128-seed1-2500 $pixels
audit cifar10-128-seed2-2500 $pixels
audit tiny-imagenet-128-2500 --data "$work/tiny-imagenet.npy" --split "$work/tiny-imagenet-split.json"
audit cifar10-latent-vae-1250 $latents
audit cifar10-latent-vae-2500 $latents --reference "$work/cifar10-latent-vae-reference-2500"
audit cifar10-latent-vae-3750 $latents
audit e-all-2500 --data "$work/emoji" --resize --captions own --split "$work/emoji-split.json" --reference "$work/e-base"
