"""The line that says how a run may be passed on, since it names single images; for pages and the terminal."""

from pathlib import Path

COMMAND = "diffleak reveal"


def on_page(anonymous: bool, pictures: bool = False) -> str:
    """The handling line of a page."""
    if anonymous:
        return (
            "Images go by keyed ids here, not by file name. Only the key of the run leads back to the names, so keep it back when you "
            f"pass this page on; its owner gets the names by {COMMAND} RUN. Paths of folders are written as they were given."
        )
    shown = "shows training images and names them" if pictures else "names training images"
    return (
        f"This page {shown} (file name or row number): personal data where they are of people. Pass it on only to those who may know "
        "which images the model was trained on; with --anonymous, images go by keyed ids."
    )


def in_terminal(anonymous: bool, folder: Path) -> str:
    """The handling line of a finished run."""
    if anonymous:
        return f"handling: images go by keyed ids; {COMMAND} {folder} gives their names. Never pass the key on with the run"
    return (
        f"handling: {folder} names images (file name or row number), personal data where they are of people; --anonymous writes keyed ids"
    )
