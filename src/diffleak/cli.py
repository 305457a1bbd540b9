"""The command line: parse, call, print. torch is imported only inside the commands that use it.

Long flags equal config keys; `-C FILE.yaml` is read first and flags win. Results go to stdout, everything else to stderr.
"""

import json
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

from diffleak.errors import DiffleakError, GateFailed, UserError, install, one_line, refuse_other_bytes, visible
from diffleak.options import File, command
from diffleak.work.progress import doing

if TYPE_CHECKING:
    from diffleak.auditing.config import AuditConfig, GeometryConfig
    from diffleak.checking.config import CheckConfig
    from diffleak.config import ConvertConfig
    from diffleak.extraction.config import ExtractConfig
    from diffleak.gating.config import GateConfig
    from diffleak.inquiry.config import InquireConfig
    from diffleak.prompts.config import PromptsConfig
    from diffleak.quality.config import QualityConfig
    from diffleak.records.audit import AuditRecord
    from diffleak.report.section import Page
    from diffleak.splitting.config import SplitConfig
    from diffleak.sweep.checkpoints import Checkpoints
    from diffleak.training.config import CaptionConfig

app = typer.Typer(
    name="diffleak",
    help="Measure what a diffusion model leaks about its training images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on stdout.")]
Opt = typer.Option
Given = dict[str, Any]  # the options of a Config that were given
SPLIT_NAMES = "(names the training images: do not release it with the model)"
MODEL_PACKAGES = ("accelerate", "diffusers", "huggingface_hub", "pandas", "safetensors", "torch")  # which docs/install.md leaves out
INTERRUPTED, TERMINATED = 130, 143  # what shells expect after Ctrl-C, and after SIGTERM, which schedulers send
RESUMES = "The same command resumes"  # in the help of a command that keeps its finished work
OPTIONAL_FOLDER = ("quality", "extract", "prompts")  # of those that do, the ones that take no folder, too
UsageError: Any = typer.BadParameter.__base__  # some versions of typer bring a click of their own


