#!/bin/bash
# Epsilon and extract on a small emoji text model of 16 pixels whose training images were drawn by coin: bash studies/decisions/emoji.sh ZIP WORK,
# ZIP being noto-emoji-128.zip. About half an hour on one core; a call resumes. Leaves epsilon-emoji.json and extract-emoji-16.json beside this script.
set -eu
zip=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
run() { python -m diffleak "$@"; }

[ -d "$work/emoji" ] || python "$here/../text/prepare.py" "$zip" "$work"
[ -d "$work/emoji600" ] || python "$here/emoji_sides.py" "$work"
[ -f "$work/coin.json" ] || run split "$work/emoji600" --coin --seed 1 -o "$work/coin.json"
python "$here/emoji_sides.py" "$work" "$work/coin.json"
others="--data $work/emoji --split $work/emoji-others-split.json --resize 16 --threads 1"
run train -C "$here/emoji-vae.yaml" $others --flip --checkpoint-every 300 -o "$work/v16"
run train -C "$here/emoji-base.yaml" $others --autoencoder "$work/v16" -o "$work/b16"
run train -C "$here/../text/fine-tune.yaml" --data "$work/emoji600" --resize 16 --base "$work/b16" --split "$work/coin.json" --steps 2000 -o "$work/c16"
run audit "$work/c16" --data "$work/emoji600" --split "$work/coin.json" --resize --sweep all --attacks loss,sima,pia --timesteps 60:300:60 \
    --threads 1 --reference "$work/b16" -o "$work/run-emoji"
run epsilon "$work/run-emoji" --delta 1e-5
run epsilon "$work/run-emoji" --delta 1e-5 --json > "$here/epsilon-emoji.json"
run extract "$work/c16" --members "$work/emoji-100" --nonmembers "$work/emoji-200" --resize --draws 2 --steps 15 --guidance-scale 3 \
    --false-copies 0.02 --threads 1 --thumbnails -o "$work/extract-emoji-16"
python "$here/without_pairs.py" "$work/extract-emoji-16/extract.json" "$here/extract-emoji-16.json"
