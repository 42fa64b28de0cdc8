"""Data sets as uint8 arrays: torchvision's CIFAR-10 and MNIST, a local `cifar10.npz`, and any folder of class folders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

Split = Literal["train", "test"]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class DataError(Exception):
    """A data set is missing or broken; the message says where it was looked for and what to do."""


@dataclass(frozen=True)
class ImageData:
    """images: (N, H, W, C) uint8. labels: (N,) int64. classes: the K label names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def floats(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images start..stop as (N, C, H, W) float32 in [0, 1]."""
        return to_float(self.images[start:stop])


def to_float(images: Tensor) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W) float32 in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def data_root(given: Path | None = None) -> Path:
    """Where data sets lie: the given folder, else $UNPERTURB_DATA, else ./data."""
    return given or Path(os.environ.get("UNPERTURB_DATA", "data"))


def load_data(name: str, split: Split, root: Path | None = None, *, download: bool = False) -> ImageData:
    """Load `cifar10`, `mnist`, or a folder `NAME/train/CLASS/*.png`, `NAME/test/CLASS/*.png` below the data root.

    Raises:
        DataError: it is not there (and `download` is off or fails), or its content is not what it should be.
    """
    folder = data_root(root)
    if name == "cifar10":
        return _cifar10(folder, split, download)
    if name == "mnist":
        return _mnist(folder, split, download)
    return _class_folders(folder / name, split)


def _cifar10(folder: Path, split: Split, download: bool) -> ImageData:
    file = folder / "cifar10.npz"
    if file.exists():
        return _npz(file, split)
    try:
        found = datasets.CIFAR10(str(folder), train=split == "train", download=download)
    except Exception as error:  # torchvision raises RuntimeError or whatever the network layer raises
        raise _missing("CIFAR-10", [file, folder / "cifar-10-batches-py"], error) from error
    return ImageData(torch.from_numpy(found.data), torch.tensor(found.targets), tuple(found.classes))


def _npz(file: Path, split: Split) -> ImageData:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
            classes = tuple(str(name) for name in arrays["classes"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{file}: can't be read ({error}); expected arrays x_train, y_train, x_test, y_test (uint8, NHWC) and classes"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise DataError(
            f"{file}: x_{split} is {images.dtype} {images.shape} with {len(labels)} labels; expected uint8 (N, H, W, 3)"
        )
    return ImageData(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), classes)


def _mnist(folder: Path, split: Split, download: bool) -> ImageData:
    try:
        found = datasets.MNIST(str(folder), train=split == "train", download=download)
    except Exception as error:
        raise _missing("MNIST", [folder / "MNIST" / "raw"], error) from error
    return ImageData(found.data[..., None].contiguous(), found.targets.long(), tuple(str(digit) for digit in range(10)))


def _missing(what: str, places: Sequence[Path], error: Exception) -> DataError:
    looked = " and ".join(str(place) for place in places)
    return DataError(
        f"{what} not found: looked for {looked} ({type(error).__name__}: {error}). "
        "Point --data or UNPERTURB_DATA at the folder that holds it, or add --download where there is a network."
    )


def _class_folders(folder: Path, split: Split) -> ImageData:
    where = folder / split
    classes = sorted(path.name for path in where.iterdir() if path.is_dir()) if where.is_dir() else []
    if not classes:
        raise DataError(
            f"no data set at {where}: expected one folder for each class there. Known names are 'cifar10' and 'mnist'; "
            "any other name is a folder below --data or UNPERTURB_DATA with train/CLASS/*.png and test/CLASS/*.png."
        )
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((where / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(f"{where}: its class folders hold no image ({', '.join(IMAGE_SUFFIXES)})")
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path, _ in files]
    odd = next((i for i, array in enumerate(arrays) if array.shape != arrays[0].shape), None)
    if odd is not None:
        raise DataError(
            f"{files[odd][0]} is {arrays[odd].shape[1]}x{arrays[odd].shape[0]}, {files[0][0]} is "
            f"{arrays[0].shape[1]}x{arrays[0].shape[0]}; resize all images to one size first"
        )
    return ImageData(torch.from_numpy(np.stack(arrays)), torch.tensor([label for _, label in files]), tuple(classes))
