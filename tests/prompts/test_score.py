"""Prompts that a model has memorised: the statistics by hand, a planted model, resuming, files, messages, the page."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.commands import call, refused
from fixtures.prompts import PLAIN, QUICK, SECRET, Strengths, planted
from fixtures.text import CAPTIONS, CHANNELS, LATENT, text_folder
from rich.console import Console

import diffleak
from diffleak import hub
from diffleak.data.pixels import ImageShape
from diffleak.data.prompts import read_prompts
from diffleak.diffusion.analytic import linear_schedule
from diffleak.diffusion.denoiser import Denoiser
from diffleak.diffusion.dual import Dual
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.target import Target
from diffleak.errors import UserError
from diffleak.prompts import score
from diffleak.prompts.config import PromptsConfig
from diffleak.prompts.score import find_memorised
from diffleak.records.base import Estimate
from diffleak.records.prompts import PromptsRecord
from diffleak.report import print_page, to_html
from diffleak.report.figures.prompts import histogram
from diffleak.report.pages.prompts import page as page_of
from diffleak.report.sections.prompts import verdict
from diffleak.work.files import seal
from diffleak.work.folder import UNKNOWN

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("prompts") / "sd")


def scores_of(found: Any) -> dict[str, tuple[float, ...]]:
    return {row.prompt: (row.t_error, row.magnitude, row.noise_norm, row.alignment) for row in found.record.prompts}


# --- the statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2])
def test_the_statistics_and_the_map_are_those_of_the_papers_step_by_step(folder: Path, images: int) -> None:
    target = hub.load(folder, dtype="float64", device="cpu")
    found = find_memorised(target, prompts=CAPTIONS[:3], images=images, guidance_scale=5.0, **QUICK)
    kept = np.append(target.denoiser.schedule.alphas_cumprod, 1.0)  # the last step of the sampler ends at the clean image: index -1

    def moved(x: torch.Tensor, eps: torch.Tensor, t: int, u: int) -> torch.Tensor:
        return kept[u] ** 0.5 * (x - (1 - kept[t]) ** 0.5 * eps) / kept[t] ** 0.5 + (1 - kept[u]) ** 0.5 * eps

    maps = {picture.score.prompt: picture.map for picture in found.pictures()}
    for caption in CAPTIONS[:3]:
        errors, magnitudes, noise_norms, alignments = [], [], [], []
        for number in range(images):
            x = Noise(3, (f"{number}\0{caption}",), (CHANNELS, LATENT, LATENT), torch.float64, stream="prompts")(0)
            predict = lambda x, t, text: target.denoiser(x, t, target.text([text]))
            norms, squares = [], torch.zeros(LATENT, LATENT, dtype=torch.float64)
            noise_norms.append(float((predict(x, 750, caption) - predict(x, 750, "")).pow(2).sum().sqrt()))
            without = predict(x, 500, "")[0].numpy()
            added = predict(x, 500, caption)[0].numpy() - without
            cosines = [
                np.dot(without[:, i, j], added[:, i, j]) / np.sqrt((without[:, i, j] ** 2).sum() * (added[:, i, j] ** 2).sum())
                for i in range(LATENT)
                for j in range(LATENT)
            ]
            alignments.append(np.mean(cosines))
            for t, u in ((750, 500), (500, 250), (250, 0), (0, -1)):
                with_text, without = predict(x, t, caption), predict(x, t, "")
                norms.append(float((with_text - without).pow(2).sum().sqrt()))
                squares += (with_text - without)[0].pow(2).sum(dim=0)
                x = moved(x, without + 5.0 * (with_text - without), t, u)
            for t in (0, 10):
                x = moved(x, predict(x, t, caption), t, t + 10)
            up = moved(x, predict(x, 20, caption), 20, 30)
            back = moved(up, predict(up, 30, caption), 30, 20)
            errors.append(float((back - x).pow(2).sum()))
            magnitudes.append(np.mean(norms))
            if number == 0:
                np.testing.assert_allclose(maps[caption], squares.numpy() / 4, rtol=1e-5)
        expected = [np.mean(each) for each in (errors, magnitudes, noise_norms, alignments)]
        assert scores_of(found)[caption] == pytest.approx(expected, rel=1e-6)


def test_a_prompt_scores_the_same_in_every_list_batch_and_thread(folder: Path) -> None:
    target = hub.load(folder, dtype="float64", device="cpu")
    whole = scores_of(find_memorised(target, prompts=CAPTIONS, images=2, **QUICK))
    assert len(set(whole.values())) == len(CAPTIONS)
    for keys in ({"batch_size": 3}, {"threads": 2, "batch_size": 1}):
        again = scores_of(find_memorised(target, prompts=CAPTIONS[::-1], images=2, **QUICK, **keys))
        assert all(again[text] == pytest.approx(pair, rel=1e-9) for text, pair in whole.items())
    alone = scores_of(find_memorised(target, prompts=CAPTIONS[2:3], images=2, **QUICK))
    assert alone[CAPTIONS[2]] == pytest.approx(whole[CAPTIONS[2]], rel=1e-9)
    assert scores_of(find_memorised(target, prompts=CAPTIONS[2:3], **{**QUICK, "seed": 4})) != alone


def test_a_planted_memory_is_found_by_magnitude_with_certainty() -> None:
    found = find_memorised(planted(), SECRET, PLAIN, **QUICK)
    magnitude, t_error, noise_norm, alignment = found.record.results
    assert [(result.attack, result.direction) for result in (noise_norm, alignment)] == [("noise_norm", "large"), ("alignment", "large")]
    assert noise_norm.auc.value == 1.0 and (noise_norm.queries, magnitude.queries) == (4, 2 * 4 + 4)
    assert (magnitude.attack, magnitude.direction, t_error.attack, t_error.direction) == ("magnitude", "large", "t_error", "small")
    assert magnitude.auc.value == 1.0 and magnitude.auc.low > 0.5
    assert (magnitude.n_members, magnitude.n_nonmembers) == (14, 12)
    assert all(row.magnitude == 0 for row in found.record.prompts if not row.memorised)
    assert [row.memorised for row in found.record.prompts] == [True] * 14 + [False] * 12, "the largest magnitude first"
    errors = [[row.t_error for row in found.record.prompts if row.memorised is side] for side in (True, False)]
    by_hand = np.mean([one < other for one in errors[0] for other in errors[1]])
    assert t_error.auc.value == pytest.approx(by_hand), "small t-errors mean memorised"
    assert magnitude.tpr_at_fpr[1].value is None and "needs >= 100" in magnitude.tpr_at_fpr[1].reason
    swapped = find_memorised(planted(), PLAIN, SECRET, **QUICK)
    assert swapped.record.results[0].auc.value == 0.0


def test_guidance_and_the_statistics_cost_what_the_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []
    found = find_memorised(planted(lambda: calls.append(1)), prompts=PLAIN[:2], images=3, batch_size=1, threads=1, **QUICK)
    # one call a step with both predictions, a chain of 0, 10, 20 and 30, and two calls of noise with both predictions
    assert len(calls) == 2 * 3 * (4 + 4 + 2)
    assert found.record.costs.forwards == 2 * 3 * (2 * 4 + 4 + 4)
    assert "plan: 2 prompts, 3 images each in 4 steps at guidance 7.5, t-error at 20; 96 forwards" in capsys.readouterr().err


def test_of_two_models_that_take_turns_the_surer_one_counts() -> None:
    one, other = planted().denoiser, Denoiser.from_function(lambda x, t, cond: 0.9 * x * (t + 1) / 1000, linear_schedule().alphas_cumprod)
    target = Target(Dual((one, other)), ImageShape(1, 4, 4), text=Strengths(), fingerprint="f")
    found = find_memorised(target, prompts=PLAIN[:1], **QUICK)
    assert found.record.costs.forwards == 2 * 4 + 2 * 4 + 2 * 4
    assert found.record.warnings == (
        "two models take turns, one per step; of their t-errors the smaller counts, of their noise norms and alignments the larger",
    )


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_other_kinds_of_text_models_are_asked_alike(tmp_path: Path, kind: str) -> None:
    target = hub.load(text_folder(tmp_path / kind, kind), device="cpu")
    found = find_memorised(target, prompts=CAPTIONS[:2], size=16 if kind == "flux" else None, **QUICK)
    assert found.record.plan.latent_shape == "4 x 8 x 8"
    assert all(row.t_error > 0 and row.magnitude > 0 and row.noise_norm > 0 for row in found.record.prompts)
    assert all(-1 <= row.alignment <= 1 and row.alignment != 0 for row in found.record.prompts)
    assert [picture.image.shape for picture in found.pictures()] == [(16, 16, 3)] * 2


# --- resuming -----------------------------------------------------------------------------------------------------------


def test_what_an_interrupted_call_scored_is_kept_and_the_rest_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(score.CHUNK, "cpu", 4)
    whole = find_memorised(planted(), SECRET, PLAIN, output=tmp_path / "whole", **QUICK)
    calls = 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_memorised(planted(interrupt), SECRET, PLAIN, output=tmp_path / "cut", **QUICK)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "prompts").glob("*.npy")}
    assert 0 < len(before) < 7
    resumed = find_memorised(planted(), SECRET, PLAIN, output=tmp_path / "cut", **QUICK)
    assert scores_of(resumed) == scores_of(whole)
    for file in (tmp_path / "whole" / "prompts").glob("*.npy"):
        assert (tmp_path / "cut" / "prompts" / file.name).read_bytes() == file.read_bytes()
    assert str(resumed.pictures()) == str(whole.pictures())
    assert {name: (tmp_path / "cut" / "prompts" / name).stat().st_mtime_ns for name in before} == before

    def never() -> None:
        raise AssertionError("finished work must not be done again")

    assert scores_of(find_memorised(planted(never), SECRET, PLAIN, output=tmp_path / "cut", **QUICK)) == scores_of(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 5}, "holds scores of another number of steps (4, now 5); choose another folder"),
        ({"images": 2}, "holds scores of another number of images (1, now 2); choose another folder"),
        ({"draw": False}, "holds scores of another choice of --no-draw; choose another folder"),
        ({"guidance_scale": 3.0}, "holds scores of another guidance scale (7.5, now 3.0); choose another folder"),
        ({"fingerprint": "g"}, "holds scores of another model (f, now g); choose another folder"),
        ({"ordinary": [*PLAIN, "one more"]}, "holds scores of another list of prompts (26, now 27); choose another folder"),
        ({"ordinary": [*PLAIN[1:], "another"]}, "holds scores of another list of prompts; choose another folder"),
    ],
    ids=str,
)
def test_a_folder_belongs_to_one_plan(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    find_memorised(planted(), SECRET, PLAIN, output=tmp_path, **QUICK)
    keys = {**QUICK, "ordinary": PLAIN, **change}
    if "draw" in change:
        del keys["timestep"]
    with pytest.raises(UserError, match=re.escape(message)):
        find_memorised(planted(fingerprint=keys.pop("fingerprint", "f")), SECRET, keys.pop("ordinary"), output=tmp_path, **keys)


def test_a_model_that_nobody_can_recognise_and_damaged_files_are_not_resumed(tmp_path: Path) -> None:
    find_memorised(planted(fingerprint=UNKNOWN), prompts=PLAIN, output=tmp_path, **QUICK)
    with pytest.raises(UserError, match="and nothing says that they are of this model"):
        find_memorised(planted(fingerprint=UNKNOWN), prompts=PLAIN, output=tmp_path, **QUICK)
    find_memorised(planted(), prompts=PLAIN, output=tmp_path / "own", **QUICK)
    file = tmp_path / "own" / "prompts" / "scores-00000.npy"
    for odd in (np.zeros((3, 2)), np.zeros(8)):
        np.save(file, odd)
        seal(file)
        said = rf"must hold 8 scores; its array is \({len(odd)},.*\): delete it and run the same command again"
        with pytest.raises(UserError, match=said):
            find_memorised(planted(), prompts=PLAIN, output=tmp_path / "own", **QUICK)
    file.write_bytes(b"nothing")
    again = find_memorised(planted(), prompts=PLAIN, output=tmp_path / "own", **QUICK)
    assert scores_of(again) == scores_of(find_memorised(planted(), prompts=PLAIN, **QUICK))
    assert file.with_name("scores-00000.npy.damaged").read_bytes() == b"nothing"
    (tmp_path / "own" / "prompts" / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be read .* to begin again"):
        find_memorised(planted(), prompts=PLAIN, output=tmp_path / "own", **QUICK)


# --- files and messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "sun, with rays\nmoon\n"),
        ("a.prompts", "\ufeffsun, with rays\r\n\n moon"),
        ("a.json", '{"1.png": ["sun, with rays", "a sun"], "2.png": "moon", "3.png": " "}'),
        (
            "b.JSONL",
            '{"id": 1, "text": ["sun, with rays"]}\n\n{"id": 1, "text": "a sun"}\n{"id": 2, "text": [null, " moon"]}\n{"text": ""}\n',
        ),
        ("b.csv", 'file_name,text\n1,"sun, with rays"\n1,a sun\n2,moon \n3,\n'),
        ("a.csv", 'id,text\n1,"sun, with rays"\n2,moon\n'),
        ("c.csv", 'id,text\n,"sun, with rays"\n,moon\n'),
        ("d.csv", 'id,text\n1.png,"sun, with rays"\n./1.png,a sun\n2.png,moon\n'),
        ("c.json", '{"1.png": "sun, with rays", "./1.png": "a sun", "2.png": "moon"}'),
        ("a.jsonl", '{"text": "sun, with rays"}\n{"text": "moon", "id": 2}\n'),
        ("e.csv", 'prompt\n"sun, with rays"\nmoon\n'),
        ("b.jsonl", '{"caption": "sun, with rays"}\n{"caption": "moon", "id": 2}\n'),
    ],
)
def test_prompts_are_read_from_text_csv_and_jsonl(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_prompts(tmp_path / name) == ["sun, with rays", "moon"]


def test_prompts_are_the_texts_of_a_table_of_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x", b"y"], "caption": ["sun, with rays", "moon"]}), tmp_path / "a.parquet")
    assert read_prompts(tmp_path / "a.parquet") == ["sun, with rays", "moon"]
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "b.parquet")
    with pytest.raises(
        UserError, match="must have its prompts in a column text, caption or prompt; it has image: rename the one that is meant"
    ):
        read_prompts(tmp_path / "b.parquet")  # by its columns, before any row


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n\n", "a.txt must hold at least one prompt; it has none"),
        ("a.csv", "text,id\n,1\n", "a.csv must hold at least one prompt; it has none"),
        ("a.jsonl", "", "a.jsonl must hold at least one prompt; it has none"),
        ("a.json", '{"1.png": " "}', "a.json must hold at least one prompt; it has none"),
        ("a.JSON", "[]", "a.JSON must hold an object"),
        ("a.csv", "text\nsun, with rays\n", "line 2 has more fields than the header: put texts with commas in double quotes"),
        ("a.csv", "txt\nsun\n", "must have its prompts in a column text, caption or prompt; it has txt: rename"),
        ("a.jsonl", '{"text": "sun"}\nmoon\n', r"a.jsonl cannot be read \(line 2: Expecting value"),
        ("a.jsonl", '["sun"]\n', "every line must be a JSON object; one is a list"),
        ("a.jsonl", '{"words": "sun"}\n', "must have its prompts in a column text, caption or prompt; it has words: rename"),
        ("a.csv", "caption,prompt\nsun,moon\n", "must have its prompts in one column; it has caption and prompt: remove"),
        ("a.csv", "prompt,text\nsun,moon\n", "must have its prompts in one column; it has text and prompt: remove"),
        ("a.parquet", "PAR1", r"a.parquet cannot be read \("),
        ("a.jsonl", '{"text": 3}\n', "a.jsonl cannot be read .got the text 3"),
    ],
)
def test_a_file_without_prompts_is_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_and_an_unreadable_file_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"FILE must be a text file with a prompt on each line, \.csv, \.jsonl, \.json or \.parquet; found nothing at"
    ):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.txt cannot be read"):
        read_prompts(tmp_path / "binary.txt")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"memorised": [*SECRET, "moon"], "ordinary": [*PLAIN, "moon"]}, "a prompt must be on one list; 'moon' is on both"),
        ({"memorised": SECRET, "ordinary": [*PLAIN, *SECRET[:3]]}, "'secret 0' and 2 others are on both"),
        ({"memorised": SECRET, "ordinary": [*PLAIN, *SECRET[:2]]}, "'secret 0' and 1 other are on both"),
        ({"memorised": [], "ordinary": PLAIN}, "the memorised prompts must be at least one; the list is empty"),
        ({"prompts": ["moon", " "]}, "the prompts must be texts that are not empty; got ' '"),
        ({"memorised": SECRET}, "there must be memorised and ordinary prompts, or prompts alone; got memorised"),
        ({}, "there must be prompts: give --memorised FILE and --ordinary FILE, or --prompts FILE"),
        ({"memorised": "a.txt"}, "--memorised and --ordinary are compared with each other: give both"),
        ({"memorised": "a.txt", "ordinary": "b.txt", "prompts": "c.txt"}, "--prompts is one list without labels"),
    ],
    ids=str,
)
def test_lists_that_cannot_be_compared_are_refused(lists: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_memorised(planted(), **lists, **QUICK)


def test_too_few_prompts_are_scored_and_no_auc_is_claimed() -> None:
    found = find_memorised(planted(), SECRET[:9], PLAIN, **QUICK)
    assert found.record.results == () and len(found.record.prompts) == 21
    assert found.record.reason == "no AUC: at least 10 prompts a list are needed; got 9 memorised and 12 ordinary"
    judged = verdict(found.record)
    assert judged.level == "invalid" and judged.sentences[0].startswith("No AUC: at least 10 prompts a list")


def test_a_list_without_labels_is_scored_only() -> None:
    record = find_memorised(
        planted(), prompts=[*SECRET, *PLAIN, PLAIN[0], "a very long prompt of many words that no encoder reads"], **QUICK
    ).record
    assert record.results == () and "nothing to compare it with" in record.reason
    assert [row.memorised for row in record.prompts] == [None] * 27
    assert record.warnings == (
        "1 repetition of a prompt left out: each counts once",
        "1 of 27 prompts is longer than the text encoder takes: the rest was not read",
    )


def test_models_and_settings_that_cannot_be_asked_are_refused(folder: Path, model_folder: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"prompts need a model that takes captions; .* takes none"):
        find_memorised(model_folder(), prompts=PLAIN, device="cpu")
    with pytest.raises(UserError, match="the model must be loaded without guidance_scale"):
        find_memorised(hub.load(folder, device="cpu", guidance_scale=3.0), prompts=PLAIN)
    with pytest.raises(UserError, match=r"this model draws images of 16 x 16 RGB; leave out --size 32"):
        find_memorised(hub.load(folder, device="cpu"), prompts=PLAIN, size=32)
    with pytest.raises(UserError, match="secmi needs multiples of its stride k = 10"):
        find_memorised(planted(), prompts=PLAIN, timestep=95)
    with pytest.raises(UserError, match=r"steps must lie in \[1, 1000\], the model's schedule; got 2000"):
        find_memorised(planted(), prompts=PLAIN, steps=2000)
    any_size = Target(planted().denoiser, None, text=Strengths())
    with pytest.raises(UserError, match="this model draws images of any size: say which with --size, in pixels a side"):
        find_memorised(any_size, prompts=PLAIN, **QUICK)
    broken = Target(
        Denoiser.from_function(lambda x, t, cond: x / 0, linear_schedule().alphas_cumprod), ImageShape(1, 4, 4), text=Strengths()
    )
    with pytest.raises(
        UserError, match=r"the scores must be finite numbers; the prompt 'plain \d+' has NaN or infinity: check what it computes"
    ):
        find_memorised(broken, prompts=PLAIN, **QUICK)


# --- what is written and printed ----------------------------------------------------------------------------------------


def test_the_folder_holds_the_record_the_table_and_the_page(tmp_path: Path) -> None:
    found = diffleak.find_memorised(planted(), [*SECRET, 'a "quoted", prompt'], PLAIN, output=tmp_path, **QUICK)
    found.save(tmp_path)
    record = PromptsRecord.model_validate_json((tmp_path / "prompts.json").read_text())
    assert record == found.record and record.schema_version == 3
    content = json.loads((tmp_path / "prompts.json").read_text())
    assert {"schema_version", "plan", "results", "prompts", "environment", "costs"} <= content.keys()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "prompts.csv").read_text())))
    assert list(rows[0]) == ["prompt", "memorised", "t_error", "magnitude", "noise_norm", "alignment"]
    for row, kept in zip(rows, record.prompts, strict=True):
        assert (row["prompt"], row["memorised"]) == (kept.prompt, str(int(kept.memorised)))
        assert tuple(float(row[name]) for name in list(row)[2:]) == (kept.t_error, kept.magnitude, kept.noise_norm, kept.alignment)


def test_the_page_has_no_script_and_prompts_are_no_markup() -> None:
    prompts = [*SECRET[:-1], "secret <script>alert(1)</script> \u202e"]
    record = find_memorised(planted(), prompts, PLAIN, **QUICK).record
    page = to_html(page_of(record))
    assert page == to_html(page_of(record))
    assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    assert "default-src 'none'" in page and "http://" not in page.replace("http://www.w3.org", "")
    for part in (
        "Memorised prompts stand out from ordinary ones.",
        "secret 3",
        "Magnitude",
        "t-error",
        "1.000",
        'aria-label="Histogram of the',
    ):
        assert part in page
    plain = to_html(page_of(find_memorised(planted(), prompts=PLAIN, **QUICK).record))
    assert "was not measured" in plain and "ordinary prompts</span>" not in plain


def test_a_histogram_of_equal_scores_is_drawn(drawn: None) -> None:
    record = find_memorised(planted(), prompts=PLAIN, **QUICK).record
    assert {row.magnitude for row in record.prompts} == {0.0}
    assert histogram(record, "magnitude").startswith("<svg")


def test_where_nothing_was_found_the_verdict_says_what_cannot_be_excluded() -> None:
    judged = verdict(find_memorised(planted(), [f"other {i}" for i in range(12)], PLAIN, **QUICK).record)
    assert judged.level == "no-leak-found"
    assert judged.title == "No difference between memorised and ordinary prompts was found."
    assert judged.sentences[-1].endswith("% of pairs (upper end of the 95 % interval).")


def test_lists_that_are_told_apart_the_wrong_way_round_are_no_missing_difference() -> None:
    record = find_memorised(planted(), [f"other {i}" for i in range(12)], PLAIN, **QUICK).record
    of = lambda low, high: Estimate(value=(low + high) / 2, low=low, high=high)
    one, *others = (result.model_copy(update={"auc": of(0.4, 0.6)}) for result in record.results)
    judged = verdict(record.model_copy(update={"results": (one.model_copy(update={"auc": of(0.05, 0.2)}), *others)}))
    assert judged.level == "undecided" and "Magnitude tells the two lists apart, but the wrong way round" in judged.title
    assert "Check that the two lists are not exchanged" in judged.sentences[-1]
    touching = verdict(record.model_copy(update={"results": (one.model_copy(update={"auc": of(0.3, 0.5)}), *others)}))
    assert touching.level == "no-leak-found"


def test_the_terminal_prints_all_of_it_in_eighty_columns() -> None:
    out = io.StringIO()
    print_page(page_of(find_memorised(planted(), [*SECRET, "secret " * 30], PLAIN, **QUICK).record), Console(file=out, width=80))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert not any(line.rstrip().endswith(("…", "│")) or "│ …" in line for line in text.splitlines()), "numbers are never cut"
    for part in (
        "Memorised prompts stand out",
        "Statistic",
        "Magnitude",
        "t-error",
        "AUC",
        "Success",
        "memorised",
        "warning: 1 of 27 prompts is longer",
    ):
        assert part in text


def test_the_command_is_the_one_that_repeats_the_run() -> None:
    config = PromptsConfig(model="m", memorised=Path("a b.txt"), ordinary=Path("b.txt"), steps=7, output=Path("out"))
    assert config.command == "diffleak prompts m --memorised 'a b.txt' --ordinary b.txt --output out --steps 7"
    assert "find_memorised" in find_memorised(planted(), prompts=PLAIN, **QUICK).record.command


# --- the command line ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "memorised.txt").write_text("\n".join(f"a house {i}" for i in range(10)))
    (tmp_path / "ordinary.csv").write_text("\n".join(["text", *(f"moon {i}" for i in range(11))]))
    return ["--memorised", str(tmp_path / "memorised.txt"), "--ordinary", str(tmp_path / "ordinary.csv")]


FAST = ["--device", "cpu", "--steps", "2", "--timestep", "10"]


def test_the_command_scores_reports_and_resumes(capsys: pytest.CaptureFixture[str], folder: Path, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, log = call(capsys, "prompts", folder, *files, "-o", out, *FAST)
    assert code == 0 and log.startswith("plan: 21 prompts, 1 image each in 2 steps at guidance 7.5")
    assert "Magnitude" in printed and f"report: {out / 'prompts.html'}" in printed
    assert {"prompts.json", "prompts.csv", "prompts.html", "prompts"} <= {path.name for path in out.iterdir()}
    code, printed, _ = call(capsys, "prompts", folder, *files, "-o", out, *FAST, "--json")
    assert code == 0
    record = json.loads(printed)
    assert [r["attack"] for r in record["results"]] == ["magnitude", "t_error", "noise_norm", "alignment"]
    assert len(record["prompts"]) == 21


def test_one_list_needs_neither_labels_nor_a_folder(capsys: pytest.CaptureFixture[str], folder: Path, files: list[str]) -> None:
    code, printed, _ = call(capsys, "prompts", folder, "--prompts", files[1], *FAST)
    assert code == 0
    assert "was not measured" in " ".join(printed.split()) and "report:" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there must be prompts: give --memorised FILE and --ordinary FILE, or --prompts FILE"),
        (["--memorised", "a.txt"], "--memorised and --ordinary are compared with each other: give both"),
        (["--prompts", "no.txt"], "found nothing at no.txt"),
        (["--prompts", "no.txt", "--images", "0"], "diffleak: --images must be at least 1"),
        (
            ["--prompts", "no.txt", "--no-draw", "--timestep", "90"],
            "--timestep must be left out with --no-draw, which draws no image to use it on",
        ),
        (
            ["--prompts", "no.txt", "--no-draw", "--timestep", "90", "--guidance-scale", "2"],
            "--guidance-scale and --timestep must be left out with --no-draw, which draws no image to use them on",
        ),
        (["--prompts", "no.txt", "--guidance-scale", "nan"], "diffleak: --guidance-scale must be a finite number"),
    ],
    ids=str,
)
def test_mistakes_on_the_command_line_are_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, "prompts", folder, *arguments)


def test_a_prompt_may_hold_what_unicode_calls_the_end_of_a_line(tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("a cat\u2028 in the sun\na dog\n", encoding="utf-8")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"text": "a cat\u2028 in the sun"}\n{"text": "a dog"}\n', encoding="utf-8")
    assert read_prompts(lines) == read_prompts(rows) == ["a cat\u2028 in the sun", "a dog"]
