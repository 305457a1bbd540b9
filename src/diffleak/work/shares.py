"""The share of long work that a process does: `--shard i/n`, or the worker that a launcher says this process is.

Workers do not talk to each other: each does its chunks, and a chunk whose files exist is done. One that needs those of the others looks
at the folder until they are there.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffleak.errors import UserError, one_or_more
from diffleak.work.progress import say

POLL = 1.0  # seconds between two looks at the chunks of other workers
PATIENCE = 24 * 3600.0  # seconds without a new chunk of any other worker after which waiting ends


@dataclass(frozen=True)
class Share:
    """The part of worker `rank` of `count`, counted from 0: every count-th chunk."""

    rank: int
    count: int


def share_of(shard: str | None) -> Share:
    """This process's share: `--shard i/n` (1-based), else RANK and WORLD_SIZE, else everything.

    Raises `UserError` for a shard that is not of the form i/n with 1 <= i <= n, and for a RANK that is none of WORLD_SIZE.
    """
    if shard:
        try:
            rank, count = (int(part) for part in shard.split("/"))
        except ValueError:
            raise UserError(f"--shard is written i/n, as in 1/4; got {shard}") from None
        if not 1 <= rank <= count:
            raise UserError(f"--shard i/n needs 1 <= i <= n; got {shard}")
        return Share(rank - 1, count)
    given = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, count = map(int, given.values())
    except ValueError:
        raise UserError(f"RANK and WORLD_SIZE must be whole numbers, as a launcher sets them; got {given}") from None
    if not 0 <= rank < count:
        raise UserError(f"RANK must lie in [0, WORLD_SIZE); got {given}")
    return Share(rank, count)


def workers_of(chunks: Sequence[int], missing: set[int], count: int) -> str:
    """The workers, counted from 1, whose chunks are missing, of all chunks in their order."""
    place = {chunk: number % count + 1 for number, chunk in enumerate(chunks)}
    return ", ".join(map(str, sorted({place[chunk] for chunk in missing})))


def wait_for_others(
    unfinished: Callable[[], set[int]], chunks: Sequence[int], share: Share, what: tuple[str, str], log: Callable[[str], None] = say
) -> None:
    """Waits until no chunk is unfinished, and says for whom; raises `UserError` after PATIENCE without a new chunk.

    what: what is waited for, one and several, such as "calibrate chunk" and "calibrate chunks".
    """
    seen, said, since = set[int](), "", time.monotonic()
    while left := unfinished():
        if left != seen:
            seen, since = left, time.monotonic()
        whose = workers_of(chunks, left, share.count)
        if whose != said:
            said = whose
            log(
                f"worker {share.rank + 1} of {share.count} waits for {one_or_more(len(left), *what)} of worker {whose}; "
                "if one of them has stopped, start it again and this one goes on"
            )
        if time.monotonic() - since > PATIENCE:
            raise UserError(
                f"worker {share.rank + 1} of {share.count} has seen no new one of the {what[1]} of worker {whose} for "
                f"{PATIENCE / 3600:g} hours: start all workers again with the same command; what is done stays"
            )
        time.sleep(POLL)
