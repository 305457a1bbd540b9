"""Kinds of files in folders of work: plans, scores, latents, drawn images, checkpoints, records of what was measured.

A file with a checksum, or of a plan, is never read as another answer (`right` is None).
"""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixtures.models import LEVELS

from fuzz.trial import Kind, Read, finite

N = 12  # images a side
MEMBERS, NONMEMBERS = np.random.default_rng(0).integers(0, 256, (2, N, 8, 8), dtype=np.uint8)
SETTINGS = {"members": "array", "nonmembers": "array", "timesteps": "50", "calibration": False, "seed": 0}
SETTINGS |= {"chunk_size": 8, "batch_size": 8, "device": "cpu", "threads": 1}


# audits


def _prepared(attacks: str, **changes: Any) -> Any:
    """An audit of a memoriser of six images, which is known by a fingerprint."""
    from diffleak import Target, cohort
    from diffleak.auditing.config import AuditConfig
    from diffleak.auditing.plan import prepare
    from diffleak.config import build
    from diffleak.diffusion.analytic import Memoriser, linear_schedule

    points = torch.from_numpy(MEMBERS[:6, None] / 127.5 - 1.0).float()
    target = Target(Memoriser(points, linear_schedule()), fingerprint="f")
    config = build(AuditConfig, {"model": "memoriser", "attacks": attacks, **SETTINGS, **changes})
    return prepare(config, target, cohort(members=MEMBERS, nonmembers=NONMEMBERS))


def _audited(folder: Path, attacks: str = "sima,loss") -> Any:
    from diffleak.auditing.run import run
    from diffleak.records.run_folder import write_samples

    prepared = _prepared(attacks)
    finished = run(prepared, folder, lambda line: None, timed=False)
    assert finished is not None
    write_samples(folder / "samples.csv", finished.samples)  # all that `save` writes but for the report, which takes long
    (folder / "audit.json").write_text(finished.record.model_dump_json(indent=2))
    return prepared


def score_files(folder: Path) -> Read:
    """A run folder whose audit goes on."""
    from diffleak.auditing import score as scoring
    from diffleak.work.folder import Folder

    job = _audited(folder).job

    def read(case: Path) -> Any:
        missing = scoring.score(job, Folder(case), scoring.Worker(0, 1, 1))
        found = scoring.collect(job, case)
        return [missing, found.queries, list(found.parameters), [scores.statistic for group in found.scores for scores in group]]

    return read


def plan_of_run(folder: Path) -> Read:
    """A run folder whose audit goes on, by its plan."""
    from diffleak.auditing.run import run

    prepared = _audited(folder, "loss")

    def read(case: Path) -> Any:
        finished = run(prepared, case, lambda line: None, timed=False)
        assert finished is not None
        return finished.record.model_dump(exclude={"created", "costs"}), finished.samples.scores

    return read


def seconds(folder: Path) -> Read:
    from diffleak.auditing import score as scoring

    job = _audited(folder, "loss").job
    return lambda case: scoring.collect(job, case).seconds


def right_seconds(folder: Path, answer: Any) -> None:
    assert math.isfinite(answer) and answer >= 0, f"{answer} seconds"


def scores_of_comparison(folder: Path) -> Read:
    """The files that the swap audit reads, without the model."""
    _audited(folder / "run")

    def read(case: Path) -> Any:
        from diffleak.comparison.runs import read_entries, read_scores

        run = read_entries(["a=" + str(case / "run"), "b=" + str(case / "run")])[0].runs[0]
        found = [read_scores(run, attack) for attack in run.attacks]
        return [scores and [scores.timesteps, scores.statistic] for scores in found]

    return read


