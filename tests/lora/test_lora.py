"""`diffleak lora`: one row for each checkpoint, by audits beyond the base or by drawings beside the base's, and one answer."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.commands import all_recorded, call, refused, written_again
from fixtures.extraction import extraction_record
from fixtures.loras import TRAINED, trained_adapters
from fixtures.reports import audit_of
from PIL import Image

from diffleak.attacks import ATTACKS
from diffleak.auditing.evidence import known
from diffleak.data.sources import open_source
from diffleak.errors import UserError
from diffleak.lora import judge
from diffleak.lora.config import LoraConfig
from diffleak.lora.run import _captions, _distances, _repeats, _too_few, _warnings
from diffleak.records.audit import AuditRecord, Blind, Gate, RateAtFPR
from diffleak.records.base import Estimate
from diffleak.records.evidence import Evidence
from diffleak.records.extraction import ExtractionRecord
from diffleak.records.headers import GivenAway
from diffleak.records.lora import Checkpoint, Decision, Excess, LoraRecord, read_lora
from diffleak.records.run_folder import read_audit
from diffleak.report import to_html, verdict
from diffleak.report.pages.lora import judged, page

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("lora")
    return (root, *trained_adapters(root))


def excess_of(low: float, value: float, high: float, reach: float, limit: float = 0.6) -> Excess:
    """A result beyond the base with its interval, and the most that any attack may reach."""
    return Excess(
        attack="sima[excess]",
        auc=Estimate(value=value, low=low, high=high, method="delong"),
        tpr_at_1pct=RateAtFPR(fpr=0.01, value=None, support="none", reason="needs 100 held-out images"),
        gates=(Gate(limit="max_excess_auc", attack="sima[excess]", quantity="AUC", at_most=limit, reach=reach, passed=reach <= limit),),
    )


FAIR = Blind(value=0.5, low=0.47, high=0.53, method="DeLong")
SEES_BEYOND_85 = Blind(value=0.6, p_value=0.6, detectable_auc=0.85)
UNCHECKED = Blind(reason="not looked for")


def audited(found: Excess, blind: Blind) -> AuditRecord:
    """An audit whose one result is that on the excess."""
    kept = Evidence(attacks=known((ATTACKS["sima"](),), False))
    record, _ = audit_of({"sima": 0.0}, 100, blind=blind, headline=found.attack, evidence=kept)
    result = record.results[0].model_copy(update={"attack": found.attack, "variant": "excess", "auc": found.auc})
    return record.model_copy(update={"results": (result,)})


def checkpoint(name: str, decision: Decision, private: dict[str, int] | None = None) -> Checkpoint:
    header = GivenAway(file=name, what="adapter", counts=private) if private else None
    return Checkpoint(
        name=name,
        path=f"out/{name}.safetensors",
        step=1,
        run=name,
        excess=None,
        redrawn=None,
        header=header,
        decision=decision,
        reason="r",
    )


@pytest.mark.parametrize(
    ("found", "blind", "decision"),
    [
        (excess_of(0.52, 0.57, 0.62, 0.62), FAIR, "do not publish"),
        (excess_of(0.52, 0.54, 0.56, 0.56), FAIR, "do not publish"),  # a leak that is shown, though below the limit
        (excess_of(0.45, 0.5, 0.55, 0.55), FAIR, "publish"),
        (excess_of(0.3, 0.5, 0.7, 0.7), FAIR, "undecided"),
        (excess_of(0.45, 0.5, 0.55, 0.7), FAIR, "undecided"),  # another attack may reach more
        (excess_of(0.3, 0.4, 0.45, 0.45), FAIR, "undecided"),  # the wrong way round
        (excess_of(0.7, 0.8, 0.9, 0.9), SEES_BEYOND_85, "undecided"),  # the sources may be the reason
        (excess_of(0.86, 0.9, 0.95, 0.95), SEES_BEYOND_85, "do not publish"),
        (excess_of(0.7, 0.8, 0.9, 0.9), UNCHECKED, "undecided"),
        (excess_of(0.45, 0.5, 0.55, 0.55), UNCHECKED, "undecided"),
    ],
)
def test_a_checkpoint_is_decided_as_the_verdict_of_an_audit_on_the_excess_alone_is(found: Excess, blind: Blind, decision: str) -> None:
    record = audited(found, blind)
    level = verdict(record).level  # here every result is one on the excess
    assert judge.of_excess(found, 0.6, judge.of_audit(record, found.attack))[0] == decision
    assert (level == "leak") is (decision == "do not publish") and (decision != "publish" or level == "no-leak-found")


def test_what_the_model_itself_leaks_does_not_forbid_the_adapter() -> None:
    found = excess_of(0.45, 0.5, 0.55, 0.55)
    record = audited(found, FAIR)
    (excess,) = record.results
    own = excess.model_copy(update={"attack": "sima", "variant": None, "auc": Estimate(value=0.9, low=0.85, high=0.95)})
    both = record.model_copy(update={"results": (own, excess), "headline": "sima"})
    assert verdict(both).level == "leak" and judge.of_audit(both, found.attack).level == "no-leak-found"


def test_what_cannot_be_estimated_is_undecided() -> None:
    found = excess_of(0.4, 0.5, 0.6, 0.6).model_copy(update={"auc": Estimate(reason="too few")})
    judged = judge.of_audit(audited(found, FAIR), found.attack)
    assert judge.of_excess(found, 0.6, judged) == ("undecided", "nothing can be estimated: too few")


def test_pictures_drawn_nearer_than_the_base_ever_draws_are_as_many_by_chance_as_the_p_value_says() -> None:
    """400 sets of 30 pictures, each with a difficulty of its own, under an adapter that draws as its base does."""
    rng, runs = np.random.default_rng(0), 4000
    names = [str(i) for i in range(30)]
    found = []
    for _ in range(runs):
        difficulty = rng.normal(size=30)
        one, other = (dict(zip(names, np.exp(difficulty + 0.3 * rng.normal(size=30)), strict=True)) for _ in range(2))
        found.append(judge.redrawn(one, other).p_value)
    for alpha in (0.5, 0.25, 0.05):
        assert np.mean(np.array(found) <= alpha) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)


def test_pictures_of_one_scene_are_one_piece_of_evidence_that_an_adapter_draws_close() -> None:
    """Four scenes of five near-duplicates, drawn close together or not at all, under an adapter that draws as its base does."""
    rng, runs, record = np.random.default_rng(0), 2000, extraction_record()

    def drawn(distances: np.ndarray) -> ExtractionRecord:
        named = [f"{row:02d}" for row in range(20)]
        like = [None if row % 5 == 0 else named[row - row % 5] for row in range(20)]
        pairs = [
            record.pairs[0].model_copy(update={"id": named[row], "counted_as": like[row], "distances": {record.decides: distances[row]}})
            for row in np.argsort(distances)
        ]
        return record.model_copy(update={"pairs": tuple(pairs)})

    found = []
    for _ in range(runs):
        one, other = (np.exp(np.repeat(rng.normal(size=4), 5) + 0.2 * rng.normal(size=20)) for _ in range(2))
        of_adapter, of_base = (_distances(drawn(each)) for each in (one, other))
        assert of_adapter == {f"{5 * k:02d}": each for k, each in enumerate(one.reshape(4, 5).min(axis=1))}
        every = judge.redrawn(*(dict(zip(map(str, range(20)), each, strict=True)) for each in (one, other)))
        counted = judge.redrawn(of_adapter, of_base)
        found.append((counted.p_value, every.p_value))
        assert counted.pictures == 4 and every.pictures == 20
    p, naive = np.array(found).T
    for alpha in (0.5, 0.25, 0.07):
        assert np.mean(p <= alpha) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)
    assert np.mean(naive <= 0.07) > 0.2, "each for itself would look like proof"


def test_pictures_that_an_adapter_gives_back_are_counted_and_forbid_it() -> None:
    base = {str(i): 0.3 + 0.01 * i for i in range(12)}
    found = judge.redrawn({**base, "3": 0.1, "7": 0.02, "8": 0.2, "9": 0.25, "10": 0.29}, base)
    assert (found.nearer, found.nearest, found.closest, found.closest_of_base) == (5, ("7", "3", "8", "9", "10"), 0.02, 0.3)
    decision, why = judge.of_drawings(found, "drawings/kay/extract.html")
    assert decision == "undecided" and found.look_first, "an adapter that learnt its style draws near too"
    assert why.startswith("look first: to 5 of 12 pictures") and why.endswith("the pairs of 7, 3, 8, 9, 10 in drawings/kay/extract.html")
    same = judge.redrawn(base, base)
    decision, why = judge.of_drawings(same, "drawings/kay/extract.html")
    assert decision == "undecided" and not same.look_first and why.endswith("The pairs are in drawings/kay/extract.html")


def test_without_held_out_pictures_the_answer_is_to_look_first_with_two_ways_to_a_decision() -> None:
    base = {str(i): 0.3 for i in range(12)}
    near = [judge.redrawn({**base, **dict.fromkeys(map(str, range(n)), 0.1)}, base) for n in (0, 6)]
    rows = [checkpoint(f"kay-{i}", "undecided").model_copy(update={"redrawn": found}) for i, found in enumerate(near)]
    said = judge.answer(rows, 12, None)
    assert said.startswith("Undecided: kay-0, kay-1 (with 12 pictures and none held out). Look first at the pairs of kay-1:")
    assert said.endswith(judge.WAYS) and "hold pictures out" in judge.WAYS and "diffleak inquire" in judge.WAYS
    assert "Look first" not in judge.answer(rows[:1], 12, None) and "Do not publish" not in said


def test_warnings_of_a_checkpoint_have_its_name_and_those_of_all_stand_once() -> None:
    found = _warnings({"base": ("all",), "kay-1": ("all", "one"), "kay-2": ("all",)})
    assert found == ("all", "kay-1: one")


def test_the_answer_names_runs_of_checkpoints_and_what_the_files_hold() -> None:
    rows = [checkpoint("kay-1", "undecided"), *(checkpoint(f"kay-{i}", "do not publish", {"captions": 30}) for i in range(3, 7))]
    assert judge.answer(rows, 30, None) == (
        "Do not publish as they are: the 4 checkpoints from kay-3 to kay-6. Undecided: kay-1 (with 30 pictures and none held out). "
        f"{judge.WAYS} The headers of the 4 checkpoints from kay-3 to kay-6 give away captions and tags: strip with diffleak metadata FILE "
        "--strip OUT."
    )
    assert judge.answer([checkpoint("a", "publish"), checkpoint("b", "undecided")], 300, 200) == (
        "By the attacks that were run, may be published: a. Undecided: b (with 300 pictures and 200 held out)."
    )


def test_the_page_begins_with_the_answer_alone_and_what_to_do_stands_behind_the_reasons() -> None:
    rows = [checkpoint("a 3 files.v1", "do not publish"), checkpoint("b", "undecided", {"captions": 30})]
    few = judge.too_few(0.6, 30, 100, 0.2)
    record = LoraRecord.model_construct(checkpoints=tuple(rows), answer=judge.answer(rows, 30, 100, few))
    shown = judged(record)
    assert shown.title == "Do not publish as they are: a 3 files.v1. Undecided: b (with 30 pictures and 100 held out)."
    assert (
        len(shown.sentences) == 3
        and shown.sentences[-1] == f"{few} The header of b gives away captions and tags: strip with diffleak metadata FILE --strip OUT."
    )
    assert judged(record.model_copy(update={"answer": "May be published: a."})).title == "May be published: a."


def test_kohyas_folders_say_repeats_and_the_words_of_pictures_without_captions(trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained[1], tmp_path / "img" / "10_kay")
    (tmp_path / "img" / "10_kay" / "metadata.jsonl").unlink()
    for name, repeats in ((tmp_path / "img", {"10_kay": 10}), (tmp_path / "img" / "10_kay", {"10_kay": 10})):
        source = open_source(str(name))
        assert _repeats(str(name), source) == repeats
        assert _captions(source, repeats) == "fixed:kay"
    assert _captions(source, {}) == "empty"
    assert _captions(open_source(str(trained[1])), {"10_kay": 10}) == "own"
    gap = trained[1].parent / "gap"
    shutil.copytree(trained[1], gap)
    lines = (gap / "metadata.jsonl").read_text().splitlines()
    (gap / "metadata.jsonl").write_text("\n".join(lines[1:]))
    assert _captions(open_source(str(gap)), {"10_kay": 10}) == "own", "the picture without one is then refused"
    with pytest.raises(UserError, match="their folders are called dog, kay"):
        _captions(source, {"10_kay": 10, "2_dog": 2})


def test_with_held_out_pictures_each_checkpoint_is_audited_beyond_its_base(
    trained: Any, tmp_path: Path, capsys: Any, few_divisions: Any
) -> None:
    root, pictures = trained[:2]
    held_out = shutil.copytree(trained[2], tmp_path / "held-out")
    captions = (held_out / "metadata.jsonl").read_text().splitlines()
    twice = json.loads(captions[0])
    shutil.copy(held_out / twice["file_name"], held_out / "again.png")
    (held_out / "metadata.jsonl").write_text("\n".join((*captions, json.dumps({**twice, "file_name": "again.png"}))))
    flags = ("--pictures", pictures, "--held-out", held_out, "--attacks", "sima", "--timesteps", "100", "--device", "cpu", "--threads", 1)
    command = ("lora", root / "sd", root / "out" / "*.safetensors", *flags, "-o", tmp_path / "run")
    code, out, err = call(capsys, *command, "--json")
    assert code == 0 and "12 images, captions from" in err, err
    record = LoraRecord.model_validate_json(out)
    assert [(row.name, row.step) for row in record.checkpoints] == [*TRAINED.items()]
    for row in record.checkpoints:
        audit = tmp_path / "run" / row.run / "audit.json"
        assert row.excess and row.excess.attack.startswith("sima[excess") and row.excess.auc.value is not None and audit.exists()
        assert row.redrawn is None and row.header.counts["captions"] == 4
    assert "The headers of dog-000001, dog give away captions" in record.answer and record.answer.endswith(
        "strip with diffleak metadata FILE --strip OUT."
    )
    assert (record.pictures, record.held_out, record.captions, record.max_excess_auc) == (12, 13, "own", 0.6)
    assert "(with 12 pictures and 13 held out)." in record.answer and "With 12 pictures and 12 held out, since" in record.answer
    assert any("12 members and 12 held-out images are counted" in line for line in record.warnings), "what they count as is in a warning"
    html = (tmp_path / "run" / "lora.html").read_text()
    assert "Checkpoints" in html and "sks dog" not in html, "counted, not repeated"
    assert read_lora(tmp_path / "run") == record
    assert (
        shlex.split(record.command)[1:4] == ["lora", str(root / "sd"), str(root / "out" / "*.safetensors")]
        and "--adapters" not in record.command
    )
    code, out, err = call(capsys, *command)
    assert code == 0 and record.answer.split(":")[0] in out and all_recorded(tmp_path / "run")
    assert written_again(capsys, tmp_path / "run" / "lora.html")
    code, out, _ = call(capsys, *command, "--max-excess-auc", 1, "--json")
    allowed = LoraRecord.model_validate_json(out)
    assert [row.decision for row in allowed.checkpoints] == ["publish"] * 2, "no leak is shown, and this limit excludes nothing"
    assert "may be published: dog-000001, dog" in allowed.answer
    card = call(capsys, "report", tmp_path / "run", "--format", "card")[1]
    assert "No leak was found by the attacks that were run: dog-000001, dog." in card and str(root) not in card
    assert all(f"{row.name}.safetensors at scale 1, sha256:" in card for row in allowed.checkpoints)


def test_pictures_that_differ_from_the_held_out_ones_by_themselves_are_said_without_a_flag_that_is_not_there(
    trained: Any, tmp_path: Path, capsys: Any, few_divisions: Any
) -> None:
    root, pictures = trained[:2]
    held_out = shutil.copytree(trained[2], tmp_path / "held-out")
    for n, file in enumerate(sorted(held_out.glob("*.png"))):
        size = Image.open(file).size
        Image.effect_noise(size, 4 + n).convert("RGB").point(lambda value: value // 16).save(file)
    flags = ("--attacks", "sima", "--timesteps", "100", "--device", "cpu", "--threads", 1)
    command = ("lora", root / "sd", root / "out" / "dog.safetensors", "--pictures", pictures, "--held-out", held_out, *flags)
    code, _, err = call(capsys, *command, "-o", tmp_path / "run")
    assert code == 4 and "note: this audit will be invalid (exit 4)" in err and "--allow-shift" not in err, err


def test_what_a_refusal_advises_is_an_option_of_this_command(trained: Any, tmp_path: Path, capsys: Any, few_divisions: Any) -> None:
    root, _, held_out = trained
    pictures, adapter = shutil.copytree(trained[1], tmp_path / "pictures"), tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(root / "out" / "dog.safetensors", adapter / "pytorch_lora_weights.safetensors")
    damaged = pictures / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    flags = ("--attacks", "sima", "--timesteps", "100", "--device", "cpu", "--threads", 1, "--batch-size", 4)
    command = ("lora", root / "sd", adapter, "--pictures", pictures, "--held-out", held_out, *flags, "-o", tmp_path / "run")
    assert "--skip-unreadable" in refused(capsys, *command)
    command = (*command, "--skip-unreadable")
    (adapter / "split.json").write_text(json.dumps({"members": sorted(each.name for each in held_out.glob("*.png")), "nonmembers": []}))
    (adapter / "train.json").write_text(json.dumps({"data": str(held_out)}))
    said = refused(capsys, *command)
    assert "take the sides from that split, or add --ignore-model-split" in said, said
    code, out, err = call(capsys, *command, "--ignore-model-split", "--json")
    assert code == 0 and "plan: 11 members and 12 held-out images" in err, err
    assert "sweep: 1 checkpoint, 46 denoiser queries" in err, "no step is known of an adapter whose file names none"
    assert "checkpoint 1 of 1: adapter" in err and "step 0" not in err
    (row,) = LoraRecord.model_validate_json(out).checkpoints
    assert "Many looks" not in (tmp_path / "run" / "lora.html").read_text(), "one checkpoint was looked at"
    audited = read_audit(tmp_path / "run" / row.run)
    assert audited.membership.status == "contradicted, ignored" and audited.plan.batch_size == 4


def test_a_base_that_no_adapter_fits_is_refused_in_the_words_of_this_command(
    trained: Any, model_folder: Any, tmp_path: Path, capsys: Any
) -> None:
    """The commands behind it would advise to leave out --draws, or --lora, which was not given."""
    root, pictures, held_out = trained
    adapter, pair = root / "out" / "dog.safetensors", shutil.copytree(root / "sd", tmp_path / "pair")
    (pair / "unet_2").mkdir()
    bases = ((model_folder(), "takes no captions"), (adapter, "is an adapter"), (pair, "holds two networks"))
    for more in ((), ("--held-out", held_out)):
        for base, why in bases:
            said = refused(capsys, "lora", base, adapter, "--pictures", pictures, *more, "-o", tmp_path / "run")
            assert f"BASE must be a text-to-image model; {base} {why}: give the model" in said, said
    said = refused(capsys, "lora", root / "sd", adapter, "--pictures", pictures, "--lora-scale", 0, "-o", tmp_path / "run")
    assert said.endswith("give another strength") and not (tmp_path / "run").exists()


def test_without_held_out_pictures_drawings_stand_beside_those_of_the_base(trained: Any, tmp_path: Path, capsys: Any) -> None:
    root, pictures, _ = trained
    few = ("--pictures", pictures, "-n", 2, "--draw-steps", 2, "--device", "cpu", "--threads", 1, "-o", tmp_path / "run")
    code, out, err = call(capsys, "lora", root / "sd", root / "out" / "dog.safetensors", *few, "--json")
    assert code == 0, err
    record = LoraRecord.model_validate_json(out)
    (row,) = record.checkpoints
    assert row.step is None and row.excess is None and row.redrawn and row.redrawn.p_value == 2.0**-row.redrawn.nearer
    assert row.decision == "undecided" and record.held_out is None and record.step_source is None
    for name in ("base", "dog"):
        assert (tmp_path / "run" / "drawings" / name / "extract.json").exists()
    made, how = to_html(page(record)), "The same command with --thumbnails puts them on the pages of the drawings"
    assert "Nothing was held out." in made and how in made and all_recorded(tmp_path / "run")
    assert "1 checkpoint on " in made and f"{row.run}/extract.html" in made, "the pairs have a place, whatever the answer is"
    assert how not in to_html(page(record.model_copy(update={"settings": {"thumbnails": True}})))
    code, _, err = call(capsys, "lora", root / "sd", root / "out" / "dog.safetensors", *few, "--thumbnails")
    assert code == 0 and "<img" in (tmp_path / "run" / "drawings" / "dog" / "extract.html").read_text(), err


def test_pictures_without_captions_are_given_the_empty_one_and_the_page_says_what_a_dreambooth_needs(
    trained: Any, tmp_path: Path, capsys: Any
) -> None:
    root, pictures = trained[0], shutil.copytree(trained[1], tmp_path / "pictures")
    (pictures / "metadata.jsonl").unlink()
    few = ("--pictures", pictures, "-n", 1, "--draw-steps", 1, "--device", "cpu", "--threads", 1)
    command = ("lora", root / "sd", root / "out" / "dog.safetensors", *few)
    code, _, err = call(capsys, *command, "-o", tmp_path / "run")
    said, record = '--captions "fixed:TEXT"', read_lora(tmp_path / "run")
    assert "captions: empty (chosen by what was found; --captions chooses another)" in err
    assert code == 0 and record.captions == "empty" and "note: the pictures have no captions" in err and said in err
    assert any(said in line for line in record.warnings) and "(DreamBooth)" in (tmp_path / "run" / "lora.html").read_text()
    assert call(capsys, *command, "--captions", "empty", "-o", tmp_path / "chosen")[0] == 0
    assert not any(said in line for line in read_lora(tmp_path / "chosen").warnings), "chosen, not guessed"


def test_bad_input_is_one_line(trained: Any, tmp_path: Path, capsys: Any) -> None:
    root, pictures, _ = trained
    given = ("--pictures", pictures, "-o", tmp_path / "run")
    assert "nothing matches" in refused(capsys, "lora", root / "sd", root / "none" / "*.safetensors", *given)
    named = (root / "sd", pictures / "0.png")  # no pattern: BASE in the place of the adapter, and a picture
    for each in named:
        said = refused(capsys, "lora", root / "sd", each, *given)
        assert "an adapter must be" in said and "behind the model that it was made for" in said and "pattern" not in said
    assert "must match adapters alone" in refused(capsys, "lora", root / "sd", f"{pictures}/0.*", *given)
    assert "--buckets is for the audit" in refused(capsys, "lora", root / "sd", root / "out", *given, "--buckets", "512")
    shutil.copy(root / "out" / "dog.safetensors", tmp_path / "base.safetensors")
    assert "must not be called base" in refused(capsys, "lora", root / "sd", tmp_path / "base.safetensors", *given)
    several = tmp_path / "several"
    several.mkdir()
    for trained_as, name in zip(TRAINED, ("aaa", "base"), strict=True):
        shutil.copy(root / "out" / f"{trained_as}.safetensors", several / f"{name}.safetensors")
    said = refused(capsys, "lora", root / "sd", several / "*.safetensors", *given)
    assert "rename" in said and "base.safetensors" in said.partition("rename")[2], said
    assert not (tmp_path / "run").exists()
    few = ("--pictures", pictures, "-n", 1, "--draw-steps", 2000, "--device", "cpu", "--threads", 1)
    command = ("lora", root / "sd", root / "out" / "dog.safetensors", *few, "-o")
    assert "--draw-steps must lie in [1, 1000]" in refused(capsys, *command, tmp_path / "run"), "named as here, and not as in extract"
    for name in ("audit.json", "plan.json", "extract.json", "sweep.json"):
        (tmp_path / name[:-5]).mkdir()
        (tmp_path / name[:-5] / name).write_text("{}")
        assert f"({name}); choose another -o" in refused(capsys, *command, tmp_path / name[:-5])


@pytest.mark.parametrize(("pictures", "held_out"), [(18, 12), (60, 60), (80, 80), (300, 200)])
def test_a_limit_that_no_checkpoint_can_meet_is_said_with_the_pictures_that_it_takes(pictures: int, held_out: int) -> None:
    said = judge.too_few(0.6, pictures, held_out, 0.2)
    assert (said is None) == (min(pictures, held_out) >= 80)
    if said:
        assert said.startswith(f"With {pictures} pictures and {held_out} held out, no checkpoint can meet the limit of 0.6: ")
        assert said.endswith("It takes at least 80 pictures on each side.")
        assert judge.answer([checkpoint("a", "undecided")], pictures, held_out, said).endswith(said)


def test_pictures_given_twice_count_once_where_a_limit_is_said_to_be_out_of_reach() -> None:
    images = np.random.default_rng(0).integers(0, 256, (162, 8, 8, 3), dtype=np.uint8)
    config = LoraConfig(adapters="a", base="b", pictures="p", held_out="h", output="o")
    said = lambda pictures, held_out: _too_few(config, open_source(pictures), open_source(held_out))
    assert said(images[:81], images[81:]) is None
    twice = np.concatenate([images[:70], images[:11]])
    assert str(said(twice, images[81:])).startswith(
        "With 70 pictures and 81 held out, since near-duplicates count once (81 and 81 files), no checkpoint can meet the limit of 0.6: "
    )


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        ((True,), "The header of a0 and the adapter_config.json beside it give away paths of the training machine: strip"),
        ((False, True), "The headers of a0, a1 and the adapter_config.json beside them give away paths of the training machine: strip"),
    ],
)
def test_what_a_config_of_peft_gives_away_is_not_said_of_the_header_alone(configs: tuple[bool, ...], said: str) -> None:
    rows = [checkpoint(f"a{i}", "publish", {"paths": 1}) for i in range(len(configs))]
    rows = [row.model_copy(update={"header": row.header.model_copy(update={"config": c})}) for row, c in zip(rows, configs, strict=True)]
    record = LoraRecord.model_construct(checkpoints=tuple(rows), answer=judge.answer(rows, 30, 100))
    assert judged(record).sentences[-1].startswith(said) and judged(record).title.endswith("a0.") is (len(rows) == 1)
