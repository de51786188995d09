"""Faces in pictures: found, cropped as the training data has them, and pictures read so that a bad one does no harm.

OpenCV is imported where it is used: `import fer_keras.faces` needs NumPy and Pillow only.

The crop is a square around the middle of the detector's box, its side the geometric mean of the box's sides and a
margin on each side. Where it leaves the picture, the picture's edge is repeated. The margins are those at which
FER2013's own faces, pasted into larger pictures, are cropped as they were (benchmarks/face_margin.py): YuNet's box is
taller than wide, and FER2013's square is 1.10 times as long as the mean of its sides; a Haar box is that square.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fer_keras.convert import as_face, as_mode

YUNET = "face_detection_yunet_2026may.onnx"
YUNET_URL = f"https://huggingface.co/opencv/face_detection_yunet/resolve/main/{YUNET}"
YUNET_SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
YUNET_BYTES = 229_738

# Faces are looked for in a picture reduced to this side: YuNet knows faces of about 10 to 300 pixels, and its time
# grows with the picture (10 ms at 640×480, 65 ms at 1280×1280, a second at 4096×4096 on two busy cores; and there it no
# longer found a face of 800 pixels).
LONGEST_SIDE = 1280
LEAST_SCORE = 0.6  # at 0.6, 98 % of 400 pasted FER2013 faces are found
MOST_FACES = 500  # in one picture, surest first

# A larger file or picture is refused before it is decoded. A picture must also respect Pillow's MAX_IMAGE_PIXELS.
MOST_BYTES = 256 << 20
MOST_PIXELS = 89_000_000
MOST_SIDE = 32_000  # OpenCV moves pixels with 16-bit coordinates
# The kinds that are read, by Pillow's names. It knows more: some start other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF")
# The same of videos, by FFmpeg's names.
CONTAINERS = ("mov", "avi", "matroska", "mpeg", "mpegvideo", "mpegts", "asf", "mjpeg", "m4v")
# Each scan of a JPEG is work for all pixels, and Pillow joins pieces of EXIF data one by one: some megabytes of either
# would take it hours. Cameras write up to ten scans, and dozens of pieces. libtiff's own limit of scans is 100, too.
MOST_SCANS, MOST_SEGMENTS = 100, 1000

# What a detector gives: the box in pixels, how sure it is, and where it knows them the eyes, else NaN.
COLUMNS = ("left", "top", "width", "height", "score", "right_eye_x", "right_eye_y", "left_eye_x", "left_eye_y")
# Share of the box's side to add on each side of it.
MARGINS = {"yunet": 0.05, "haar": 0.0, "whole": 0.0}
MARGIN = 0.05  # for a detector of one's own


class PictureError(ValueError):
    """A picture that cannot be read, in one sentence."""


@dataclass(frozen=True)
class Picture:
    """A picture to look for faces in.

    Attributes:
        image: uint8 (height, width, 3), RGB, upright.
        notes: sentences on what was left out of it.
    """

    image: np.ndarray
    notes: tuple[str, ...] = ()


def load_cv2():
    """OpenCV, quiet.

    Raises:
        ValueError: if it is not installed.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a broken video gets our sentence, not FFmpeg's twenty
    # FFmpeg also knows lists of other files and addresses, whatever the name of the file, and would open those.
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", f"format_whitelist;{','.join(CONTAINERS)}")
    try:
        import cv2
    except ImportError:
        raise ValueError("Finding faces needs OpenCV: pip install -e '.[predict]' in the project's folder.") from None
    return cv2


# --- Reading --------------------------------------------------------------------------------------------------------


