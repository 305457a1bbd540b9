"""A training set that repeats some captions: `python studies/decisions/repeated_pictures.py DATA SPLIT OUT`.

OUT/train has 48 emoji of 32 pixels, the first 8 of them 20 times each under other names with the same caption; OUT/members has each once,
OUT/more has 120 held-out ones.
"""

import json
import sys
from pathlib import Path

from PIL import Image

from diffleak.data.sources import open_source

REPEATED, TIMES, MEMBERS, HELD_OUT = 8, 20, 48, 120

data, split, out = sys.argv[1:]
source, sides = open_source(data), json.loads(Path(split).read_text())
captions = source.captions()


def picture(image_id: str, folder: str, name: str) -> None:
    i = source.ids.index(image_id)
    path = Path(out) / folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(source.read(i)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC).save(path)
    path.with_suffix(".txt").write_text(captions[i][0])


for n, image_id in enumerate(sides["members"][:MEMBERS]):
    name = f"{'repeated' if n < REPEATED else 'once'}-{Path(image_id).stem}"
    picture(image_id, "members", name)
    for time in range(TIMES if n < REPEATED else 1):
        picture(image_id, "train", f"{name}-{time:02d}")
for image_id in sides["nonmembers"][:HELD_OUT]:
    picture(image_id, "more", Path(image_id).stem)
