#!/bin/bash
# Audits of stages that train.sh has kept: bash studies/sharper/audit.sh work. A call resumes; records and scores go beside this file.
set -euo pipefail
work=$1
audit() {  # NAME SPLIT LIMIT
    [ -f "$work/$1-run/report.html" ] ||
        diffleak audit "$work/$1" -C studies/sharper/audit.yaml --data "$work/cifar10.npy" --split "$work/$2" --limit "$3" -o "$work/$1-run"
    mkdir -p "studies/sharper/$1"
    cp "$work/$1-run/audit.json" "studies/sharper/$1/"
    gzip -nc "$work/$1-run/samples.csv" >"studies/sharper/$1/samples.csv.gz"
}
audit cifar10-128-1500 cifar10-split.json 600
audit cifar10-128-2500 cifar10-split.json 600
audit cifar10-latent-vae-1250 cifar10-latent-split.json 1000
audit cifar10-latent-vae-2500 cifar10-latent-split.json 1000
