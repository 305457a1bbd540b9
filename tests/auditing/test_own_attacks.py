"""An attack of one's own, from the README's own text: in Python and on the command line, with everything that an audit has."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import unwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.captions import toy_encode
from fixtures.commands import call, refused

import diffleak
from diffleak.attacks import ATTACKS
from diffleak.attacks.spec import parse, spec_of
from diffleak.auditing import run, score
from diffleak.auditing.config import AuditConfig
from diffleak.auditing.plan import choose_attacks
from diffleak.config import build
from diffleak.data.pixels import to_model
from diffleak.diffusion.analytic import Gaussian, Memoriser, linear_schedule
from diffleak.diffusion.denoiser import Counted, Denoiser, Guided
from diffleak.diffusion.noise import Noise
from diffleak.diffusion.sampling import FlowSampler
from diffleak.errors import UserError

pytestmark = pytest.mark.usefixtures("few_divisions", "undrawn")
README = Path(__file__).parents[2] / "README.md"
MEMBERS, HELD_OUT = np.random.default_rng(0).integers(0, 256, (2, 24, 8, 8), dtype=np.uint8)
SMALL = {"timesteps": "50:100:50", "threads": 1, "chunk_size": 16}


def published() -> str:
    """The attack in the README."""
    return next(block for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S) if "class " in block)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The README's attack as the module `mine` in the current folder."""
    (tmp_path / "mine.py").write_text(published())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield import_module("mine")
    sys.modules.pop("mine", None)


@pytest.fixture
def images() -> diffleak.Cohort:
    return diffleak.cohort(members=MEMBERS, nonmembers=HELD_OUT)


def memoriser() -> Memoriser:
    return Memoriser(torch.from_numpy(to_model(MEMBERS[..., None])), linear_schedule())


