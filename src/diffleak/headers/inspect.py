"""What a file's header, and a config of peft beside it, give away, as a record and as a table in words."""

from pathlib import Path

from diffleak.errors import GateFailed, listed, one_or_more, unknown
from diffleak.headers.strip import strip
from diffleak.records.headers import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    Finding,
    HeaderRecord,
    findings,
    in_words,
    only_file,
    peft_config,
    read_header,
    texts,
)

FAIL_ON = ("private",)  # what --fail-on takes
SHOWN_CHARACTERS = 90  # of the values in a line of the table


def inspect(file: Path, out: Path | None = None, fail_on: str | None = None) -> HeaderRecord:
    """What the header of a file, or of the only one in a folder, gives away, and with `out` a copy without that.

    Raises `UserError` for what is no .safetensors file.
    """
    if fail_on not in (None, *FAIL_ON):
        raise unknown("value of --fail-on", str(fail_on), FAIL_ON)
    file = only_file(file)
    header = read_header(file)
    config = peft_config(file)
    found = findings(texts(header, config))
    copy = strip(file, header, out, config) if out else None
    return HeaderRecord(
        file=str(file),
        tensors=len(header.tensors),
        keys=len(header.metadata),
        config=str(config) if config else None,
        findings=found,
        private=any(finding.private for finding in found),
        stripped=None if out is None else str(out),
        kept=copy.kept if copy else None,
        stripped_config=str(copy.config) if copy and copy.config else None,
        taken_out=copy.taken_out if copy and copy.config else None,
    )


def table(record: HeaderRecord) -> str:
    """The record for a terminal: a line for each kind with how many there are, the first of them, and the keys that hold them."""
    tensors, keys = one_or_more(record.tensors, "tensor"), one_or_more(record.keys, "other key")
    head = f"{record.file}: {tensors}, {keys} in the header" + (f", and the {PEFT_CONFIG} beside it" if record.config else "")
    width = max((len(in_words(finding.kind, finding.count)) for finding in record.findings), default=0)
    lines = [head, *(_line(finding, width) for finding in record.findings)]
    private = [finding for finding in record.findings if finding.private]
    said = ", ".join(in_words(finding.kind, finding.count) for finding in private)
    lines.append(f"private: {said}" if private else "private: nothing that is known")
    if record.kept is not None:
        lines.append(f"stripped: {record.stripped} (same weights, byte for byte; kept: {listed(record.kept, 400) or 'no key'})")
        if record.stripped_config:
            lines.append(f"stripped: {record.stripped_config} (taken out: {listed(record.taken_out or (), 400) or 'nothing'})")
    elif private:
        out = f"CLEAN/{PEFT_WEIGHTS}.safetensors" if record.config else "OUT"
        lines.append(f"to release the weights without it: diffleak metadata FILE --strip {out}")
    return "\n".join(lines)


def gate(record: HeaderRecord, fail_on: str | None) -> None:
    """Raises `GateFailed` where the header gives away something private, and the user wants to fail on that."""
    private = [finding for finding in record.findings if finding.private]
    if fail_on and private:
        said = ", ".join(in_words(finding.kind, finding.count) for finding in private)
        them = "it" if sum(finding.count for finding in private) == 1 else "them"
        instead = f"release the copy {record.stripped}" if record.stripped else f"--strip OUT writes a copy without {them}"
        raise GateFailed(f"{record.subject} {said}; {instead}")


def _line(finding: Finding, width: int) -> str:
    values, keys = listed(finding.values, SHOWN_CHARACTERS), listed(finding.keys, 60)
    mark = "!" if finding.private else " "
    return f"  {mark} {in_words(finding.kind, finding.count):{width}}  {values}  [{keys}]"
