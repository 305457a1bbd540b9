"""Uses an installed diffleak away from its sources: version, self-test, a training by a preset, an audit and its page."""

import subprocess
import sys
from pathlib import Path

import diffleak

PACKAGE = Path(diffleak.__file__).parent
TRAIN = "train --data digits --train-size 200 --preset digits --steps 2 --device cpu -o model"
AUDIT = "audit model --data digits --split model/split.json --limit 40 --attacks loss --timesteps 100:100:10 --device cpu -o run"


def diffleak_(line: str) -> str:
    """What a command prints; ends here where it fails."""
    return subprocess.run(["diffleak", *line.split()], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    assert PACKAGE.is_relative_to(sys.prefix), f"{PACKAGE} is not in {sys.prefix}"
    shipped = {path.suffix for path in PACKAGE.rglob("*") if path.is_file()}
    assert shipped >= {".css", ".j2", ".typed", ".yaml"}, shipped
    assert diffleak_("--version").strip() == f"diffleak {diffleak.__version__}"
    diffleak_("doctor")
    diffleak_(TRAIN)
    diffleak_(AUDIT)
    assert "<style>" in Path("run/report.html").read_text(encoding="utf-8")
    diffleak_("verify run")
    print(f"diffleak {diffleak.__version__} works as installed")


if __name__ == "__main__":
    main()
