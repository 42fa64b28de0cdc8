"""PNG, JPEG or WebP bytes to a float32 image in [0, 1] and back: the only place where 0..255 exists.

The content decides the format. Sizes are checked before anything is decoded: a small file can claim a huge picture. So
is what the file is cut into: 16 MB of empty PNG chunks or JPEG segments take Pillow 5 to 18 s to walk through, and a
99 kB progressive JPEG with a thousand empty scans takes libjpeg 36 s. docs/input.md has all of it as a table.

- The EXIF orientation is applied. Of an animation the first frame counts; how many follow costs nothing to know.
- What is transparent is laid over white, as a browser shows it.
- Grey becomes colour by repetition; colour becomes grey by the luma of ITU-R BT.601, exact where red = green = blue.
- 16-bit grey keeps its depth. 16-bit colour keeps the upper 8 bits only: Pillow reads no more.
- An image of exactly the card's size is passed through bit for bit; any other is resized to it, whatever its proportions.
"""

import io
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from models.checkpoint import InputSpec
from service.errors import (
    BrokenImage,
    NoBody,
    NotAnImage,
    Problem,
    TooLongSide,
    TooManyPieces,
    TooManyPixels,
    UnsupportedFormat,
)

Format = Literal["PNG", "JPEG", "WEBP"]
FORMATS: tuple[Format, ...] = ("PNG", "JPEG", "WEBP")
MAX_SIDE = 16_384

# Pillow reads a file in pieces: a few for each PNG chunk or JPEG segment, then 64 kB at a time. Each costs some 3 us of
# Python. Encoders write chunks of 8 kB and more, so files of honest size stay far below.
MAX_READS, BYTES_A_READ = 10_000, 1024

# A scan of a progressive JPEG costs a pass over the whole picture however few bytes it has; encoders write about 10.
MAX_SCANS = 50
_SCAN = b"\xff\xda"

# A PNG of so many bytes and pixels, without parts that unpack to much more, takes some 0.1 ms.
QUICK_BYTES, QUICK_PIXELS = 4096, 64 * 64
_PNG = b"\x89PNG\r\n\x1a\n"
_SMALL = _PNG + b"\x00\x00\x00\x0dIHDR"  # then come width and height
_HEADER = len(_SMALL) + 8
_UNPACKED = {b"zTXt", b"iTXt", b"iCCP", b"acTL", b"eXIf"}
_CHUNK, _CRC = struct.Struct(">I4s"), 4

_OURS = {_PNG: "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
_OTHERS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x00\x00\x01\x00": "ICO",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL": "JPEG XL",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
}

# What Pillow's parsers raise on damaged files, found by mutating real ones (tests/service/test_decode.py).
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error)


class _Pieces(io.BytesIO):
    """A file that can be read so often and no more."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._limit = self._left = MAX_READS + len(data) // BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooManyPieces("pieces", self._limit)
        return super().read(size)


def decode(
    data: bytes, spec: InputSpec, max_pixels: int, *, max_side: int = MAX_SIDE, formats: tuple[str, ...] = FORMATS
) -> Tensor:
    """Image file to (C, H, W) float32 in [0, 1], as `spec` wants it.

    Raises:
        NoBody, NotAnImage, UnsupportedFormat, TooManyPixels, TooLongSide, TooManyPieces, BrokenImage.
    """
    picture = _open(data, formats, max_pixels)
    _check_size(picture, max_pixels, max_side)
    if picture.format in ("JPEG", "MPO") and data.count(_SCAN) > MAX_SCANS:
        raise TooManyPieces("scans", MAX_SCANS)
    try:
        upright = _upright(picture)
        image = _to_channels(_to_float(upright), spec.channels)
    except _DAMAGE as error:
        raise BrokenImage(_sniff(data, _OURS) or "an image", len(data)) from error
    return fit(image, spec)


@dataclass(frozen=True)
class File:
    """An image file that is decoded later, and what it may be: see `decode`."""

    data: bytes
    max_pixels: int
    max_side: int = MAX_SIDE
    formats: tuple[str, ...] = FORMATS

    def decode(self, spec: InputSpec) -> Tensor:
        """See `decode`."""
        return decode(self.data, spec, self.max_pixels, max_side=self.max_side, formats=self.formats)

    def is_quick(self) -> bool:
        """Whether decoding it is sure to be quick, so that it needs no thread of its own and no time limit."""
        data = self.data
        if not _HEADER <= len(data) <= QUICK_BYTES or not data.startswith(_SMALL):
            return False
        width, height = struct.unpack_from(">II", data, len(_SMALL))
        names = _chunks(data)
        return width * height <= QUICK_PIXELS and names.count(b"IHDR") == 1 and _UNPACKED.isdisjoint(names)


def _chunks(png: bytes) -> list[bytes]:
    """The names of a PNG's chunks; none where they don't add up to the file, so that it may be read in another way."""
    names, at = [], len(_PNG)
    while at + _CHUNK.size <= len(png):
        length, name = _CHUNK.unpack_from(png, at)
        names.append(name)
        at += _CHUNK.size + length + _CRC
    return names if at == len(png) else []


def fit(image: Tensor, spec: InputSpec) -> Tensor:
    """The card's resize rule, "bilinear-antialias". (C, h, w) -> (C, H, W); the same tensor if the size is right."""
    size = (spec.height, spec.width)
    if tuple(image.shape[-2:]) == size:
        return image if image.is_contiguous() else image.contiguous()
    resized = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def encode_png(image: Tensor) -> bytes:
    """(C, H, W) in [0, 1] to an 8-bit PNG; values are rounded to the nearest of 256, at most 0.5 / 255 away."""
    levels = image.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(file, format="PNG")
    return file.getvalue()


