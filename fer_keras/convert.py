"""Other data sets of faces, converted once to one memory-mapped form: AffectNet, ExpW and any folder of images.

A converted set is a folder with `images.npy`, `labels.npy`, `usage.npy`, `files.txt` (where each face came from) and
`dataset.json` (what was done, what was dropped and why), and its path can be given wherever FER2013's can. Class names
are mapped by name; numbers occur only where the source has nothing else. The usage has FER2013's words, so that the
official split works on every set. Images are read block by block by all cores, a conversion that was interrupted goes
on where it stopped, and `dataset.json` is written last: without it a folder is no data set. The source is only read.

References:
    Mollahosseini et al., "AffectNet: A Database for Facial Expression, Valence, and Arousal Computing in the Wild",
    IEEE Transactions on Affective Computing 10 (2019), arXiv 1708.03985.
    Zhang et al., "From Facial Expression Recognition to Interpersonal Relation Prediction", International Journal of
    Computer Vision 126 (2018), arXiv 1609.06426: ExpW.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fer_keras.data import CLASS_NAMES, USAGES, Faces, as_uint8_grey
from fer_keras.listing import KINDS, LABELS, NOT_EXPRESSIONS, Listing, list_faces, ours

COLORS = {"grey": 1, "rgb": 3}
MARGIN = 0.1  # of the box's side, on each side
FORMAT = 1
WORK = ".converting"
FILES = ("images.npy", "labels.npy", "usage.npy", "files.txt", "dataset.json")  # the last makes it a data set
BLOCK_BYTES = 32 << 20  # pixels between two notes of progress
BLOCK_ROWS = 4096
# More processes are of no use to a disk, and each takes about 30 MB.
MOST_WORKERS = 8
HEADER_BYTES = 128
FEW = 2_000  # so many faces are read sooner than other processes have started


def convert(
    kind: str,
    source: str | Path,
    target: str | Path,
    *,
    image_size: int | tuple[int, int] = (48, 48),
    color: str = "grey",
    contempt: bool = False,
    labels: str = "folder",
    margin: float | None = None,
    min_confidence: float | None = None,
    class_map: dict[str, str] | None = None,
    classes: Sequence[str] | None = None,
    max_bad: float = 0.05,
    workers: int | None = None,
    progress: bool | Callable[[int, int], None] = True,
) -> Faces:
    """Convert a data set of faces; goes on where an interrupted conversion stopped.

    Args:
        kind: a key of `KINDS`: "affectnet" (the Kaggle copies with `labels.csv` and the two official layouts), "expw"
            or "folder" (a folder for each class, or `train`, `test` and optionally `validation` with them).
        source: the data set's folder; only read.
        target: a folder to write, not inside the source.
        image_size: height and width of the converted faces, or one number for both.
        color: "grey" (by luminance, 0.299 R + 0.587 G + 0.114 B) or "rgb".
        contempt: keep AffectNet's eighth class, as class 7; otherwise its faces are dropped and counted.
        labels: for AffectNet's Kaggle copies, which disagree with themselves: "folder" takes the emotion of the folder,
            "column" that of the column `label`, which a network made. `relFCs` says how monochrome an image is, not
            how sure its label.
        margin: where faces are cropped from pictures, how much of the box's side is added on each side, default 0.1.
            The shorter side of the box is lengthened to the form of `image_size`, so no face is squeezed; what lies
            beyond the picture is black, as in FER2013. A picture without boxes is squeezed if it has another form.
        min_confidence: for ExpW, the least confidence of the face detector; less is dropped and counted.
        class_map: for "folder", folder names and the classes that they become; others are found by
            `fer_keras.data.ALIASES` or kept.
        classes: all classes, in the order of the labels; faces of other classes are dropped and counted. Default:
            FER2013's seven for AffectNet and ExpW; for "folder" those that occur, FER2013's first.
        max_bad: which share of faces may be unusable (missing or corrupt files, boxes without size or outside the
            picture, unknown labels) before the conversion stops.
        workers: processes that read images, default one a core, at most eight.
        progress: show a bar, or call this with the number of faces done and of all.

    Returns:
        The converted faces, as `load` gives them.

    Raises:
        FileNotFoundError: if there is no folder `source`.
        ValueError: on unknown options, a source in no known layout, too many unusable faces, or a target that holds
            something else.
        OSError: if the disk is full; what was done is kept, and the same call goes on.
    """
    options = _check(kind, image_size, color, contempt, labels, margin, min_confidence, class_map, classes)
    if not 0 <= max_bad <= 1 or (workers is not None and workers < 1):
        raise ValueError(f"`max_bad` must be 0–1, `workers` at least 1. Received: max_bad={max_bad}, workers={workers}")
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}. Give the folder of the data set.")
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"The target {target} is inside the source {source}, which is only read. Choose another place."
        )
    listing = list_faces(kind, source, options)
    class_names, codes = _label(listing, options)
    stamp, codes = _stamp(listing, options, class_names, codes)
    if _is_finished(target, stamp):
        return load(target)
    with _alone(target / WORK) as work, _full_disk(target):
        if _read_stamp(work) != stamp:  # otherwise everything is there, and only has to be moved
            with _reporting(progress) as report:
                bad = _read_all(work, listing, options, stamp, max_bad, workers, report)
            _finish(work, kind, listing, options, class_names, codes, bad, stamp)
        for name in FILES:
            if (work / name).exists():
                os.replace(work / name, target / name)
    shutil.rmtree(target / WORK)
    return load(target)


def is_converted(path: str | Path) -> bool:
    """Whether this folder is a converted set of faces."""
    path = Path(path).expanduser()
    return (path / FILES[-1]).is_file() and (path / FILES[0]).is_file()


def read_info(target: str | Path) -> dict:
    """What `dataset.json` of a converted set says: source, options, counts, what was dropped and why."""
    path = Path(target).expanduser() / FILES[-1]
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise ValueError(f"{path} has the format {info['format']}, expected {FORMAT}. Convert the data set again.")
        return info
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {path}: {target} is no converted set of faces.") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not what `fer-keras data convert` writes.") from None


def load(target: str | Path) -> Faces:
    """Load a converted set of faces; the images are a read-only memory map.

    Raises:
        FileNotFoundError: if there is no converted set.
        ValueError: if its files do not belong together.
    """
    target, info = Path(target).expanduser(), read_info(target)
    shape = (info["faces"], *info["image_size"], COLORS[info["options"]["color"]])
    try:
        images = np.load(target / "images.npy", mmap_mode="r", allow_pickle=False)
        codes = np.load(target / "labels.npy", allow_pickle=False)
        usage = np.load(target / "usage.npy", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{target} is damaged: {error}. Delete it and convert the data set again.") from None
    if images.shape != shape or images.dtype != np.uint8 or len(codes) != len(usage) or len(codes) != shape[0]:
        raise ValueError(
            f"{target} is damaged: images {images.shape}, labels {codes.shape}, usages {usage.shape}, expected "
            f"{shape}. Delete it and convert the data set again."
        )
    return Faces(
        images,
        codes,
        np.arange(len(codes)),
        usage,
        class_names=tuple(info["class_names"]),
        fingerprint=info["fingerprint"],
        notes=tuple(info["notes"]),
    )


# --- Options --------------------------------------------------------------------------------------------------------


def _check(kind, image_size, color, contempt, labels, margin, min_confidence, class_map, classes) -> dict:
    """The options that make a difference to the result, checked."""
    for name, value, known in (("kind", kind, KINDS), ("color", color, COLORS), ("labels", labels, LABELS)):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}. Received: {value!r}")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"`image_size` must be one positive number, or height and width. Received: {image_size!r}")
    if margin is not None and not 0 <= margin < 10:
        raise ValueError(f"`margin` must be a share of the box's side, from 0. Received: {margin!r}")
    belongs = {
        "contempt": (contempt, "affectnet"),
        "min_confidence": (min_confidence is not None, "expw"),
        "class_map": (class_map, "folder"),
    }
    for name, (given, owner) in belongs.items():
        if given and kind != owner:
            raise ValueError(f"`{name}` goes with the kind {owner!r}. Received: kind={kind!r}")
    if classes is not None and (isinstance(classes, str) or len(set(classes)) != len(classes) or len(classes) < 2):
        raise ValueError(f"`classes` must be a list of two or more different names. Received: {classes!r}")
    return {
        "image_size": list(size),
        "color": color,
        "contempt": bool(contempt),
        "labels": labels,
        "margin": margin,
        "min_confidence": min_confidence,
        "class_map": class_map,
        "classes": None if classes is None else list(classes),
    }


def _label(listing: Listing, options: dict) -> tuple[tuple[str, ...], np.ndarray]:
    """The class names, and a code for each row; rows that have none are taken out of the listing."""
    known = {*CLASS_NAMES, "contempt", *NOT_EXPRESSIONS}
    if listing.kept_names:  # a user's own classes: what they are called is right
        mapped = {str(name).lower(): new for name, new in (options["class_map"] or {}).items()}
        there = sorted(set(listing.names))
        if unknown := set(mapped) - {name.lower() for name in there}:
            raise ValueError(
                f"`class_map` names {', '.join(sorted(unknown))}, but the folders are {', '.join(there)[:300]}."
            )
        names = {name: mapped.get(name.lower(), ours(name)) for name in there}
        known |= {name for name in names.values() if name is not None}
        found = {name for name in names.values() if name is not None}
        default = (*(name for name in CLASS_NAMES if name in found), *sorted(found - set(CLASS_NAMES)))
    else:
        names = {name: ours(name) for name in set(listing.names)}
        default = (*CLASS_NAMES, "contempt") if options["contempt"] else CLASS_NAMES
    class_names = tuple(options["classes"] or default)
    code_of = {name: class_names.index(new) if new in class_names else -1 for name, new in names.items()}
    codes = np.array([code_of[name] for name in listing.names], "int64")
    for row in np.flatnonzero(codes < 0):
        new = names[listing.names[row]]
        if new is None or new in known:
            listing.dropped[f"class {new or listing.names[row]}"] += 1
        else:
            listing.bad.append((listing.files[row], f"unknown label: {listing.names[row][:40]!r}"))
    listing.take(codes >= 0)
    return class_names, codes[codes >= 0]


def _stamp(listing: Listing, options: dict, class_names: tuple[str, ...], codes: np.ndarray) -> tuple[str, np.ndarray]:
    """What tells two conversions apart: options, and name, size, time and label of every file; takes out missing ones.

    Returns:
        The stamp, and the codes of the rows that are there.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, listing.layout, options, class_names]).encode())
    digest.update(json.dumps([listing.bad, sorted(listing.dropped.items())]).encode())
    stats = {}
    for file in dict.fromkeys(listing.files):
        try:
            stat = os.stat(listing.root / file)
            stats[file] = f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        except OSError:
            digest.update(os.fsencode(file))
    kept = np.array([file in stats for file in listing.files], bool)
    listing.bad += [(file, "missing file") for file, there in zip(listing.files, kept, strict=True) if not there]
    listing.take(kept)
    codes = codes[kept]
    digest.update(os.fsencode("".join(stats.values())))
    digest.update(os.fsencode("\n".join([*listing.files, *listing.usage])))
    digest.update(codes.tobytes())
    if listing.boxes is not None:
        digest.update(listing.boxes.tobytes())
    return digest.hexdigest(), codes