@app.command()
def demo(
    output: Annotated[Path, Opt("-o", "--output", help="Folder of the model and the run.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Train a small DDPM on real digits, audit it with seven attacks and write the report. CPU, no network, about two minutes."""
    from diffleak.work.files import refuse_unwritable

    refuse_unwritable(output, "-o", folder=True)
    from diffleak.demo import run_demo

    _print_audit(run_demo(output).record, output / "run", as_json)


@command(app, "splitting.config:SplitConfig")
def split(settings: "SplitConfig", as_json: Json = False) -> None:
    """Before training: choose the held-out images. Near-duplicates and groups stay together. --link or --copy makes two folders."""
    from diffleak.splitting.split import draw

    drawn = draw(settings)
    _print(drawn.summary, as_json, drawn.describe())


@command(app, "checking.config:CheckConfig")
def check(settings: "CheckConfig", as_json: Json = False) -> None:
    """Before an audit: find duplicates and unreadable images, and say if the two sides are fair and large enough. Exit 4 if not."""
    from diffleak.checking import check as api
    from diffleak.report.pages.check import page

    checked = api.check_images(settings)
    if settings.output:
        checked.save(settings.output)
    _print_record(checked.record, page, settings.output / "check.html" if settings.output else None, as_json)
    api.refuse_invalid(checked.record)


@command(app, "training.config:TrainConfig")
def train(
    given: Given,
    preset: Annotated[
        str | None,
        Opt(
            help="Pixels: digits, small, ddpm. Autoencoders: vae, vq. On latents: latent. With captions: text, fine-tune, lora. "
            "Default: small; with --base fine-tune, or lora with --lora-rank; with -C FILE none.",
            show_default=False,
        ),
    ] = None,
    config: File = None,
    as_json: Json = False,
) -> None:
    """Train a DDPM, an autoencoder, a DDPM on its latents, or fine-tune a text-to-image model. The same command resumes."""
    from diffleak.data.given import refuse_paths
    from diffleak.training.config import train_config

    settings = train_config(preset, config, **given)
    refuse_paths(settings)
    from diffleak.training.run import describe, outcome
    from diffleak.training.run import train as train_model

    folder = train_model(settings)
    ended = outcome(folder)
    text = f"model: {folder}\nsplit: {folder / 'split.json'} {SPLIT_NAMES}{describe(ended)}"
    _print({"model": str(folder), "split": str(folder / "split.json"), **ended}, as_json, text)


@command(app, "defenses.config:DefendConfig")
def defend(
    given: Given,
    preset: Annotated[
        str | None, Opt(help="digits, small (default; fine-tune with --base, none with -C FILE), ddpm, latent.", show_default=False)
    ] = None,
    config: File = None,
    as_json: Json = False,
) -> None:
    """Train a defence: DualMD (dual), DistillMD (distill), or plain distillation to compare with. The same command resumes."""
    from diffleak.data.given import refuse_paths
    from diffleak.defenses.config import defend_config

    settings = defend_config(given.pop("method"), preset, config, **given)
    refuse_paths(settings)
    from diffleak.defenses.defend import defend as train_defence

    folder, split = train_defence(settings), settings.output / "split.json"
    _print({"model": str(folder), "split": str(split)}, as_json, f"model: {folder}\nsplit: {split} {SPLIT_NAMES}")


@command(app, "training.config:CaptionConfig")
def caption(settings: "CaptionConfig", as_json: Json = False) -> None:
    """Write extra captions of images, for `train --captions FILE --diversify`. The same command resumes."""
    from diffleak.data.sources import open_source
    from diffleak.training.captioning import write_captions

    file = write_captions(settings, open_source(settings.data, settings.decoding))
    _print({"captions": str(file)}, as_json, f"captions: {file}")


@command(app, "auditing.config:AuditConfig")
def audit(settings: "AuditConfig", as_json: Json = False) -> None:
    """Audit a model with membership inference attacks. The same command resumes.

    For example: diffleak audit MODEL --members TRAIN --nonmembers HELDOUT -o RUN. To audit every checkpoint of a training, give a quoted
    pattern in --lora or --network, or --sweep-models.
    """
    from diffleak.sweep.checkpoints import checkpoints

    found = checkpoints(settings)
    if found is not None:
        return _sweep(settings, found, as_json)
    _audit(settings, "an audit needs a run folder: give -o RUN", as_json)


@command(app, "lora.config:LoraConfig")
def lora(
    given: Given,
    adapters: Annotated[str, typer.Argument(help="An adapter, or a quoted pattern: 'out/*.safetensors'.", show_default=False)],
    config: File = None,
    as_json: Json = False,
) -> None:
    """Which checkpoints of a LoRA may be published? One row each, and one answer. The same command resumes.

    With --held-out: measures what each leaks beyond BASE. Without: compares how close its drawings and those of BASE come to the pictures.
    """
    from diffleak.data.given import refuse_paths
    from diffleak.lora.config import lora_config
    from diffleak.lora.inputs import read_inputs
    from diffleak.records.lora import PAGE
    from diffleak.report.pages.lora import page

    settings = lora_config(adapters, config, **given)
    refuse_paths(settings)
    inputs = read_inputs(settings)
    from diffleak.lora.run import lora as measure

    _print_record(measure(settings, inputs), page, settings.output / PAGE, as_json)


@command(app, "auditing.config:GeometryConfig")
def geometry(settings: "GeometryConfig", as_json: Json = False) -> None:
    """Measure how a decoder stretches each image and latent coordinate, and whether leakage follows. The same command resumes.

    Leaves geometry.parquet (id, distortion) and influence.npy; with members and held-out images also a whole audit.
    """
    _audit(settings, "the geometry needs an output folder: give -o DIR", as_json)


@command(app, "inquiry.config:InquireConfig")
def inquire(settings: "InquireConfig", as_json: Json = False) -> None:
    """Were these images in the training set? Tests images of unknown membership against controls. The same command resumes.

    Leaves inquiry.json, inquiry.csv (image by image) and inquiry.html. Exit 4 if the two sides differ without the model.
    """
    from diffleak.inquiry import run as api
    from diffleak.report.pages.inquiry import page

    prepared, output = api.prepared(settings, log=_planned(settings, as_json)), settings.output
    if settings.dry_run:
        return _print(prepared.summary(), as_json, "" if as_json else f"time: {prepared.estimate()}")
    if output is None:
        raise UserError("an inquiry needs a run folder: give -o RUN")
    record = api.run(prepared, output, timed=not as_json)
    if record is None:
        return _print({"finished": False}, as_json, "this shard is done")
    api.save(record, output)
    _print_record(record, page, output / "inquiry.html", as_json)
    api.refuse_invalid(record)


@command(app, "quality.config:QualityConfig")
def quality(settings: "QualityConfig", as_json: Json = False) -> None:
    """Draw images and compare them with real ones: Fréchet distance, KID, precision, copies. The same command resumes."""
    from diffleak.quality.measure import measure
    from diffleak.report.pages.quality import page

    measured = measure(settings)
    if settings.output:
        measured.save(settings.output, settings.thumbnails)
    _print_record(measured.record, page, settings.output / "quality.html" if settings.output else None, as_json)


@command(app, "extraction.config:ExtractConfig")
def extract(settings: "ExtractConfig", as_json: Json = False) -> None:
    """Draw images and look for training images among them: would the model give my pictures back? The same command resumes."""
    from diffleak.extraction.extract import draw_again, search
    from diffleak.report.pages.extraction import page

    if settings.only is not None:
        drawing = draw_again(settings)
        return _print({"drawing": str(drawing)}, as_json, f"drawing: {drawing}")
    found = search(settings)
    if found is None:
        return _print({"finished": False}, as_json, "this shard is done")
    if settings.output:
        found.save(settings.output, settings.thumbnails)
    _print_record(found.record, page, settings.output / "extract.html" if settings.output else None, as_json)


@command(app, "prompts.config:PromptsConfig")
def prompts(settings: "PromptsConfig", as_json: Json = False) -> None:
    """Find memorised prompts, from what the model draws for them and from its answers to pure noise. The same command resumes."""
    from diffleak.prompts.score import find
    from diffleak.report.pages.prompts import page

    found = find(settings)
    if settings.output:
        found.save(settings.output)
    _print_record(found.record, page, settings.output / "prompts.html" if settings.output else None, as_json)


@app.command()
def metrics(
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet with the columns id, member (1 or 0) and score (higher: more likely a member).", show_default=False
        ),
    ],
    convention: Annotated[
        str, Opt(help="How rates are computed: member-exact, or as a paper's code does: secmi-grid, pia-strict, swapped-strict, first-ge.")
    ] = "member-exact",
    score: Annotated[str, Opt(help="The column of scores, such as sima in a run's samples.csv.")] = "score",
    images: Annotated[
        str | None,
        Opt(help="DATA with the image of each id: also correct the scores for how simple each image is.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute the statistics of a score file; needs no model."""
    from diffleak.auditing.score_file import backwards, calibrate_file, evaluate_and_say
    from diffleak.work.progress import say

    if images is not None:
        if convention != "member-exact":
            raise UserError("--images gives exact statistics; leave out --convention")
        both = calibrate_file(file, images, score)
        if as_json:
            return _print({result.attack: result.model_dump() for result in both}, True, "")
        from diffleak.report import print_calibrated

        return print_calibrated(*both)
    result, which = evaluate_and_say(file, convention, score)
    for said in filter(None, (which, backwards(result))):
        say(f"note: {said}")
    if as_json:
        return _print(result.model_dump(), True, "")
    from diffleak.report import print_result

    print_result(result)


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(
            help="The folder of a finished audit, audit of checkpoints, inquire, extract, check, compare, lora, quality or prompts.",
            show_default=False,
        ),
    ],
    thumbnails: Annotated[
        bool,
        Opt(
            "--thumbnails",
            help="Show pictures (private): of an audit the most exposed images, read from the data; of extract the closest pairs.",
        ),
    ] = False,
    form: Annotated[
        str,
        Opt(
            "--format",
            help="All: html (default), markdown, pdf (by an installed browser). audit, lora, inquire, extract: card (for a model card). "
            "audit: latex, csv.",
        ),
    ] = "html",
    markdown: Annotated[bool, Opt("--markdown", help="The same as --format markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Write the page of a finished folder again from its record, and print it. A record that was edited is refused."""
    from diffleak.auditing import formats as api
    from diffleak.report import again

    chosen = api.known("markdown" if markdown else form)
    if as_json and chosen != "html":
        raise UserError(f"--format {chosen} prints no JSON: leave out --json")
    if thumbnails and chosen not in api.WITH_PAGE:
        raise UserError(f"--thumbnails adds pictures to the html and markdown pages alone: leave it out with --format {chosen}")
    if (run / "sweep.json").is_file():
        return _report_sweep(run, thumbnails, chosen, as_json)
    if names := again.kinds_in(run):
        return _report_again(run, names, chosen, thumbnails, as_json)
    record, text = api.formatted(run, chosen, thumbnails)
    if chosen == "html":
        return _print_audit(record, run, as_json)
    print(visible(text) if chosen == "pdf" else text.removesuffix("\n"))


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="The folder of any finished command.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare every file of a folder with its recorded SHA-256: unchanged, edited, missing or unknown. Exit 1 for edited or missing."""
    from diffleak.records import digests as api

    found = api.verify(run)
    made = api.sums(run)
    value: dict[str, Any] = {"as_recorded": not api.differing(found)}
    value |= {"audit_sha256": made.audit if made else None, "whole_sha256": made.whole if made else None}
    value["files"] = [{"path": each.path, "status": each.status} for each in found]
    lines = [f"{each.status:<9} {each.path}" for each in found]
    _print(value, as_json, "\n".join([*lines, *api.closing(found, made)]))
    api.refuse_differing(run, found)


@app.command()
def epsilon(
    run: Annotated[
        Path, typer.Argument(help="The folder of a finished audit whose sides were drawn by coin (`split --coin`).", show_default=False)
    ],
    delta: Annotated[
        float | None, Opt(help="The delta of the bound, in (0, 1). Default: that of the model's DP-SGD, else 1e-5.", show_default=False)
    ] = None,
    level: Annotated[float, Opt(help="Confidence of the bound.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Compute a lower bound on the epsilon of the training, from one run. Exit 3 if it is above the promise of DP-SGD."""
    from diffleak.bounds import epsilon as api
    from diffleak.report.sections.audit.epsilon import lines

    record = api.epsilon(run, delta, level)
    _print(record.model_dump(mode="json"), as_json, "\n".join(lines(record)))
    api.gate(record)


@app.command()
def reveal(
    run: Annotated[Path, typer.Argument(help="The folder of an anonymous run, with its key.", show_default=False)],
    anonymous_key: Annotated[Path | None, Opt(help="The key file, if it is no longer where the run used it.", show_default=False)] = None,
    output: Annotated[
        Path | None, Opt("-o", "--output", help="The table; default ids.csv in RUN, readable by its owner only.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the file names behind the keyed ids of an anonymous run. Reads the names from the data again."""
    from diffleak.reveal import reveal as reveal_names

    table = reveal_names(run, anonymous_key, output)
    _print({"ids": str(table)}, as_json, f"ids: {table}\nhandling: the table names every image; never pass it on with the run")


@command(app, "gating.config:GateConfig")
def gate(settings: "GateConfig", as_json: Json = False) -> None:
    """Check a finished folder against limits: exit 0 if all are met, exit 3 with a line for each that is not. Writes RUN/gate.json."""
    from diffleak.gating import check as api

    record = api.check_folder(settings)
    met = "\n".join(api.met(record))
    if as_json or met:
        _print(record.model_dump(mode="json"), as_json, met)
    api.refuse(record)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Folders of audits: RUN, or NAME=RUN[,RUN...]. The first is the baseline.", show_default=False
        ),
    ],
    output: Annotated[Path | None, Opt("-o", "--output", help="Where compare.json and compare.html go.", show_default=False)] = None,
    attack: Annotated[
        list[str] | None, Opt(help="Compare this attack only. May be repeated. Default: every attack that all runs have.")
    ] = None,
    halves: Annotated[
        Path | None,
        Opt(
            help="split.json of a defence with two teachers, for the swap audit. Default: the one beside the audited models.",
            show_default=False,
        ),
    ] = None,
    quality: Annotated[
        list[str] | None, Opt(help="NAME=FILE: the quality.json of an entry, if it is not in its RUN. May be repeated.", show_default=False)
    ] = None,
    seed: Annotated[int, Opt(help="Seed of the bootstrap.")] = 0,
    pool: Annotated[
        bool, Opt("--pool", help="Treat the runs of each entry as seeds of one model: report their mean, spread and interval.")
    ] = False,
    latex: Annotated[Path | None, Opt(help="Also write the table of attacks as LaTeX.", show_default=False)] = None,
    csv: Annotated[Path | None, Opt(help="Also write the table of attacks as CSV.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Compare finished audits with the first of them, image by image: which leaks less, by how much, at what quality."""
    from diffleak.comparison import compare as api
    from diffleak.work.files import refuse_unwritable

    for place, flag in ((output, "-o"), (latex, "--latex"), (csv, "--csv")):
        if place is not None:
            refuse_unwritable(place, flag, folder=flag == "-o")
    record = api.compare(runs, attack or (), halves, quality or (), seed, output, pool)
    if output:
        api.save(record, output)
    api.write_tables(record, latex, csv)
    from diffleak.records.gate import read_gate
    from diffleak.report.pages.comparison import page

    made = lambda record: page(record, read_gate(output) if output else None)
    _print_record(record, made, output / "compare.html" if output else None, as_json)
    api.refuse_invalid(record)


@command(app, "config:ConvertConfig")
def convert(settings: "ConvertConfig", as_json: Json = False) -> None:
    """Write a checkpoint of pytorch-ddpm or guided-diffusion as a model folder that `diffleak audit` takes."""
    from diffleak.hub.research import convert as convert_checkpoint
    from diffleak.work.progress import say

    record = convert_checkpoint(settings.checkpoint, settings.output, settings.settings, settings.weights)
    if caveat := record.caveat():
        say(f"warning: {caveat}")
    audit = shlex.join(["diffleak", "audit", str(settings.output)]) + " --members DATA --nonmembers DATA -o RUN"
    text = f"model: {settings.output}\nto audit it: {audit}"
    _print({"model": str(settings.output), "audit": audit, **record.model_dump()}, as_json, text)


@app.command()
def metadata(
    file: Annotated[Path, typer.Argument(help="An adapter or a model: one .safetensors file, or a folder with one.", show_default=False)],
    strip: Annotated[
        Path | None,
        Opt(
            help="Write a copy with the same weights, and of the header only what loading needs; of peft also adapter_config.json.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[str | None, Opt(help="private: exit 3 if FILE gives away something private.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List what the header of a .safetensors file gives away: captions, folder names, paths, comments, numbers of images.

    Of an adapter of peft that includes the adapter_config.json beside it.
    """
    from diffleak.headers import inspect as api
    from diffleak.work.files import refuse_unwritable

    if strip is not None:
        refuse_unwritable(strip, "--strip")
    record = api.inspect(file, strip, fail_on)
    _print(record.model_dump(mode="json"), as_json, api.table(record))
    api.gate(record, fail_on)


@app.command()
def attacks(as_json: Json = False) -> None:
    """List the attacks: access, parameters, queries, source."""
    from diffleak.attacks.listing import listing, table

    rows = listing()
    if as_json:
        return _print(rows, True, "")
    _console().print(table(rows))


@app.command()
def selfcheck(seed: Annotated[int, Opt(help="Seed of the random draws.")] = 0, as_json: Json = False) -> None:
    """Run the attacks that need no captions on a model that memorised its images (AUC 1) and on one that did not (AUC 0.5)."""
    from diffleak.auditing.selfcheck import selfcheck as check

    checks = check(seed)
    _print([{**asdict(c), "passed": c.passed} for c in checks], as_json, "\n".join(map(str, checks)))
    if not all(c.passed for c in checks):
        raise DiffleakError("selfcheck failed: this installation's numbers cannot be trusted; report it with `pip freeze`")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed and on which machine, and run a self-test of two seconds. Exit 1 if the test fails."""
    from diffleak.installation.doctor import doctor as diagnose

    found = diagnose()
    _print(found.as_json(), as_json, str(found))
    if not found.passed:
        raise DiffleakError("the self-test failed: this installation's numbers cannot be trusted; report it with `diffleak doctor --json`")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, Opt("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"diffleak {installed('diffleak')}")
        raise typer.Exit


def main() -> Never:
    """Runs the command line and exits with the code of what happened."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end a finished command
    warnings.showwarning = _warn
    try:
        for argument in sys.argv[1:]:
            refuse_other_bytes(argument)
        with _terminable(), doing(_called(sys.argv)):
            code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # some versions of typer return it instead of raising
            raise KeyboardInterrupt
        sys.exit(code)
    except DiffleakError as error:
        _stop(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in MODEL_PACKAGES:
            raise
        _stop(f"this command runs a model, which needs {error.name}, and that is not installed: {install()}", 2)
    except (KeyboardInterrupt, typer.Abort):
        _stop(f"interrupted; {_kept(sys.argv)}", INTERRUPTED)
    except _Terminated:
        _stop(f"terminated; {_kept(sys.argv)}", TERMINATED)
    except UsageError as error:
        if not error.format_message():  # no command was given: the help is already there
            sys.exit(2)
        _stop(_needless(error, sys.argv) or error.format_message(), 2)


class _Terminated(BaseException):
    """SIGTERM came: it ends a command as Ctrl-C does, so that threads stop and files are whole."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Raises `_Terminated` where SIGTERM comes meanwhile, unless the program around this one handles it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(*_: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _kept(argv: list[str]) -> str:
    """What is kept of a command that was stopped, and how to go on."""
    found = _command_in(argv)
    if found is None or "--dry-run" in argv or RESUMES not in (found.help or getattr(found.callback, "__doc__", None) or ""):
        return "run the same command again"
    if _name(found) in OPTIONAL_FOLDER and not any(each.startswith(("-o", "--output", "-C", "--config")) for each in argv):
        return "nothing is kept without -o: run the same command again"
    return "finished work is kept, the same command resumes"


def _needless(error: Any, argv: list[str]) -> str | None:
    """What to change where there is a word too many: the value of a flag that takes none, or a pattern that the shell has expanded."""
    extra = error.format_message().partition("Got unexpected extra argument")[2].partition(" (")[2]
    value = max((each for each in argv[1:] if each and extra.startswith(each)), key=len, default=None)
    if value is None:
        return None
    parameters = getattr(getattr(error.ctx, "command", None), "params", ())
    switches = {name for each in parameters if getattr(each, "is_flag", False) for name in (*each.opts, *each.secondary_opts)}
    before = next((flag for flag, word in pairwise(argv) if word == value and flag in switches), argv[argv.index(value) - 1])
    if before in switches:
        why = ", since images are brought to the size of the model" if before == "--resize" else ""
        return f"{before} takes no value here{why}: leave out {value}"
    if os.path.exists(before) and os.path.exists(value) and os.path.dirname(before) == os.path.dirname(value):
        return f"one name goes where {before} and {value} stand: put a pattern into quotes, so that the shell does not expand it"
    return None


def _called(argv: list[str]) -> str:
    """The command that was called, for a line on what is being done where nothing says more."""
    found = _command_in(argv)
    return f"diffleak {_name(found)} is running" if found else "diffleak is running"


def _name(command: typer.models.CommandInfo) -> str:
    return command.name or str(getattr(command.callback, "__name__", ""))


def _command_in(argv: list[str]) -> typer.models.CommandInfo | None:
    """The command that a command line calls; None for none."""
    known = {_name(each): each for each in app.registered_commands}
    return next((known[argument] for argument in argv[1:] if argument in known), None)


def _planned(settings: "AuditConfig", as_json: bool) -> Callable[[str], None]:
    """Where the line of a plan is said before the model runs: on stdout where it is the result of --dry-run, else on stderr."""
    from diffleak.work.progress import say

    return _print_line if settings.dry_run and not as_json else say


def _print_line(line: str) -> None:
    print(visible(line), flush=True)


def _audit(settings: "AuditConfig", missing: str, as_json: bool) -> None:
    """An audit, or the geometry of images alone; `missing` is the message where no output folder is given."""
    from diffleak.auditing import run as api
    from diffleak.auditing.warnings import about_release, about_sides
    from diffleak.work.progress import say

    prepared, output = api.prepare(settings, log=_planned(settings, as_json)), settings.output
    if settings.dry_run:
        for line in (*about_release(prepared), *about_sides(prepared), *prepared.scan.cohort.found):
            say(line)
        return _print(prepared.summary(), as_json, "" if as_json else f"time: {prepared.estimate()}")
    if output is None:
        raise UserError(missing)
    if not settings.two_sided:
        done = api.measure(prepared, output, timed=not as_json)
        text = f"geometry: {output / 'geometry.parquet'}\ninfluence: {output / 'influence.npy'}" if done else "this shard is done"
        return _print({"finished": done, "images": len(prepared.scan.cohort)}, as_json, text)
    finished = api.run(prepared, output, timed=not as_json)
    if finished is None:
        return _print({"finished": False}, as_json, "this shard is done")
    finished.save(output, settings.thumbnails)
    _print_audit(finished.record, output, as_json)
    api.gate(finished.record, settings)


def _sweep(settings: "AuditConfig", found: "Checkpoints", as_json: bool) -> None:
    """An audit of every checkpoint, and what they are together."""
    from diffleak.records.gate import read_gate
    from diffleak.report.pages.sweep import page
    from diffleak.sweep import run as api

    if settings.dry_run:
        plan = api.describe(settings, found, _planned(settings, as_json))
        return print(json.dumps(plan, indent=2)) if as_json else None
    if settings.output is None:
        raise UserError("an audit of several checkpoints needs a folder for its runs: give -o RUN")
    record = api.sweep(settings, found, timed=not as_json)
    if record is None:
        return _print({"finished": False}, as_json, "this shard is done")
    folder = settings.output
    _print_record(record, lambda record: page(record, read_gate(folder)), folder / "report.html", as_json)
    api.gate(record)


def _report_again(folder: Path, names: tuple[str, ...], form: str, thumbnails: bool, as_json: bool) -> None:
    """The pages of a folder that is no audit's again."""
    from diffleak.report import again

    if as_json and len(names) > 1:
        raise UserError(f"--json prints one record; {folder} has {' and '.join(names)}: leave it out")
    if form == "card" and (found := again.cards(folder)):
        return print("\n".join(found).removesuffix("\n"))
    written = again.write_again(folder, form, thumbnails)
    if form == "markdown":
        return print(again.as_markdown(written).removesuffix("\n"))
    for record, page, file in written:
        if form == "pdf":
            print(visible(f"report: {file}"))
        else:
            _print_record(record, lambda record, page=page: page, file, as_json)  # type: ignore[misc]


def _report_sweep(folder: Path, thumbnails: bool, form: str, as_json: bool) -> None:
    """The page on all checkpoints again."""
    from diffleak.records.gate import read_gate
    from diffleak.report.pages.sweep import page
    from diffleak.sweep.formats import formatted

    if thumbnails:
        raise UserError(f"{folder} is an audit of several checkpoints, whose page shows no images: give the run of one of them")
    record, text = formatted(folder, form)
    if form != "html":
        return print(text if form != "pdf" else visible(text))
    _print_record(record, lambda record: page(record, read_gate(folder)), folder / "report.html", as_json)


def _warn(message: Warning | str, category: type[Warning], *where: object, **how: object) -> None:
    """A library's warning as a line like our own, without the line of its code; what it will do in later versions is left out."""
    from diffleak.work.progress import say

    if not issubclass(category, FutureWarning):
        say(f"warning: {one_line(' '.join(str(message).split()))}")


def _stop(message: str, code: int) -> Never:
    """Prints why a command stopped, with what a file or its name could do to a terminal spelled out."""
    lines = message.split("\n") if code == GateFailed.exit_code else [message]  # a line for each limit that is not met
    print("diffleak: " + "\n".join(map(one_line, lines)), file=sys.stderr)
    sys.exit(code)


def _print(value: Any, as_json: bool, text: str) -> None:
    print(json.dumps(value, indent=2) if as_json else "\n".join(map(visible, text.split("\n"))))


def _print_record(record: Any, page: Callable[[Any], "Page"], written: Path | None, as_json: bool) -> None:
    """Prints a record as JSON, or its page and where that was written."""
    if as_json:
        return print(record.model_dump_json(indent=2))
    from diffleak.report import print_page

    print_page(page(record), _console())
    if written:
        print(visible(f"report: {written}"))


def _print_audit(record: "AuditRecord", folder: Path, as_json: bool) -> None:
    if as_json:
        return print(record.model_dump_json(indent=2))
    from diffleak.records.gate import read_gate
    from diffleak.report import handling
    from diffleak.report.pages.audit import page

    _print_record(record, lambda record: page(record, gated=read_gate(folder)), folder / "report.html", as_json)
    print(visible(handling.in_terminal(record.plan.anonymous is not None, folder)))


def _console() -> Any:
    from rich.console import Console

    return Console()
