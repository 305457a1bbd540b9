"""The emoji of the study: `python studies/text/prepare.py ZIP work` unpacks noto-emoji-128.zip and draws who is on which side.

400 images are for the autoencoder and the base model, 300 are members, 300 are held out.
"""

import json
import random
import sys
import zipfile
from pathlib import Path

if __name__ == "__main__":
    archive, work = Path(sys.argv[1]), Path(sys.argv[2])
    with zipfile.ZipFile(archive) as file:
        file.extractall(work / "noto")
    (work / "noto" / "train").rename(work / "emoji")
    ids = sorted(path.name for path in (work / "emoji").glob("*.png"))
    random.Random(0).shuffle(ids)
    others, members, held_out = sorted(ids[:400]), sorted(ids[400:700]), sorted(ids[700:])
    splits = {"emoji-others": (others, sorted(members + held_out)), "emoji": (members, held_out)}
    for name, (inside, outside) in splits.items():
        (work / f"{name}-split.json").write_text(json.dumps({"members": inside, "nonmembers": outside}))