def read_picture(path: str | Path | bytes) -> Picture:
    """Read an image file, or the content of one, of one of the kinds in `FORMATS`, turned upright as its EXIF data say.

    16-bit, palette, CMYK and transparent images become RGB; of an animation the first frame is taken.

    Raises:
        PictureError: if there is no such file, or it is empty, too large, truncated or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        content = path if isinstance(path, bytes) else _content(Path(path))
        if not content:
            raise PictureError("the file is empty")
        if content[:2] == b"\xff\xd8":
            _check_jpeg(content)
        # Pillow before 11.3 has no AVIF, and asking for it is an error there.
        formats = FORMATS if importlib.util.find_spec("PIL.AvifImagePlugin") else FORMATS[:-1]
        with Image.open(io.BytesIO(content), formats=formats) as image:
            _check_size(image.size)  # before anything is decoded
            # Phones keep a second view beside a photograph (MPO): that is no animation.
            animated = image.format != "MPO" and getattr(image, "is_animated", False)
            pixels = _upright(image)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError("there is no such file") from None
    except PermissionError:
        raise PictureError("it may not be read") from None
    except UnidentifiedImageError:
        raise PictureError("it is no image that can be read") from None
    except Image.DecompressionBombError:
        raise PictureError(f"it has more than twice Pillow's limit of {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except MemoryError:
        raise PictureError("there is not enough memory for it") from None
    except Exception as error:  # Pillow raises many kinds on a broken file
        reason = " ".join(str(error).split()).rstrip(".")
        raise PictureError(f"it is damaged: {reason or type(error).__name__}") from None
    return Picture(pixels, ("of its several pictures the first was taken",) if animated else ())


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise PictureError("it is no file")
        if size > MOST_BYTES:
            raise PictureError(f"the file has {size / 1e6:,.0f} MB, and {MOST_BYTES / 1e6:,.0f} are read at most")
        return path.read_bytes()
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:  # Pillow's, on a damaged picture, are OSErrors, too
        raise PictureError(f"it cannot be read ({error.strerror or error})") from None


def _check_size(size: tuple[int, int]) -> None:
    from PIL import Image

    width, height = size
    most = min(MOST_PIXELS, Image.MAX_IMAGE_PIXELS or MOST_PIXELS)
    if width * height > most or max(size) > MOST_SIDE:
        raise PictureError(
            f"it has {width:,}×{height:,} pixels, and at most {most:,} in all and {MOST_SIDE:,} on a side are read"
        )


def _check_jpeg(content: bytes) -> None:
    """Count the scans and other segments of a JPEG, up to its end; see `MOST_SCANS`."""
    # What has a length; FF00 and FFD0 to FFD7 stand within a scan, FF01 and FFD8 stand alone.
    marker = re.compile(rb"\xff+([\x02-\xcf\xd9-\xfe])")
    at, scans, segments = 2, 0, 0
    while (found := marker.search(content, at)) and not (scans and found[1] == b"\xd9"):
        scans, segments = scans + (found[1] == b"\xda"), segments + 1
        if scans > MOST_SCANS or segments > MOST_SEGMENTS:
            raise PictureError(f"it is a JPEG of more than {MOST_SCANS} scans or {MOST_SEGMENTS:,} segments")
        at = found.end()
        at += found[1] != b"\xd9" and int.from_bytes(content[at : at + 2], "big")


def _upright(image) -> np.ndarray:
    """A Pillow image of any mode, turned as its EXIF data say, as uint8 (height, width, 3)."""
    from PIL import ImageOps

    image.load()
    try:
        if image.getexif().get(0x0112, 1) != 1:  # the orientation; else it would only be copied
            image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:
        pass  # damaged EXIF data: the pixels are good, and stay as they are
    if image.mode != "RGB":
        image = image.convert("RGB") if image.mode == "L" else as_mode(image, "RGB")
    return np.asarray(image)


def as_rgb(image) -> np.ndarray:
    """Bring a picture to uint8 (height, width, 3), RGB.

    Args:
        image: the path of a file, a Pillow image, or uint8 (height, width), (height, width, 1), RGB or RGBA.

    Raises:
        PictureError: if it is none of these, or a file that cannot be read.
    """
    if isinstance(image, (str, Path)):
        try:
            return read_picture(image).image
        except PictureError as error:
            raise PictureError(f"{image} cannot be read: {error}.") from None
    if hasattr(image, "convert"):
        _check_size(image.size)
        try:
            return _upright(image)
        except Exception as error:  # Pillow decodes only now, and raises many kinds on a broken picture
            reason = " ".join(str(error).split()).rstrip(".")
            raise PictureError(f"The picture is damaged: {reason or type(error).__name__}.") from None
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise PictureError(
            "A picture must be a path, a Pillow image, or uint8 of shape (height, width), (height, width, 3) in RGB or "
            f"(height, width, 4). Received: {pixels.dtype} {pixels.shape}"
        )
    _check_size(pixels.shape[1::-1])
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
    return np.ascontiguousarray(pixels)


# --- Finding --------------------------------------------------------------------------------------------------------


def detector(
    name: str = "auto", yunet: str | Path | None = None, say: Callable[[str], None] = warnings.warn
) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """A function that finds the faces of a picture.

    Args:
        name: "yunet" (Wu et al. 2023, "YuNet: a tiny millisecond-level face detector"); "haar", the cascade that
            OpenCV 4 brings, which needs no file but misses more; "whole", the picture is one face; "auto", YuNet, or
            where its file cannot be had the Haar cascade.
        yunet: the path of YuNet's file, see `yunet_file`.
        say: called with a sentence where "auto" falls back.

    Returns:
        The name of the detector, never "auto", and a function from uint8 (height, width, 3) RGB to float32 (n, 9), see
        `COLUMNS`, which may be called from several threads.

    Raises:
        ValueError: on an unknown name, or if what it needs is not there.
    """
    if name == "auto":
        try:
            return "yunet", _yunet(yunet_file(yunet))
        except ValueError as error:
            if yunet or not hasattr(load_cv2(), "CascadeClassifier"):
                raise
            say(f"{error} Until then the Haar cascade finds faces, and misses more of them.")
            return "haar", _haar()
    if name not in DETECTORS:
        raise ValueError(f"`detector` must be one of auto, {', '.join(DETECTORS)}. Received: {name!r}")
    return name, DETECTORS[name](yunet)


def yunet_file(path: str | Path | None = None) -> Path:
    """The file of YuNet: `path`, or the one that FER_KERAS_YUNET names, or the downloaded one; see `YUNET_URL`.

    It is downloaded once, into the user's cache folder, and its SHA-256 must be `YUNET_SHA256`. A given file may
    be another version of YuNet.

    Raises:
        ValueError: if there is no such file, or it cannot be downloaded.
    """
    given = path or os.environ.get("FER_KERAS_YUNET")
    if given:
        if not (file := Path(os.path.expanduser(given))).is_file():
            raise ValueError(f"There is no file {str(given)!r} of the face detector YuNet.")
        return file
    # As `source.cache_folder`, which would load pandas.
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fer_keras", YUNET)
    with contextlib.suppress(OSError):
        if hashlib.sha256(kept.read_bytes()).hexdigest() == YUNET_SHA256:
            return kept
    by_hand = f"Download {YUNET_URL} by hand and set FER_KERAS_YUNET to its path, or use the detector 'haar'."
    content = _download(YUNET_URL, by_hand)
    found = hashlib.sha256(content).hexdigest()
    if found != YUNET_SHA256:
        raise ValueError(
            f"The face detector from {YUNET_URL} has the SHA-256 {found[:12]}…, expected {YUNET_SHA256[:12]}…, and was "
            f"not kept. {by_hand}"
        )
    from fer_keras.storage import replacing

    with replacing(kept) as temporary:
        temporary.write_bytes(content)
    return kept


def _download(url: str, by_hand: str) -> bytes:
    import http.client
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read(YUNET_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"The face detector YuNet could not be downloaded: {reason}. {by_hand}") from None


def _reduced(cv2, image: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture at no more than `LONGEST_SIDE`, and how much smaller it is."""
    scale = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
    if scale == 1:
        return image, scale
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def _yunet(file: Path) -> Callable:
    cv2 = load_cv2()
    try:
        net = cv2.FaceDetectorYN.create(str(file), "", (320, 320), LEAST_SCORE, 0.3, MOST_FACES)
        net.detect(np.zeros((320, 320, 3), "uint8"))
    except cv2.error:
        raise ValueError(f"{file} is no face detector YuNet that OpenCV {cv2.__version__} can read.") from None
    lock = threading.Lock()  # the net keeps the size of the last picture

    def find(image):
        small, scale = _reduced(cv2, image)
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        with lock:
            net.setInputSize((small.shape[1], small.shape[0]))
            found = net.detect(small)[1]
        if found is None:
            return np.empty((0, len(COLUMNS)), "float32")
        found = np.concatenate([found[:, :4] / scale, found[:, 14:15], found[:, 4:8] / scale], axis=1)
        return found[np.isfinite(found).all(axis=1)]

    return find


