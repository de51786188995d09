"""Picture files as a bad disk, a careless user or an attacker would send them, made from a seed.

`files(folder, 1000, seed=0)` writes so many, kinds in turn, each with what must come of it where that is known.
`videos(folder, seed)` does the same for video files. `NAMES` are names to send them under. Nothing of fer_keras is
imported here.
"""

import functools
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, features


class Hostile(NamedTuple):
    """A file that was written.

    Attributes:
        kind: a key of `KINDS`, with what was varied.
        expected: "picture", "error", or "" where either is right.
        pixels: uint8 (height, width, 3), roughly what a picture must look like, where that is known.
    """

    path: Path
    kind: str
    expected: str
    pixels: np.ndarray | None


class Made(NamedTuple):
    """A file to be written; `size` makes it longer by a hole that takes no place on the disk."""

    content: bytes
    suffix: str
    detail: str = ""
    expected: str = ""
    pixels: np.ndarray | None = None
    size: int = 0


# Each is one part of a path; `fspath` of the last is not UTF-8.
NAMES = (
    "..%2f..%2f..%2fetc%2fpasswd.png",
    "..\\..\\windows\\system32\\x.png",
    "-rf.png",
    "~root.png",
    " .png",
    "a\nb.png",
    "\x1b[31mred\x1b[2J.png",
    "$(touch owned).png",
    "`touch owned`.png",
    "%s%n%d.png",
    "=1+2.png",
    "<img src=x onerror=alert(1)>.png",
    "CON.png",
    "x.png.exe.png",
    "\u202egnp.exe.png",
    "ユニコード🙂.png",
    "x" * 250 + ".png",
    ".png",
    b"\xff\xfe.png".decode("utf-8", "surrogateescape"),
)

# --- Sound pictures --------------------------------------------------------------------------------------------------