# --- The target -----------------------------------------------------------------------------------------------------


def _is_finished(target: Path, stamp: str) -> bool:
    """Whether the target already holds what is wanted.

    Raises:
        ValueError: if it holds something else.
    """
    if is_converted(target):
        if read_info(target)["stamp"] != stamp:
            raise ValueError(
                f"{target} holds a conversion of another source or with other options. Choose another target, or "
                "delete this one."
            )
        shutil.rmtree(target / WORK, ignore_errors=True)
        return True
    if target.exists() and not target.is_dir():
        raise ValueError(f"The target {target} is a file. Give a folder that is empty or does not exist yet.")
    own = FILES if (target / WORK).exists() else ()  # a conversion was interrupted while its files were moved
    others = [path.name for path in target.iterdir() if path.name not in own] if target.exists() else []
    if others := sorted(name for name in others if not name.startswith(".")):
        raise ValueError(
            f"The target {target} holds other files: {', '.join(others[:5])}. Give a folder that is empty or does not "
            "exist yet."
        )
    return False


def _read_stamp(work: Path) -> str:
    """The stamp of the finished set that waits to be moved to its place; "" if it is not finished."""
    try:
        return json.loads((work / FILES[-1]).read_text(encoding="utf-8"))["stamp"]
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[Path]:
    """Make the folder to work in, and see that no other conversion writes there."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another conversion is writing to {work.parent}. Wait for it, or stop it.") from None
        except (ImportError, OSError):  # Windows, or a file system without locks
            pass
        yield work


@contextlib.contextmanager
def _full_disk(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno, f"The disk of {target} is full. Make room and give the same command again: it goes on."
        ) from None


@contextlib.contextmanager
def _reporting(progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int, int], None]]:
    if callable(progress):
        yield progress
        return
    from tqdm import tqdm

    with tqdm(unit=" faces", ncols=100, disable=not progress) as bar:

        def report(done: int, total: int) -> None:
            if bar.total is None:  # what an earlier call did is not counted in the speed
                bar.total, bar.initial, bar.n = total, done, done
            bar.update(done - bar.n)

        yield report


# --- Reading images -------------------------------------------------------------------------------------------------


def _read_all(work, listing, options, stamp, max_bad, workers, report) -> list[tuple[int, str]]:
    """Read all images into `images.npy`, which is still without its header.

    Returns:
        The rows that could not be read, and why.
    """
    size, channels = options["image_size"], COLORS[options["color"]]
    face_bytes, rows = size[0] * size[1] * channels, len(listing.files)
    block = max(1, min(BLOCK_ROWS, BLOCK_BYTES // face_bytes))
    usable = rows + len(listing.bad)
    bad, done = _resume(work, stamp, block, rows, face_bytes)

    def check():
        if len(listing.bad) + len(bad) > max_bad * usable:
            first = [*listing.bad, *((listing.files[row], reason) for row, reason in bad)]
            shown = "\n".join(f"  {file}: {reason}" for file, reason in first[:10])
            raise ValueError(
                f"{len(first):,} of the {usable:,} faces in {listing.root} cannot be used, more than "
                f"{max_bad:.0%}. Is the data set complete? The first:\n{shown}"
            )

    check()
    if not rows:
        raise ValueError(f"No faces are left of {listing.root}: {_counted(listing.dropped) or 'it holds none'}.")
    needed, free = (rows - done) * face_bytes, shutil.disk_usage(work).free
    if needed > free:
        raise OSError(f"The faces need {needed / 1e9:.1f} GB, and the disk of {work.parent} has {free / 1e9:.1f} free.")
    report(done, rows)
    with _workers(workers, rows - done) as run, open(work / "images.npy", "r+b") as images:
        images.seek(0, os.SEEK_END)
        with open(work / "progress.jsonl", "a") as notes:
            while done < rows:
                here = []
                for at, pixels, wrong in run(_tasks(listing, options, done, min(done + block, rows), workers)):
                    images.write(pixels)
                    here += [(at + row, reason) for row, reason in wrong]
                images.flush()
                os.fsync(images.fileno())
                notes.write(json.dumps(here) + "\n")  # only what is on the disk counts as done
                notes.flush()
                os.fsync(notes.fileno())
                bad += here
                done = min(done + block, rows)
                report(done, rows)
                check()
    return bad


def _resume(work: Path, stamp: str, block: int, rows: int, face_bytes: int) -> tuple[list[tuple[int, str]], int]:
    """What an earlier call did: unusable rows and number of rows; the files are cut to that, or begun anew."""
    start, bad, done = {"stamp": stamp, "block": block}, [], 0
    notes, images = work / "progress.jsonl", work / "images.npy"
    lines = notes.read_text().split("\n")[:-1] if notes.exists() and images.exists() else []
    if lines and json.loads(lines[0]) == start:
        for line in lines[1:]:
            bad += [tuple(entry) for entry in json.loads(line)]
            done = min(done + block, rows)
    wanted = HEADER_BYTES + (done - len(bad)) * face_bytes
    if not done or images.stat().st_size < wanted:
        for path in work.iterdir():
            if path.name != "lock":
                path.unlink()
        images.write_bytes(bytes(HEADER_BYTES))
        notes.write_text(json.dumps(start) + "\n")
        return [], 0
    os.truncate(images, wanted)
    os.truncate(notes, len("\n".join([*lines, ""])))  # and not written anew: the disk may still be full
    return bad, done


@contextlib.contextmanager
def _workers(workers: int | None, rows: int):
    """A function that calls others in several processes; in this one where that would take longer than the work.

    Processes and not threads: for small images most of the time is spent in Python, under its lock. Measured on two
    cores: 1.7 times as many images a second.
    """
    from joblib import Parallel

    workers = _count(workers)
    if workers == 1 or rows < FEW:
        yield lambda tasks: (function(*given, **named) for function, given, named in tasks)
    else:
        # Idle processes end soon, also those that a killed conversion leaves behind.
        with Parallel(workers, batch_size=1, max_nbytes=None, pre_dispatch="all", idle_worker_timeout=10) as parallel:
            yield parallel


def _count(workers: int | None) -> int:
    from joblib import cpu_count

    return workers or min(cpu_count(), MOST_WORKERS)


def _tasks(listing: Listing, options: dict, start: int, stop: int, workers: int | None) -> Iterator:
    """Calls of `_read_rows` for the rows from `start` to `stop`, a few for each process."""
    from joblib import delayed

    step = -(-(stop - start) // (8 * _count(workers)))
    for at in range(start, stop, step):
        rows = slice(at, min(at + step, stop))
        boxes = None if listing.boxes is None else listing.boxes[rows]
        yield delayed(_read_rows)(at, str(listing.root), listing.files[rows], boxes, options)


def _read_rows(at: int, root: str, files: list[str], boxes: np.ndarray | None, options: dict):
    """Read faces.

    Args:
        at: the first row, given back.
        files: a path for each face; an image is opened once for all its faces that follow one another.
        boxes: float (n, 4), or None for images that are faces.

    Returns:
        `at`; uint8 (good, height, width, channels); the rows, from 0, that could not be read, and why.
    """
    size, channels = options["image_size"], COLORS[options["color"]]
    pixels, good, bad = np.empty((len(files), *size, channels), "uint8"), 0, []
    start = 0
    while start < len(files):
        stop = start + 1
        while stop < len(files) and files[stop] == files[start]:
            stop += 1
        try:
            faces = _read_faces(os.path.join(root, files[start]), None if boxes is None else boxes[start:stop], options)
            faces = list(faces) * (stop - start if boxes is None else 1)
        except FileNotFoundError:
            faces = ["missing file"] * (stop - start)
        except Exception as error:  # Pillow raises many kinds on a broken file
            reason = " ".join(str(error).replace(os.path.join(root, files[start]), "it").split())
            faces = [f"cannot be decoded: {reason or type(error).__name__}"] * (stop - start)
        for row, face in enumerate(faces, start):
            if isinstance(face, str):
                bad.append((row, face))
            else:
                pixels[good] = face.reshape(pixels.shape[1:])
                good += 1
        start = stop
    return at, pixels[:good], bad


# A large JPEG may be decoded at a half, a quarter or an eighth of its size, as long as it stays so many times as large
# as the result: Pillow's documentation calls the difference invisible from 3 on.
GAP = 3


def _read_faces(path: str, boxes: np.ndarray | None, options: dict) -> Iterator:
    """The faces of one image, or in their place why there is none."""
    from PIL import Image, ImageOps

    height, width = options["image_size"]
    mode = "L" if options["color"] == "grey" else "RGB"
    with Image.open(path) as image:
        full = image.size
        windows = [(0, 0, *full)] if boxes is None else [_window(box, full, options) for box in boxes]
        if image.format == "JPEG":
            sides = [((w[2] - w[0]) / width, (w[3] - w[1]) / height) for w in windows if not isinstance(w, str)]
            reduce = min((min(side) for side in sides), default=1) // GAP
            if reduce >= 2:
                image.draft(mode, (int(full[0] // reduce), int(full[1] // reduce)))
        scale = image.size[0] / full[0], image.size[1] / full[1]
        image.load()
        if boxes is None and "exif" in image.info:  # a photograph that was taken with the camera turned
            image = ImageOps.exif_transpose(image)
        if image.mode not in ("L", "RGB"):
            image = as_mode(image, mode)
        for window in windows:
            if isinstance(window, str):
                yield window
                continue
            face = image
            if boxes is not None:
                face = image.crop([round(side * scale[i % 2]) for i, side in enumerate(window)])
            yield as_face(face, options["image_size"], options["color"])


def as_face(image, image_size: tuple[int, int], color: str) -> np.ndarray:
    """A Pillow image of a face, "L" or "RGB", as training has it: grey by luminance, resized without aliasing.

    Args:
        image_size: height and width.
        color: a key of `COLORS`.

    Returns:
        uint8 (height, width), or (height, width, 3).
    """
    from PIL import Image

    mode = "L" if color == "grey" else "RGB"
    return np.asarray(image.convert(mode).resize(image_size[::-1], Image.Resampling.BICUBIC))


def as_mode(image, mode: str):
    """An image of a rarer kind (16-bit, palette, CMYK, with alpha) as "L" or "RGB"; transparency is dropped."""
    from PIL import Image

    if mode == "L" or image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(as_uint8_grey(image)).convert(mode)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _window(box: np.ndarray, size: tuple[int, int], options: dict) -> tuple[int, int, int, int] | str:
    """What to crop for a face's box: left, top, right, bottom; or why nothing can be cropped."""
    left, top, right, bottom = box.tolist()
    if not np.isfinite(box).all():
        return "no box"
    if right <= left or bottom <= top:
        return "box without size"
    inside = max(0, min(right, size[0]) - max(left, 0)) * max(0, min(bottom, size[1]) - max(top, 0))
    if inside < 0.5 * (right - left) * (bottom - top):
        return "box outside the picture"
    margin = MARGIN if options["margin"] is None else options["margin"]
    width, height = (right - left) * (1 + 2 * margin), (bottom - top) * (1 + 2 * margin)
    form = options["image_size"][1] / options["image_size"][0]
    width, height = max(width, height * form), max(height, width / form)
    left, top = round((left + right - width) / 2), round((top + bottom - height) / 2)
    return left, top, left + max(1, round(width)), top + max(1, round(height))