def record_of_audit(folder: Path) -> Read:
    """What `report --markdown` and `compare` read."""
    _audited(folder / "run")
    _audited(folder / "baseline")

    def read(case: Path) -> Any:
        from diffleak.comparison.compare import compare
        from diffleak.records.run_folder import read_samples
        from diffleak.report import to_markdown
        from diffleak.report.judgement import read_record
        from diffleak.report.pages import audit, comparison

        record, samples = read_record(case / "run"), read_samples(case / "run")
        printed = to_markdown(audit.page(record, samples))
        compared = compare([f"baseline={case / 'baseline'}", f"run={case / 'run'}"])
        assert to_markdown(comparison.page(compared)) and printed
        _refuse_control_characters(printed)
        scores = compared.model_dump(exclude={"created", "command"})
        return [record.model_dump(), {name: part for name, part in scores.items() if name != "entries"}, samples.scores, list(samples.ids)]

    return read


def _refuse_control_characters(text: str) -> None:
    odd = [line for line in text.split("\n") if not line.isprintable()]
    assert not odd, f"control characters in what is printed: {odd[0][:100]!r}"


def report(folder: Path) -> Read:
    """What `report` prints and writes."""
    _audited(folder, "loss")

    def read(case: Path) -> Any:
        from rich.console import Console

        from diffleak.auditing.results import rewrite_report
        from diffleak.report import print_page
        from diffleak.report.pages.audit import page

        record, text = rewrite_report(case, False), io.StringIO()
        print_page(page(record), Console(file=text, width=100))
        _refuse_control_characters(text.getvalue())
        return record.model_dump(), (case / "report.html").read_text().count("<svg")

    return read


def record_of_geometry(folder: Path) -> Read:
    """A record with every part, in Markdown."""
    from fixtures.reports import latent_audit

    record, samples = latent_audit(("influence:0.4", "random:0.4"), n=60, warnings=(), omitted=())
    plan = {"lora": "l", "lora_scale": 0.5, "guidance_scale": 2.0, "captions": "own", "label_names": {"a": 0}, "reference": "base"}
    record = record.model_copy(update={"plan": record.plan.model_copy(update=plan)})
    (folder / "audit.json").write_text(record.model_dump_json())

    def read(case: Path) -> Any:
        from diffleak.report import to_markdown
        from diffleak.report.judgement import read_record
        from diffleak.report.pages.audit import page

        found = read_record(case)
        printed = to_markdown(page(found, samples))
        _refuse_control_characters(printed)
        return found.model_dump(), printed

    return read


def right_record(folder: Path, answer: Any) -> None:
    """The scores are those of the table, line by line; numbers of the record are as they are written."""
    import csv
    import json

    run = folder / "run" if (folder / "run").is_dir() else folder
    record = json.loads((run / "audit.json").read_text(encoding="utf-8-sig"))
    first = answer[0]
    told = [result["auc"].get("value") for result in record["results"]]
    assert [result["auc"]["value"] for result in first["results"]] == [None if value is None else float(value) for value in told]
    if len(answer) == 4:
        with (run / "samples.csv").open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row]
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        assert [*columns["id"]] == answer[3] and all(np.array_equal([*map(float, columns[name])], answer[2][name]) for name in header[3:])
        finite(folder, answer[2])


def record_of_quality(folder: Path) -> Read:
    from fixtures.runs import write_quality

    for name in ("run", "baseline"):
        _audited(folder / name, "loss")
        write_quality(folder / name)

    def read(case: Path) -> Any:
        from diffleak.comparison.compare import compare
        from diffleak.records.quality import QualityRecord, read_quality

        record = read_quality(case / "run" / "quality.json", QualityRecord)
        compared = compare([f"baseline={case / 'baseline'}", f"run={case / 'run'}"])
        qualities = [entry.quality and entry.quality.model_dump() for entry in compared.entries]
        return record.model_dump(), qualities, compared.quality_metric

    return read


# chunks of long work


