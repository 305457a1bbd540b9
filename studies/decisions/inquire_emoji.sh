#!/bin/bash
# Emoji of the text model, and held-out ones as if they were members, put in question: bash studies/decisions/inquire_emoji.sh work [OUT].
# work is the folder of studies/text (model e-all-2500, emoji with captions, emoji-split.json); records go beside this file. A call resumes.
# `heldout` are 200 held-out emoji against the other 100 as controls: the split has 300.
set -euo pipefail
work=$1 out=${2:-$1/inquire-emoji} kept=studies/decisions
mkdir -p "$out"
python - "$work" "$out" <<'PYTHON'
import json, random, shutil, sys
from pathlib import Path
work, out = map(Path, sys.argv[1:])
split = json.loads((work / "emoji-split.json").read_text())
captions = {row["file_name"]: row for row in map(json.loads, (work / "emoji/metadata.jsonl").read_text().splitlines())}
members, heldout = (random.Random(0).sample(split[side], 300) for side in ("members", "nonmembers"))
sides = {"20": members[:20], "50": members[:50], "200": members[:200], "control": heldout[:200], "other": heldout[200:], "heldout": heldout[:200]}
for name, images in sides.items():
    folder = out / name
    folder.mkdir(exist_ok=True)
    for image in images:
        shutil.copy(work / "emoji" / image, folder / image)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(captions[image]) + "\n" for image in images))
PYTHON
for what in other 20 50 200 heldout; do
    run=$out/$what-run control=$out/control
    [ $what = heldout ] && control=$out/other
    [ -f "$run/inquiry.json" ] ||
        diffleak inquire "$work/e-all-2500" --images "$out/$what" --control "$control" --attacks sima,loss,pia --timesteps 50:150:50 \
            --resize --threads 1 -o "$run" || [ $? = 4 ]
    cp "$run/inquiry.json" "$kept/inquire-emoji-$what.json"
done
