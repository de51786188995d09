"""Predictions for images, folders, videos and the camera: read, analysed in batches, tabled, drawn.

A file that cannot be read becomes a failure with a reason, and the others go on.
"""

import contextlib
import csv
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fer_keras import faces as faces_
from fer_keras import storage
from fer_keras.classifier import Face

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".ppm", ".pgm"}
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mjpeg", ".mjpg", ".ts", ".3gp"}
BATCH = 16  # pictures analysed together,
BATCH_PIXELS = 32_000_000  # unless they are large: bounds the memory
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#bbbbbb")  # Okabe and Ito


@dataclass(frozen=True)
class Source:
    """A file, or a camera, to be read.

    Attributes:
        path: of the file; of a camera, its number.
        kind: "image", "video" or "camera".
        name: how results call it, relative to the folder that was given; what cannot be shown or written is escaped.
    """

    path: str
    kind: str
    name: str


@dataclass
class Result:
    """What was seen in an image or in one frame, or why nothing could be.

    Attributes:
        frame: number of the frame, from 0; None of an image.
        time: of the frame in seconds.
        size: width and height in pixels.
        failure: why it could not be read, "" if it could.
        note: on what was left out.
        image: the picture itself, uint8 (height, width, 3) RGB.
    """

    source: Source
    frame: int | None = None
    time: float | None = None
    size: tuple[int, int] | None = None
    faces: list[Face] = field(default_factory=list)
    failure: str = ""
    note: str = ""
    image: np.ndarray | None = None


# --- What to read ---------------------------------------------------------------------------------------------------


def sources(paths: Sequence[str | Path]) -> tuple[list[Source], list[Result]]:
    """The files that paths name, in order, and failures for paths that name none.

    A folder is searched with all below it, hidden files and other kinds left out; a number that is no file is a camera.
    Of one folder the files go by their names in it, of several paths by what was given, too.
    """
    found, failures = [], []
    for given in map(str, paths):
        # Those of `os` raise nothing where there is no such user, the name is too long or a folder may not be entered:
        # what is wrong with a path is said when it is read, and the others go on.
        path = Path(os.path.expanduser(given))
        if os.path.isdir(path):
            inside = [
                file
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in IMAGES | VIDEOS
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and os.path.isfile(file)
            ]
            before = Path(given if len(paths) > 1 else "")
            found += [Source(str(file), _kind(file), _shown(before / file.relative_to(path))) for file in inside]
            if not inside:
                source = Source(given, "image", _shown(given))
                failures.append(Result(source, failure="the folder holds no images or videos"))
        elif given.isdecimal() and not os.path.exists(path):
            found.append(Source(given, "camera", f"camera {given}"))
        else:
            found.append(Source(str(path), _kind(path), _shown(given)))
    return found, failures