def _haar(_=None) -> Callable:
    cv2 = load_cv2()
    if not hasattr(cv2, "CascadeClassifier"):
        raise ValueError(
            f"OpenCV {cv2.__version__} has no Haar cascade: install 'opencv-python-headless>=4.13,<5', or use YuNet."
        )
    cascade = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, "haarcascade_frontalface_default.xml"))
    if cascade.empty():
        raise ValueError("OpenCV's Haar cascade cannot be read: install opencv-python-headless anew.")
    lock = threading.Lock()

    def find(image):
        small, scale = _reduced(cv2, image)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        with lock:
            boxes, _, scores = cascade.detectMultiScale3(grey, 1.1, 5, minSize=(24, 24), outputRejectLevels=True)
        found = np.full((len(boxes), len(COLUMNS)), np.nan, "float32")
        if len(boxes):
            # The cascade's own score is a margin without an upper end; this only orders the faces.
            found[:, :4], found[:, 4] = np.asarray(boxes) / scale, 1 - np.exp(-np.maximum(np.ravel(scores), 0) / 5)
        return found

    return find


def _whole(_=None) -> Callable:
    def find(image):
        height, width = image.shape[:2]
        return np.array([[0, 0, width, height, 1, *[np.nan] * 4]], "float32")

    return find


