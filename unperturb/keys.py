"""`unperturb key`: an API key for the service."""

from typing import Annotated

import typer


def key(
    name: Annotated[str, typer.Argument(help="Whose it is; stands in the log of each request.")],
    rate: Annotated[float | None, typer.Option(help="Images a second that it may send. Default: no limit.")] = None,
) -> None:
    """Make an API key: for its owner the key, shown this once, and for the service the line with its hash."""
    from service.keys import ApiKey

    secret, made = ApiKey.generate(name, rate)
    typer.echo(f"key, shown this once:\n  {secret}")
    typer.echo(f"line for the file of UNPERTURB_API_KEYS_FILE, or for UNPERTURB_API_KEYS:\n  {made.line()}")