def _open(data: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    """Read the header only."""
    if not data:
        raise NoBody
    try:
        return Image.open(_Pieces(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(None, max_pixels) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data, formats) from error
    except _DAMAGE as error:
        raise BrokenImage(_sniff(data, _OURS) or "an image", len(data)) from error


def _check_size(picture: Image.Image, max_pixels: int, max_side: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise TooManyPixels(picture.size, max_pixels)
    if max(picture.size) > max_side:
        raise TooLongSide(picture.size, max_side)


def _unidentified(data: bytes, formats: tuple[str, ...]) -> Problem:
    if data[4:8] == b"ftyp":
        return UnsupportedFormat("AVIF or HEIC" if data[8:12] in (b"avif", b"heic", b"mif1") else "a video", formats)
    if other := _sniff(data, _OTHERS):
        return UnsupportedFormat(other, formats)
    if ours := _sniff(data, _OURS):
        return BrokenImage(ours, len(data)) if ours in formats else UnsupportedFormat(ours, formats)
    return NotAnImage(len(data), formats)


def _sniff(data: bytes, signatures: dict[bytes, str]) -> str | None:
    return next((name for signature, name in signatures.items() if data.startswith(signature)), None)


def _upright(picture: Image.Image) -> Image.Image:
    """Decode, then apply the EXIF orientation; unreadable EXIF data are no reason to refuse a readable picture."""
    picture.load()
    with suppress(*_DAMAGE):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _to_float(picture: Image.Image) -> Tensor:
    """Any mode to (1 or 3, h, w) float32 in [0, 1], transparency laid over white."""
    if picture.mode.startswith("I"):  # 16-bit grey
        return torch.from_numpy(np.asarray(picture).astype(np.float32))[None].div_(65535).clamp_(0, 1)
    if picture.has_transparency_data:
        pixels = _pixels(picture.convert("RGBA"))
        colour, alpha = pixels[:3], pixels[3:]
        return colour * alpha + (1 - alpha)  # exactly `colour` where alpha is 1
    return _pixels(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))


def _pixels(picture: Image.Image) -> Tensor:
    """8-bit channels to (C, h, w)."""
    # In NumPy, which keeps Python's lock for so small a thing: in the event loop it would have to be waited for each time.
    levels = np.asarray(picture).reshape(picture.height, picture.width, -1).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(levels, dtype=np.float32) / np.float32(255))


def _to_channels(image: Tensor, channels: int) -> Tensor:
    if len(image) == channels:
        return image
    if channels == 3:
        return image.expand(3, -1, -1)
    red, green, blue = image.unbind()
    # BT.601 luma, 0.299 R + 0.587 G + 0.114 B, in a form that has no rounding error where all three are the same.
    return (red + 0.587 * (green - red) + 0.114 * (blue - red)).clamp(0, 1)[None]
