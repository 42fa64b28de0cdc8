"""Options that several commands share, so that they mean the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

from models.catalog import ZOO, Catalog

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for scripts.")]
Zoo = Annotated[
    list[Path] | None,
    typer.Option("--zoo", help="Folder of checkpoints, or one checkpoint; may be repeated. Default: the shipped ones."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the data sets. Default: $UNPERTURB_DATA, else ./data."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, help="CPU threads. Default: PyTorch's choice; 1 is fastest beside another busy process."
    ),
]
Model = Annotated[str, typer.Option(help="Which data set's classifiers: see `unperturb models`.")]


def open_catalog(zoo: list[Path] | None, device: str = "cpu") -> Catalog:
    """The catalog of the given folders, or of the shipped ones."""
    return Catalog.open(tuple(zoo) if zoo else (ZOO,), device)
