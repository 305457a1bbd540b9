"""The emoji that the base model was not trained on, and sides of them by a coin: `python studies/decisions/emoji_sides.py WORK COIN`.

Without COIN, WORK/emoji600; with it, folders of 100 members and 200 held-out emoji.
"""

import json
import shutil
import sys
from pathlib import Path


def keep(work: Path, name: str, ids: list[str]) -> None:
    """Copies some emoji with their captions into a folder."""
    folder = work / name
    folder.mkdir(exist_ok=True)
    rows = [line for line in (work / "emoji" / "metadata.jsonl").read_text().splitlines() if json.loads(line)["file_name"] in ids]
    for image_id in ids:
        shutil.copy(work / "emoji" / image_id, folder / image_id)
    (folder / "metadata.jsonl").write_text("\n".join(rows))


if __name__ == "__main__":
    work = Path(sys.argv[1])
    if len(sys.argv) == 2:
        trained = json.loads((work / "emoji-others-split.json").read_text())["members"]
        keep(work, "emoji600", sorted({path.name for path in (work / "emoji").glob("*.png")} - set(trained)))
    else:
        coin = json.loads(Path(sys.argv[2]).read_text())
        for name, ids in (("emoji-100", coin["members"][:100]), ("emoji-200", coin["nonmembers"][:200])):
            keep(work, name, sorted(ids))
