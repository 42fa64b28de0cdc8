import io
import random
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from models.checkpoint import InputSpec
from service.decode import decode, encode_png, fit
from service.errors import BadBody, BrokenImage, NoBody, NotAnImage, TooManyPixels, UnsupportedFormat

COLOUR = InputSpec(channels=3, height=4, width=6)
GREY = InputSpec(channels=1, height=4, width=6)
LIMIT = 10_000


def file_of(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=format, **options)
    return file.getvalue()


def noise(height: int = 4, width: int = 6, bands: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, bands) if bands > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"


def test_nothing_is_refused() -> None:
    with pytest.raises(NoBody):
        decode(b"", COLOUR, LIMIT)


@pytest.mark.parametrize("data", [b"hello, I am no image", b"\0" * 100, b"\x89PN", b"<svg/>"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnImage) as refusal:
        decode(data, COLOUR, LIMIT)
    assert refusal.value.members["formats"] == ["PNG", "JPEG", "WEBP"]
    assert "hello" not in refusal.value.detail


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "ICO"])
def test_other_formats_are_named_and_refused(format: str) -> None:
    with pytest.raises(UnsupportedFormat, match=format):
        decode(file_of(Image.new("RGB", (16, 16)), format), COLOUR, LIMIT)


def test_avif_is_named_and_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="AVIF or HEIC"):
        decode(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", COLOUR, LIMIT)


@pytest.mark.parametrize("size", [(20_000, 20_000), (13_000, 13_000), (2**31 - 1, 2**31 - 1), (101, 100)])
def test_claimed_size_is_checked_before_anything_is_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(TooManyPixels):  # a decoder would find no pixels at all and call it broken
        decode(claiming(*size), COLOUR, LIMIT)


def test_size_at_the_limit_is_decoded() -> None:
    assert decode(file_of(Image.new("RGB", (100, 100))), COLOUR, 10_000).shape == (3, 4, 6)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_truncated_file_is_broken(format: str, part: float) -> None:
    data = file_of(Image.fromarray(noise(64, 64)), format)
    with pytest.raises(BrokenImage, match=format):
        decode(data[: int(part * len(data))], COLOUR, LIMIT)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as service/logs.py does
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_give_an_image_or_a_problem_and_nothing_else(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.fromarray(noise(16, 16)), format, exif=exif)
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with suppress(BadBody, TooManyPixels, UnsupportedFormat):
            decode(bytes(damaged), COLOUR, LIMIT)


def test_image_of_the_right_size_passes_bit_for_bit() -> None:
    pixels = noise()
    image = decode(file_of(Image.fromarray(pixels)), COLOUR, LIMIT)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


def test_lossless_webp_is_the_same_as_png() -> None:
    picture = Image.fromarray(noise())
    webp = file_of(picture, "WEBP", lossless=True)
    assert torch.equal(decode(webp, COLOUR, LIMIT), decode(file_of(picture), COLOUR, LIMIT))


def test_other_sizes_are_resized_by_the_cards_rule() -> None:
    pixels = noise(9, 30)
    image = decode(file_of(Image.fromarray(pixels)), COLOUR, LIMIT)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    expected = F.interpolate(whole, size=(4, 6), mode="bilinear", antialias=True, align_corners=False)[0]
    assert torch.allclose(image, expected, atol=1e-6)
    assert image.min() >= 0
    assert image.max() <= 1


def test_exif_orientation_is_applied_before_the_size_is_compared() -> None:
    pixels = noise(6, 4)  # on its side
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it upright
    image = decode(file_of(Image.fromarray(pixels), exif=exif), COLOUR, LIMIT)
    assert torch.equal(image, torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1).float() / 255)


def test_unreadable_exif_is_no_reason_to_refuse() -> None:
    data = file_of(Image.fromarray(noise()), exif=b"Exif\0\0no TIFF header at all")
    assert decode(data, COLOUR, LIMIT).shape == (3, 4, 6)


