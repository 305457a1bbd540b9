"""Captions of members and of held-out emoji as two lists of prompts: `python studies/text/lists.py work`; one on both is left out."""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    work = Path(sys.argv[1])
    told = {row["file_name"]: row["text"] for row in map(json.loads, (work / "emoji" / "metadata.jsonl").read_text().splitlines())}
    split = json.loads((work / "emoji-split.json").read_text())
    members, held_out = ({told[i] for i in split[side]} for side in ("members", "nonmembers"))
    for name, texts in (("members", members - held_out), ("held-out", held_out - members)):
        (work / f"emoji-{name}.txt").write_text("".join(f"{text}\n" for text in sorted(texts)))
