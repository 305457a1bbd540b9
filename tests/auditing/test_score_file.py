"""`diffleak metrics FILE`: what a score file may look like, what is said of a bad one, and what the command prints."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fixtures.commands import call
from fixtures.reports import audit_of

from diffleak.auditing.score_file import backwards, evaluate_file
from diffleak.errors import UserError
from diffleak.records.audit import Blind
from diffleak.records.run_folder import write_samples
from diffleak.records.scores import Scores
from diffleak.stats import metrics
from diffleak.stats.evaluation import divided, evaluate, evaluate_scores, samples

pytestmark = pytest.mark.usefixtures("undrawn")


def table(m=250, n=300, seed=0):
    """A shuffled frame of id, member, score."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "id": [f"img/{i:04d}.png" for i in range(m + n)],
            "member": np.repeat([1, 0], [m, n]),
            "score": np.r_[rng.normal(1, 1, m), rng.normal(0, 1, n)],
        }
    )
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


def write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, float_format="%.17g")
    return path


def sides(frame, column="score"):
    member = frame["member"].astype(int) == 1
    return frame.loc[member, column].to_numpy(float), frame.loc[~member, column].to_numpy(float)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_a_file_gives_the_statistics_of_its_scores(tmp_path, name):
    frame = table()
    result = evaluate_file(write(frame, tmp_path / name))
    members, nonmembers = sides(frame)
    assert result.auc == metrics.auc_estimate(members, nonmembers)
    assert result.tpr_at_fpr == tuple(metrics.tpr_at_fpr(members, nonmembers, a) for a in (0.1, 0.01, 0.001))
    assert (result.n_members, result.n_nonmembers) == (250, 300)


