"""The flags of a command are the fields of its Config, and the command that repeats a config gives that config again."""

import random
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer
from pydantic import Field
from rich.text import Text

from diffleak import cli
from diffleak.auditing.config import AuditConfig
from diffleak.config import Flag, build, command_line, flag, merged, read_yaml, settings_of
from diffleak.data.given import FORMS
from diffleak.defenses.config import defend_config
from diffleak.errors import UserError
from diffleak.options import LAST, with_options
from diffleak.quality.config import QualityConfig
from diffleak.training.config import train_config

CONFIGS = {
    "train": "training.config:TrainConfig",
    "defend": "defenses.config:DefendConfig",
    "audit": "auditing.config:AuditConfig",
    "geometry": "auditing.config:GeometryConfig",
    "inquire": "inquiry.config:InquireConfig",
    "quality": "quality.config:QualityConfig",
    "extract": "extraction.config:ExtractConfig",
    "prompts": "prompts.config:PromptsConfig",
    "caption": "training.config:CaptionConfig",
}
COMMANDS = pytest.mark.parametrize("command", CONFIGS)


def config_of(command: str) -> Any:
    module, _, name = CONFIGS[command].partition(":")
    return getattr(import_module(f"diffleak.{module}"), name)


def parameters(command: str) -> dict[str, Any]:
    """The options and arguments of a command by name, as the parser has them."""
    deferred = typer.main.get_command(cli.app).commands[command]
    return {each.name: each for each in deferred.make_context(command, [], resilient_parsing=True).command.params}


def parser(kind, seen: list[dict[str, Any]]) -> Any:
    """A command with the flags of a Config, which puts the settings that it is given on a list."""
    app = typer.Typer(add_completion=False)
    app.command()(with_options(lambda given: seen.append(given), kind))
    return typer.main.get_command(app)


def parsed(command: Any, seen: list[dict[str, Any]], arguments: list[str]) -> dict[str, Any]:
    command(arguments, standalone_mode=False)
    return seen.pop()


@COMMANDS
def test_every_setting_is_an_option_with_the_fields_help_or_listed_as_having_no_flag(command):
    kind, found = config_of(command), parameters(command)
    assert set(settings_of(kind)) >= kind.NO_FLAG | set(kind.HELP)
    assert set(found) - {"preset", "config", "as_json", "help"} == set(settings_of(kind)) - kind.NO_FLAG
    for key, field in settings_of(kind).items():
        if key not in kind.NO_FLAG:
            text = kind.HELP.get(key, field.description)
            said = (text and text.replace("{default}", str(field.default))) or ""
            required = field.is_required() and key != kind.ARGUMENT
            assert (found[key].help or "") == (f"{said.removesuffix('.')} (required)." if required else said)
            assert found[key].default is None, "a setting that is not given leaves the config file its say"
            assert (flag(key) in found[key].opts) != (key == kind.ARGUMENT)


EVERY = sorted(typer.main.get_command(cli.app).commands)


@pytest.mark.parametrize("command", EVERY)
def test_every_option_and_argument_of_every_command_has_a_help_text(command):
    for name, option in parameters(command).items():
        if name != "help":
            text = option.help or ""
            assert len(re.findall(r"\w+", text)) >= 2 and re.search(r"[.\])?]$", text), f"{command} {name}: {text!r}"


@pytest.mark.parametrize("command", EVERY)
def test_a_command_says_in_its_first_sentence_what_it_does(command):
    said = (typer.main.get_command(cli.app).commands[command].help or "").split("\n")[0]
    assert re.match(r"[A-Z][^.?:]+[.?:]", said) and len(said) <= 130, said


@pytest.mark.parametrize(
    ("command", "option", "said", "unsaid"),
    [
        ("inquire", "group", "groups are tested", "rates"),  # an inquiry has p-values
        ("lora", "ignore_model_split", "beside an adapter", "MODEL"),  # which `lora` calls BASE
        ("lora", "max_excess_auc", "With fewer than about 80 images on each side no checkpoint can meet 0.6, unless", "It takes"),
        ("audit", "fast", "On NVIDIA GPUs", "On accelerators"),  # `faster_ways` does nothing on others
        ("geometry", "fast", "On NVIDIA GPUs", "On accelerators"),
        ("train", "preset", "Default: small; with --base fine-tune, or lora with --lora-rank; with -C FILE none", "small (default)"),
        ("defend", "preset", "small (default; fine-tune with --base, none with -C FILE)", "small (default)"),
    ],
)
def test_a_help_text_says_what_is_true_of_its_command(command, option, said, unsaid):
    text = parameters(command)[option].help
    assert said in text and unsaid not in text


def test_every_name_that_a_class_places_in_the_help_is_a_setting_or_an_option_of_its_commands():
    known: dict[type, set[str]] = {}
    for command in CONFIGS:
        for each in config_of(command).__mro__:
            known.setdefault(each, set()).update(settings_of(config_of(command)), parameters(command))
    placed = [(each, name) for each in known for run in vars(each).get("FOLLOW", ()) for name in run.split()]
    assert placed and [(each, name) for each, name in placed if name not in known[each]] == []


