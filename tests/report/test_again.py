"""`diffleak report` on folders that are no audit's: every record in them, and what it refuses."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from fixtures.commands import all_recorded, call, refused, written_again
from fixtures.extraction import extraction_record
from fixtures.pages import DECISIONS
from fixtures.prompts import QUICK, SECRET, planted, prompts_page
from fixtures.runs import gaussian, make_run, write_quality
from fixtures.sweeps import swept
from huggingface_hub import ModelCard

import diffleak
from diffleak.comparison.compare import compare, save
from diffleak.data.pixels import png
from diffleak.prompts.score import find_memorised
from diffleak.records.comparison import Comparison
from diffleak.records.digests import add_digests, write_recorded
from diffleak.records.plan import Adapter
from diffleak.report.media.latex import comparison_latex
from diffleak.report.sections.public import command as public_command
from diffleak.work.folder import Folder

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def both(tmp_path):
    """A folder with an extraction and a comparison."""
    runs = [make_run(tmp_path / name, {"sima": gaussian(1.0)}, seed=seed) for seed, name in enumerate("ab")]
    save(compare(list(map(str, runs))), tmp_path / "out")
    write_recorded(tmp_path / "out", {"extract.json": extraction_record().model_dump_json(), "extract.html": ""})
    return tmp_path / "out"


def test_every_record_of_a_folder_gets_its_page_and_json_is_of_one(both, capsys):
    assert written_again(capsys, both / "compare.html")
    assert "gives back" in (both / "extract.html").read_text()
    code, out, _ = call(capsys, "report", both, "--markdown")
    assert code == 0 and sum(line.startswith("## ") for line in out.splitlines()) == 2, out
    assert "has extract.json and compare.json: leave it out" in refused(capsys, "report", both, "--json")
    (both / "compare.json").write_text((both / "compare.json").read_text() + " ")
    assert "(compare.json edited)" in refused(capsys, "report", both)


def test_the_page_of_quality_shows_the_drawings_of_its_folder_again(tmp_path, capsys):
    write_quality(tmp_path, images=70)
    add_digests(tmp_path, ["quality.json"])
    images = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    for number, part in enumerate((images[:64], images[64:])):
        Folder(tmp_path).save(f"generated/images-{number:05d}.npy", part)
    code, out, err = call(capsys, "report", tmp_path)
    assert code == 0 and f"report: {tmp_path / 'quality.html'}" in out, err
    written = (tmp_path / "quality.html").read_text()
    shown = [base64.b64decode(each) for each in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", written)]
    assert png(images[0]) in shown and png(images[1]) in shown
    assert written_again(capsys, tmp_path / "quality.html")
    (tmp_path / "generated" / "images-00001.npy").unlink()
    assert "shows images that were drawn" in refused(capsys, "report", tmp_path) and (tmp_path / "quality.html").read_text() == written
    (tmp_path / "generated" / "images-00000.npy").write_bytes(b"broken")
    assert "generated cannot be read" in refused(capsys, "report", tmp_path)


def test_a_record_that_counts_every_near_duplicate_is_read_and_its_page_says_so(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    write_quality(tmp_path, images=64)
    (tmp_path / "extract.json").write_text(extraction_record().model_dump_json())
    Folder(tmp_path).save("generated/images-00000.npy", images)
    said = "an earlier version, which counted near-duplicates one by one"
    for now in (False, True):
        code, out, err = call(capsys, "report", tmp_path)
        assert code == 0 and [said in (tmp_path / page).read_text() for page in ("quality.html", "extract.html")] == [now, now], err
        for name, marker in (("quality.json", "unit"), ("extract.json", "distinct_members")):
            record = json.loads((tmp_path / name).read_text())
            record.pop(marker, None)
            (tmp_path / name).write_text(json.dumps(record))
    assert out.replace("\n", " ").count("one by one") == 2


def test_a_page_of_lora_by_pictures_of_an_earlier_version_says_that_each_counted(tmp_path, capsys):
    folder = studied(tmp_path / "run", "lora-drawn")
    record = json.loads((folder / "lora.json").read_text())
    said = "an earlier version, which counted near-duplicates one by one"
    for pictures in (None, record["pictures"]):
        for row in record["checkpoints"]:
            row["redrawn"]["pictures"] = pictures
        write_recorded(folder, {"lora.json": json.dumps(record)})
        assert call(capsys, "report", folder)[0] == 0 and (said in (folder / "lora.html").read_text()) is (pictures is None)


def test_a_page_of_drawn_images_is_its_commands_to_write_where_these_are_gone(tmp_path, capsys):
    write_quality(tmp_path, images=70)
    said = refused(capsys, "report", tmp_path)
    assert f"the page of quality.json shows images that were drawn, and {tmp_path / 'generated'} has 0 of 70: repeat the quality" in said


def test_the_page_of_prompts_is_written_again_with_its_pictures(tmp_path, capsys):
    folder = tmp_path / "drawn"
    find_memorised(planted(), prompts=[*SECRET[:2], "moon"], **QUICK).save(folder)
    page = (folder / "prompts.html").read_text()
    assert page.count("data:image/png;base64,") > 6 and written_again(capsys, folder / "prompts.html")
    assert {path.name for path in (folder / "pictures").iterdir()} == {f"00{i}-{what}.npy" for i in (1, 2, 3) for what in ("image", "map")}
    assert all_recorded(folder) and {path.stat().st_mode & 0o077 for path in (folder / "pictures").iterdir()} == {0}
    find_memorised(planted(), prompts=[SECRET[0], "moon"], **QUICK).save(folder)
    assert len([*(folder / "pictures").iterdir()]) == 4 and all_recorded(folder), "those of an earlier list are gone"
    (folder / "pictures" / "001-image.npy").unlink()
    assert "is not as it was recorded" in refused(capsys, "report", folder)
    (folder / "digests.json").unlink()
    (folder / "pictures" / "001-map.npy").write_bytes(b"broken")
    assert "pictures cannot be read" in refused(capsys, "report", folder)


def test_a_page_of_prompts_whose_pictures_are_gone_stays(tmp_path, capsys):
    find_memorised(planted(), prompts=["sun", "moon"], draw=False).save(tmp_path)
    assert written_again(capsys, tmp_path / "prompts.html") and not (tmp_path / "pictures").exists()
    (tmp_path / "prompts.html").write_text(prompts_page())
    said = refused(capsys, "report", tmp_path)
    assert "prompts.html shows images that the model decodes, and its folder has none: repeat the prompts command" in said


def test_the_page_of_a_sweep_shows_what_gate_checked_and_says_when_that_is_of_an_earlier_record(tmp_path, capsys):
    folder = swept(tmp_path)
    before = (folder / "report.html").read_text()
    assert "Checked by diffleak gate" not in before
    code, _, _ = call(capsys, "gate", folder, "--max-auc", "0.8")
    page = (folder / "report.html").read_text()
    assert code == 3 and "Checked by diffleak gate" in page and "b: sima: AUC may reach" in page and "above the limit of 0.8" in page
    assert "The last checkpoint that passes: a." in page
    assert written_again(capsys, folder / "report.html")
    code, out, _ = call(capsys, "report", folder)
    assert code == 0 and "above the limit of 0.8" in out.replace("\n", " ")
    swept(tmp_path / "other", title="another")
    (folder / "sweep.json").write_text((tmp_path / "other" / "sweep.json").read_text())
    add_digests(folder, ["sweep.json"])
    assert call(capsys, "report", folder)[0] == 0
    page = (folder / "report.html").read_text()
    assert "diffleak gate checked an earlier record of this folder: repeat it" in page and "above the limit" not in page


def test_the_page_of_a_comparison_shows_what_gate_checked(both, capsys):
    code, _, _ = call(capsys, "gate", both, "--max-auc", "0.6")
    page = (both / "compare.html").read_text()
    assert code == 3 and "Checked by diffleak gate" in page and "above the limit of 0.6" in page
    assert diffleak.gate(both, max_auc=0.99).met and "within the limit of 0.99" in (both / "compare.html").read_text()
    assert written_again(capsys, both / "compare.html")


STUDIED = {  # records of real models, by the file that a folder has them in
    "lora-audited": "lora.json",
    "lora-drawn": "lora.json",
    "inquire-128-50": "inquiry.json",
    "extract-emoji": "extract.json",
}


def studied(folder, name):
    """The folder of a record of the studies, with names of paths that nobody else may read."""
    folder.mkdir()
    record = json.loads((DECISIONS / f"{name}.json").read_text().replace("work/", "/home/kay/"))
    if "pairs" in record:
        record["pairs"] = [{**pair, "id": f"zoe-{i}.png", "prompt": "zoe at home"} for i, pair in enumerate(record["pairs"])]
        record["captions"] = "/home/kay/captions.jsonl"
    if "checkpoints" in record and record["held_out"] is None:
        nearest = [
            {**row, "redrawn": {**row["redrawn"], "nearest": ["zoe-0.png"]}, "reason": "see zoe-0.png"} for row in record["checkpoints"]
        ]
        record["checkpoints"], record["answer"] = nearest, "look at zoe-0.png"
    if "cuts" in record:
        record["images"] = [{**image, "id": f"zoe-{i}.png"} for i, image in enumerate(record["images"])]
    write_recorded(folder, {STUDIED[name]: json.dumps(record)})
    return folder


@pytest.mark.parametrize("name", STUDIED)
def test_the_folders_of_lora_inquire_and_extract_have_a_section_for_a_model_card(name, tmp_path, capsys):
    folder = studied(tmp_path / "run", name)
    code, out, err = call(capsys, "report", folder, "--format", "card")
    card = ModelCard(out)
    assert code == 0 and card.data.tags == ["membership-inference", "privacy-audit"] and card.data.eval_results is None, err
    text = card.text.partition("-->")[2]
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0].startswith("### ") and headings[-2:] == ["#### What this does not show", "#### For the file"]
    sha256 = hashlib.sha256((folder / STUDIED[name]).read_bytes()).hexdigest()
    for part in ("?\n\n**", "**Command**: diffleak ", "**Finished**: 2026-", "**Tool**: diffleak ", f"SHA-256 {sha256}"):
        assert part in text, part
    assert not re.findall(r"(?i)kay|zoe|/home|work|prompt:", out), "a card is public: no path, no image, no prompt"
    assert [each.name for each in folder.iterdir() if each.suffix in (".html", ".pdf")] == [], "nothing is written"
    (folder / STUDIED[name]).write_text((folder / STUDIED[name]).read_text() + " ")
    assert "edited)" in refused(capsys, "report", folder, "--format", "card")


def test_the_card_of_an_invalid_inquiry_has_no_number_of_a_result(tmp_path, capsys):
    folder = studied(tmp_path / "run", "inquire-128-50")
    record = json.loads((folder / "inquiry.json").read_text())
    invalid = {"valid": False, "invalid_reason": "The sides differ.", "images": [], "cuts": []}
    write_recorded(folder, {"inquiry.json": json.dumps(record | invalid)})
    out = call(capsys, "report", folder, "--format", "card")[1]
    assert "**No answer: the two sides differ without the model.**" in out and "- The sides differ." in out
    assert f"{record['set']['auc']['value']:.3f}" not in out and "p-value of the set" not in out


def test_a_card_is_made_of_what_has_one_and_refused_where_nothing_has(both, tmp_path, capsys):
    out = call(capsys, "report", both, "--format", "card")[1]
    assert out.count("privacy-audit") == 1 and "Training images given back" in out
    (both / "extract.json").write_text(extraction_record(long=True).model_dump_json())
    add_digests(both, ["extract.json"])
    out = call(capsys, "report", both, "--format", "card")[1]
    assert "features of sscd:sscd.pt" in out and "a-very-long-folder-name" not in out
    (both / "extract.json").unlink()
    (both / "digests.json").unlink()
    said = refused(capsys, "report", both, "--format", "card")
    assert "--format card is of an audit, lora, inquire or extract" in said and "has compare.json: give html, markdown, pdf" in said
    assert "--format latex is of an audit;" in refused(capsys, "report", studied(tmp_path / "lora", "lora-drawn"), "--format", "latex")


def test_the_card_of_an_adapter_has_the_hash_that_its_drawings_recorded(tmp_path, capsys):
    folder = studied(tmp_path / "run", "lora-drawn")
    run = json.loads((folder / "lora.json").read_text())["checkpoints"][0]["run"]
    adapter = Adapter(name="/home/kay/e-lora-100.safetensors", strength=1.0, sha256="ab" * 32)
    (folder / run).mkdir(parents=True)
    (folder / run / "extract.json").write_text(extraction_record().model_copy(update={"adapters": (adapter,)}).model_dump_json())
    out = call(capsys, "report", folder, "--format", "card")[1]
    assert f"**Adapter**: e-lora-100.safetensors at scale 1, sha256:{'ab' * 32}" in out and "kay" not in out


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "diffleak lora a/base 'out/*.safetensors' --pictures 'my dog' --captions 'fixed:a/b dog' -o LORA",
            "diffleak lora base '*.safetensors' --pictures IMAGES --captions 'fixed:a/b dog' -o OUT",
        ),
        (
            "diffleak extract m --images 2048 --members C:\\\\x --captions c.csv",
            "diffleak extract m --images 2048 --members IMAGES --captions CAPTIONS",
        ),
        (
            "diffleak inquire /m --images a.npy --control b --group person",
            "diffleak inquire m --images IMAGES --control CONTROLS --group COLUMN",
        ),
        (
            "diffleak extract m --thumbnails --captions own --lora C:\\\\k\\\\x.safetensors",
            "diffleak extract m --thumbnails --captions own --lora x.safetensors",
        ),
        (
            "diffleak inquire m --attacks 'sima,black_box(encoder=sscd:/kay/a.pt,n=5)' --lora /kay/x.pt@0.8,out/y --reference base",
            "diffleak inquire m --attacks 'sima,black_box(encoder=sscd:a.pt,n=5)' --lora x.pt@0.8,y --reference base",
        ),
        (
            "diffleak extract m --members x --extractor sscd:/kay/a.pt --only 3",
            "diffleak extract m --members IMAGES --extractor sscd:a.pt --only 3",
        ),
        (
            "diffleak inquire m --attacks 'black_box(encoder=sscd:/kay/a(b)/x.pt)'",
            "diffleak inquire m --attacks 'x.pt)'",
        ),
    ],
)
def test_the_command_on_a_card_names_no_path(line, shown):
    assert public_command(line) == shown


FILED = "black_box(encoder=sscd:/home/kay/my (own) disc.pt)"


@pytest.mark.parametrize("name", ["lora-audited", "inquire-128-50"])
def test_a_card_names_no_path_of_an_encoder_and_each_of_several_adapters(name, tmp_path, capsys):
    folder = studied(tmp_path / "run", name)
    record = json.loads((folder / STUDIED[name]).read_text())
    if "checkpoints" in record:
        first = record["checkpoints"][0]
        first["excess"]["attack"], first["reason"] = f"{FILED}[excess]", f"{FILED}[excess] has AUC 0.9"
    else:
        record["plan"] |= {"attacks": [{"attack": FILED, "encoder": "sscd:/home/kay/my (own) disc.pt"}], "lora": "/home/kay/x@0.8,out/y"}
        record["blind"]["chosen"] = "brightness"
    write_recorded(folder, {STUDIED[name]: json.dumps(record)})
    out = call(capsys, "report", folder, "--format", "card")[1]
    assert "black\\_box(encoder=sscd:my (own) disc.pt)" in out and "/home" not in out and "kay" not in out
    assert "checkpoints" in record or ("Inquiry: x@0.8,y" in out or "**Adapter**: x@0.8,y" in out)


def test_the_table_of_a_comparison_names_no_path_of_an_encoder(both):
    record = Comparison.model_validate_json((both / "compare.json").read_text().replace('"sima"', f'"{FILED}"'))
    table = comparison_latex(record)
    assert record.attacks == (FILED,) and "encoder=sscd:my (own) disc.pt" in table and "kay" not in table


def test_the_help_lists_the_folders_and_their_formats(capsys):
    shown = " ".join(call(capsys, "report", "--help")[1].replace("│", " ").split())
    for word in (
        "inquire, extract, check, compare, lora, quality or prompts",
        "html (default), markdown, pdf",
        "audit, lora, inquire, extract: card (for a model card)",
    ):
        assert word in shown, word