def _shown(name: str | Path) -> str:
    """A name without what would change the terminal or is not Unicode: a Latin-1 name must not cost the whole CSV."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda found: ascii(found[0])[1:-1], str(name))


def _kind(path: Path) -> str:
    return "video" if path.suffix.lower() in VIDEOS else "image"


# --- Reading and analysing ------------------------------------------------------------------------------------------


def analyze(
    found: Iterable[Source],
    classifier,
    every: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
    keep_images: bool = False,
) -> Iterator[Result]:
    """Analyse sources, batches across images and frames, and give results in order.

    Args:
        classifier: an `ExpressionClassifier`.
        every: of a video and a camera, each so-manieth frame.
        report: called with the number of pictures done and how many there are, as far as that is known.
        keep_images: leave the pictures in the results.
    """
    found = list(found)
    total, done = [len(found)], 0
    for batch in _batches(_pictures(found, every, total)):
        readable = [result for result in batch if not result.failure]
        for result, seen in zip(readable, classifier.analyze_all([r.image for r in readable]), strict=True):
            result.faces = seen
            if not keep_images:
                result.image = None
        done += len(batch)
        report(done, max(total[0], done))
        yield from batch


def _batches(pictures: Iterator[Result]) -> Iterator[list[Result]]:
    """Some pictures together; those of a camera one by one, so that each is answered at once."""
    batch, pixels = [], 0
    try:
        for result in pictures:
            batch.append(result)
            pixels += 0 if result.image is None else result.image.size // 3
            if len(batch) == BATCH or pixels > BATCH_PIXELS or result.source.kind == "camera":
                yield batch
                batch, pixels = [], 0
    finally:
        pictures.close()
    if batch:
        yield batch


def _pictures(found: Sequence[Source], every: int, total: list[int]) -> Iterator[Result]:
    for source in found:
        if source.kind != "image":
            yield from _frames(source, every, total)
            continue
        try:
            picture = faces_.read_picture(source.path)
        except faces_.PictureError as error:
            yield Result(source, failure=str(error))
            continue
        size = picture.image.shape[1::-1]
        yield Result(source, size=size, note="; ".join(picture.notes), image=picture.image)


def _frames(source: Source, every: int, total: list[int]) -> Iterator[Result]:
    """Every so-manieth frame of a video or a camera; the others are not decoded into pixels."""
    cv2 = faces_.load_cv2()
    if source.kind == "video" and (failure := _file_failure(source.path)):
        yield Result(source, failure=failure)
        return
    if source.kind == "camera":
        capture = cv2.VideoCapture(int(source.path))
    else:  # by FFmpeg, which every wheel of OpenCV has: what comes after it would take numbered pictures for a video
        has_ffmpeg = cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
        capture = cv2.VideoCapture(source.path, cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY)
    frame = -1
    try:
        if not capture.isOpened():
            camera = "there is no such camera, or another program uses it"
            yield Result(source, failure=camera if source.kind == "camera" else "it cannot be opened as a video")
            return
        width, height = (int(capture.get(name)) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > faces_.MOST_PIXELS or max(width, height) > faces_.MOST_SIDE:
            yield Result(source, failure=f"its frames have {width:,}×{height:,} pixels, which is too many")
            return
        promised = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = capture.get(cv2.CAP_PROP_FPS)
        if source.kind == "video":
            total[0] += max(0, -(-promised // every) - 1)
        while capture.grab():
            frame += 1
            if frame % every:
                continue
            time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if time <= 0 and rate > 0:  # some containers have no time stamps
                time = frame / rate
            good, pixels = capture.retrieve()
            if not good:
                break
            image = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
            yield Result(source, frame, round(time, 3), image.shape[1::-1], image=image)
    finally:
        capture.release()
    if frame < 0:
        yield Result(source, failure="no frame could be read from it")
    elif source.kind == "video" and frame + 1 < 0.9 * promised:
        yield Result(source, failure=f"it ends after {frame + 1:,} of {promised:,} frames: those were analysed")


def _file_failure(path: str) -> str:
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            return "it is no file"  # a pipe would be waited for
        with open(path, "rb") as file:
            return "" if file.read(1) else "the file is empty"
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return f"it may not be read ({error.strerror})"


# --- Results --------------------------------------------------------------------------------------------------------


def rows(result: Result, class_names: Sequence[str]) -> list[dict]:
    """A plain row for each face of a result; for a picture without a face one with an empty label."""
    first = {"file": result.source.name, "frame": result.frame, "time": result.time}
    columns = ("face", "left", "top", "width", "height", "score", "label")
    if result.failure:
        return []
    if not result.faces:
        return [first | dict.fromkeys(columns) | {"label": ""} | {f"p_{name}": None for name in class_names}]
    return [
        first
        | dict(zip(columns, (number, *face.box, round(face.score, 4), face.label), strict=True))
        | {f"p_{name}": round(share, 6) for name, share in face.probabilities.items()}
        for number, face in enumerate(result.faces, 1)
    ]


def as_json(result: Result) -> dict:
    """A result as plain values."""
    return {
        "file": result.source.name,
        **({} if result.frame is None else {"frame": result.frame, "time": result.time}),
        "size": result.size,
        "faces": [face.as_dict() for face in result.faces],
        **({"note": result.note} if result.note else {}),
    }


def csv_text(table: Sequence[dict], class_names: Sequence[str]) -> str:
    """Rows as CSV."""
    names = ["file", "frame", "time", "face", "left", "top", "width", "height", "score", "label"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, *(f"p_{name}" for name in class_names)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def line(result: Result) -> str:
    """A result as lines of the table on the terminal."""
    where = result.source.name if len(result.source.name) <= 40 else "…" + result.source.name[-39:]
    time = "" if result.time is None else f"{result.time:.2f} s"
    note = f"  ({result.note})" if result.note else ""
    if not result.faces:
        return f"{where:40} {time:>9}  no face{note}"
    lines = []
    for face in result.faces:
        first, second = sorted(face.probabilities.items(), key=lambda item: -item[1])[:2]
        shares = "   ".join(f"{name:9} {100 * share:3.0f} %" for name, share in (first, second))
        box = "{2}×{3} at {0}, {1}".format(*face.box)
        lines.append(f"{where:40} {time:>9}  {shares}   {box}")
    return "\n".join(lines) + note


def heading() -> str:
    """The first line of the table on the terminal."""
    return f"{'file':40} {'time':>9}  {'expression':15}   {'next':15}   face, in pixels"


# --- Writing --------------------------------------------------------------------------------------------------------


def annotate(image: np.ndarray, seen: Sequence[Face]) -> np.ndarray:
    """Draw the boxes and names of faces.

    Args:
        image: uint8 (height, width, 3), RGB; it is not changed.

    Returns:
        The same form.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    width = max(2, round(min(picture.size) / 250))
    font = ImageFont.load_default(max(12, round(min(picture.size) / 32)))
    for face in seen:
        left, top, across, down = face.box
        color = COLORS[list(face.probabilities).index(face.label) % len(COLORS)]
        draw.rectangle([left, top, left + max(1, across), top + max(1, down)], outline=color, width=width)
        text = f"{face.label} {100 * face.probabilities[face.label]:.0f} %"
        box = draw.textbbox((0, 0), text, font=font)
        high, long = box[3] + width * 2, box[2] + width * 2
        # Above the box, or where the picture ends there, in it; and never beyond the right edge.
        x, y = max(0, min(left, picture.width - long)), top - high if top >= high else max(0, top)
        draw.rectangle([x, y, x + long, y + high], fill=color)
        draw.text((x + width, y + width), text, fill="black", font=font)
    return np.asarray(picture)


