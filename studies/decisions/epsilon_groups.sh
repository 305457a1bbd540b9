#!/bin/bash
# How much epsilon, at least, for one group? A model of digits in 240 groups of 4 images, of which a coin for each group chose those that it
# was trained on.     bash studies/decisions/epsilon_groups.sh WORK     takes some minutes on one core; leaves epsilon-groups.json beside.
set -eu
work=$1
here=$(cd "$(dirname "$0")" && pwd)
run() { python -m diffleak "$@"; }

mkdir -p "$work"
python - "$work/digits" <<'PY'
import json, sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
images = np.clip(load_digits().images * 16, 0, 255).astype(np.uint8)
rows = np.random.default_rng(0).permutation(len(images))[:960]
lines = []
for place, row in enumerate(rows):
    name = f"{place:03d}.png"
    Image.fromarray(images[row]).save(folder / name)
    lines.append(json.dumps({"file_name": name, "group": f"group-{place // 4:03d}"}))
(folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
PY
run split "$work/digits" --coin --group group -o "$work/split.json"
run train -C "$here/groups.yaml" --data "$work/digits" --split "$work/split.json" -o "$work/model"
run audit "$work/model" --data "$work/digits" --split "$work/split.json" --group group --sweep all --device cpu --threads 1 \
    --attacks loss,pia,sima --timesteps 40:200:40 -o "$work/run"
run epsilon "$work/run" --delta 1e-4
run epsilon "$work/run" --delta 1e-4 --json > "$here/epsilon-groups.json"