def test_the_attack_of_the_readme_is_short_and_is_its_formula(mine: ModuleType) -> None:
    assert len([line for line in published().splitlines() if line.strip()]) < 15
    x0, model = torch.from_numpy(to_model(HELD_OUT[:3, ..., None])).double(), Gaussian(0.1, 0.5, linear_schedule())
    noise = Noise(0, ("a", "b", "c"), (1, 8, 8), torch.float64)
    found = mine.Blurred(timesteps=(50, 100)).statistics(diffleak.Subject(model, x0, noise)).numpy()
    for row, t in zip(found, (50, 100), strict=True):
        alpha = linear_schedule().alphas_cumprod[t]
        padded = np.pad(x0.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        blurred = sum(padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 9
        e = noise(0).numpy()
        error = model(torch.from_numpy(np.sqrt(alpha) * blurred + np.sqrt(1 - alpha) * e), t).numpy() - e
        np.testing.assert_allclose(row, (error**2).sum(axis=(1, 2, 3)), rtol=1e-9)


def test_an_instance_is_audited_beside_the_others(mine: ModuleType, images: diffleak.Cohort, tmp_path: Path) -> None:
    reference = Gaussian(0.0, 0.3, linear_schedule())
    attacks = ["sima", diffleak.SecMI(k=5), mine.Blurred(p=1.0)]
    audit = diffleak.audit(memoriser(), images, attacks=attacks, reference=reference, output=tmp_path / "run", **SMALL)
    assert [r.attack for r in audit.results if r.plain] == ["sima", "secmi(k=5)", "Blurred(p=1.0)"]
    result = audit["Blurred"]
    assert result is audit["Blurred(p=1.0)"] and result.parameters == {"p": 1.0} and result.queries == 2
    assert audit["sima"].auc.value == 1.0 and audit["sima"].tpr(0.01).support == "none", "of 24 images"
    assert audit["Blurred(p=1.0)[excess]"].variant == "excess"
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [("code" in attack) for attack in plan["attacks"]] == [False, False, True]
    assert "Blurred(p=1.0)" in (tmp_path / "run" / "report.html").read_text().replace("<wbr>", "")
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["settings"]["attacks"] == ["sima", "secmi(k=5)", "mine:Blurred(p=1.0)"]


def test_the_command_line_takes_it_in_shards_and_gives_the_scores_of_python(
    mine: ModuleType, images: diffleak.Cohort, model_folder, tmp_path: Path, capsys
) -> None:
    model = model_folder()
    np.save("members.npy", MEMBERS)
    np.save("heldout.npy", HELD_OUT)
    sides = ["--members", "members.npy", "--nonmembers", "heldout.npy", "--timesteps", "50:100:50", "--chunk-size", "16", "--device", "cpu"]
    for shard in ("1/2", "2/2"):
        code, _, err = call(capsys, "audit", model, *sides, "--attacks", "sima,mine:Blurred(p=1)", "--shard", shard, "-o", "run")
        assert code == 0, err
    expected = diffleak.audit(model, images, attacks=["sima", mine.Blurred(p=1.0)], device="cpu", **SMALL).to_frame()
    found = pd.concat(pd.read_parquet(file) for file in Path("run/scores").glob("*.parquet"))
    order = ["attack", "id", "timestep"]
    found, expected = (frame.sort_values(order)["statistic"].to_numpy() for frame in (found, expected))
    np.testing.assert_array_equal(found, expected)
    assert json.loads(Path("run/audit.json").read_text())["command"].count("mine:Blurred(p=1)") == 1
    again = ["audit", model, *sides, "--attacks", "sima,mine:Blurred(p=1)", "-o", "run"]
    assert call(capsys, *again)[0] == 0, "the same attack resumes"
    Path("mine.py").write_text(published().replace("3, stride=1", "5, stride=1").replace("padding=1", "padding=2"))
    sys.modules.pop("mine")
    assert re.search(r"belongs to another plan \(another code of Blurred\(p=1.0\) of --attacks\)", refused(capsys, *again)), (
        "a changed one does not"
    )


def test_masks_reach_an_attack_of_ones_own(mine: ModuleType, latent_folder, digits, tmp_path: Path) -> None:
    images = diffleak.cohort(members=digits[:20], nonmembers=digits[20:40])
    audit = diffleak.audit(latent_folder(), images, attacks=[mine.Blurred()], mask="random", device="cpu", **SMALL)
    plain, masked = audit.scores
    assert masked.attack == "Blurred[random:0.4]"
    assert (masked.statistic < plain.statistic).all(), "less of the residual is summed"


def test_a_class_without_code_on_disk_does_not_resume(images: diffleak.Cohort, tmp_path: Path) -> None:
    namespace = {"diffleak": diffleak, "__name__": "__main__"}
    exec("class Typed(diffleak.ResidualAttack):\n    def residuals(self, subject):\n        yield subject.eps(subject.x0, 50)", namespace)
    given = {"attacks": namespace["Typed"](timesteps=(50,)), "output": tmp_path, "threads": 1, "calibration": False}
    model = diffleak.Target(Gaussian(0.0, 0.3, linear_schedule()), fingerprint="gaussian")
    audit = diffleak.audit(model, images, **given)
    assert audit.record.command.startswith("diffleak.audit(...) from Python")
    with pytest.raises(UserError, match=r"nothing says that they are of this attack; .* write its class"):
        diffleak.audit(model, images, **given)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("yield subject.x0[0]", "must yield a floating-point tensor with a row for each of the 2 images; it yielded (1, 8, 8)"),
        ("yield None", "it yielded a NoneType"),
        ("yield subject.eps(subject.x0, 50)", "Wrong.residuals must yield 1 for each of the 2 timesteps; it yielded 1"),
        (
            "for t in self.timesteps:\n            yield subject.eps(subject.x0, t) + subject.eps(subject.x0, t)",
            "declares 2 queries per image",
        ),
    ],
)
def test_what_an_attack_gets_wrong_is_one_line(body: str, said: str, images: diffleak.Cohort) -> None:
    namespace = {"diffleak": diffleak}
    exec(f"class Wrong(diffleak.ResidualAttack):\n    def residuals(self, subject):\n        {body}", namespace)
    with pytest.raises(UserError, match=re.escape(said)):
        diffleak.audit(Gaussian(0.0, 0.3, linear_schedule()), images, attacks=namespace["Wrong"](), batch_size=16, **SMALL)


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.zeros(1, 2, 16), "(2, 16) torch.float32"),
        (torch.zeros(1, 2, 3, dtype=torch.float64), "(2, 3) torch.float64"),
        (None, "a NoneType"),
    ],
)
def test_statistics_of_another_shape_or_precision_are_refused(answer: object, got: str) -> None:
    attack = diffleak.SimA(timesteps=(50, 100))
    with pytest.raises(UserError) as refusal:
        score._checked(attack, answer, masks=1, images=16)
    assert str(refusal.value) == f"sima must return float64 statistics of shape (2, 16), columns by images; got {got}"


@dataclass(frozen=True, kw_only=True)
class Parametrised(diffleak.ResidualAttack):
    """With a parameter of every kind."""

    k: int = 3
    share: float = 0.5
    how: str = "plain"
    loud: bool = False

    def residuals(self, subject):
        yield subject.eps(subject.x0, self.k)


