import io
import random
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torch.nn import functional as F

from models.checkpoint import InputSpec
from service.decode import FORMATS, MAX_SCANS, QUICK_BYTES, File, _Pieces, decode, encode_png, fit
from service.errors import (
    BadBody,
    BrokenImage,
    NoBody,
    NotAnImage,
    TooLongSide,
    TooManyPieces,
    TooManyPixels,
    UnsupportedFormat,
)

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


# What a file may be: every kind of pixel of every format, each with what becomes of it (docs/input.md has the table).

WHITE = (1.0, 1.0, 1.0)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(colour_type: int, depth: int, row: bytes, key: bytes = b"", palette: bytes = b"") -> bytes:
    """6 x 4, every row the same; for kinds that Pillow reads but doesn't write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 4, depth, colour_type, 0, 0, 0))
    extra = (chunk(b"PLTE", palette) if palette else b"") + (chunk(b"tRNS", key) if key else b"")
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 4))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND")


def words(*levels: int) -> bytes:
    return struct.pack(f">{len(levels)}H", *levels)


PALETTE = bytes([9, 9, 9, 10, 20, 30])
KINDS = {
    "grey of 1 bit": (raw_png(0, 1, b"\x80"), WHITE),
    "grey of 2 bits": (raw_png(0, 2, b"\x40\0"), (85 / 255,) * 3),
    "grey of 4 bits": (raw_png(0, 4, b"\x50\0\0"), (85 / 255,) * 3),
    "grey of 8 bits": (raw_png(0, 8, bytes([18] * 6)), (18 / 255,) * 3),
    "grey of 8 bits, its level transparent": (raw_png(0, 8, bytes([18] * 6), words(18)), WHITE),
    "grey of 16 bits": (raw_png(0, 16, words(*[0x1234] * 6)), (0x1234 / 65535,) * 3),
    "grey of 16 bits, transparency ignored": (
        raw_png(0, 16, words(*[0x1234] * 6), words(0x1234)),
        (0x1234 / 65535,) * 3,
    ),
    "grey of 4 bits, transparency ignored": (raw_png(0, 4, b"\x50\0\0", words(5)), (85 / 255,) * 3),
    "colour of 8 bits": (raw_png(2, 8, bytes([1, 2, 3] * 6)), (1 / 255, 2 / 255, 3 / 255)),
    "colour of 8 bits, its colour transparent": (raw_png(2, 8, bytes([1, 2, 3] * 6), words(1, 2, 3)), WHITE),
    "colour of 16 bits": (raw_png(2, 16, words(*[0x12FF, 0x5600, 0x9A00] * 6)), (0x12 / 255, 0x56 / 255, 0x9A / 255)),
    "colour of 16 bits, transparency ignored": (
        raw_png(2, 16, words(*[0x1234, 0x5678, 0x9ABC] * 6), words(0x1234, 0x5678, 0x9ABC)),
        (0x12 / 255, 0x56 / 255, 0x9A / 255),
    ),
    "palette": (raw_png(3, 8, bytes([1] * 6), palette=PALETTE), (10 / 255, 20 / 255, 30 / 255)),
    "palette of 4 bits, its entry transparent": (raw_png(3, 4, b"\x11" * 3, bytes([255, 0]), PALETTE), WHITE),
    "palette, entry that isn't there": (raw_png(3, 8, bytes([7] * 6), palette=PALETTE), (0.0, 0.0, 0.0)),
    "grey and alpha of 16 bits": (raw_png(4, 16, words(*[0x1234, 65535] * 6)), (0x12 / 255,) * 3),
    "grey and alpha of 16 bits, transparent": (raw_png(4, 16, words(*[0x1234, 0] * 6)), WHITE),
    "colour and alpha of 16 bits": (
        raw_png(6, 16, words(*[0x1200, 0x5600, 0x9A00, 65535] * 6)),
        (0x12 / 255, 0x56 / 255, 0x9A / 255),
    ),
    "JPEG in grey": (file_of(Image.new("L", (6, 4), 85), "JPEG"), (85 / 255,) * 3),
    "JPEG in colour": (file_of(Image.new("RGB", (6, 4), (85, 85, 85)), "JPEG"), (85 / 255,) * 3),
    "JPEG in CMYK": (file_of(Image.new("CMYK", (6, 4), (0, 0, 0, 0)), "JPEG"), WHITE),
    "progressive JPEG": (file_of(Image.new("RGB", (6, 4), (85, 85, 85)), "JPEG", progressive=True), (85 / 255,) * 3),
    "lossless WebP": (file_of(Image.new("RGB", (6, 4), (1, 2, 3)), "WEBP", lossless=True), (1 / 255, 2 / 255, 3 / 255)),
    "lossy WebP": (file_of(Image.new("RGB", (6, 4), (255, 255, 255)), "WEBP"), WHITE),
    "transparent WebP": (file_of(Image.new("RGBA", (6, 4), (1, 2, 3, 0)), "WEBP", lossless=True, exact=True), WHITE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixel_becomes_what_the_page_says(kind: str) -> None:
    data, expected = KINDS[kind]
    colour = decode(data, COLOUR, LIMIT)
    assert torch.allclose(colour[:, 0, 0], torch.tensor(expected), atol=1e-6)
    luma = sum(weight * value for weight, value in zip((0.299, 0.587, 0.114), expected, strict=True))
    assert torch.allclose(decode(data, GREY, LIMIT)[0, 0, 0], torch.tensor(luma), atol=1e-6)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_in_every_format(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners = np.kron(np.array([[0, 255], [85, 170]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    data = file_of(Image.fromarray(corners), format, exif=exif, **options)
    turned = corners if orientation < 5 else corners.T  # TIFF 6.0: from 5 on rows and columns are exchanged
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    turned = turned[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    image = decode(data, InputSpec(channels=1, height=32, width=32), LIMIT)
    assert torch.allclose(image[0], torch.from_numpy(turned.copy()).float() / 255, atol=0.02)


@pytest.mark.parametrize("side", [(65, 1), (1, 65)])
def test_long_side_is_refused_however_few_its_pixels(side: tuple[int, int]) -> None:
    with pytest.raises(TooLongSide, match=f"{side[0]}x{side[1]} pixels; at most 64 a side"):
        decode(file_of(Image.new("RGB", side)), COLOUR, LIMIT, max_side=64)
    assert decode(file_of(Image.new("RGB", (64, 1))), COLOUR, LIMIT, max_side=64).shape == (3, 4, 6)


def test_long_side_is_checked_before_anything_is_decoded() -> None:
    with pytest.raises(TooLongSide):
        decode(claiming(65, 1), COLOUR, LIMIT, max_side=64)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_format_that_is_not_accepted_is_named_and_refused(format: str) -> None:
    others = tuple(each for each in FORMATS if each != format)
    with pytest.raises(UnsupportedFormat, match=format) as refusal:
        decode(file_of(Image.new("RGB", (6, 4)), format), COLOUR, LIMIT, formats=others)
    assert refusal.value.members["formats"] == list(others)


WHOLE = file_of(Image.new("RGB", (6, 4)))
JPEG = file_of(Image.new("L", (64, 64)), "JPEG", progressive=True)
LAST_SCAN = JPEG[JPEG.rindex(b"\xff\xda") : -2]


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:33] + chunk(b"prVt") * 20_000 + WHOLE[33:],
        WHOLE[:33] + chunk(b"tEXt", b"a\0b") * 20_000 + WHOLE[33:],
        WHOLE[:33] + chunk(b"IDAT") * 20_000 + WHOLE[33:],
        WHOLE[:-12] + chunk(b"prVt") * 20_000 + WHOLE[-12:],
        JPEG[:2] + b"\xff\xe5\0\2" * 20_000 + JPEG[2:],
        JPEG[:20] + b"\0" * 20_000 + JPEG[20:],
        JPEG[:-2] + LAST_SCAN * MAX_SCANS + JPEG[-2:],
    ],
    ids=["private chunks", "texts", "empty data", "chunks at the end", "segments", "junk", "scans"],
)
def test_file_of_countless_pieces_is_refused(data: bytes) -> None:
    with pytest.raises(TooManyPieces):
        decode(data, COLOUR, LIMIT)


def test_large_files_of_usual_encoders_have_few_enough_pieces() -> None:
    pixels = noise(700, 700)
    for format in FORMATS:
        data = file_of(Image.fromarray(pixels), format, quality=100, progressive=True)
        assert decode(data, COLOUR, pixels.size).shape == (3, 4, 6)


def test_frames_after_the_first_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (6, 4), (value, 0, 0)) for value in range(50)]
    data = file_of(frames[0], save_all=True, append_images=frames[1:])
    reads = []

    def read(file: _Pieces, size: int = -1) -> bytes:
        reads.append(size)
        return io.BytesIO.read(file, size)

    monkeypatch.setattr(_Pieces, "read", read)
    assert decode(data, COLOUR, LIMIT).shape == (3, 4, 6)
    assert len(reads) < 50


def is_quick(data: bytes) -> bool:
    return File(data, LIMIT).is_quick()


def test_small_plain_png_is_quick() -> None:
    assert is_quick(file_of(Image.fromarray(noise(32, 32))))


def test_what_could_take_long_is_not_quick() -> None:
    picture = Image.fromarray(noise(32, 32))
    assert not is_quick(file_of(picture, "WEBP"))
    assert not is_quick(file_of(picture, "JPEG"))
    assert not is_quick(file_of(Image.fromarray(noise(64, 64))))  # too many bytes
    assert not is_quick(file_of(Image.new("RGB", (65, 64))))  # too many pixels
    twice = file_of(Image.new("RGB", (4, 4)))
    assert not is_quick(twice + twice[8:])  # the second header would count
    assert not is_quick(twice[:20])
    assert not is_quick(twice[:-1])
    assert not is_quick(twice + b"more")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("bomb", "a" * 100_000, zip=True)
    bomb = file_of(Image.new("RGB", (4, 4)), pnginfo=texts)
    assert len(bomb) < QUICK_BYTES
    assert not is_quick(bomb)
