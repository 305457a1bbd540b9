"""`diffleak report` on folders that are no audit's: every record in them, and what it refuses."""

import pytest
from fixtures.commands import call, refused, written_again
from fixtures.extraction import extraction_record
from fixtures.runs import gaussian, make_run, write_quality

from diffleak.comparison.compare import compare, save
from diffleak.records.digests import write_recorded


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


def test_a_page_of_drawn_images_is_its_commands_to_write(tmp_path, capsys):
    write_quality(tmp_path)
    assert "the page of quality.json shows images that were drawn: repeat its command" in refused(capsys, "report", tmp_path)


def test_the_help_lists_the_folders_and_their_formats(capsys):
    shown = " ".join(call(capsys, "report", "--help")[1].replace("│", " ").split())
    for word in ("inquire, extract, check, compare or lora", "html (default), markdown, pdf", "An audit also: card"):
        assert word in shown, word