# --- The end --------------------------------------------------------------------------------------------------------


def _finish(work, kind, listing, options, class_names, codes, bad, stamp) -> None:
    """Give `images.npy` its header and write the other files, `dataset.json` last."""
    kept = np.ones(len(listing.files), bool)
    kept[[row for row, _ in bad]] = False
    unusable = [*listing.bad, *((listing.files[row], reason) for row, reason in bad)]
    listing.take(kept)
    codes = codes[kept]
    usage, split = _split(codes, listing)
    shape = (len(codes), *options["image_size"], COLORS[options["color"]])
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    if header.tell() != HEADER_BYTES:
        raise RuntimeError(f"NumPy wrote a header of {header.tell()} bytes, expected {HEADER_BYTES}.")
    with open(work / "images.npy", "r+b") as file:
        file.write(header.getvalue())
        file.flush()
        os.fsync(file.fileno())
    np.save(work / "labels.npy", codes)
    np.save(work / "usage.npy", usage)
    (work / "files.txt").write_bytes(os.fsencode("".join(f"{file}\n" for file in listing.files)))
    digest = hashlib.sha256(str(shape).encode())  # as in `data.load_fer2013`
    for array in (np.load(work / "images.npy", mmap_mode="r"), codes, usage):
        digest.update(np.ascontiguousarray(array))
    counts = {
        name: {known: int(np.sum((codes == code) & (usage == name))) for code, known in enumerate(class_names)}
        for name in USAGES
    }
    absent = [f"{known} in {name}" for name, per in counts.items() for known, count in per.items() if not count]
    reasons = {}
    for file, reason in unusable:
        reasons.setdefault(reason.split(":")[0], []).append(f"{file}: {reason}" if ":" in reason else file)
    tally = Counter({reason: len(files) for reason, files in reasons.items()})
    notes = [
        f"{listing.layout}, converted from {listing.root.resolve()}.",
        *listing.notes,
        split,
        *([f"Left out: {_counted(listing.dropped)}."] if listing.dropped else []),
        *([f"Could not be used: {_counted(tally)}; {FILES[-1]} names them."] if tally else []),
        *([f"There are no faces for {', '.join(absent)}."] if absent else []),
    ]
    info = {
        "format": FORMAT,
        "kind": kind,
        "layout": listing.layout,
        "source": str(listing.root.resolve()),
        "options": options,
        "faces": len(codes),
        "class_names": class_names,
        "image_size": options["image_size"],
        "counts": counts,
        "split": split,
        "dropped": dict(sorted(listing.dropped.items())),
        "bad": {reason: {"count": len(files), "files": files} for reason, files in sorted(reasons.items())},
        "notes": notes,
        "fingerprint": digest.hexdigest(),
        "stamp": stamp,
    }
    written = work / "dataset.writing"
    written.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    os.replace(written, work / FILES[-1])


