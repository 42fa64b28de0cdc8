"""Damaged and hostile image files. `mutant(seed)` depends on its seed alone, so a failure is repeated by naming it:

python -m tests.fuzz.mutations 4711 > hostile.png
"""

import io
import random
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]  # type, data


@dataclass(frozen=True)
class Mutant:
    """A file, how it came to be, and the seed that makes it again."""

    seed: int
    kind: str
    data: bytes


def mutant(seed: int) -> Mutant:
    chance = random.Random(seed)
    kind = chance.choices(list(KINDS), weights=[weight for _, weight in KINDS.values()])[0]
    return Mutant(seed, kind, KINDS[kind][0](chance))


@cache
def originals() -> tuple[bytes, ...]:
    """Sound files of every format and of every mode that takes its own way through the decoder."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    pixels[4:12, 4:12] = 90  # something to compress
    rgba, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    rgb = rgba.convert("RGB")
    deep = Image.fromarray((np.arange(480, dtype=np.uint16) * 136).reshape(24, 20))
    return (
        _file(rgb, "PNG", exif=exif),
        _file(rgb.quantize(16), "PNG", transparency=3),
        _file(rgba, "PNG"),
        _file(deep, "PNG"),
        _file(rgb.convert("1"), "PNG"),
        _file(rgba.convert("LA"), "PNG"),
        _file(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        _file(rgb, "JPEG", exif=exif, comment=b"a comment"),
        _file(rgb, "JPEG", progressive=True, quality=95, subsampling=0),
        _file(rgb.convert("CMYK"), "JPEG"),
        _file(rgb.convert("L"), "JPEG", restart_marker_blocks=1),
        _file(rgb, "WEBP", exif=exif),
        _file(rgba, "WEBP"),
        _file(rgba, "WEBP", lossless=True),
        _file(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
    )


def _file(picture: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def _any(chance: random.Random) -> bytes:
    return chance.choice(originals())


def bit_flips(chance: random.Random) -> bytes:
    data = bytearray(_any(chance))
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def bytes_replaced(chance: random.Random) -> bytes:
    """A run of bytes near the start, where the headers are, as often as anywhere."""
    data = bytearray(_any(chance))
    at = chance.randrange(chance.choice((64, len(data))))
    run = chance.choice((b"\0", b"\xff", b"\x7f", chance.randbytes(1))) * chance.choice((1, 2, 4, 8))
    data[at : at + len(run)] = run
    return bytes(data)


def truncated(chance: random.Random) -> bytes:
    data = _any(chance)
    return data[: chance.randrange(len(data))]


def cut_or_doubled(chance: random.Random) -> bytes:
    data = _any(chance)
    start, end = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[:start] + data[end:] if chance.random() < 0.5 else data[:end] + data[start:]


def garbage_after_a_valid_start(chance: random.Random) -> bytes:
    data = _any(chance)
    return data[: chance.choice((4, 8, 16, 33, 64, len(data)))] + chance.randbytes(chance.choice((1, 100, 5000)))


def concatenated(chance: random.Random) -> bytes:
    return _any(chance) + _any(chance)


def spliced(chance: random.Random) -> bytes:
    """The head of one file on the tail of another."""
    head, tail = _any(chance), _any(chance)
    return head[: chance.randrange(len(head))] + tail[chance.randrange(len(tail)) :]


def chunks_edited(chance: random.Random) -> bytes:
    """A well-formed container with the wrong chunks in it: lost, doubled, moved, renamed, emptied or overgrown."""
    data = _any(chance)
    read, write = (
        (_png, _to_png)
        if data.startswith(PNG_START)
        else (_riff, _to_riff)
        if data[:4] == b"RIFF"
        else (_jpeg, _to_jpeg)
    )
    chunks = read(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(chunks))
        name, content = chunks[at]
        edits: list[list[Chunk]] = [
            [],
            [chunks[at]] * 2,
            [(chance.choice(chunks)[0], content)],
            [(name, b"")],
            [(name, content[: len(content) // 2])],
            [(name, content + chance.randbytes(chance.choice((1, 300))))],
            [(name, chance.randbytes(len(content)))],
            [chance.choice(chunks), chunks[at]],
        ]
        chunks[at : at + 1] = chance.choice(edits)
        chunks = chunks or [(b"IHDR", b"")]
    return write(chunks)


def sizes_claimed(chance: random.Random) -> bytes:
    """A header that claims any width and height over the pixels of another."""
    data = bytearray(_any(chance))
    width, height = (chance.choice((0, 1, 19, 20, 24, 25, 400, 16383, 65535)) for _ in range(2))
    if data.startswith(PNG_START):
        big = [chance.choice((0, 2**31 - 1, 2**31, 2**32 - 1)), height]
        data[16:24] = struct.pack(">II", *(big if chance.random() < 0.3 else (width, height)))
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif data[:4] == b"RIFF":
        if data[12:16] == b"VP8X":
            data[24:30] = (max(width, 1) - 1).to_bytes(3, "little") + (max(height, 1) - 1).to_bytes(3, "little")
        elif data[12:16] == b"VP8L":
            data[21:25] = struct.pack("<I", (width & 0x3FFF) | (height & 0x3FFF) << 14)
        else:
            data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    else:
        start = next(data.find(bytes((0xFF, kind))) for kind in (0xC0, 0xC2) if data.find(bytes((0xFF, kind))) > 0)
        data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bomb(chance: random.Random) -> bytes:
    """Little to send, much to unpack: pixels beyond the claimed size, or texts and profiles that nobody asked for."""
    size, zeros = chance.choice((1, 16, 400, 447)), zlib.compress(bytes(chance.choice((2**20, 2**24))), 9)
    head = (b"IHDR", struct.pack(">IIBBBBB", size, size, chance.choice((8, 16)), 2, 0, 0, chance.randrange(2)))
    pixels: Chunk = (b"IDAT", zeros)
    extras: list[list[Chunk]] = [
        [],
        [(b"zTXt", b"Comment\0\0" + zeros)],
        [(b"iTXt", b"Comment\0\1\0\0\0" + zeros)] * 3,
        [(b"iCCP", b"profile\0\0" + zeros)],
        [(b"tEXt", b"a\0" + b"b" * 2000)] * 200,
        [(b"IDAT", b"")] * 5000,
        [(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 2000)],
        [(b"acTL", struct.pack(">II", 2**31 - 1, 0))],
    ]
    return _to_png([head, *chance.choice(extras), pixels, (b"IEND", b"")])


def _png(data: bytes) -> list[Chunk]:
    found, at = [], len(PNG_START)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _to_png(chunks: list[Chunk]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return PNG_START + b"".join(parts)


def _riff(data: bytes) -> list[Chunk]:
    found, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        found.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def _to_riff(chunks: list[Chunk]) -> bytes:
    body = b"WEBP" + b"".join(
        name[:4].ljust(4) + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _jpeg(data: bytes) -> list[Chunk]:
    """Segments up to the scan; the rest is one chunk."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        found.append((data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return [*found, (b"", data[at:])]


def _to_jpeg(chunks: list[Chunk]) -> bytes:
    parts = [
        name + struct.pack(">H", min(len(data) + 2, 65535)) + data if name.startswith(b"\xff") else data
        for name, data in chunks
    ]
    return b"\xff\xd8" + b"".join(parts)


KINDS: dict[str, tuple[Callable[[random.Random], bytes], float]] = {
    "bit flips": (bit_flips, 20),
    "bytes replaced": (bytes_replaced, 15),
    "truncated": (truncated, 10),
    "cut or doubled": (cut_or_doubled, 10),
    "garbage after a valid start": (garbage_after_a_valid_start, 8),
    "concatenated": (concatenated, 4),
    "spliced": (spliced, 8),
    "chunks edited": (chunks_edited, 15),
    "sizes claimed": (sizes_claimed, 8),
    "bomb": (bomb, 2),
}

if __name__ == "__main__":
    sys.stdout.buffer.write(mutant(int(sys.argv[1])).data)