DETECTORS = {"yunet": lambda path: _yunet(yunet_file(path)), "haar": _haar, "whole": _whole}


def find(image: np.ndarray, detect: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The faces of a picture, from left to right.

    Args:
        image: uint8 (height, width, 3), RGB.
        detect: from `detector`, or a function of one's own, whose result may end after the box or the score.

    Returns:
        float32 (n, 9), see `COLUMNS`. Boxes without size or with more than half outside the picture are left out.

    Raises:
        ValueError: if a function of one's own gives something else.
    """
    given = np.asarray(detect(image), "float32")
    if given.size == 0:
        return np.empty((0, len(COLUMNS)), "float32")
    if given.ndim != 2 or given.shape[1] not in (4, 5, 9):
        raise ValueError(
            f"A detector must return (n, 4), (n, 5) or (n, 9): {', '.join(COLUMNS)}. Received: {given.shape}"
        )
    found = np.full((len(given), len(COLUMNS)), np.nan, "float32")
    found[:, 4] = 1
    found[:, : given.shape[1]] = given
    start, size = found[:, :2], found[:, 2:4]
    end, limit = start + size, np.array(image.shape[1::-1])
    inside = np.clip(np.minimum(end, limit) - np.maximum(start, 0), 0, None).prod(axis=1)
    with np.errstate(invalid="ignore"):
        found = found[(size > 0).all(axis=1) & (inside >= 0.5 * size.prod(axis=1)) & np.isfinite(end).all(axis=1)]
    surest = np.argsort(-found[:, 4], kind="stable")[:MOST_FACES]
    found = found[surest]
    return found[np.argsort(found[:, 0], kind="stable")]


# --- Cropping -------------------------------------------------------------------------------------------------------


def crop(
    image: np.ndarray,
    found: np.ndarray,
    image_size: Sequence[int] = (48, 48),
    channels: int = 1,
    margin: float = MARGIN,
    align: bool = False,
) -> np.ndarray:
    """Cut all faces out of a picture: a square with a margin, grey by luminance, reduced without aliasing.

    Args:
        image: uint8 (height, width, 3), RGB.
        found: float (n, 9), from `find`.
        image_size: height and width of a face.
        channels: 1 for grey, 3 for RGB.
        margin: share of the box's side to add on each side, see `MARGINS`.
        align: turn each face so that its eyes are level, where the detector knows the eyes.

    Returns:
        uint8 (n, height, width, channels).
    """
    from PIL import Image

    faces = np.empty((len(found), *image_size, channels), "uint8")
    for face, row in zip(faces, found, strict=True):
        patch = _square(image, row, margin, align)
        color = "grey" if channels == 1 else "rgb"
        face[:] = as_face(Image.fromarray(patch), tuple(image_size), color).reshape(face.shape)
    return faces


def _square(image, row, margin, align) -> np.ndarray:
    """The pixels of the square around a box, at the picture's own scale."""
    left, top, width, height = row[:4].tolist()
    side = max(1, round((width * height) ** 0.5 * (1 + 2 * margin)))
    x, y = left + width / 2, top + height / 2
    angle = np.arctan2(row[8] - row[6], row[7] - row[5]) if align and np.isfinite(row[5:9]).all() else 0
    cv2 = load_cv2()
    if angle:
        cos, sin = np.cos(angle), np.sin(angle)
        # From the square's pixels back to the picture's: turned about the middle of both.
        middle, turn = (side - 1) / 2, np.array([[cos, -sin], [sin, cos]])
        shift = np.array([x - 0.5, y - 0.5]) - turn @ [middle, middle]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        matrix = np.column_stack([turn, shift])
        return cv2.warpAffine(image, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    x, y = round(x - side / 2), round(y - side / 2)
    rows = np.clip(np.arange(y, y + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(x, x + side), 0, image.shape[1] - 1)
    if rows[0] == y and rows[-1] == y + side - 1 and columns[0] == x and columns[-1] == x + side - 1:
        return image[y : y + side, x : x + side]
    return image[rows[:, None], columns]
