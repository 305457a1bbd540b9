"""The options of a command, made from the fields of its Config.

    annotation    bool, int, float and Path as they are; everything else, such as lists and choices, is text that the Config reads
    description   the help text, behind which (required) stands where the setting has no default
    Literal       the choices, as [a|b]
    PANELS        of the Config: under which heading of the help an option stands
    `Flag`        the short flag, or the flag that switches a setting off

An option that is not given is None, and the config file or the default of its field decides. A wrong value is named by its flag, or by
its key where the config file gave it. A Config is imported when its command is
run, so that `diffleak --help` loads none.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import Parameter, Signature, signature
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from diffleak.config import Config

LAST = "Machine"  # the heading of the help that stands behind the others
Command = Callable[..., None]
File = Annotated[
    Path | None, typer.Option("-C", "--config", help="YAML file with any of these settings; flags override it.", show_default=False)
]


def command(app: typer.Typer, config: str) -> Callable[[Command], Command]:
    """Registers a function as a command with the options of `config`, "module:class" (`with_options`)."""

    def register(function: Command) -> Command:
        class Deferred(TyperCommand):
            """The command with its options, once it is run."""

            def make_context(self, *args: Any, **kwargs: Any) -> Any:
                module, _, name = config.partition(":")
                alone = typer.Typer(add_completion=False)
                alone.command(function.__name__)(with_options(function, getattr(import_module(f"diffleak.{module}"), name)))
                return typer.main.get_command(alone).make_context(*args, **kwargs)

        app.command(function.__name__, cls=Deferred, help=function.__doc__)(lambda: None)
        return function

    return register


def with_options(function: Command, kind: "type[Config]") -> Command:
    """`function` with the options of a Config in place of its parameter `settings`, a Config made of `-C FILE` and them.

    A function that makes the Config itself takes a dict of the options, as its parameter `given`.
    """
    from diffleak.config import build, flag, read_yaml, settings_of
    from diffleak.errors import SettingError, UserError

    fields = settings_of(kind)
    replaced = {"given": [*fields], "settings": [*fields, "config"]}
    own = {name: parameter.replace(kind=Parameter.KEYWORD_ONLY) for name, parameter in signature(function).parameters.items()}
    names = [name for each in own for name in replaced.get(each, [each])]
    flags = {key: _parameter(kind, key) for key in fields if key not in kind.NO_FLAG}
    known = {"config": Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=File)} | own | flags
    ordered = sorted(_in_order(kind, names), key=lambda name: _panel(kind, name) == LAST)
    parameters = {name: known[name] for name in ordered if name in known}

    def call(**values: Any) -> None:
        given, file = {key: values.pop(key) for key in flags}, values.get("config")
        try:
            called(given, values)
        except SettingError as error:
            of_file = given.get(error.key) is None and error.name in read_yaml(file)
            if of_file or error.key not in flags:
                raise
            raise UserError(f"{error.key.upper() if error.key == kind.ARGUMENT else flag(error.key)} {error.said}") from None

    def called(given: dict[str, Any], values: dict[str, Any]) -> None:
        if "given" in own:
            return function(given=given, **values)
        read = read_yaml(values.pop("config"))
        if kind.ARGUMENT and kind.INSTEAD and not any(read.get(key) or given.get(key) for key in (kind.ARGUMENT, kind.INSTEAD)):
            raise UserError(f"{kind.ARGUMENT.upper()} must be given, or {flag(kind.INSTEAD)}")
        settings = build(kind, read, given)
        from diffleak.data.given import refuse_paths  # which --help does not need

        refuse_paths(settings)
        function(settings=settings, **values)

    call.__doc__ = function.__doc__
    call.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    call.__signature__ = Signature(list(parameters.values()))  # type: ignore[attr-defined]
    return call


def _parameter(kind: "type[Config]", key: str) -> Parameter:
    """The parameter of a setting, as typer reads it."""
    from diffleak.config import flag, second_name, settings_of

    field = settings_of(kind)[key]
    text = kind.HELP.get(key, field.description)
    text = text and text.replace("{default}", str(field.default))
    if text and field.is_required() and key != kind.ARGUMENT:
        text = f"{text.removesuffix('.')} (required)."
    read_as: Any = next((plain for plain in (bool, int, float, Path) if field.annotation in (plain, plain | None)), str)
    if key == kind.ARGUMENT:
        argument = typer.Argument(help=text, show_default=False, metavar=key.upper())
        if kind.INSTEAD:
            return Parameter(key, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[read_as | None, argument])
        return Parameter(key, Parameter.KEYWORD_ONLY, annotation=Annotated[read_as, argument])
    other = second_name(kind, key)
    names = [flag(key)] if other is None else [f"{flag(key)}/{other}"] if read_as is bool else [other, flag(key)]
    option = typer.Option(
        *names,
        help=text,
        show_default=False,
        min=kind.LEAST.get(key),
        metavar=_fixed(field.annotation),
        autocompletion=_completion(field.annotation),
        rich_help_panel=_panel(kind, key),
    )
    return Parameter(key, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[read_as | None, option])


def _choices(annotation: Any) -> list[str]:
    """The fixed values of a setting; empty where it has none."""
    return [str(value) for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal for value in get_args(part)]


def _fixed(annotation: Any) -> str | None:
    """The values as the help shows them, "[weights|api]"; None for a setting that also takes others."""
    parts = (annotation,) if get_origin(annotation) is Literal else get_args(annotation)
    only = all(part is type(None) or get_origin(part) is Literal for part in parts)
    return f"[{'|'.join(_choices(annotation))}]" if parts and only else None


def _completion(annotation: Any) -> Callable[[str], list[str]] | None:
    """What a shell offers for a setting with fixed choices, by what is typed of it so far; None for any other."""
    choices = _choices(annotation)
    return (lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]) if choices else None


def _panel(kind: "type[Config]", key: str) -> str | None:
    """The heading of the help that a setting stands under; None for the general one."""
    panels = {
        name: title for each in reversed(kind.__mro__) for title, names in vars(each).get("PANELS", {}).items() for name in names.split()
    }
    return panels.get(key)


def _in_order(kind: "type[Config]", names: list[str]) -> Iterator[str]:
    """The names, each with those behind it that FOLLOW places there; where a class and its base differ, the class decides."""
    runs = [run.split() for each in reversed(kind.__mro__) for run in vars(each).get("FOLLOW", ())]
    before = {name: previous for run in runs for previous, name in pairwise(run) if previous in names}

    def from_(name: str) -> Iterator[str]:
        yield name
        for other in names:
            if before.get(other) == name:
                yield from from_(other)

    for name in names:
        if name not in before:
            yield from from_(name)