def _counted(counter: Counter) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counter.most_common())


def _split(codes: np.ndarray, listing: Listing) -> tuple[np.ndarray, str]:
    """A usage in FER2013's words for each face, and a sentence that says where it is from.

    The faces of one image always get the same usage.
    """
    usage, number = np.array(listing.usage, "U11"), {}
    images = np.array([number.setdefault(file, len(number)) for file in listing.files])
    there = set(usage.tolist())
    if there == set(USAGES):
        return usage, "The split is the source's own."
    if there == {"Training", "PrivateTest"}:
        at = np.flatnonzero(usage == listing.public_from)
        share = {"Training": 10, "PrivateTest": 2}[listing.public_from]
        usage[at[_folds(codes[at], images[at], share) == 0]] = "PublicTest"
        words = {10: "a tenth of its training faces", 2: "half of its test faces"}[share]
        return usage, (
            f"The source has no part between training and test: PublicTest is {words}, stratified, seed 0; Training "
            "and PrivateTest are its own."
        )
    fold = _folds(codes, images, 10)
    usage[:] = "Training"
    usage[fold == 0], usage[fold == 1] = "PublicTest", "PrivateTest"
    sentence = "The source has no split of its own" if there == {""} else "The source's split is not whole"
    sentence += ": 80/10/10, stratified, seed 0."
    if len(number) < len(images):
        sentence += " The faces of one picture stay together."
    return usage, sentence


def _folds(codes: np.ndarray, images: np.ndarray, n: int) -> np.ndarray:
    """Deal images into `n` parts with equal shares of each class (of an image's first face), seed 0."""
    from sklearn.model_selection import StratifiedKFold

    _, first, image = np.unique(images, return_index=True, return_inverse=True)
    if np.bincount(codes[first]).max(initial=0) < n:
        raise ValueError(
            f"No class has {n} images, so the faces cannot be split in {n} equal parts. Give more, or for the kind "
            "'folder' the folders train, validation and test."
        )
    fold = np.empty(len(first), int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class has fewer than n; a note says where it is missing
        parts = StratifiedKFold(n, shuffle=True, random_state=0).split(first, codes[first])
        for number, (_, rows) in enumerate(parts):
            fold[rows] = number
    return fold[image]