class Stronger(AuditConfig):
    """An audit with more settings, one of each kind."""

    FOLLOW = ["lora strength"]

    strength: float = Field(0.5, description="A new setting ({default}).")
    often: Annotated[bool, Flag("--seldom")] = True
    way: Annotated[Literal["up", "down"], Flag("-w")] = "up"
    places: tuple[Path, ...] = ()


def test_a_new_field_is_a_flag_without_other_code():
    command = parser(Stronger, seen := [])
    settings = build(Stronger, parsed(command, seen, ["m", "--data", "d", "--split", "s", "--strength", "0.7", "--seldom", "-w", "down"]))
    assert settings == Stronger(model="m", data="d", split="s", strength=0.7, often=False, way="down")
    found = {each.name: each for each in command.params}
    assert found["strength"].help == "A new setting (0.5)."
    assert (found["often"].opts, found["often"].secondary_opts, found["way"].opts) == (["--often"], ["--seldom"], ["-w", "--way"])
    names = [name for name, each in found.items() if each.rich_help_panel != LAST]
    assert names[names.index("lora") :][:3] == ["lora", "strength", "lora_scale"] and names[-3:] == ["often", "way", "places"]


NEEDED = {
    "train": {"data": "d", "output": Path("out")},
    "defend": {"data": "d", "output": Path("out"), "method": "dual"},
    "audit": {"model": "m", "members": "a b", "nonmembers": "it's"},
    "geometry": {"model": "m", "data": "d", "split": Path("s.json")},
    "inquire": {"model": "m", "images": "a b", "control": "it's"},
    "quality": {"model": "m", "data": "d", "split": Path("s.json")},
    "extract": {"model": "m", "data": "d", "split": Path("s.json")},
    "prompts": {"model": "m"},
    "caption": {"data": "d", "output": Path("some texts.jsonl")},
}


def drawn(kind, key: str, rng: random.Random) -> Any:
    """A value that a setting may have."""
    annotation = settings_of(kind)[key].annotation
    kinds = {annotation, *get_args(annotation)}
    if bool in kinds:
        return rng.random() < 0.5
    if get_origin(annotation) is Literal:
        return rng.choice(get_args(annotation))
    if annotation == tuple[str, ...]:
        return rng.sample(["sima", "loss", "sima_mc(m=3,variant=norms)"][: 2 if key == "mask" else 3], rng.randint(1, 2))
    if annotation == tuple[Path, ...]:
        return [Path("one"), Path("two words")]
    for plain, value in ((int, rng.randint(4, 3000)), (float, rng.random()), (Path, Path("a folder/of $it"))):
        if plain in kinds:
            return value
    return rng.choice(["plain", "fixed:it's two words", "--x", "ä:0.4"])


def made(command: str, file: Path) -> Any:
    """What a command makes of a config file."""
    if command == "train":
        return train_config(None, file, **NEEDED[command])
    if command == "defend":
        return defend_config(file=file, **NEEDED[command])
    return build(config_of(command), NEEDED[command], read_yaml(file))


@COMMANDS
def test_every_long_flag_is_a_key_of_the_config_file_but_those_of_how_a_call_prints(command, tmp_path):
    names = [option.removeprefix("--") for each in parameters(command).values() for option in each.opts if option.startswith("--")]
    assert len(names) > 7 and {"json", "config"} < set(names)
    for name in (name for name in names if name != "help"):
        (tmp_path / "c.yaml").write_text(f"{name}: small")  # of the wrong kind for many of them
        said = ""
        try:
            made(command, tmp_path / "c.yaml")
        except UserError as error:
            said = str(error)
        if name in ("json", "config"):
            assert said == f"{name} is no setting, since it does not change a result: give --{name} on the command line"
        else:
            assert not said.startswith(("unknown config key", f"{name} is no setting"))


def test_the_key_of_a_flag_that_switches_off_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("no-flip: true")
    with pytest.raises(UserError, match="--no-flip switches a setting off, whose key is flip: write flip: false"):
        made("train", tmp_path / "c.yaml")


@COMMANDS
def test_the_command_that_repeats_a_config_gives_that_config(command):
    rng, kind = random.Random(command), config_of(command)
    seen: list[dict[str, Any]] = []
    parse, keys = parser(kind, seen), sorted(set(settings_of(kind)) - kind.NO_FLAG - set(NEEDED[command]))
    lengths = set()
    for _ in range(300):
        settings = {key: drawn(kind, key, rng) for key in rng.sample(keys, rng.choice([1, 2, 3, 3, 5, 8]))}
        try:
            config = build(kind, NEEDED[command], settings)
        except UserError:  # settings that contradict each other
            continue
        line = shlex.split(command_line(config, command, {"kind"}))
        assert line[:2] == ["diffleak", command]
        assert build(kind, parsed(parse, seen, line[2:])) == config, line
        lengths.add(len(line))
    assert len(lengths) > 4, "many configs were built"


