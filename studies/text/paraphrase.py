"""Five further texts an image, by template: `python studies/text/paraphrase.py DATA FILE` for the `text`s of DATA/metadata.jsonl.

A stand-in for a captioner (`diffleak caption`), whose weights could not be had for this study.
"""

import json
import sys
from pathlib import Path

TEMPLATES = ("a picture of {}", "an emoji that shows {}", "a small drawing of {}", "icon: {}", "{} on a plain background")

if __name__ == "__main__":
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {row["file_name"]: [row["text"], *(template.format(row["text"]) for template in TEMPLATES)] for row in rows}
    output.write_text(json.dumps(texts, indent=0), encoding="utf-8")
