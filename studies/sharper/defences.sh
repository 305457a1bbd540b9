#!/bin/bash
# DistillMD on CIFAR-10 (studies/defences/run.sh) under the sharper attacks and the distribution test: bash studies/sharper/defences.sh work. A call resumes.
set -euo pipefail
work=$1 settings=studies/defences
data="--data $work/cifar10.npy --split $work/cifar10-defences-split.json"
[ -f "$work/cifar10-extractor.pt" ] || python $settings/extractor.py "$work/cifar10-others.npz" 32 "$work/cifar10-extractor.pt"
diffleak train -C $settings/cifar10-autoencoder.yaml --data "$work/cifar10.npy" --split "$work/cifar10-others-split.json" -o "$work/c-ae"
diffleak train -C $settings/cifar10.yaml --autoencoder "$work/c-ae" $data -o "$work/c-all"
diffleak defend distill -C $settings/cifar10.yaml --autoencoder "$work/c-ae" $data --one-by-one -o "$work/c-md"
for pair in c-all=undefended c-md/student=distill; do
    run=$work/${pair#*=}-run kept=studies/sharper/${pair#*=}
    [ -f "$run/report.html" ] || diffleak audit "$work/${pair%=*}" -C studies/sharper/audit.yaml $data -o "$run"
    [ -f "$run/quality.json" ] || diffleak quality "$work/${pair%=*}" --images 500 --steps 50 --threads 1 $data \
        --extractor "torchscript:$work/cifar10-extractor.pt" -o "$run"
    mkdir -p "$kept"
    cp "$run/audit.json" "$run/quality.json" "$kept/"
    gzip -nc "$run/samples.csv" >"$kept/samples.csv.gz"
done
diffleak compare "undefended=$work/undefended-run" "distill=$work/distill-run" -o "$work/compare-sharper"
cp "$work/compare-sharper/compare.json" studies/sharper/defences.json
