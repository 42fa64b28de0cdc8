"""`unperturb settings`: every setting of the service, as a table, as JSON or as docs/settings.md."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from unperturb.options import Json

_PAGE = """# Settings

Environment variables of the service, or arguments of `service.settings.Settings`. A value out of its bounds stops the start \
with one sentence that names it. This page is the output of `unperturb settings --markdown`.

| variable | default | bounds | what it does |
|---|---|---|---|
"""


def settings(
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/settings.md.")] = False,
) -> None:
    """List every setting of the service: its environment variable, default and bounds."""
    rows = list(_rows())
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif markdown:
        typer.echo(page(), nl=False)
    else:
        table = Table("variable", "default", "bounds", "what it does")
        for row in rows:
            table.add_row(*row.values())
        Console().print(table)


def page() -> str:
    """docs/settings.md."""
    lines = []
    for row in _rows():
        default = row["default"] if row["default"] in ("unset", "the shipped checkpoints") else f"`{row['default']}`"
        bounds = row["bounds"].replace("|", "\\|")
        lines.append(f"| `{row['variable']}` | {default} | {bounds} | {row['what']} |\n")
    return _PAGE + "".join(lines)


def _rows() -> Iterator[dict[str, str]]:
    from service.settings import Settings

    for name, field in Settings.model_fields.items():
        yield {
            "variable": f"UNPERTURB_{name.upper()}",
            "default": _default(name, field.default),
            "bounds": _bounds(field),
            "what": field.description or "",
        }


def _default(name: str, value: Any) -> str:
    if name == "zoo":
        return "the shipped checkpoints"
    if value is None or value == ():
        return "unset"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _bounds(field: FieldInfo) -> str:
    """What validation asks of a value, in a few signs."""
    words = {"ge": ">= {}", "gt": "> {}", "le": "<= {}", "lt": "< {}", "min_length": "at least {} long"}
    found = [
        text.format(value)
        for rule in field.metadata
        for key, text in words.items()
        if (value := getattr(rule, key, None)) is not None
    ]
    patterns = [f"matches {rule.pattern}" for rule in field.metadata if getattr(rule, "pattern", None)]
    choices = [str(value) for value in get_args(field.annotation) if isinstance(value, str | int)]
    return "; ".join([*found, *patterns, *([", ".join(choices)] if choices else [])])
