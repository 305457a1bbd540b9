#!/bin/bash
# Audits of the stages that train.sh has kept: bash studies/sharper/audit.sh work STEPS... A call resumes.
set -euo pipefail
work=$1
shift
for steps in "$@"; do
    name=cifar10-512-$steps
    [ -f "$work/$name-run/report.html" ] ||
        diffleak audit "$work/$name" -C studies/sharper/audit.yaml --data "$work/cifar10.npy" --split "$work/cifar10-512-split.json" \
            -o "$work/$name-run"
    mkdir -p "studies/sharper/$name"
    cp "$work/$name-run/audit.json" "studies/sharper/$name/"
    gzip -nc "$work/$name-run/samples.csv" >"studies/sharper/$name/samples.csv.gz"
done
