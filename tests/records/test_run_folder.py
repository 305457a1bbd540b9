"""What lies in a run folder is checked when it is read back."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.commands import refused
from fixtures.reports import audit_of, latent_audit

from diffleak.errors import UserError
from diffleak.hub.folders import AUTOENCODER_FOLDERS, NETWORKS, SECOND
from diffleak.hub.weights import AVERAGE
from diffleak.records.run_folder import PART, read_audit, read_plan, read_samples, refuse_model, refuse_other_command, write_samples
from diffleak.records.scores import ChunkMeta, Samples, Spent, read_chunk, write_chunk

pytestmark = pytest.mark.usefixtures("undrawn")

SAMPLES = Samples(("a", "b", "c"), np.array([True, False, True]), np.array([True, True, False]), {"sima": np.array([1.0, 2.5, -3.0])})


def test_samples_are_read_as_they_were_written(tmp_path):
    write_samples(tmp_path / "samples.csv", SAMPLES)
    read = read_samples(tmp_path)
    assert read.ids == SAMPLES.ids and read.scores["sima"].tolist() == [1.0, 2.5, -3.0]
    assert read.member.tolist() == [True, False, True] and read.test.tolist() == [True, True, False]


def test_a_damaged_plan_is_to_be_put_back_where_a_command_writes_no_run(tmp_path, capsys):
    """`reveal` names its table with -o, and `gate` has no such option."""
    for name in ("plan.json", "geometry.parquet"):
        (tmp_path / name).write_text("{")
    for command in (("reveal", tmp_path), ("gate", tmp_path, "--max-auc", 0.6)):
        said = refused(capsys, *command)
        assert "plan.json cannot be read" in said and said.endswith("; put the file back"), said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("a,1,test,1.0", "a,1,test,nan", "sima must be finite numbers"),
        ("a,1,test,1.0", "a,1,test,inf", "sima must be finite numbers"),
        ("a,1,test,1.0", "a,2,test,1.0", "member must be 0 or 1; got '2'"),
        ("a,1,test,1.0", "a,,test,1.0", "member must be 0 or 1; got ''"),
        ("a,1,test,1.0", "a,1,tset,1.0", "part must be calibrate or test; got 'tset'"),
        ("a,1,test,1.0", "b,1,test,1.0", "the id 'b' is there twice"),
        ("a,1,test,1.0", "a,1,test", "row 1 has 3 fields, not 4"),
        ("id,member,part,sima", "id,member,part,id", "it has 2 columns id"),
        ("id,member,part,sima", "id,member,Part,sima", "it has no column part"),
    ],
)
def test_samples_that_no_audit_writes_are_refused(tmp_path, before, after, said):
    path = tmp_path / "samples.csv"
    write_samples(path, SAMPLES)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=r"samples.csv is damaged .*; run the audit again to rewrite it") as refusal:
        read_samples(tmp_path)
    assert said in str(refusal.value)


def test_a_folder_whose_name_looks_like_a_uri_is_a_folder(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    file = Path("exp:1") / "scores" / "chunk.parquet"
    statistic = np.arange(4.0).reshape(1, 2, 2)
    write_chunk(file, ("a", "b"), ("sima",), (10, 20), statistic, ChunkMeta("plan", 4, {}), Spent())
    assert np.array_equal(read_chunk(file, "plan", ("a", "b"), ("sima",), (10, 20))[0], statistic)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"value":0.507', '"value":NaN', "cannot be read (it holds NaN or infinity, for which a record has null)"),
        ('"value":0.507', '"value":1e999', "cannot be read (it holds NaN or infinity, for which a record has null)"),
        ('"value":0.507', '"value":0.5,"value":0.507', "cannot be read (the key 'value' is there twice)"),
        (
            '"verdict":null',
            '"verdict":[1]',
            "cannot be read as schema version 2 (verdict: Input should be a valid string); repeat its audit command",
        ),
        ('"value":0.507', '"value":null', "cannot be read (it holds an interval without its value)"),
        ('"seed":0', f'"seed":{2**63}', "cannot be read (it holds a number of more than 64 bits)"),
        ('"n_members":20', '"n_members":"x"', "n_members: Input should be a valid integer"),
        ('"attacks":[{"attack":', '"attacks":[{"name":', "each attack must have its label, a text, as `attack`"),
        ('"attacks":[{"attack":"sima"', '"attacks":[{"attack":["sima"]', "each attack must have its label, a text, as `attack`"),
    ],
)
def test_a_record_holds_finite_numbers_each_key_once_and_attacks_with_labels(tmp_path, before, after, said):
    record, _ = audit_of({"sima": 1.0}, 20, warnings=())
    files = {"audit.json": (record.model_dump_json(), read_audit), "plan.json": (record.plan.model_dump_json(), read_plan)}
    assert any(before in text for text, _ in files.values())
    for name, (text, read) in files.items():
        (tmp_path / name).write_text(text)
        assert read(tmp_path) in (record, record.plan)
        if before in text:
            (tmp_path / name).write_text(text.replace(before, after, 1))
            with pytest.raises(UserError) as error:
                read(tmp_path)
            assert said in str(error.value)


def test_a_record_with_every_part_is_read_as_it_was_written(tmp_path):
    record, _ = latent_audit(("influence:0.4",), n=60, warnings=(), omitted=())
    (tmp_path / "audit.json").write_text(record.model_dump_json())
    assert read_audit(tmp_path) == record and record.geometry and record.geometry.quartiles


ALLOWED = {  # by the record that a command writes, the records that may lie in its folder
    "audit.json": {"plan.json", "quality.json", "extract.json", "prompts.json"},
    "inquiry.json": {"plan.json", "quality.json", "extract.json", "prompts.json"},
    "quality.json": {"audit.json", "plan.json", "inquiry.json", "extract.json", "prompts.json"},
    "extract.json": {"audit.json", "plan.json", "inquiry.json", "quality.json", "prompts.json"},
    "prompts.json": {"audit.json", "plan.json", "inquiry.json", "quality.json", "extract.json"},
    **{alone: set() for alone in ("sweep.json", "compare.json", "lora.json", "train.json")},
}


@pytest.mark.parametrize("own", ALLOWED)
def test_a_folder_of_another_command_is_refused_but_where_both_belong_together(tmp_path, own):
    refuse_other_command(None, own)
    refuse_other_command(tmp_path / "new", own)
    for name in {*ALLOWED, "plan.json", "check.json", "gate.json", "epsilon.json"}:
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("{}")
        if name in {own, *ALLOWED[own], "check.json", "gate.json", "epsilon.json"}:
            refuse_other_command(folder, own)
        else:
            with pytest.raises(UserError, match=rf"{name} is the folder of an? .*\({name}\); choose another -o"):
                refuse_other_command(folder, own)
            (folder / own).write_text("{}")
            refuse_other_command(folder, own)  # the command wrote there before, and its plan says whether it may again
    refuse_other_command(tmp_path / ("x" * 300), own)  # a name that no system takes is refused where the folder is made


@pytest.mark.parametrize(
    "file", ["train.json", "unet/weights.safetensors", "checkpoint-20/a.pt", "adapter_model.safetensors", "model.ckpt", "pytorch_model.bin"]
)
def test_the_folder_of_a_model_is_refused_unless_results_lie_there_already(tmp_path, file):
    (tmp_path / "own" / file).parent.mkdir(parents=True)
    (tmp_path / "own" / file).write_text("{}")
    for own in {*ALLOWED} - {"train.json"}:
        with pytest.raises(UserError, match=rf"own is the folder of a (trained )?model \({file}\); choose another -o"):
            refuse_other_command(tmp_path / "own", own)
    with pytest.raises(UserError, match=r"is the folder of a model"):
        refuse_model(tmp_path / "own", "check.json")
    refuse_other_command(tmp_path / "own", "train.json")  # which says itself if it resumes or is another one's
    for own, run in (("prompts.json", "prompts"), ("sweep.json", "a"), ("lora.json", "audits/a"), ("lora.json", "drawings/a/generated")):
        if file != "train.json" or own == "prompts.json":  # in whose folder the others were refused by earlier versions, too
            (tmp_path / "own" / run).mkdir(parents=True)
            (tmp_path / "own" / run / "plan.json").write_text("{}")
            refuse_other_command(tmp_path / "own", own)
            shutil.rmtree(tmp_path / "own" / run)
    (tmp_path / "own" / "plan.json").write_text("{}")
    for own in ("audit.json", "inquiry.json", "quality.json"):
        refuse_other_command(tmp_path / "own", own)  # an earlier version began there


@pytest.mark.parametrize(
    "file", ["adapters/a.safetensors", "encoders/sscd.pt", "unet.txt", "metrics.pkl", "cifar/data_batch_1.bin", "data_batch_1.bin"]
)
def test_a_folder_of_other_files_takes_results(tmp_path, monkeypatch, file):
    """A folder of a project, named by "-o .", with logs, data, adapters or encoders beside the results."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    monkeypatch.chdir(tmp_path)
    for own in {*ALLOWED, "check.json"}:
        refuse_other_command(Path(), own)


def test_the_weights_beside_a_part_that_may_not_be_read_are_seen(tmp_path, monkeypatch):
    for part in ("transformer", "unet"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.safetensors").write_text("")
    listed = Path.iterdir

    def iterdir(path):
        if path.name == "transformer":
            raise PermissionError  # modes of folders do not bind a superuser
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UserError, match=r"is the folder of a model \(unet/a\.safetensors\)"):
        refuse_model(tmp_path, "check.json")


def test_every_folder_of_weights_that_the_hub_opens_is_a_part_of_a_model():
    names = (*NETWORKS, *AUTOENCODER_FOLDERS, "text_encoder", "text_encoder_2")
    assert all(PART.fullmatch(name) and PART.fullmatch(name + AVERAGE) and PART.fullmatch(f"{name}{SECOND}") for name in names)