def squares(folder: Path) -> Read:
    """Rows in sealed .npy files, as drawn images and scores of prompts are."""

    def read(case: Path) -> Any:
        from diffleak.work.folder import Folder, cut, in_chunks

        compute = lambda rows, tick: np.array([[row**2, -row] for row in rows], dtype=np.float64)
        plan = {"model": "m", "model_fingerprint": "f", "seed": 0, "sizes": [1, 2], "text": "a"}
        words = {"what": "squares", "made": "of", "bar": "squaring"}
        return in_chunks(Folder(case), plan, cut(11, 3), compute, **words, forwards=1, batch_size=1, threads=1)

    read(folder)
    return read


def latents(folder: Path) -> Read:
    """The latents, influences and distortions of an unfinished geometry, under a codec that halves images."""
    from torch.nn.functional import avg_pool2d, interpolate

    from diffleak import Target, cohort
    from diffleak.auditing import score as scoring
    from diffleak.auditing.config import GeometryConfig
    from diffleak.auditing.inputs import write_geometry
    from diffleak.auditing.plan import prepare
    from diffleak.config import build
    from diffleak.data.pixels import ImageShape
    from diffleak.diffusion.analytic import Memoriser, linear_schedule
    from diffleak.diffusion.codec import Codec
    from diffleak.work.folder import Folder

    class Halves(Codec):
        def encode(self, x: Any) -> Any:
            return avg_pool2d(x, 2)

        def decode(self, z: Any) -> Any:
            return interpolate(z, scale_factor=2.0).tanh()

    points = avg_pool2d(torch.from_numpy(MEMBERS[:6, None] / 127.5 - 1.0).float(), 2)
    target = Target(Memoriser(points, linear_schedule()), ImageShape(1, 8, 8), fingerprint="f", codec=Halves())
    settings = {"model": "memoriser", **SETTINGS, "calibration": True, "attacks": "loss", "mask": "influence:0.4", "top": 1, "probes": 1}
    job = prepare(build(GeometryConfig, settings), target, cohort(members=MEMBERS, nonmembers=NONMEMBERS)).job

    def read(case: Path) -> Any:
        missing = scoring.score(job, Folder(case), scoring.Worker(0, 1, 1))
        measured = write_geometry(job.inputs, case, job.chunks)
        found = scoring.collect(job, case)
        return [missing, measured, np.load(case / "influence.npy"), [scores.statistic for group in found.scores for scores in group]]

    read(folder)
    return read


# training


def checkpoint(folder: Path) -> Read:
    """A model that was trained for two steps and is trained for one more."""
    from fixtures.models import few_steps
    from safetensors.numpy import load_file

    from diffleak.training.run import train

    data = folder.with_name("images.npy")
    np.save(data, MEMBERS)

    trained = lambda output, steps: train(
        few_steps(data, output, steps=steps, model=LEVELS, checkpoint_every=1, train_size=8, ema_decay=0.9)
    )
    trained(folder, 2)
    return lambda case: load_file(trained(case, 3) / "unet" / "diffusion_pytorch_model.safetensors")


KINDS = (
    Kind("score files", score_files, ("scores/*.parquet",), None, 8),
    Kind("plan of a run", plan_of_run, ("plan.json",), None, 2),
    Kind("seconds of a run", seconds, ("seconds/*.txt",), right_seconds, 1),
    Kind("scores in compare", scores_of_comparison, ("run/scores/*.parquet",), None),
    Kind("record in compare", record_of_audit, ("run/audit.json", "run/samples.csv", "run/samples.csv"), right_record, 8),
    Kind("report", report, ("audit.json", "samples.csv"), right_record, 1),
    Kind("record of geometry", record_of_geometry, ("audit.json",), right_record, 3),
    Kind("quality", record_of_quality, ("run/quality.json",), finite, 6),
    Kind("chunks", squares, ("*",), None, 8),
    Kind("latents", latents, ("latents/*.npy", "influence/*.npy", "distortion/*.npy", "influence.npy"), None),
    Kind("training", checkpoint, ("train.json", "checkpoint/*", "checkpoint/*", "split.json"), None, 1),
)