def test_a_spec_is_read_back_as_the_instance_it_stands_for() -> None:
    for attack in (Parametrised(), Parametrised(k=5, share=0.25, how="other", loud=True, timesteps=(10, 20, 30)), diffleak.SecMI(k=5)):
        assert parse(spec_of(attack), ATTACKS, None) == attack
    assert spec_of(Parametrised(loud=True)).endswith(":Parametrised(loud=True)")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere:Attack", "nowhere:Attack cannot be imported (No module named 'nowhere')"),
        ("json:Attack", "json:Attack cannot be imported"),
        ("mine.Attack", "an attack of your own is named package.module:Class, as in mine:MyAttack; got mine.Attack"),
        ("mine/attack", "an attack of your own is named package.module:Class, as in mine:MyAttack; got mine/attack"),
        ("json:dumps", "json:dumps must be a subclass of diffleak.Attack"),
        ("diffleak:ResidualAttack", "cannot be made"),
        (f"{__name__}:Parametrised(q=1)", "unknown parameter"),
        (f"{__name__}:Parametrised(loud=perhaps)", "loud must be of the kind bool"),
        ("broken_module:A", "broken_module:A cannot be imported (invalid syntax"),
    ],
)
def test_a_spec_that_names_no_attack_is_one_line(spec: str, said: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken_module.py").write_text("a b")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=re.escape(said)):
        parse(spec, ATTACKS, None)


def test_a_name_that_is_taken_or_no_name_is_refused(images: diffleak.Cohort) -> None:
    model = Gaussian(0.0, 0.3, linear_schedule())
    for name, said in (
        ("sima", "must have a name of its own; sima is an attack of diffleak"),
        ("member", "must have a name of its own; member is a column of samples.csv"),
        ("combined", "must have a name of its own; combined is a column of samples.csv, or several of them"),
        ("a/b", "of letters, digits and _; got 'a/b'"),
    ):
        other = type("Other", (Parametrised,), {"name": name})
        with pytest.raises(UserError, match=re.escape(said)):
            diffleak.audit(model, images, attacks=[other()], **SMALL)
    with pytest.raises(UserError, match="each attack must be listed once"):
        diffleak.audit(model, images, attacks=[Parametrised(), Parametrised()], **SMALL)


def test_images_that_are_no_cohort_or_named_twice_are_refused(images: diffleak.Cohort) -> None:
    model = Gaussian(0.0, 0.3, linear_schedule())
    with pytest.raises(UserError, match=r"images must be a cohort: diffleak.cohort\(members=..., nonmembers=...\); got str train"):
        run._images("train", {})
    with pytest.raises(UserError, match="limit is a setting of the images: give it to"):
        diffleak.audit(model, images, limit=3)
    with pytest.raises(UserError, match="a cohort has two sides"):
        diffleak.cohort(members=MEMBERS)


def test_a_cohort_of_files_is_recorded_as_the_command_line_names_it(tmp_path: Path, model_folder, capsys) -> None:
    np.save(tmp_path / "all.npy", np.concatenate([MEMBERS, HELD_OUT]))
    sides = {"members": [str(i) for i in range(24)], "nonmembers": [str(i) for i in range(24, 48)]}
    (tmp_path / "split.json").write_text(json.dumps(sides))
    images = diffleak.cohort(data=tmp_path / "all.npy", split=tmp_path / "split.json", limit=20, seed=3)
    audit = diffleak.audit(model_folder(), images, attacks="sima", output=tmp_path / "run", device="cpu", **SMALL)
    command = audit.record.command
    assert (
        f"--data {tmp_path / 'all.npy'} --split {tmp_path / 'split.json'}" in command and "--limit 20" in command and "--seed 3" in command
    )
    code, out, err = call(capsys, *command.split()[1:], "--json")
    assert code == 0, err
    assert json.loads(out)["results"] == json.loads(audit.record.model_dump_json())["results"], "the command resumes the run"
    part = images.only(np.arange(40) % 2 == 0)
    smaller = diffleak.audit(model_folder(), part, attacks="sima", device="cpu", **SMALL)
    assert smaller.record.plan.n_members + smaller.record.plan.n_nonmembers == 20
    assert smaller.record.command.startswith("diffleak.audit(...) from Python"), "no command line names a part of the data"
    array = diffleak.cohort(data=np.concatenate([MEMBERS, HELD_OUT]), split=tmp_path / "split.json")
    assert diffleak.audit(model_folder(), array, attacks="sima", device="cpu", **SMALL).record.command == smaller.record.command


def test_a_part_of_a_cohort_is_not_recorded_as_all_of_it_but_keeps_how_images_are_read() -> None:
    images = diffleak.cohort(members=MEMBERS, nonmembers=HELD_OUT, alpha="white", limit=20)
    order = np.random.default_rng(0).permutation(40)
    assert images.taken(order).given == images.given and images.given["limit"] == 20
    for rows in (order[1:], np.zeros(40, dtype=np.int64)):
        assert images.taken(rows).given == {"members": "array", "nonmembers": "array", "exif": "apply", "alpha": "white", "white": None}


@pytest.mark.parametrize("change", [{"exif": "foo"}, {"alpha": "grey"}, {"white": "x"}, {"white": 0}, {"limit": 0}, {"seed": -1}])
def test_a_cohort_refuses_a_value_that_its_settings_cannot_have(change: dict[str, Any]) -> None:
    (key, value), *_ = change.items()
    with pytest.raises(UserError, match=f"^{key} must .*; got {value!r}$"):
        unwrap(diffleak.cohort)(members=MEMBERS, nonmembers=HELD_OUT, **change)  # without the types that the tests alone check


def test_timesteps_are_those_of_the_spec_then_of_the_call_then_of_the_class() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(Parametrised):
        timesteps: tuple[int, ...] = (50, 100)

    def chosen(specs: str, *made: diffleak.Attack, **given: str) -> list[tuple[int, ...]]:
        config = build(AuditConfig, {"members": "a", "nonmembers": "b", "attacks": specs, **given})
        return [attack.timesteps for attack in choose_attacks(config, {spec_of(attack): attack for attack in made})]

    assert chosen("sima(timesteps=10:300:10),loss", timesteps="100") == [tuple(range(10, 301, 10)), (100,)]
    for own in (Own(), Own(k=4)):
        assert chosen(spec_of(own), own) == [(50, 100)]
        assert chosen(spec_of(own), own, timesteps="70") == [(70,)]
    made = Own(timesteps=(20,))
    assert chosen(spec_of(made), made, timesteps="70") == [(20,)]


def test_whole_and_numpy_numbers_are_the_attack_that_a_command_line_means() -> None:
    assert diffleak.SimA(p=2.0).label == "sima(p=2.0)" == parse("sima(p=2)", ATTACKS, None).label
    one = diffleak.SecMI(k=5)
    object.__setattr__(one, "k", np.int64(5))  # as a caller gives it; the tests' type checks refuse it
    one._plain_numbers()
    assert type(one.k) is int and one == diffleak.SecMI(k=5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("direction = 'big'", "direction must be small or large"),
        ("rule = 'foo'", "unknown rule of Wrong 'foo'"),
        ("k: int = 3", r"k is no parameter; write @dataclass\(frozen=True, kw_only=True\)"),
        ("residuals = lambda self, subject: None", "residuals must yield tensors; it returned a NoneType"),
    ],
)
def test_an_unfinished_class_is_refused(body: str, said: str, images: diffleak.Cohort) -> None:
    namespace = {"diffleak": diffleak}
    exec(f"class Wrong(diffleak.ResidualAttack):\n    def residuals(self, subject):\n        yield 0\n    {body}", namespace)
    with pytest.raises(UserError, match=said):
        diffleak.audit(Gaussian(0.0, 0.3, linear_schedule()), images, attacks=[namespace["Wrong"]], **SMALL)


