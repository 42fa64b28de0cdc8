"""Options that several commands share, so that they mean the same everywhere."""

from pathlib import Path
from typing import Annotated

import torch
import typer

import models.precision
from models.catalog import ZOO, Catalog

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for scripts.")]
Zoo = Annotated[
    list[Path] | None,
    typer.Option("--zoo", help="Folder of checkpoints, or one checkpoint; may be repeated. Default: the shipped ones."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")]
Precision = Annotated[
    models.precision.Precision,
    typer.Option(help="In which the networks compute; bf16 is faster on some processors and changes answers."),
]
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


class DeviceError(Exception):
    """This machine has no such device."""


def open_catalog(
    zoo: list[Path] | None, device: str = "cpu", precision: models.precision.Precision = "fp32"
) -> Catalog:
    """The catalog of the given folders, or of the shipped ones.

    Raises:
        DeviceError
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch that was built without the device
        raise DeviceError(f"--device {device}: {str(error).splitlines()[0]}; `--device cpu` always works") from error
    return Catalog.open(tuple(zoo) if zoo else (ZOO,), device, precision)
