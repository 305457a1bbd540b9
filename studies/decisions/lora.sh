#!/bin/bash
# One LoRA of 30 emoji at four stages, and what `diffleak lora` says of them: bash studies/decisions/lora.sh work. A call resumes.
# Needs work/emoji, its splits and work/e-base, as studies/text/run.sh makes them.
set -euo pipefail
work=$1 pictures=$1/lora/10_emoji held_out=$1/lora/more
[ -d "$work/lora" ] || python studies/decisions/lora_pictures.py "$work/emoji" "$work/emoji-split.json" "$work/lora"
for steps in 100 400 1600; do
    [ -d "$work/e-lora-$steps" ] && continue
    diffleak train --preset lora --base "$work/e-base" --data "$pictures" --resize 32 --steps "$steps" --learning-rate 1e-3 \
        --lora-rank 16 --threads 1 --checkpoint-every 100 -o "$work/e-lora"
    cp -r "$work/e-lora" "$work/e-lora-$steps.part"
    rm -rf "$work/e-lora-$steps.part/checkpoint"
    mv "$work/e-lora-$steps.part" "$work/e-lora-$steps"
done
diffleak lora "$work/e-base" "$work/e-lora-*00" --pictures "$pictures" --threads 1 -o "$work/lora-drawn"
diffleak lora "$work/e-base" "$work/e-lora-*00" --pictures "$pictures" --held-out "$held_out" --threads 1 -o "$work/lora-audited"
cp "$work/lora-drawn/lora.json" studies/decisions/lora-drawn.json
cp "$work/lora-audited/lora.json" studies/decisions/lora-audited.json
