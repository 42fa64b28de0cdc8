"""Purifiers: what undoes a perturbation before an image is classified."""

from models.purifiers import aid as _aid  # noqa: F401  (registers its kind)
from models.purifiers import generator as _generator  # noqa: F401
from models.purifiers import none as _none  # noqa: F401
from models.purifiers import reverse as _reverse  # noqa: F401
from models.purifiers import soap as _soap  # noqa: F401
from models.purifiers.base import (
    Material,
    OptionError,
    Options,
    Purified,
    Purifier,
    PurifierInfo,
    Wanted,
    Wish,
    build_purifier,
    kinds,
)

__all__ = [
    "Material",
    "OptionError",
    "Options",
    "Purified",
    "Purifier",
    "PurifierInfo",
    "Wanted",
    "Wish",
    "build_purifier",
    "kinds",
]