ENCODINGS: dict[str, tuple[str, str, str, dict]] = {
    "baseline": (".jpg", "JPEG", "RGB", {"quality": 92, "subsampling": 0}),
    "progressive": (".jpg", "JPEG", "RGB", {"quality": 92, "progressive": True}),
    "png": (".png", "PNG", "RGB", {}),
    "png-alpha": (".png", "PNG", "RGBA", {}),
    "png-palette": (".png", "PNG", "P", {}),
    "gif": (".gif", "GIF", "P", {}),
    "bmp": (".bmp", "BMP", "RGB", {}),
    "ppm": (".ppm", "PPM", "RGB", {}),
    "tiff": (".tif", "TIFF", "RGB", {}),
    "tiff-lzw": (".tif", "TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff-deflate": (".tif", "TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff-jpeg": (".tif", "TIFF", "RGB", {"compression": "jpeg"}),
    "webp": (".webp", "WEBP", "RGB", {"quality": 90}),
    "webp-lossless": (".webp", "WEBP", "RGB", {"lossless": True}),
}
if features.check("avif"):
    ENCODINGS["avif"] = (".avif", "AVIF", "RGB", {"speed": 10})


def picture(rng) -> np.ndarray:
    """Four quarters of different colours, uint8 (height, width, 3), wider than high; any turn can be told."""
    height, width = (16 * int(side) for side in (rng.integers(1, 5), rng.integers(5, 9)))
    pixels = np.empty((height, width, 3), "uint8")
    colors = rng.permutation([[220, 30, 30], [30, 200, 30], [30, 30, 220], [230, 230, 230]])
    for number, color in enumerate(colors):
        row, column = divmod(number, 2)
        pixels[row * height // 2 :][: height // 2, column * width // 2 :][:, : width // 2] = color
    return pixels


def encode(image: Image.Image, form: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def sound(rng) -> tuple[str, str, bytes, np.ndarray]:
    """A good file of any kind: name of the encoding, suffix, content, pixels."""
    name = str(rng.choice(list(ENCODINGS)))
    suffix, form, mode, options = ENCODINGS[name]
    pixels = picture(rng)
    image = Image.fromarray(pixels)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    return name, suffix, encode(image, form, **options), pixels


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *chunks, depth=8, color=0) -> bytes:
    """A PNG that says it has this size, with these chunks between its first and its last."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


@functools.lru_cache(maxsize=4)
def zeros(n: int) -> bytes:
    """So many zeros, compressed a thousandfold."""
    return zlib.compress(bytes(n), 6)


# --- Broken ones -----------------------------------------------------------------------------------------------------


def whole(rng):
    name, suffix, content, pixels = sound(rng)
    return Made(content, suffix, name, "picture", pixels)


def truncated(rng):
    name, suffix, content, _ = sound(rng)
    return Made(content[: rng.integers(1, len(content))], suffix, name)


def flipped(rng):
    name, suffix, content, _ = sound(rng)
    changed = np.frombuffer(content, "uint8").copy()
    at = rng.integers(0, len(changed), rng.integers(1, 30))
    changed[at] = rng.integers(0, 256, len(at))
    return Made(changed.tobytes(), suffix, name)


def flipped_head(rng):
    """Where sizes, counts and offsets stand."""
    name, suffix, content, _ = sound(rng)
    changed = np.frombuffer(content, "uint8").copy()
    at = rng.integers(2, min(64, len(changed)), rng.integers(1, 6))
    changed[at] = rng.choice([0, 1, 127, 128, 255], len(at))
    return Made(changed.tobytes(), suffix, name)


def spliced(rng):
    name, suffix, first, _ = sound(rng)
    other, _, second, _ = sound(rng)
    cut = rng.integers(1, len(first))
    return Made(first[:cut] + second[rng.integers(0, len(second)) :], suffix, f"{name} and {other}")


def noise(rng):
    name, suffix, content, _ = sound(rng)
    return Made(content[: rng.integers(4, 40)] + rng.bytes(int(rng.integers(0, 20_000))), suffix, name)


def huge(rng):
    """A small file that says it has thousands of millions of pixels."""
    side = 60_000
    kinds = {
        "png": lambda: (".png", png(side, side, chunk(b"IDAT", zeros(60_000)), depth=1)),
        "png of 2**31": lambda: (".png", png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", zeros(60_000)))),
        "png, one row": lambda: (".png", png(40_000, 1, chunk(b"IDAT", zeros(40_001)))),
        "gif": lambda: (".gif", _patched("gif", 6, struct.pack("<HH", side, side))),
        "bmp": lambda: (".bmp", _patched("bmp", 18, struct.pack("<ii", side, -side))),
        "jpeg": lambda: (".jpg", _patched("baseline", None, struct.pack(">HH", side, side))),
        "ppm": lambda: (".ppm", b"P6 60000 60000 255\n" + bytes(1000)),
        "tiff": lambda: (".tif", _tiff(side, side)),
        "webp": lambda: (".webp", _webp(16_384, 16_384)),
    }
    name = str(rng.choice(list(kinds)))
    suffix, content = kinds[name]()
    return Made(content, suffix, name, "error")


def _patched(encoding, at, put):
    """A small picture with other bytes at a place; of a JPEG where its size stands."""
    _, form, mode, options = ENCODINGS[encoding]
    content = encode(Image.new(mode, (16, 16)), form, **options)
    at = content.index(b"\xff\xc0") + 5 if at is None else at
    return content[:at] + put + content[at + len(put) :]


def _tiff(width, height, next_ifd=0, count=1):
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, height)]
    entries += [(279, 4, 100)]
    body = b"".join(struct.pack("<HHII", tag, kind, count, value) for tag, kind, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + struct.pack("<I", next_ifd) + bytes(100)


def _webp(width, height):
    flags = struct.pack("<I", 0x10) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inside = encode(Image.new("RGB", (16, 16)), "WEBP")[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + flags + inside
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bomb(rng):
    """A small file that unpacks to hundreds of megabytes, in its pixels or beside them."""
    good = chunk(b"IDAT", zlib.compress(bytes(17 * 16)))
    much = 100_000_000
    kinds = {
        "IDAT": lambda: png(16, 16, chunk(b"IDAT", zeros(much))),
        "zTXt": lambda: png(16, 16, chunk(b"zTXt", b"a\0\0" + zeros(much)), good),
        "iTXt": lambda: png(16, 16, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(much)), good),
        "iCCP": lambda: png(16, 16, chunk(b"iCCP", b"a\0\0" + zeros(much)), good),
        "100 zTXt": lambda: png(16, 16, *[chunk(b"zTXt", b"a\0\0" + zeros(1_000_000))] * 100, good),
        "20,000 chunks": lambda: png(16, 16, *[chunk(b"tEXt", b"a\0b")] * 20_000, good),
        "tiff": lambda: encode(Image.new("L", (9000, 9000)), "TIFF", compression="tiff_adobe_deflate"),
        "gzip": lambda: gzip.compress(bytes(10_000_000)),
    }
    name = str(rng.choice(list(kinds), p=[0.15, 0.15, 0.15, 0.15, 0.14, 0.15, 0.01, 0.1]))
    content = kinds[name]()
    return Made(content, ".png", name, "error" if name == "gzip" else "")


def large(rng):
    """A picture as large as is read at most, in 80 kB."""
    return Made(png(9400, 9400, chunk(b"IDAT", zeros(9401 * 9400))), ".png", "88 million pixels", "picture")


def many_scans(rng):
    """A progressive JPEG whose last scan comes again and again: some bytes each, and work for all its pixels."""
    content = encode(Image.new("RGB", (2000, 2000), "red"), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return Made(content[:-2] + last * int(rng.choice([2_000, 100_000])) + content[-2:], ".jpg", "", "error")


def many_segments(rng):
    """A JPEG with a million pieces of EXIF data, which some readers join one by one."""
    content, piece = encode(Image.new("RGB", (16, 16)), "JPEG"), b"Exif\0\0" + bytes(20)
    pieces = (b"\xff\xe1" + struct.pack(">H", 2 + len(piece)) + piece) * int(rng.choice([2_000, 1_000_000]))
    return Made(content[:2] + pieces + content[2:], ".jpg", "", "error")


def animated(rng):
    suffix, form = ((".gif", "GIF"), (".webp", "WEBP"), (".png", "PNG"))[rng.integers(3)]
    pixels = picture(rng)
    first = Image.fromarray(pixels)
    others = [Image.fromarray(np.roll(pixels, 8 * k, axis=1)) for k in range(1, int(rng.integers(3, 30)))]
    options = {"lossless": True} if form == "WEBP" else {}
    content = encode(first, form, save_all=True, append_images=others, duration=20, **options)
    return Made(content, suffix, form, "picture", pixels)


def turned(rng):
    """Turned, with EXIF data that say how."""
    pixels, orientation = picture(rng), int(rng.integers(1, 9))
    back = (None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE")
    image, exif = Image.fromarray(pixels), Image.Exif()
    if name := (*back, "ROTATE_270")[orientation - 1]:
        image = image.transpose(Image.Transpose[name])
    exif[0x0112] = orientation
    suffix, form = ((".jpg", "JPEG"), (".png", "PNG"), (".webp", "WEBP"), (".tif", "TIFF"))[rng.integers(4)]
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    return Made(encode(image, form, exif=exif, **options), suffix, f"{orientation}", "picture", pixels)


def bad_exif(rng):
    """Good pixels with damaged EXIF data."""
    pixels = picture(rng)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x9003] = 6, "a camera", "2020:01:01 00:00:00"
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    changed = np.frombuffer(exif.tobytes(), "uint8").copy()
    at = rng.integers(6, len(changed), rng.integers(1, 20))
    changed[at] = rng.choice([0, 1, 8, 127, 255], len(at))
    content = encode(Image.fromarray(pixels), "JPEG", quality=95, exif=changed.tobytes())
    return Made(content, ".jpg", "", "picture")


def rare_mode(rng):
    pixels = picture(rng)
    image, grey = Image.fromarray(pixels), np.array(Image.fromarray(pixels).convert("L"))
    as_grey = np.repeat(grey[..., None], 3, axis=2)
    deep = Image.fromarray(grey.astype("uint16") * 257)
    clear = image.convert("P")
    inverted = Image.fromarray(255 - np.asarray(image.convert("CMYK")), "CMYK")
    kinds = {
        "CMYK JPEG": lambda: (".jpg", encode(image.convert("CMYK"), "JPEG", quality=95, subsampling=0), pixels),
        "CMYK TIFF": lambda: (".tif", encode(image.convert("CMYK"), "TIFF"), pixels),
        "inverted CMYK": lambda: (".jpg", encode(inverted, "JPEG"), None),
        "16-bit PNG": lambda: (".png", encode(deep, "PNG"), as_grey),
        "16-bit TIFF": lambda: (".tif", encode(deep, "TIFF"), as_grey),
        "16-bit PGM": lambda: (".pgm", encode(deep, "PPM"), as_grey),
        "float TIFF": lambda: (".tif", encode(image.convert("F"), "TIFF"), None),
        "float TIFF with NaN": lambda: (".tif", encode(Image.fromarray(np.full((9, 9), np.nan, "f4")), "TIFF"), None),
        "1-bit": lambda: (".png", encode(image.convert("1"), "PNG"), None),
        "grey and alpha": lambda: (".png", encode(image.convert("LA"), "PNG"), as_grey),
        "clear palette": lambda: (".png", encode(clear, "PNG", transparency=b"\x80\x10"), None),
        "LAB": lambda: (".tif", encode(image.convert("LAB"), "TIFF"), None),
        "YCbCr": lambda: (".tif", encode(image.convert("YCbCr"), "TIFF"), None),
        "one pixel": lambda: (".png", encode(Image.new("RGB", (1, 1), "red"), "PNG"), None),
        "one row": lambda: (".png", encode(Image.new("RGB", (20_000, 1), "red"), "PNG"), None),
    }
    name = str(rng.choice(list(kinds)))
    suffix, content, seen = kinds[name]()
    # Pillow itself does not read all of the YCbCr files that it writes.
    return Made(content, suffix, name, "" if name == "YCbCr" else "picture", seen)


def impostor(rng):
    """Something else under a picture's name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../x.png", "x")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50000 50000\n%%EndComments\n(x) (w) file {} loop\n%%EOF\n"
    kinds = {
        "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "html": b"<!DOCTYPE html><html><script>alert(1)</script><img src=x></html>",
        "text": b"no picture",
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
        "zip": packed.getvalue(),
        "eps": eps,
        "xbm": b"#define x_width 60000\n#define x_height 60000\nstatic char x_bits[] = {0x00};",
        "script": b"#!/bin/sh\ntouch owned\n",
        "program": b"\x7fELF\x02\x01\x01" + bytes(200),
        "pickle": b"cos\nsystem\n(S'touch owned'\ntR.",
        "json": json.dumps({"path": "../../etc/passwd"}).encode(),
        "video": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100),
        "list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "zeros": bytes(5000),
        "icon of 60,000": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\x28\0\0\0\x16\0\0\0"
        + struct.pack("<Iii", 40, 60_000, 60_000),
    }
    name = str(rng.choice(list(kinds)))
    return Made(kinds[name], str(rng.choice([".jpg", ".png", ".gif", ".webp"])), name, "error")


def odd_tiff(rng):
    """Directories that go in circles, or say they hold thousands of millions of values."""
    kinds = {
        "circle": lambda: _tiff(16, 6, next_ifd=8),
        "far away": lambda: _tiff(16, 6, next_ifd=2**32 - 2),
        "many values": lambda: _tiff(16, 6, count=2**32 - 1),
        "no size": lambda: _tiff(0, 0),
        "too short": lambda: _tiff(200, 200),
    }
    name = str(rng.choice(list(kinds)))
    return Made(kinds[name](), ".tif", name)


def empty(rng):
    content = (b"", b"\0", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF", b"II*\0")[rng.integers(8)]
    return Made(content, str(rng.choice([".jpg", ".png", ".bmp", ".webp"])), f"{len(content)} bytes", "error")


def hole(rng):
    """Hundreds of megabytes that take no place on the disk."""
    name, suffix, content, _ = sound(rng)
    cut, over = rng.integers(4, len(content)), bool(rng.integers(2))
    size = 300_000_000 if over else 200_000_000
    return Made(content[:cut], suffix, f"{name}, {size // 1_000_000} MB", "error" if over else "", size=size)


# What is made, how often in 1,000.
KINDS: dict[str, tuple[Callable[[np.random.Generator], Made], int]] = {
    "whole": (whole, 50),
    "truncated": (truncated, 190),
    "flipped": (flipped, 190),
    "flipped head": (flipped_head, 110),
    "spliced": (spliced, 50),
    "noise": (noise, 50),
    "huge": (huge, 60),
    "bomb": (bomb, 50),
    "large": (large, 1),
    "many scans": (many_scans, 2),
    "many segments": (many_segments, 2),
    "animated": (animated, 30),
    "turned": (turned, 50),
    "bad EXIF": (bad_exif, 50),
    "rare mode": (rare_mode, 50),
    "impostor": (impostor, 34),
    "odd TIFF": (odd_tiff, 10),
    "empty": (empty, 16),
    "hole": (hole, 5),
}


def files(folder: str | Path, n: int = 1000, seed: int = 0) -> list[Hostile]:
    """Write hostile files; 1,000 have each kind as often as `KINDS` says, fewer at least one of each.

    Returns:
        What was written, in random order.
    """
    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [kind for kind, (_, share) in KINDS.items() for _ in range(max(1, round(share * n / 1000)))]
    written = []
    for number, kind in enumerate(rng.permutation(kinds)):
        made = KINDS[kind][0](rng)
        path = folder / f"{number:04d}{made.suffix}"
        with open(path, "wb") as file:
            file.write(made.content)
            if made.size:
                file.truncate(made.size)
        written.append(Hostile(path, f"{kind} {made.detail}".strip(), made.expected, made.pixels))
    return written


def named(folder: str | Path, seed: int = 0) -> list[Hostile]:
    """Sound pictures under bad names, those that the file system takes."""
    folder, rng, written = Path(folder), np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        pixels = picture(rng)
        try:
            (folder / name).write_bytes(encode(Image.fromarray(pixels), "PNG"))
        except OSError:
            continue
        written.append(Hostile(folder / name, "name", "picture", pixels))
    return written


# --- Videos ----------------------------------------------------------------------------------------------------------


def videos(folder: str | Path, seed: int = 0) -> list[Hostile]:
    """Write hostile video files. "picture" means that frames can be read from it."""
    import cv2

    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)

    def film(name, code, n=20, size=(64, 48)):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter_fourcc(*code), 5, size)
        for number in range(n):
            writer.write(np.full((size[1], size[0], 3), number * 12, "uint8"))
        writer.release()
        return (folder / name).read_bytes()

    huge = _patched("baseline", None, struct.pack(">HH", 20_000, 20_000))
    avi, mp4 = film("whole.avi", "MJPG"), film("whole.mp4", "mp4v")
    made = {
        "whole.avi": (avi, "picture"),
        "whole.mp4": (mp4, "picture"),
        "none.avi": (film("x.avi", "MJPG", 0), "error"),
    }
    (folder / "x.avi").unlink()
    for number, (suffix, content) in enumerate([(".avi", avi), (".mp4", mp4)] * 6):
        made[f"cut{number}{suffix}"] = (content[: rng.integers(1, len(content))], "")
        changed = np.frombuffer(content, "uint8").copy()
        changed[rng.integers(0, len(changed), 20)] = rng.integers(0, 256, 20)
        made[f"flipped{number}{suffix}"] = (changed.tobytes(), "")
    claimed = avi.replace(struct.pack("<II", 64, 48), struct.pack("<II", 20_000, 20_000))
    made |= {
        "claimed.avi": (claimed, ""),
        "claimed-raw.avi": (claimed.replace(b"MJPG", b"I420"), "error"),
        "huge.mjpeg": (huge * 3, "error"),
        "grows.mjpeg": (encode(Image.new("RGB", (64, 64)), "JPEG") * 5 + huge * 3, ""),
        "empty.mp4": (b"", "error"),
        "zeros.mp4": (bytes(5000), "error"),
        "page.mp4": (b"<!DOCTYPE html><html></html>", "error"),
        "picture.mp4": (encode(Image.new("RGB", (64, 48)), "PNG"), "error"),
        # Lists of other files, which FFmpeg would open.
        "list.mp4": (b"ffconcat version 1.0\nfile whole.avi\n", "error"),
        "stream.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nwhole.mp4\n#EXT-X-ENDLIST\n", "error"),
        "session.mp4": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n", "error"),
        # A number in the name, and another picture with the next one beside it.
        "shot_01.mp4": (encode(Image.new("RGB", (64, 48)), "JPEG"), ""),
        "shot_02.mp4": (encode(Image.new("RGB", (64, 48)), "JPEG"), ""),
        "of_%02d.mp4": (b"", "error"),
    }
    for name, (content, _) in made.items():
        (folder / name).write_bytes(content)
    return [Hostile(folder / name, name, expected, None) for name, (_, expected) in made.items()]