def test_the_command_leaves_out_what_decides_no_result():
    config = build(AuditConfig, {**NEEDED["audit"], "threads": 2, "shard": "1/2", "calibration": False})
    assert command_line(config, "audit", ("threads", "shard")) == (
        "diffleak audit m --members 'a b' --nonmembers 'it'\"'\"'s' --no-calibration"
    )


def test_yaml_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 2001-99-99")
    with pytest.raises(UserError, match=r"^the config file .*c.yaml cannot be read as YAML \(month must be in 1..12[^\n]*\)$"):
        read_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize("command", EVERY)
def test_no_word_of_a_help_text_is_taken_for_markup(command):
    """What stands in brackets is printed, such as NAME[calibrated]."""
    for name, option in parameters(command).items():
        said = option.help or ""
        assert Text.from_markup(said).plain == said.replace(r"\[", "["), f"{command} {name}"


def test_the_help_shows_fixed_choices_and_what_is_required():
    found = parameters("audit")
    assert (found["release"].metavar, found["batch_size"].metavar, found["model"].metavar) == ("[weights|api|images]", None, "MODEL")
    assert parameters("lora")["pictures"].help.endswith(" (required).") and "(required)" not in found["output"].help


def test_a_setting_may_have_two_long_names():
    settings = build(QualityConfig, {"model": "m", "real": "d"})
    assert settings.reference == "d" and shlex.split(command_line(settings, "quality"))[2:] == ["m", "--reference", "d"]
    seen: list[dict[str, Any]] = []
    for name in ("--real", "--reference"):
        assert build(QualityConfig, parsed(parser(QualityConfig, seen), seen, ["m", name, "d"])) == settings
    with pytest.raises(UserError, match=r"^real and reference are two names of one setting: give one of them$"):
        build(QualityConfig, {"model": "m", "real": "d", "reference": "e"})
    for name in ("real", "reference"):
        for value, said in ((True, "must not be true or false"), (3, "must be a valid string; got 3")):
            with pytest.raises(UserError, match=f"^{name} {said}"):
                build(QualityConfig, {"model": "m", name: value})
    assert "nonmembers" in {option.removeprefix("--") for option in parameters("lora")["held_out"].opts}


def test_headings_of_the_help_hold_settings_that_are_there_and_those_of_the_machine_stand_last():
    for command in CONFIGS:
        kind = config_of(command)
        panels = [each.rich_help_panel for each in parameters(command).values() if each.name in settings_of(kind)]
        assert LAST not in panels or set(panels[panels.index(LAST) :]) == {LAST}
    assert {name for names in AuditConfig.PANELS.values() for name in names.split()} <= set(settings_of(AuditConfig))


ALL = CONFIGS | {
    "lora": "lora.config:LoraConfig",
    "check": "checking.config:CheckConfig",
    "split": "splitting.config:SplitConfig",
    "gate": "gating.config:GateConfig",
    "convert": "config:ConvertConfig",
}
ELSEWHERE = {  # looked for, without torch too, where they are read: patterns, and the folder of a command that loads no model
    *(("audit", "sweep_models"), ("lora", "adapters"), ("gate", "run")),
}
NAMES_ONE = re.compile(r"\b([Ff]iles?|[Ff]olders?|FILE|DIR|DATA|hub id)\b")
NO_PLACE = re.compile(  # speaks of a file, and names none
    r"column|per score file|Images per file|Write nearest|files that cannot|value of (white|grey)|file names by ids|of the file's type|"
    r"network of the file"
)


@pytest.mark.parametrize("command", ALL)
def test_every_option_that_names_a_file_or_folder_is_looked_at_before_a_model_is_loaded(command):
    """By its type or its help it names one: then it is an input that must be there, or a place that must be writable."""
    module, _, name = ALL[command].partition(":")
    kind = getattr(import_module(f"diffleak.{module}"), name)
    inputs, outputs = merged(kind, "INPUTS"), merged(kind, "OUTPUTS")
    assert {*inputs.values()} <= {*FORMS, "captions"} and {*outputs.values()} <= {"folder", "file", "key"}
    looked_at = {*kind.DATA.split(), *kind.MODELS.split(), *inputs, *outputs}
    for key, field in settings_of(kind).items():
        text = kind.HELP.get(key, field.description) or ""
        named = Path in (field.annotation, *get_args(field.annotation)) or NAMES_ONE.search(text)
        if key not in kind.NO_FLAG and named and not NO_PLACE.search(text):
            assert key in looked_at or (command, key) in ELSEWHERE, (key, text)


def test_help_reads_no_data():
    """`--help` needs the settings alone: what reads images is loaded by the call."""
    code = (
        "import sys; from diffleak.checking.config import CheckConfig; from diffleak.options import with_options; "
        "with_options(lambda settings: None, CheckConfig); print('diffleak.data.sources' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