@dataclass(frozen=True, kw_only=True)
class Unwritable(Parametrised):
    path: object = None


def test_parameters_that_cannot_be_recorded_are_refused(images: diffleak.Cohort) -> None:
    model = Gaussian(0.0, 0.3, linear_schedule())
    with pytest.raises(UserError, match=r"parameters are recorded as JSON .*; give field\(compare=False\)"):
        diffleak.audit(model, images, attacks=Unwritable(path=Path("x")), **SMALL)
    with pytest.raises(UserError, match="a parameter that is a text must have no comma, bracket"):
        diffleak.audit(model, images, attacks=Parametrised(how="a b(c"), **SMALL)


def test_an_attack_that_writes_into_its_subject_changes_no_other(images: diffleak.Cohort) -> None:
    class Vandal(diffleak.ResidualAttack):
        def residuals(self, subject):
            for t in self.timesteps:
                subject.noise(0).zero_()
                yield subject.eps(subject.x0.zero_(), t)

    given = {"timesteps": "50:100:50", "threads": 1}
    alone = diffleak.audit(memoriser(), images, attacks=["loss"], **given).scores[0]
    after = diffleak.audit(memoriser(), images, attacks=[Vandal(), "loss"], **given).scores[1]
    assert after.attack == "loss" and np.array_equal(alone.statistic, after.statistic)


