"""What the site makes itself: the command reference from the parser, records from their source, the table of attacks, pages from elsewhere.

mkdocs calls `on_files` and `on_page_markdown`.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from diffleak import cli
from diffleak.attacks.base import written
from diffleak.attacks.listing import listing

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RECORDS = ROOT / "src" / "diffleak" / "records"
FILES = {  # module of records: what people look for
    "base": "Numbers with an interval",
    "audit": "audit.json",
    "plan": "plan.json, and the parts of audit.json that it shares",
    "chosen": "chosen.json",
    "groups": "Groups, in audit.json",
    "evidence": "Evidence, in audit.json",
    "images": "How images were read, in audit.json",
    "scores": "scores/ and samples.csv",
    "sweep": "sweep.json",
    "lora": "lora.json",
    "inquiry": "inquiry.json",
    "extraction": "extract.json",
    "epsilon": "epsilon.json",
    "gate": "gate.json",
    "quality": "quality.json",
    "comparison": "compare.json",
    "prompts": "prompts.json",
    "check": "check.json",
    "conversion": "What `convert` prints with --json",
    "headers": "What `metadata` prints with --json",
    "digests": "digests.json",
    "maps": "maps.npy",
}
BORROWED = {
    "studies.md": ROOT / "studies" / "README.md",
    "decisions.md": ROOT / "studies" / "decisions" / "README.md",
    "changelog.md": ROOT / "CHANGELOG.md",
}
PAGES = {source: name for name, source in BORROWED.items()} | {RECORDS: "reference/records.md", DOCS / "design": "design/index.md"}
PICTURE = re.compile(r"!\[[^\]\n]*\]\(([^)\s:]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
CALIBRATED = re.compile(r"(?<=[\w)\]])\[calibrated\](?=[^`\n]*\|)")  # of tables, where it would be a link


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made or lie outside of docs/, with their pictures."""
    made = {"reference/commands.md": commands(), "reference/records.md": records(), "design/index.md": designs()}
    made |= {name: source.read_text(encoding="utf-8") for name, source in BORROWED.items()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for source in BORROWED.values():
        for picture in PICTURE.findall(source.read_text(encoding="utf-8")):
            files.append(File.generated(config, picture, abs_src_path=str(source.parent / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fills in the table of attacks, and makes links of pages from elsewhere lead to pages of the site; other files are only named."""
    here = page.file.src_uri
    source = BORROWED.get(here, DOCS / here)

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], (source.parent / found[2]).resolve(), found[3] or ""
        at = PAGES.get(target) or (target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else None)
        if at is None and target.exists():
            return f"{text} (`{target.relative_to(ROOT).as_posix()}`)"
        return f"[{text}]({'../' * here.count('/')}{at or found[2]}{anchor})"

    linked = LINK.sub(link, markdown.replace("<!-- attacks -->", attacks()))
    return CALIBRATED.sub(r"\\[calibrated\\]", linked) if here in BORROWED else linked


def designs() -> str:
    """The list of design notes by their titles."""
    notes = sorted((DOCS / "design").glob("[0-9]*.md"))
    titles = [re.sub(r"^[#\s]+", "", note.read_text(encoding="utf-8").partition("\n")[0]) for note in notes]
    rows = "\n".join(f"- [{title}]({note.name})" for title, note in zip(titles, notes, strict=True))
    return (
        "# Design notes\n\nWhy the parts are built as they are, what was measured with which command, and what they do not do. "
        f"They are written for people who change the code.\n\n{rows}\n"
    )


def attacks() -> str:
    """The table of `diffleak attacks`."""
    rows = ["| name | what it sees | forwards, one timestep | default | parameters | source |", "|---|---|---|---|---|---|"]
    for row in listing():
        parameters = ", ".join(f"`{key}={written(key, value)}`" for key, value in row["parameters"].items())
        one = row["queries_one_timestep"]
        rows.append(
            f"| `{row['attack']}` | {row['access']} | {one} | {row['queries_default_sweep']} | {parameters or 'none'} | {row['source']} |"
        )
    return "\n".join(rows)


def commands() -> str:
    """Every command with its arguments and options, as the parser has them."""
    parts = [
        "# Command reference",
        "Made from the options themselves. `diffleak COMMAND --help` prints the same. Every command takes `-h`. An option that names no "
        "default does nothing if you leave it out. Keys of `-C FILE.yaml` are the long flags with underscores.",
    ]
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        real = command.make_context(name, [], resilient_parsing=True).command
        arguments = [each for each in real.params if each.param_type_name == "argument"]
        options = [each for each in real.params if each.param_type_name == "option" and each.name != "help"]
        usage = " ".join([f"diffleak {name}", *(shown(each) for each in arguments), "[OPTIONS]"])
        parts += [f"## {name}", text(real.help), f"```text\n{usage}\n```"]
        parts += [entry(f"`{shown(each)}`", each) for each in arguments]
        parts += [entry(flags(each), each) for each in options]
    return "\n\n".join(parts) + "\n"


def shown(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper()
    return name if argument.required else f"[{name}]"


def flags(option: Any) -> str:
    names = [*sorted(option.opts, key=len), *option.secondary_opts]
    value = "" if option.is_flag else f" <{option.type_descriptor.annotation.__name__.lower().replace('list', 'str')}>"
    return ", ".join(f"`{each}`" for each in names[:-1]) + (", " if names[:-1] else "") + f"`{names[-1]}{value}`"


def entry(term: str, parameter: Any) -> str:
    """A line of a definition list; a default that the help does not say is added."""
    said = text(parameter.help)
    default = parameter.default
    if default is not None and not callable(default) and default is not False and str(default) not in said and "UNSET" not in repr(default):
        said += f" Default: `{default}`."
    return f"{term}\n:   {said}"


def text(help_text: str | None) -> str:
    """Help as Markdown: what could be markup is shown as it is."""
    return re.sub(r"([*_<\[\]])", r"\\\1", help_text or "") if "`" not in (help_text or "") else re.sub(r"([<*])", r"\\\1", help_text or "")


def records() -> str:
    """Every field of every file that is written, from the line under it in the source."""
    parts = [
        "# Fields of the files",
        "Made from the sources: each class is an object of a file, and each field has the line that documents it. "
        "The JSON keys are the names of the fields. [Which file is checked for what](../files.md) is another page.",
    ]
    for module, title in FILES.items():
        kinds = list(classes(RECORDS / f"{module}.py"))
        if not kinds:
            continue
        parts.append(f"## {title}")
        for name, said, fields in kinds:
            rows = "\n".join(f"| `{field}` | {kind} | {what} |" for field, kind, what in fields)
            parts.append(f"### {name}\n\n{said}\n\n| field | type | what it is |\n|---|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def classes(path: Path) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """Name, documentation and documented fields of each class of a module that has such."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = [
            (ast.unparse(field.target), f"`{ast.unparse(field.annotation)}`".replace("|", "\\|"), cell(below.value.value))
            for field, below in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        ]
        if fields:
            yield node.name, cell(ast.get_docstring(node) or ""), fields


def cell(said: Any) -> str:
    """A text on one line, as a cell of a table."""
    return (
        re.sub(r"([|<*_\[\]])", r"\\\1", " ".join(str(said).split()))
        if "`" not in str(said)
        else " ".join(str(said).split()).replace("|", "\\|")
    )
