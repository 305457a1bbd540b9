"""The line that says how a run may be passed on, since it names single images; for pages and the terminal."""

import shlex
from pathlib import Path

COMMAND = "diffleak reveal"


def on_page(anonymous: bool, pictures: bool = False) -> str:
    """The handling line of a page."""
    if anonymous:
        return (
            "This page names images by keyed ids, not by file name. Only the key of the run turns them back into names "
            f"({COMMAND} RUN), so do not pass the key on with this page. Paths of folders are written as they were given."
        )
    shown = "shows training images and names them" if pictures else "names training images"
    return (
        f"This page {shown} (file name or row number), which is personal data if they show people. Pass it on only to people who may "
        "know which images the model was trained on. With --anonymous, a run names images by ids that only your key turns back into names."
    )


def in_terminal(anonymous: bool, folder: Path) -> str:
    """The handling line of a finished run."""
    if anonymous:
        names = f"{COMMAND} {shlex.quote(str(folder))} gives their names"
        return f"handling: images are named by keyed ids; {names}. Never pass the key on with the run"
    return (
        f"handling: {folder} names images (file name or row number), which is personal data if they show people; --anonymous writes ids "
        "instead, which only your key turns back into names"
    )
