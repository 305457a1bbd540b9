"""A sweep over checkpoints: found, ordered and refused before anything starts; each an ordinary audit; one page on all."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from fixtures.commands import call, refused
from fixtures.loras import TRAINED, trained_adapters
from fixtures.runs import gaussian, make_run
from fixtures.text import CAPTIONS, text_folder
from safetensors.torch import save_file

from diffleak import hub
from diffleak.auditing import run as auditing
from diffleak.auditing import score as scoring
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.inputs import Inputs, lend
from diffleak.auditing.plan import Prepared
from diffleak.auditing.shared import Shared
from diffleak.comparison.compare import difference
from diffleak.comparison.runs import Run
from diffleak.config import build
from diffleak.diffusion.codec import Autoencoder, Codec
from diffleak.diffusion.target import Target
from diffleak.errors import GateFailed, InvalidAudit, UserError
from diffleak.hub.pipelines import PipelineText
from diffleak.hub.sharing import codec_key, text_key
from diffleak.records.plan import Plan
from diffleak.records.run_folder import read_audit, read_samples
from diffleak.records.sweep import SweepRecord
from diffleak.report import to_html
from diffleak.report.pages.sweep import judged as judged_page
from diffleak.report.pages.sweep import page
from diffleak.sweep.checkpoints import Checkpoint, Checkpoints, checkpoints
from diffleak.sweep.run import INPUTS, First, _plan_line, _refuse_other_plan, gate, summary, sweep

pytestmark = pytest.mark.usefixtures("undrawn")

STEPS = (100, 200, 300)


def config(**given) -> AuditConfig:
    return build(AuditConfig, {"model": "m", "members": "a", "nonmembers": "b", **given})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[str]]:
    """A tiny Stable Diffusion with two adapters of it as kohya names them, and captioned images on two sides."""
    root = tmp_path_factory.mktemp("trained")
    members, nonmembers = trained_adapters(root)
    sides = ["--members", members, "--nonmembers", nonmembers, "--attacks", "sima", "--timesteps", "100"]
    return root, [*map(str, sides), "--no-calibration", "--allow-shift", "--threads", "1", "--device", "cpu"]


def test_a_sweep_gives_each_checkpoint_the_audit_that_it_has_alone_and_computes_inputs_once(trained, tmp_path, capsys, monkeypatch):
    root, settings = trained
    pattern, embedded, encoded = str(root / "out" / "*.safetensors"), [], []
    made, encode = PipelineText._made, Inputs.measure
    monkeypatch.setattr(PipelineText, "_made", lambda self, texts: embedded.append(texts) or made(self, texts))
    monkeypatch.setattr(Inputs, "measure", lambda self, rows, *more: encoded.append(rows) or encode(self, rows, *more))
    code, out, err = call(capsys, "audit", root / "sd", "--lora", pattern, *settings, "-o", tmp_path / "run", "--json")
    assert code == 0 and "sweep: 2 checkpoints, steps 100 to 200 from their headers, 48 denoiser queries in all" in err
    assert len(encoded) == 1, "latents are those of the first checkpoint"
    assert len(embedded) == len({*CAPTIONS[:12], ""}), "and so are embeddings"
    record = SweepRecord.model_validate_json(out)
    assert [(point.name, point.step) for point in record.points] == [*TRAINED.items()]
    assert record.model_dump_json() == SweepRecord.model_validate_json((tmp_path / "run" / "sweep.json").read_text()).model_dump_json()
    assert "Leak against training step" in (tmp_path / "run" / "report.html").read_text() and not (tmp_path / "run" / INPUTS).exists()

    last = root / "out" / "dog.safetensors"
    assert call(capsys, "audit", root / "sd", "--lora", last, *settings, "-o", tmp_path / "alone")[0] == 0
    samples = [(folder / "samples.csv").read_bytes() for folder in (tmp_path / "alone", tmp_path / "run" / "dog")]
    assert samples[0] == samples[1], "bit for bit"
    alone, swept = (read_audit(folder) for folder in (tmp_path / "alone", tmp_path / "run" / "dog"))
    assert swept.plan == alone.plan and swept.settings["lora"] == str(last) and swept.settings["sweep_models"] == []

    assert alone.headers[0].counts["captions"] == 4 and alone.headers[0].what == "adapter"
    html = (tmp_path / "alone" / "report.html").read_text()
    assert "The header of the adapter gives away: 4 captions and tags" in html and "sks dog" not in html, "counted, not repeated"

    lent, score, before = list[Path](), scoring.score, len(encoded)

    def finished_by_another(job, folder, worker):
        found = score(job, folder, worker)
        (folder.path / "audit.json").write_text("{}")
        return found

    (tmp_path / "run" / "dog" / "audit.json").unlink()
    monkeypatch.setattr(scoring, "score", finished_by_another)
    monkeypatch.setattr(auditing, "lend", lambda source, folder: lent.append(folder))
    code, again, _ = call(capsys, "audit", root / "sd", "--lora", pattern, *settings, "-o", tmp_path / "run", "--json")
    assert code == 0 and len(encoded) == before, "a sweep resumes"
    assert lent == [tmp_path / "run" / "dog"], "no latents are left behind by whom another worker has overtaken"
    assert SweepRecord.model_validate_json(again).points == record.points

    written = (tmp_path / "run" / "report.html").read_bytes()
    assert call(capsys, "report", tmp_path / "run")[0] == 0 and (tmp_path / "run" / "report.html").read_bytes() == written
    assert "whose page shows no images: give the run of one of them" in refused(capsys, "report", tmp_path / "run", "--thumbnails")


def test_only_models_with_the_same_weights_and_words_share_embeddings_and_latents(trained):
    root, _ = trained
    one, other = (hub.load(root / "sd", device="cpu") for _ in range(2))
    assert text_key(one.text) == text_key(other.text) is not None and codec_key(one.codec) == codec_key(other.codec)
    with torch.no_grad():
        next(other.text.networks[0].parameters()).view(-1)[0] += 1e-3
        next(other.codec.network.parameters()).view(-1)[0] += 1e-3
    assert text_key(one.text) != text_key(other.text) and codec_key(one.codec) != codec_key(other.codec)
    assert codec_key(one.codec) != codec_key(replace(one.codec, scale=2 * one.codec.scale))
    kept = text_key(one.text)
    one.text.pipeline.tokenizer.chat_template = "{{ messages }}"
    assert text_key(one.text) != kept
    kept = text_key(one.text)
    one.text.pipeline.tokenizer.add_tokens(["<sks>"])
    assert text_key(one.text) != kept and text_key(None) is None
    one.text.pipeline.text_encoder = None
    assert text_key(one.text) is None, "released weights show nothing"


def test_a_codec_of_the_users_own_lends_no_latents(tmp_path):
    class Own(Codec):
        encode = decode = lambda self, x: x

    target = replace(hub.load(text_folder(tmp_path / "sd"), device="cpu"), codec=Own())
    assert codec_key(target.codec) is None
    assert Shared(tmp_path).latents(MagicMock(spec=Inputs, target=target), MagicMock(spec=Plan)) is None
    assert codec_key(Autoencoder(torch.nn.Identity(), torch.ones(1), torch.zeros(1))) is None


def test_latents_that_are_removed_while_they_are_lent_are_left_out(tmp_path):
    (tmp_path / "from" / "latents").mkdir(parents=True)
    (tmp_path / "from" / "latents" / "chunk-0.npy").symlink_to(tmp_path / "gone")
    (tmp_path / "from" / "latents" / "chunk-1.npy").write_bytes(b"latents")
    lend(tmp_path / "from", tmp_path / "to")
    assert [(file.name, file.read_bytes()) for file in (tmp_path / "to" / "latents").iterdir()] == [("chunk-1.npy", b"latents")]


def without_models(monkeypatch, checked, finished) -> None:
    nothing = {"read_cohort": lambda config: (), "refuse_too_few": lambda *given: None, "_plan_line": lambda *given: "a plan"}
    for name, made in {"checked": checked, **nothing}.items():
        monkeypatch.setattr(f"diffleak.sweep.run.{name}", made)
    monkeypatch.setattr("diffleak.sweep.run._refuse_other_plan", lambda *given: None)
    monkeypatch.setattr(auditing, "run", lambda *given: finished)


@pytest.mark.parametrize(
    ("given", "key", "same"),
    [
        ({"reference": "m0"}, "model", True),
        ({"reference": "base", "lora": "a*"}, "lora", True),
        ({"reference": "base", "lora": "a"}, "model", False),
        ({"reference": "base", "lora": "a"}, "network", False),
    ],
)
def test_each_model_of_a_sweep_has_a_base_of_its_own(tmp_path, monkeypatch, given, key, same):
    asked, first = [], MagicMock(spec=Prepared, plan=MagicMock(spec=Plan), reference=MagicMock(spec=Target))
    without_models(monkeypatch, lambda config, **told: asked.append(told["reference"]) or first, finished=None)
    found = Checkpoints(key, "their names", (Checkpoint("a", "a", 1), Checkpoint("b", "b", 2)))
    assert sweep(config(output=tmp_path, **given), found) is None
    assert asked == [None, first.reference if same else None]


def test_a_sweep_that_cannot_measure_keeps_no_latents(tmp_path, monkeypatch):
    invalid = SimpleNamespace(save=lambda *given: None, record=SimpleNamespace(valid=False, invalid_reason="The sides differ."))
    prepared = MagicMock(spec=Prepared, plan=MagicMock(spec=Plan), reference=None)
    without_models(monkeypatch, lambda config, **told: prepared, finished=invalid)
    (tmp_path / INPUTS / "latents").mkdir(parents=True)
    with pytest.raises(InvalidAudit, match="no other checkpoint was audited"):
        sweep(config(output=tmp_path), Checkpoints("lora", "their names", (Checkpoint("a", "a", 1), Checkpoint("b", "b", 2))))
    assert not (tmp_path / INPUTS).exists()


def test_a_sweep_whose_checkpoints_cannot_be_audited_alike_keeps_no_latents(tmp_path, monkeypatch):
    refuse = _refuse_other_plan
    alike = dict.fromkeys(("image_shape", "data_fingerprint", "captions", "guidance_scale", "labels"))
    plans = iter([MagicMock(spec=Plan, attacks=[attack], **alike) for attack in ("sima", "loss")])
    without_models(monkeypatch, lambda config, **told: MagicMock(spec=Prepared, plan=next(plans), reference=None), finished=None)
    monkeypatch.setattr("diffleak.sweep.run._refuse_other_plan", refuse)
    (tmp_path / INPUTS / "latents").mkdir(parents=True)
    with pytest.raises(UserError, match="must be audited alike; b differs in its attacks from a: audit them apart, or choose --attacks"):
        sweep(config(output=tmp_path), Checkpoints("lora", "their names", (Checkpoint("a", "a", 1), Checkpoint("b", "b", 2))))
    assert not (tmp_path / INPUTS).exists()


def test_attacks_are_chosen_otherwise_only_where_attacks_differ():
    alike = dict.fromkeys(("attacks", "data_fingerprint", "captions", "guidance_scale", "labels"))
    one, other = (MagicMock(spec=Plan, image_shape=shape, **alike) for shape in ("8 x 8", "4 x 4"))
    first = First(Checkpoint("a", "a", 1), one, None)
    with pytest.raises(UserError, match=r"b differs in its image shape from a: audit them apart$"):
        _refuse_other_plan(first, other, Checkpoint("b", "b", 2))


def test_one_model_that_is_named_twice_is_no_pattern(tmp_path):
    for part in ("unet", "scheduler"):
        (tmp_path / "one" / part).mkdir(parents=True)
    with pytest.raises(UserError, match="alone: to audit one, name it without a pattern and without --sweep-models"):
        checkpoints(config(model=str(tmp_path / "one"), sweep_models=[str(tmp_path / "one")]))


def test_a_dry_run_of_a_sweep_names_every_checkpoint_and_writes_nothing(trained, tmp_path, capsys):
    root, settings = trained
    arguments = ["audit", root / "sd", "--lora", root / "out" / "*", *settings, "-o", tmp_path / "run", "--dry-run", "--json"]
    _, out, err = call(capsys, *arguments)
    plan = json.loads(out)
    assert all(f"{root / side}: 12 images, captions from metadata.jsonl" in err for side in ("members", "nonmembers"))
    assert [each["step"] for each in plan["checkpoints"]] == [100, 200] and plan["queries"] == 48 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [("--dry-run",), ("--dry-run", "--json"), ()])
def test_a_sweep_says_its_plan_before_the_first_model_is_tried(trained, tmp_path, capsys, monkeypatch, more):
    def tried(job):
        at.append("".join(capsys.readouterr()))
        raise UserError("tried")

    (root, settings), at = trained, []
    monkeypatch.setattr(scoring, "probe", tried)
    arguments = ["audit", root / "sd", "--lora", root / "out" / "*", *settings, "-o", tmp_path / "run"]
    assert call(capsys, *arguments, *more)[0] == 2
    (said,) = at
    assert said.count("sweep: 2 checkpoints") == 1 and said.count("plan: 12 members and 12 held-out images") == 1


@pytest.mark.parametrize(
    ("kind", "said"), [("all", ", 48 denoiser"), ("calibrate", ", about 48 denoiser"), ("coarse", ", about 48 denoiser")]
)
def test_the_line_of_a_sweep_says_about_where_what_is_chosen_decides_how_many(kind, said):
    found = Checkpoints("lora", "", (Checkpoint("a", "a", 1), Checkpoint("b", "b", 2)))
    assert said in _plan_line(found, MagicMock(spec=Prepared, queries=24, plan=MagicMock(spec=Plan, sweep=kind)))


def found_in(tmp_path: Path, *names: str, **given) -> Checkpoints | None:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        save_file({"unet.a.lora_A.weight": torch.zeros(1)}, path)
    return checkpoints(config(lora=str(tmp_path / "*"), **given))


@pytest.mark.parametrize(
    ("names", "steps", "called"),
    [
        (("a-000010.safetensors", "a-000009.safetensors"), [9, 10], ["a-000009", "a-000010"]),
        (("a-step00000500.safetensors", "a-step00001000.safetensors"), [500, 1000], ["a-step00000500", "a-step00001000"]),
        (
            ("checkpoint-1000/pytorch_lora_weights.safetensors", "checkpoint-500/pytorch_lora_weights.safetensors"),
            [500, 1000],
            ["checkpoint-500", "checkpoint-1000"],
        ),
        (("sd15-b-000002.safetensors", "sd15-b-000001.safetensors"), [1, 2], ["sd15-b-000001", "sd15-b-000002"]),
    ],
)
def test_steps_are_read_from_the_names_that_trainers_give(tmp_path, names, steps, called):
    found = found_in(tmp_path, *names)
    assert found.source == "their names"
    assert ([each.step for each in found.found], [each.name for each in found.found]) == (steps, called)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("sd15-b-000010.safetensors", "sd15-b-000020.safetensors", "sd15-b.safetensors"), [10, 20, 30]),
        (("dog-step00000400.safetensors", "dog.safetensors"), [400, 800]),
    ],
)
def test_the_file_of_kohya_without_a_number_is_the_last_and_the_plan_says_so(tmp_path, names, steps):
    found = found_in(tmp_path, *names)
    assert [each.step for each in found.found] == steps and found.found[-1].name == names[-1].removesuffix(".safetensors")
    assert found.source == f"their names, where {found.found[-1].name} has none and counts as the last, one interval later"


def test_networks_of_training_scripts_are_a_sweep_and_files_with_brackets_are_none(tmp_path):
    for name in ("checkpoint-10", "checkpoint-5"):
        (tmp_path / name / "unet").mkdir(parents=True)
    found = checkpoints(config(network=str(tmp_path / "checkpoint-*")))
    assert (found.key, [each.step for each in found.found]) == ("network", [5, 10])
    with pytest.raises(UserError, match=r"holds a denoiser alone, as it has no scheduler/: .* --network PATTERN"):
        checkpoints(config(model=str(tmp_path / "checkpoint-*")))
    for name in ("m-1.ckpt", "m-2.ckpt"):
        (tmp_path / name).write_bytes(b"opened in its turn alone")
    assert checkpoints(config(model=str(tmp_path / "m-*.ckpt"))).key == "model"
    assert checkpoints(config(model=str(tmp_path / "checkpoint-*"), model_from="mine:load")).key == "model"
    one, two = tmp_path / "a[1].safetensors", tmp_path / "b2.safetensors"
    for path in (one, two):
        save_file({"unet.a.lora_A.weight": torch.zeros(1)}, path)
    assert checkpoints(config(lora=f"{one},{two}")) is None and checkpoints(config(lora=f"{one}@0.8")) is None
    with pytest.raises(UserError, match=r"the adapters of a sweep have one strength, that of --lora-scale"):
        checkpoints(config(lora=f"{tmp_path}/*.safetensors@0.8"))
    with pytest.raises(UserError, match=r"a\[1\].safetensors is an adapter \(it holds unet.a.lora_A.weight\)"):
        checkpoints(config(model=str(tmp_path / "*.safetensors")))
    with pytest.raises(UserError, match="steps"):
        config(steps="-1,2")


def test_the_order_that_steps_follow_is_said_whole(tmp_path, capsys):
    names = [f"epoch={i}-loss=0.{i}" for i in range(30)]
    with pytest.raises(UserError, match=r"give --steps, one each in this order: epoch=0-loss=0.0, .* more"):
        found_in(tmp_path, *(f"{name}.safetensors" for name in names))
    said = capsys.readouterr().err
    assert [line.partition(": ")[2] for line in said.splitlines()] == names


def test_given_steps_count_and_folders_of_models_are_a_sweep_too(tmp_path):
    assert [each.step for each in found_in(tmp_path / "a", "x.safetensors", "y.safetensors", steps="7,3").found] == [3, 7]
    for name, steps in (("one", 10), ("two", 20)):
        for part in ("unet", "scheduler"):
            (tmp_path / name / part).mkdir(parents=True)
        (tmp_path / name / "train.json").write_text(json.dumps({"steps": steps}))
    found = checkpoints(config(model=str(tmp_path / "one"), sweep_models=[str(tmp_path / "two")]))
    assert (found.key, found.source, [each.step for each in found.found]) == ("model", "train.json", [10, 20])
    (tmp_path / "three").mkdir()
    with pytest.raises(UserError, match=r"three has no unet/ or transformer/: give another model, or leave it out$"):
        checkpoints(config(model=str(tmp_path / "one"), sweep_models=[str(tmp_path / "two"), str(tmp_path / "three")]))
    with pytest.raises(UserError, match=r"has no unet/ or transformer/: narrow the pattern, or move it away$"):
        checkpoints(config(model=str(tmp_path / "t*")))
    assert checkpoints(config(lora=str(tmp_path / "a" / "x.safetensors"))) is None
    assert checkpoints(config(lora="a.safetensors@0.8,b.safetensors")) is None, "several at once are one adapter"


@pytest.mark.parametrize(
    ("names", "more", "given", "message"),
    [
        ((), {}, {}, "nothing matches"),
        (("a-1.safetensors",), {}, {}, "several checkpoints must be named or matched"),
        (("a-1.safetensors", "b.safetensors"), {}, {}, "needs a training step of its own"),
        (("a-1.safetensors", "b-1.safetensors"), {}, {}, "give --steps, one each in this order"),
        (("a-1.safetensors", "a-2.safetensors"), {}, {"steps": "1"}, "--steps must give each of the 2 checkpoints a step of its own"),
        (("a-1.safetensors", "a-2.safetensors"), {"optimizer.bin": b"x"}, {}, "optimizer.bin too: narrow the pattern"),
        (("a-1.safetensors", "a-2.safetensors"), {"b-3.safetensors": b"cut"}, {}, "b-3.safetensors cannot be read"),
        (("a-1.safetensors", "a-2.safetensors"), {"samples/1.png": b"x"}, {}, "has none of pytorch_lora_weights.safetensors"),
        (("a-1.safetensors", "a-2.safetensors"), {}, {"sweep_models": "m2"}, "give one of these"),
    ],
)
def test_what_is_no_sweep_is_refused_by_name_before_anything_starts(tmp_path, names, more, given, message):
    folder = tmp_path / "out"
    for name, content in more.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        found_in(folder, *names, **given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 400


def test_a_file_of_a_whole_model_is_no_adapter_and_steps_need_a_sweep(tmp_path, capsys):
    save_file({"model.diffusion_model.a.weight": torch.zeros(1)}, tmp_path / "model-3.safetensors")
    with pytest.raises(UserError, match=r"model-3.safetensors is none \(it holds model.diffusion_model.a.weight\)"):
        found_in(tmp_path, "a-1.safetensors")
    with pytest.raises(UserError, match="--steps gives the training steps of several checkpoints"):
        checkpoints(config(steps="1,2"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text("{}")
    (tmp_path / "model-3.safetensors").unlink()
    save_file({"lora_unet_a.alpha": torch.zeros(1)}, tmp_path / "a-2.safetensors")
    sides = ["--members", tmp_path, "--nonmembers", tmp_path, "-o", tmp_path / "run"]
    assert "is the folder of a run (plan.json); choose another -o" in refused(capsys, "audit", "a/m", "--lora", tmp_path / "a-*", *sides)


@pytest.fixture(scope="module")
def leaking(tmp_path_factory) -> tuple[Checkpoints, list[Run]]:
    """Three finished audits of a growing leak."""
    root = tmp_path_factory.mktemp("leaking")
    runs = []
    for step, d in zip(STEPS, (0.0, 0.2, 1.5), strict=True):
        folder = make_run(root / f"c-{step}", {"sima": gaussian(d), "loss": gaussian(d / 2)})
        runs.append(Run(str(folder), read_audit(folder), read_samples(folder)))
    return Checkpoints("lora", "their names", tuple(Checkpoint(f"c-{s}", f"out/c-{s}.safetensors", s) for s in STEPS)), runs


def test_differences_are_paired_with_the_checkpoint_before_and_the_last_within_the_limits_is_named(leaking):
    from diffleak.gating.limits import gates

    found, runs = leaking
    limited = config(max_auc=0.7, lora="out/*", output="run")
    judged = [Run(r.name, r.record.model_copy(update={"gates": gates(r.record.results, limited)}), r.samples) for r in runs]
    record = summary(limited, found, judged)
    assert [point.passed for point in record.points] == [True, True, False] and record.last_passing == "c-200"
    second = record.points[1]
    assert record.points[0].difference is None
    assert second.difference == difference((judged[1], second.attack), (judged[0], record.points[0].attack), 0)
    with pytest.raises(GateFailed, match=r"the last checkpoint, c-300 \(step 300\), fails") as failed:
        gate(record)
    assert "the last that passes is c-200" in str(failed.value)
    last = record.points[-1].model_copy(update={"gates": tuple(each for each in record.points[-1].gates if not each.passed)[:1]})
    with pytest.raises(GateFailed, match="fails 1 check; the last"):
        gate(record.model_copy(update={"points": (*record.points[:-1], last)}))
    html = to_html(page(record))
    assert "The last checkpoint within the limits: c-200, step 200" in html and html.count("<svg") >= 2
    many, few = (to_html(page(record.model_copy(update={"nonmembers": side}))) for side in (200, 199))
    said = "a difference need not be that of the two numbers beside it"
    assert said in few and (said in html) == (min(record.members, record.nonmembers) < 200)
    assert (said in many) == (record.members < 200)


def test_a_checkpoint_within_its_limits_whose_attack_works_reversed_is_said_to_be_undecided(leaking, tmp_path):
    from diffleak.gating.limits import gates

    found, runs = leaking
    folder = make_run(tmp_path / "c-300", {"sima": gaussian(0.0), "loss": gaussian(-1.5)})
    limited = config(max_tpr=1.0, lora="out/*", output="run")
    runs = [*runs[:2], Run(str(folder), read_audit(folder), read_samples(folder))]
    judged = [Run(r.name, r.record.model_copy(update={"gates": gates(r.record.results, limited)}), r.samples) for r in runs]
    record = summary(limited, found, judged)
    assert record.last_passing == "c-300" and [point.wrong_way for point in record.points] == [None, None, "loss"]
    shown = judged_page(record)
    assert shown.level == "undecided" and shown.title.startswith("The last checkpoint within the limits: c-300")
    assert "Some scores separate the sides, but the wrong way round: loss at c-300." in " ".join(shown.sentences)
    fine = judged_page(summary(limited, found, judged[:2] + judged[:1]))
    assert fine.level == "no-leak-found" and "wrong way" not in " ".join(fine.sentences)


def test_without_limits_nothing_is_gated_and_the_attack_of_each_checkpoint_is_said(leaking):
    found, runs = leaking
    record = summary(config(lora="out/*"), found, runs)
    gate(record)
    assert record.last_passing is None and {point.passed for point in record.points} == {None}
    attacks = {point.attack for point in record.points}
    assert (len(attacks) == 1) != any("shown by the attack that its own calibrate part chose" in line for line in record.warnings)
    labels = iter(("sima", "loss", "sima"))
    unchosen = [
        Run(r.name, r.record.model_copy(update={"headline": None, "results": (r.record.result(next(labels)),)}), r.samples) for r in runs
    ]
    said = summary(config(lora="out/*"), found, unchosen).warnings
    assert any("shown by its attack of the largest AUC, so" in line for line in said) and not any("calibrate part chose" in x for x in said)
    assert [point.auc for point in record.points] == [run.record.result(p.attack).auc for p, run in zip(record.points, runs, strict=True)]