class Annotations:
    """A folder of pictures with boxes and names drawn, one for each picture; the pictures read are never overwritten.

    Args:
        folder: made if it is not there.
        found: all sources.
    """

    def __init__(self, folder: str | Path, found: Sequence[Source]):
        self.folder = check_folder(folder)
        self._given = {os.path.realpath(source.path) for source in found if source.kind != "camera"}
        self._names: dict[str, str] = {}

    def write(self, result: Result) -> Path:
        """Write one picture as JPEG; of a frame its number is in the name."""
        from PIL import Image

        path = self.folder / self._stem(result.source)
        number = "" if result.frame is None else f"-{result.frame:06d}"
        path = path.with_name(f"{path.name}{number}.jpg")
        with storage.replacing(path) as temporary:
            Image.fromarray(annotate(result.image, result.faces)).save(temporary, "JPEG", quality=92)
        return path

    def _stem(self, source: Source) -> str:
        """The name without suffix, below the folder; another one where two files have the same, or it would hit one."""
        if source.path not in self._names:
            name = Path(source.name.replace(" ", "-") if source.kind == "camera" else source.name)
            stem = name.with_suffix("")
            if stem.is_absolute() or ".." in stem.parts:
                stem = Path(stem.name)
            taken, other, number = set(self._names.values()), str(stem), 1
            while other in taken or os.path.realpath(self.folder / f"{other}.jpg") in self._given:
                number += 1
                other = f"{stem}-{number}"
            self._names[source.path] = other
        return self._names[source.path]


def check_writable(path: str | Path, found: Sequence[Source] = ()) -> Path:
    """See that a file can be written, before hours of work, and that it is none of the files to be read.

    Raises:
        ValueError: if not.
    """
    if str(path) == "-":
        raise ValueError("'-' names no file. Give a name, or /dev/stdout.")
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        raise ValueError(f"{path} cannot be written: it is a folder.")
    if _is_special(path):
        return path
    if os.path.realpath(path) in {os.path.realpath(source.path) for source in found if source.kind != "camera"}:
        raise ValueError(f"{path} is one of the files to be read: give another name to write to.")
    _check_folder(Path(os.path.realpath(path)).parent, path)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file, or to a pipe or device such as /dev/stdout; what a link leads to is replaced, and not the link."""
    if _is_special(path):
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
    else:
        storage.write_text(Path(os.path.realpath(path)), text)


def _is_special(path: Path) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check_folder(folder: str | Path) -> Path:
    """See that files can be written to a folder, which is made if it is not there.

    Raises:
        ValueError: if not.
    """
    folder = Path(os.path.expanduser(folder))
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"{folder} cannot be written to: it is no folder.")
    _check_folder(folder, folder)
    return folder


def _check_folder(folder: Path, called: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{called} cannot be written: {error.strerror or error}.") from None


@contextlib.contextmanager
def progress_bar(show: bool) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A function for `report`, and one that prints a line of the table without breaking the bar."""
    from tqdm import tqdm

    with tqdm(unit=" pictures", ncols=100, disable=not show, leave=False) as bar:

        def report(done, total):
            bar.total = total
            bar.update(done - bar.n)

        yield report, lambda text: tqdm.write(text)
