"""Copies an extract.json with its 24 closest pairs alone: `python studies/decisions/without_pairs.py extract.json OUT.json`."""

import json
import sys
from pathlib import Path

record = json.loads(Path(sys.argv[1]).read_text())
record["pairs"] = record["pairs"][:24]
Path(sys.argv[2]).write_text(json.dumps(record, indent=2) + "\n")