def test_csv_and_parquet_give_the_same_result(tmp_path):
    frame = table()
    assert evaluate_file(write(frame, tmp_path / "a.csv")) == evaluate_file(write(frame, tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_ids_may_be_numbers(tmp_path, name):
    frame = table()
    frame["id"] = np.arange(len(frame))
    assert evaluate_file(write(frame, tmp_path / name)).auc == metrics.auc_estimate(*sides(frame))


@pytest.mark.parametrize("values", [("true", "false"), ("True", "False"), ("1", "0"), ("1.0", "0.0")])
def test_members_may_be_written_as_booleans_or_numbers(tmp_path, values):
    frame = table()
    path = write(frame.assign(member=[values[0] if m else values[1] for m in frame["member"]]), tmp_path / "a.csv")
    assert evaluate_file(path).auc == metrics.auc_estimate(*sides(frame))


def test_members_of_a_parquet_file_may_be_booleans(tmp_path):
    frame = table()
    path = write(frame.assign(member=frame["member"].astype(bool)), tmp_path / "a.parquet")
    assert evaluate_file(path).auc == metrics.auc_estimate(*sides(frame))


def test_blank_lines_quotes_and_a_byte_order_mark_change_nothing(tmp_path):
    frame = table()
    plain = write(frame, tmp_path / "a.csv")
    lines = [f'"{line.partition(",")[0]}",{line.partition(",")[2]}\r\n\r\n' for line in plain.read_text().splitlines()]
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())
    assert evaluate_file(tmp_path / "b.csv") == evaluate_file(plain)


def test_integer_scores_and_further_columns_are_accepted(tmp_path):
    frame = table()
    frame["score"] = (frame["score"] * 5).astype(int)
    frame["note"] = "x"
    assert evaluate_file(write(frame, tmp_path / "a.csv")).auc == metrics.auc_estimate(*sides(frame))


def test_scores_keep_all_their_digits(tmp_path):
    frame = table()
    frame["score"] = 1 + frame["score"] * 2.0**-40
    assert len(set(frame["score"].astype(np.float32))) == 1
    assert evaluate_file(write(frame, tmp_path / "a.csv")).auc == metrics.auc_estimate(*sides(frame))


def test_another_column_can_be_named_and_names_the_result(tmp_path):
    frame = table()
    frame["pia"] = -frame["score"]
    result = evaluate_file(write(frame, tmp_path / "a.csv"), column="pia")
    assert result.attack == "pia"
    assert result.auc == metrics.auc_estimate(*sides(frame, "pia"))


def test_a_convention_is_applied_to_the_file(tmp_path):
    frame = table()
    result = evaluate_file(write(frame, tmp_path / "a.csv"), "pia-strict")
    assert result.convention == "pia-strict"
    assert result.tpr_at_fpr == evaluate(*sides(frame), convention="pia-strict").tpr_at_fpr


def test_a_part_column_makes_every_number_one_of_the_test_half(tmp_path):
    frame = table(500, 600)
    frame["part"] = np.where(np.arange(len(frame)) % 4 == 0, "calibrate", "test")
    result = evaluate_file(write(frame, tmp_path / "samples.csv"))
    test, calibrate = frame[frame["part"] == "test"], frame[frame["part"] == "calibrate"]
    members, nonmembers = sides(test)
    assert (result.n_members, result.n_nonmembers) == (len(members), len(nonmembers))
    assert result.auc == metrics.auc_estimate(members, nonmembers)
    assert result.asr == metrics.accuracy_at(metrics.best_accuracy(*sides(calibrate))[0], members, nonmembers)
    assert result.achieved_fpr == metrics.achieved_fpr(sides(calibrate)[1], nonmembers)


def test_a_part_column_that_is_all_test_is_as_good_as_none(tmp_path):
    frame = table()
    assert evaluate_file(write(frame.assign(part="test"), tmp_path / "a.csv")) == evaluate_file(write(frame, tmp_path / "b.csv"))


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    # ids are hashed into calibrate and test, so the same ids give the same halves
    frame = table()
    assert evaluate_file(write(frame, tmp_path / "a.csv")) == evaluate_file(write(frame[::-1], tmp_path / "b.csv"))


# bad files: one line each

GOOD = "id,member,score\na,1,2.0\nb,0,1.0\nc,1,0.5\nd,0,0.25\n"
BAD = {
    "missing column, near": (GOOD.replace("score", "scores"), r"unknown column of .* 'score'; did you mean 'scores'\?"),
    "missing column, far": (GOOD.replace("member", "x"), r"unknown column of .* 'member'; known: id, score, x"),
    "missing id": (GOOD.replace("id,", "image,"), r"unknown column of .* 'id'"),
    "duplicate ids": (GOOD.replace("\nb,", "\na,").replace("\nd,", "\na,"), r"must name each id once; it repeats 2"),
    "nan score": (GOOD.replace("0.25", "nan"), r"scores must be finite numbers; 1 of 2 non-member scores is not"),
    "missing score": (GOOD.replace("0.25", ""), r"scores must be finite numbers; 1 of 2 non-member scores is not"),
    "infinite score": (GOOD.replace("2.0", "inf"), r"scores must be finite numbers; 1 of 2 member scores is not"),
    "score in words": (GOOD.replace("2.0", "high"), "score must hold numbers; got 'high'"),
    "member two": (GOOD.replace("b,0", "b,2"), r"member must be 0 or 1; got 2"),
    "member minus one": (GOOD.replace("b,0", "b,-1"), r"member must be 0 or 1; got -1"),
    "member a half": (GOOD.replace("b,0", "b,0.5"), r"member must be 0 or 1; got 0.5"),
    "member in words": (GOOD.replace("b,0", "b,no"), r"member must be 0 or 1; got"),
    "member missing": (GOOD.replace("b,0", "b,"), r"member must be 0 or 1; got nothing in row 2"),
    "only members": (GOOD.replace(",0,", ",1,"), r"must hold members and non-members; it has 4 and 0"),
    "only non-members": (GOOD.replace(",1,", ",0,"), r"must hold members and non-members; it has 0 and 4"),
    "header only": ("id,member,score\n", r"must hold members and non-members; it has 0 and 0"),
    "empty": ("", r"cannot be read \(.*[Ee]mpty"),
    "ragged": (GOOD + "e,1\n", "must have 3 columns in every row; row 5 has 2"),
    "column twice": ("id,member,score,score\na,1,2.0,1\nb,0,1.0,1\n", r"score"),
    "everything calibrate": ("id,member,score,part\na,1,2.0,calibrate\nb,0,1.0,calibrate\n", r"test"),
    "unknown part": ("id,member,score,part\na,1,2.0,train\nb,0,1.0,test\nc,1,2.0,test\n", r"part must be calibrate or test; got train"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_csv_is_one_line_that_says_what_must_hold(tmp_path, text, message):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        evaluate_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
@pytest.mark.parametrize(
    "content",
    [bytes(range(256)) * 20, b"id,member,score\n\xff\xfe,1,2.0\nb,0,1.0\n", b"i\xff\xfed,member,score\na,1,2.0\nb,0,1.0\n", b"\x00" * 100],
    ids=["bytes", "id not UTF-8", "header not UTF-8", "zeros"],
)
def test_a_binary_file_is_a_one_line_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        evaluate_file(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_a_one_line_error(tmp_path):
    path = write(table(), tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read"):
        evaluate_file(path)


def test_a_bad_parquet_file_gets_the_same_messages_as_a_csv(tmp_path):
    frame = table(20, 20)
    for change, message in (
        ({"member": 2}, "member must be 0 or 1; got 2"),
        ({"id": "same"}, "must name each id once; it repeats 39"),
        ({"score": np.nan}, "scores must be finite numbers; 20 of 20 member scores are not"),
        ({"score": "high"}, "score must hold numbers; got 'high'"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_file(write(frame.assign(**change), tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["missing.csv", "missing.parquet", "."])
def test_a_path_without_a_file_says_so(tmp_path, name):
    with pytest.raises(UserError, match=r"FILE must be a CSV or Parquet file of id,member,score; found (nothing|a folder) at"):
        evaluate_file(tmp_path / name)


# the command


def test_the_command_prints_one_json_object_with_the_documented_keys(capsys, tmp_path):
    frame = table()
    code, out, err = call(capsys, "metrics", write(frame, tmp_path / "a.csv"), "--json")
    assert code == 0
    assert err == ""
    printed = json.loads(out)
    assert set(printed) >= {"attack", "access", "queries", "timestep", "direction", "auc", "tpr_at_fpr", "tnr_at_fnr", "asr"}
    assert set(printed) >= {"achieved_fpr", "oracle", "n_members", "n_nonmembers", "per_timestep"}
    assert set(printed["auc"]) >= {"value", "low", "high"}
    assert [rate["fpr"] for rate in printed["tpr_at_fpr"]] == [0.1, 0.01, 0.001]
    assert [rate["fnr"] for rate in printed["tnr_at_fnr"]] == [0.1, 0.01, 0.001]
    for rate in printed["tpr_at_fpr"] + printed["tnr_at_fnr"]:
        assert set(rate) >= {"value", "low", "high", "support"}
    assert set(printed["asr"]) >= {"value", "low", "high"}
    assert set(printed["achieved_fpr"]) >= {"target", "value", "low", "high"}
    assert set(printed["oracle"]) >= {"timestep", "auc", "tpr_at_1pct"}
    assert printed["tpr_at_fpr"][2]["value"] is None
    assert "1000 non-members" in printed["tpr_at_fpr"][2]["reason"]
    members, nonmembers = sides(frame)
    assert printed["auc"]["value"] == metrics.auc(members, nonmembers)
    assert (printed["n_members"], printed["n_nonmembers"]) == (250, 300)


def test_the_command_prints_the_statistics_for_people_without_json(capsys, tmp_path):
    frame = table()
    code, out, _ = call(capsys, "metrics", write(frame, tmp_path / "a.csv"))
    assert code == 0
    assert f"{metrics.auc(*sides(frame)):.3f}" in out
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)


@pytest.mark.parametrize(
    "case", ["empty", "ragged", "nan score", "missing column, near", "only members", "missing file", "unknown convention"]
)
def test_the_command_answers_bad_input_with_exit_code_two_and_one_line(capsys, tmp_path, case):
    path = tmp_path / "scores.csv"
    if case != "missing file":
        path.write_text(BAD[case][0] if case in BAD else GOOD)
    options = ["--convention", "secmi_grid"] if case == "unknown convention" else []
    code, out, err = call(capsys, "metrics", path, *options, "--json")
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("diffleak: ")
    assert "Traceback" not in err


# which number it is


def test_the_numbers_of_a_small_audits_samples_say_that_they_are_of_one_division_and_what_the_audit_found(capsys, tmp_path):
    rng = np.random.default_rng(0)
    ids, member = tuple(f"i{k}" for k in range(100)), np.repeat([True, False], 50)
    scores = Scores("sima", "large", (10, 20, 30), ids, rng.normal(size=(100, 3)) + 0.6 * member[:, None])
    split = divided(ids, member, 0.2, 0)
    result, base = evaluate_scores(scores, member, split), audit_of({"sima": 1.0}, 20)[0]
    assert split.record.repeats == 25
    record = base.model_copy(update={"results": (result,), "split": split.record, "omitted": (), "warnings": ()})
    write_samples(tmp_path / "samples.csv", samples([scores], [result], member, split))
    (tmp_path / "audit.json").write_text(record.model_dump_json())
    _, out, err = call(capsys, "metrics", tmp_path / "samples.csv", "--score", "sima", "--json")
    printed = json.loads(out)["auc"]["value"]
    assert printed != pytest.approx(result.auc.value, abs=5e-4), "the two numbers do differ, which is why it must be said"
    assert "these numbers are of the 80 images of the test part, one division of the images" in err
    assert f"the audit's own AUC is {result.auc.value:.3f}, the median over 25 random divisions" in err
    (tmp_path / "elsewhere.csv").write_bytes((tmp_path / "samples.csv").read_bytes())
    _, _, alone = call(capsys, "metrics", tmp_path / "elsewhere.csv", "--score", "sima")
    assert "one division of the images" in alone and "the audit's own" not in alone


def test_a_file_without_parts_needs_no_note(capsys, tmp_path):
    pd.DataFrame({"id": range(40), "member": [1, 0] * 20, "score": np.arange(40.0)}).to_csv(tmp_path / "s.csv", index=False)
    assert call(capsys, "metrics", tmp_path / "s.csv")[2] == ""


def test_reasons_take_the_fraction_that_was_set_and_not_that_of_rounded_parts(tmp_path):
    ids, member = tuple(f"i{k}" for k in range(61)), np.arange(61) < 33
    test = ~divided(ids, member, 0.2, 0).calibrate[0]
    rows = {"id": ids, "member": member.astype(int), "part": np.where(test, "test", "calibrate"), "score": np.arange(61.0)}
    pd.DataFrame(rows).to_csv(tmp_path / "s.csv", index=False)
    found = evaluate_file(tmp_path / "s.csv")
    assert "needs 125 held-out images, since a fifth of them is set apart" in found.tpr_at_fpr[1].reason
    pd.DataFrame(rows).drop(columns="part").to_csv(tmp_path / "whole.csv", index=False)
    assert "needs 48 held-out images" in evaluate_file(tmp_path / "whole.csv").achieved_fpr.reason


def test_the_samples_of_an_invalid_audit_say_so(capsys, tmp_path):
    record, found = audit_of({"sima": 1.0}, 60, blind=Blind(value=0.9, low=0.8, high=0.95), warnings=(), omitted=())
    ids = tuple(f"i{k}" for k in range(len(found.ids)))
    write_samples(tmp_path / "samples.csv", replace(found, ids=ids))
    (tmp_path / "audit.json").write_text(record.model_dump_json())
    code, _, err = call(capsys, "metrics", tmp_path / "samples.csv", "--score", "sima")
    assert code == 0 and "is invalid, so these numbers do not measure membership: Invalid: the two sides" in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[]", "FILE must be a CSV or Parquet file of id,member,score; got a .json file"),
        ("a.npz", "PK", "got a .npz file"),
        ("semi.csv", "id;member;score\na;1;0,5", "must be separated by commas, with a point in decimals; its first line has ';'"),
        ("tab.csv", "id\tmember\tscore\na\t1\t0.5", "its first line has '\\t'"),
        ("comment.csv", "# mine\nid,member,score", "its first line is a comment: '# mine'"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refusal:
        evaluate_file(tmp_path / name)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("column", ["id", "score"])
def test_a_parquet_column_of_lists_is_refused(tmp_path, column):
    values = {"id": ["a", "b"], "member": [0, 1], "score": [0.1, 0.2]}
    pd.DataFrame({**values, column: [[1], [2]]}).to_parquet(tmp_path / "s.parquet")
    with pytest.raises(UserError, match=f"must hold a text or a number in every row; {column} holds list"):
        evaluate_file(tmp_path / "s.parquet")


def test_scores_the_wrong_way_round_are_asked_about(tmp_path):
    for sign, asked in ((1, False), (-1, True)):
        rows = [f"{i},{i % 2},{sign * (i % 2 + 0.01 * i)}" for i in range(80)]
        (tmp_path / "s.csv").write_text("\n".join(["id,member,score", *rows]))
        said = backwards(evaluate_file(tmp_path / "s.csv"))
        assert (said is not None) == asked, said
