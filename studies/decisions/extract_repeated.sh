#!/bin/bash
# Does a text model give back the pictures whose captions its training repeats? bash studies/decisions/extract_repeated.sh work. A call resumes.
# 48 emoji, 8 of them 20 times each; fine-tuned from work/e-base, as studies/text/run.sh makes it. The record, with every pair, goes beside this file.
set -euo pipefail
work=$1 out=$1/repeated
[ -d "$out/more" ] || python studies/decisions/repeated_pictures.py "$work/emoji" "$work/emoji-split.json" "$out"
diffleak train -C studies/text/fine-tune.yaml --base "$work/e-base" --data "$out/train" --steps 800 --checkpoint-every 100 -o "$work/e-repeated"
diffleak extract "$work/e-repeated" --members "$out/members" --nonmembers "$out/more" --draws 4 --steps 20 --guidance-scale 3 --false-copies 0.05 \
    --threads 1 --thumbnails -o "$work/extract-repeated"
cp "$work/extract-repeated/extract.json" studies/decisions/extract-repeated.json
python - studies/decisions/extract-repeated.json <<'PY'
import json
import sys

record = json.load(open(sys.argv[1]))
first = record["distances"][0]
for kind in ("repeated", "once"):
    pairs = [pair for pair in record["pairs"] if pair["id"].startswith(kind)]
    print(f"{kind}: {sum(pair['distances'][first['distance']] < first['threshold'] for pair in pairs)} of {len(pairs)} nearer than {first['threshold']:.3f} by {first['distance']}")
PY
