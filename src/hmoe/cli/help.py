"""How verbs explain themselves: `-h` of every verb, with types and ranges in words, as wide as the terminal."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from hmoe.cli.first_screen import render_first_screen
from hmoe.errors import ConfigError

# Of every verb: those below inherit them.
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_HEADINGS = r"(?m)^(Usage|Arguments|Options|Verbs):"


def wants_colour() -> bool:
    """Return whether standard output is a terminal that shows colours, and its user wants them."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout is not None and sys.stdout.isatty() and not plain


def label_parameter(parameter: Any) -> str:
    """Return a parameter as a user writes it: RECIPE, or `--seed NUMBER`."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    flags = ", ".join(sorted(parameter.opts, key=len) + parameter.secondary_opts)
    return flags if parameter.is_flag else f"{flags} {_name_type(parameter)}"


def describe_limits(parameter: Any) -> str:
    """Return the values that a number may have, in words; empty without limits."""
    least, most = (_show_number(limit) for limit in (parameter.min, parameter.max))
    if least and most:
        return f"{least} to {most}"
    return f"at least {least}" if least else f"at most {most}" if most else ""


def takes_path(parameter: Any) -> bool:
    """Return whether a parameter is a path, or several."""
    return Path in _list_types(parameter)


class HelpCommand(TyperCommand):
    """A verb whose help says types in words, and which takes no empty path."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.params:
            if parameter.param_type_name == "argument" and parameter.metavar is None:
                parameter.metavar = parameter.name.upper()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, but refuse a path that is empty: as a path it would be the current folder."""
        raw, _, _ = self.make_parser(ctx).parse_args(list(args))
        for parameter in self.params:
            values = raw.get(parameter.name)
            if takes_path(parameter) and "" in (values if isinstance(values, (list, tuple)) else [values]):
                name = parameter.opts[-1] if parameter.param_type_name == "option" else parameter.metavar
                raise ConfigError(f"{name}: is empty; a path must be given, . for the current folder")
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        arguments = [p for p in self.params if p.param_type_name == "argument"]
        pieces = [label_parameter(p) if p.required else f"[{label_parameter(p)}]" for p in arguments]
        return ["[OPTIONS]", *pieces, *(["[KEY=VALUE]..."] if ctx.allow_extra_args else [])]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options."""
        _write_parameters(self.get_params(ctx), formatter)

    def get_help(self, ctx: Any) -> str:
        """Return the help, with headings in colour on a terminal."""
        return _colour_headings(super().get_help(ctx))


class HelpGroup(TyperGroup):
    """Verbs of two words: its help says a line for each, whole."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "subcommand_metavar": "VERB ..."})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the verbs."""
        _write_parameters(self.get_params(ctx), formatter)
        with formatter.section("Verbs"):
            formatter.write_dl([(name, get_first_line(verb)) for name, verb in self.commands.items()])

    def get_help(self, ctx: Any) -> str:
        """Return the help, with headings in colour on a terminal."""
        return _colour_headings(super().get_help(ctx))


class RootGroup(HelpGroup):
    """The command `hmoe` itself, whose help is the first screen."""

    def get_help(self, ctx: Any) -> str:
        """Return the first screen."""
        return render_first_screen(self, ctx.make_formatter().width, wants_colour())


class VerbTyper(typer.Typer):
    """Verbs that explain themselves as all others do."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Register a function as a verb."""
        return super().command(name, cls=HelpCommand, **options)


def get_first_line(command: Any) -> str:
    """Return the first sentence of what a verb says of itself."""
    return str(command.help or "").strip().partition("\n")[0]


def _colour_headings(text: str) -> str:
    if not wants_colour():
        return text
    return re.sub(_HEADINGS, lambda match: typer.style(match[0], fg="cyan", bold=True), text)


def _write_parameters(parameters: list[Any], formatter: Any) -> None:
    for kind, heading in (("argument", "Arguments"), ("option", "Options")):
        rows = [
            (label_parameter(parameter), _explain(parameter))
            for parameter in parameters
            if parameter.param_type_name == kind and not parameter.hidden
        ]
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def _explain(parameter: Any) -> str:
    """Return what a parameter means, its default and its limits."""
    has_default = parameter.default is not None and not isinstance(parameter.default, bool)
    parts = [
        "required" if parameter.required and parameter.param_type_name == "option" else "",
        f"default {parameter.default}" if has_default else "",
        describe_limits(parameter),
        f"also from {parameter.envvar}" if parameter.envvar else "",
    ]
    details = "; ".join(part for part in parts if part)
    text = "Show this help." if parameter.name == "help" else parameter.help or ""
    return f"{text} ({details})".strip() if details else text


def _name_type(parameter: Any) -> str:
    if parameter.metavar is not None:
        return str(parameter.metavar)
    choices = parameter.type_descriptor.choices
    if choices is not None:
        return "|".join(map(str, choices))
    types = _list_types(parameter)
    return "PATH" if Path in types else "NUMBER" if {int, float} & set(types) else "TEXT"


def _list_types(parameter: Any) -> list[Any]:
    """Return the types that an annotation is made of: Path of `list[Path] | None`."""
    parts, types = [parameter.type_descriptor.annotation], []
    while parts:
        part = parts.pop()
        inner = getattr(part, "__args__", ())
        parts += inner
        types += [] if inner else [part]
    return types


def _show_number(limit: float | None) -> str:
    if limit is None:
        return ""
    if limit == 2**63 - 1:
        return "2^63 - 1"
    return f"{limit:,.10g}" if isinstance(limit, float) else f"{limit:,}"
