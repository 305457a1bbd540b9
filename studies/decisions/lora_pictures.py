"""30 members and 100 held-out emoji of 32 pixels as kohya reads them: `python studies/decisions/lora_pictures.py DATA SPLIT OUT`."""

import json
import sys
from pathlib import Path

from PIL import Image

from diffleak.data.sources import open_source

data, split, out = sys.argv[1:]
source, sides = open_source(data), json.loads(Path(split).read_text())
captions = source.captions()
for folder, ids in (("10_emoji", sides["members"][:30]), ("more", sides["nonmembers"][:100])):
    (Path(out) / folder).mkdir(parents=True)
    for image_id in ids:
        i = source.ids.index(image_id)
        picture = Image.fromarray(source.read(i)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        picture.save(Path(out) / folder / f"{Path(image_id).stem}.png")
        (Path(out) / folder / f"{Path(image_id).stem}.txt").write_text(captions[i][0])