@pytest.mark.parametrize(("scale", "each"), [(7.5, 4), (1.0, 2)])
def test_what_is_drawn_for_a_grey_box_attack_is_under_its_own_guidance_and_counted(scale: float, each: int) -> None:
    rows: list[int] = []
    model = Denoiser.from_function(lambda x, t, cond=None: rows.append(len(x)) or x, linear_schedule().alphas_cumprod)
    forwards: list[int] = []
    counted = Counted(Guided(model, 2.0), lambda n, t: forwards.append(n))
    x0, noise = torch.zeros(2, 1, 8, 8), Noise(0, ("a", "b"), (1, 8, 8))
    subject = diffleak.Subject(counted, x0, noise, toy_encode(["x", "y"]), sampler=lambda n: FlowSampler(linear_schedule(), n))
    subject.draw(3, scale, 1)
    assert sum(rows) == sum(forwards) == 3 * each


def test_eps_takes_whole_batches_under_their_conditions_only() -> None:
    weighted = lambda x, t, cond=None: x * cond.reshape(-1, 1, 1, 1)
    model = Denoiser.from_function(weighted, linear_schedule().alphas_cumprod)
    subject = diffleak.Subject(model, torch.ones(2, 1, 2, 2), Noise(0, ("a", "b"), (1, 2, 2)), torch.tensor([2.0, 3.0]))
    assert subject.eps(torch.ones(4, 1, 2, 2), 5)[:, 0, 0, 0].tolist() == [2, 3, 2, 3]
    for rows in (1, 3):
        with pytest.raises(UserError, match=f"a whole number of batches of 2 rows, or their cond; got {rows} rows"):
            subject.eps(torch.ones(rows, 1, 2, 2), 5)


def test_images_in_memory_are_refused_in_one_line_where_a_side_is_missing(model_folder, tmp_path: Path) -> None:
    model = Gaussian(0.0, 0.3, linear_schedule())
    for given in ({"members": MEMBERS}, {"members": MEMBERS, "nonmembers": HELD_OUT, "data": "x"}, {"data": MEMBERS}):
        with pytest.raises(UserError, match="a cohort has two sides: give members and nonmembers, or data and split"):
            diffleak.audit(model, **given, attacks="sima", **SMALL)
    sides = {"members": [str(i) for i in range(12)], "nonmembers": [str(i) for i in range(12, 24)]}
    (tmp_path / "split.json").write_text(json.dumps(sides))
    audit = diffleak.audit(model_folder(), data=MEMBERS, split=tmp_path / "split.json", attacks="sima", device="cpu", **SMALL)
    assert audit.record.command.startswith("diffleak.audit(...) from Python")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("subject.x0 + torch.randn_like(subject.x0)", "gives another one when it is run again: take random numbers from subject.noise"),
        ("subject.eps(subject.x0, t) - subject.x0.mean(dim=0, keepdim=True)", "gives another one when it is given an image alone"),
        ("subject.eps(subject.x0, t) * float('nan')", "an attack must give finite numbers, and so must the model; Wrong got nan"),
    ],
)
def test_numbers_that_do_not_depend_on_the_image_alone_are_refused(body: str, said: str, images: diffleak.Cohort) -> None:
    namespace = {"diffleak": diffleak, "torch": torch}
    code = "class Wrong(diffleak.ResidualAttack):\n    queries = 2\n    def residuals(self, subject):\n        for t in self.timesteps:"
    exec(f"{code}\n            yield {body}", namespace)
    with pytest.raises(UserError, match=re.escape(said)):
        diffleak.audit(Gaussian(0.0, 0.3, linear_schedule()), images, attacks=[namespace["Wrong"]()], **SMALL)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("queries = lambda self: 3", "Plain: queries must be a whole number, under @property; got"),
        ("queries = '3'", "Plain: queries must be a whole number"),
        ("queries = 0\n    statistics = lambda self, subject, mask=None: None", "Plain.statistics must return a float64 tensor"),
    ],
)
def test_an_attack_that_is_no_residual_says_what_it_lacks(body: str, said: str, images: diffleak.Cohort) -> None:
    namespace = {"diffleak": diffleak}
    exec(f"class Plain(diffleak.Attack):\n    def statistics(self, subject, mask=None):\n        return 0\n    {body}", namespace)
    with pytest.raises(UserError, match=re.escape(said)):
        diffleak.audit(Gaussian(0.0, 0.3, linear_schedule()), images, attacks=[namespace["Plain"]()], **SMALL)


def test_images_that_are_neither_paths_nor_arrays_are_refused() -> None:
    for strange in (torch.zeros(3, 8, 8), [MEMBERS[0]]):
        with pytest.raises(UserError, match="images are a path, a name or a uint8 array"):
            diffleak.cohort(strange, strange)