def test_transparency_lies_over_white() -> None:
    pixels = noise(bands=4)
    pixels[..., 3] = 0
    assert torch.equal(decode(file_of(Image.fromarray(pixels)), COLOUR, LIMIT), torch.ones(3, 4, 6))


def test_half_transparent_black_is_grey() -> None:
    image = decode(file_of(Image.new("RGBA", (6, 4), (0, 0, 0, 128))), COLOUR, LIMIT)
    assert torch.allclose(image, torch.full((3, 4, 6), 1 - 128 / 255))


def test_opaque_alpha_changes_nothing() -> None:
    pixels = noise(bands=4)
    pixels[..., 3] = 255
    image = decode(file_of(Image.fromarray(pixels)), COLOUR, LIMIT)
    assert torch.equal(image, torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1).float() / 255)


def test_transparent_grey_lies_over_white_too() -> None:
    image = decode(file_of(Image.new("LA", (6, 4), (0, 0))), GREY, LIMIT)
    assert torch.equal(image, torch.ones(1, 4, 6))


def test_palette_gives_its_colours() -> None:
    picture = Image.new("P", (6, 4), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    image = decode(file_of(picture), COLOUR, LIMIT)
    assert torch.equal(image[:, 0, 0], torch.tensor([10.0, 20.0, 30.0]) / 255)


def test_palette_with_a_transparent_entry_lies_over_white() -> None:
    picture = Image.new("P", (6, 4), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert torch.equal(decode(file_of(picture, transparency=1), COLOUR, LIMIT), torch.ones(3, 4, 6))


def test_black_and_white_are_0_and_1() -> None:
    picture = Image.new("1", (6, 4))
    picture.putpixel((2, 1), 1)
    image = decode(file_of(picture), GREY, LIMIT)
    assert image[0, 1, 2] == 1
    assert image.sum() == 1


def test_16_bit_grey_keeps_its_depth() -> None:
    levels = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2849
    image = decode(file_of(Image.fromarray(levels)), GREY, LIMIT)
    assert torch.equal(image[0], torch.from_numpy(levels.astype(np.float32)) / 65535)


def test_grey_becomes_colour_by_repetition() -> None:
    image = decode(file_of(Image.fromarray(noise(bands=1))), COLOUR, LIMIT)
    assert image.is_contiguous()
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_colour_becomes_grey_by_luma() -> None:
    image = decode(file_of(Image.new("RGB", (6, 4), (255, 0, 0))), GREY, LIMIT)
    assert torch.allclose(image, torch.full((1, 4, 6), 0.299))


def test_grey_saved_as_colour_is_exactly_that_grey() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    spec = InputSpec(channels=1, height=16, width=16)
    as_colour = file_of(Image.fromarray(np.stack([every] * 3, axis=2)))
    assert torch.equal(decode(as_colour, spec, LIMIT), decode(file_of(Image.fromarray(every)), spec, LIMIT))


def test_cmyk_jpeg_becomes_colour() -> None:
    image = decode(file_of(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG"), COLOUR, LIMIT)
    assert torch.allclose(image[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]), atol=0.02)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_counts(format: str) -> None:
    first, second = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    data = file_of(first, format, save_all=True, append_images=[second], **options)
    assert torch.equal(decode(data, COLOUR, LIMIT), decode(file_of(first), COLOUR, LIMIT))


@pytest.mark.parametrize(("spec", "bands"), [(COLOUR, 3), (GREY, 1)])
def test_png_and_back_is_exact_for_256_levels(spec: InputSpec, bands: int) -> None:
    image = decode(file_of(Image.fromarray(noise(bands=bands))), spec, LIMIT)
    assert torch.equal(decode(encode_png(image), spec, LIMIT), image)


def test_png_rounds_to_the_nearest_level() -> None:
    image = torch.tensor([0.0, 0.49 / 255, 0.51 / 255, 1.0]).reshape(1, 1, 4)
    levels = np.asarray(Image.open(io.BytesIO(encode_png(image))))
    assert levels.tolist() == [[0, 0, 1, 255]]


def test_fit_leaves_the_right_size_alone() -> None:
    image = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert fit(image, COLOUR) is image
