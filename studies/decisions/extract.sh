#!/usr/bin/env bash
# Are training images drawn? `studies/decisions/extract.sh` from the project root, after the studies of CIFAR-10 and of text (studies/README.md).
# Writes records without images beside this file. Every command resumes. About half an hour on one CPU core.
set -euo pipefail
S=studies/decisions

# 8 digits, overfitted on purpose
diffleak train -C $S/overfitted.yaml --data digits -o work/digits-8
diffleak extract work/digits-8 --data digits --split work/digits-8/split.json --images 128 --threads 1 --thumbnails -o work/extract-digits-8

# 128 members of CIFAR-10, 500 epochs; the encoder is that of the study of defences, trained on other images
diffleak extract work/cifar10-128-4000 --data work/cifar10.npy --split work/cifar10-split.json --images 256 --steps 25 --threads 1 --thumbnails \
  --extractor torchscript:work/cifar10-extractor.pt -o work/extract-cifar10-128

# a text model fine-tuned on emoji, 100 of each side, two drawings for each caption
diffleak extract work/e-all-2500 --data work/emoji --split work/emoji-split.json --resize --limit 100 --draws 2 --steps 15 --guidance-scale 3 \
  --false-copies 0.02 --threads 1 --thumbnails -o work/extract-emoji

for name in digits-8 cifar10-128 emoji; do python $S/without_pairs.py "work/extract-$name/extract.json" "$S/extract-$name.json"; done
