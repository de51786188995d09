"""Faces from disk: FER2013's CSV files and image folders, read once, then memory-mapped from a cache."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

# FER2013's codes 0–6. Class order lives here and nowhere else.
CLASS_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
# FER2013's own split, in its order.
USAGES = ("Training", "PublicTest", "PrivateTest")
IMAGE_SIZE = (48, 48)
PIXELS = IMAGE_SIZE[0] * IMAGE_SIZE[1]

# Names that folders of faces carry for the seven expressions.
ALIASES = {
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "suprise": "surprise",
    "surprised": "surprise",
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
CACHE_VERSION = 1


@dataclass(frozen=True)
class Faces:
    """Faces with their labels, and where each one comes from.

    Attributes:
        images: uint8 (n, height, width, channels), 0–255; may be a read-only memory map, or `Picked` from some.
        labels: int64 (n,), indices into `class_names`.
        rows: int64 (n,), row in the source, from 0; −1 for a synthetic face.
        usage: str (n,), the source's own split ("Training", "PublicTest", "PrivateTest"; "" for a synthetic face).
        class_names: the expressions, in the order of the labels.
        fingerprint: SHA-256 of the source's content, the same whether it came from a CSV file or from images.
        parents: int64 (n, 2), rows of the two faces that a synthetic face lies between; twice the own row for a copy
            made by over-sampling; −1 for an original.
        weight: float64 (n,), how far a synthetic face lies from its first parent towards the second, 0–1.
        changes: float64 (n, 4), how a face of an augmented subset was changed (`fer_keras.augment.CHANGES`); None where
            no face was.
        targets: float32 (n, classes), the distribution over the classes that a face is to be trained with; None where
            the label is all.
        notes: what the reader should know about how the faces were read.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    usage: np.ndarray
    class_names: tuple[str, ...] = CLASS_NAMES
    fingerprint: str = ""
    parents: np.ndarray | None = None
    weight: np.ndarray | None = None
    changes: np.ndarray | None = None
    targets: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self):
        n = len(self.labels)
        if self.parents is None:
            object.__setattr__(self, "parents", np.full((n, 2), -1))
        if self.weight is None:
            object.__setattr__(self, "weight", np.zeros(n))
        lengths = {name: len(array) for name, array in self.arrays().items()}
        if set(lengths.values()) - {n}:
            raise ValueError(f"All arrays of `Faces` must have as many rows as `labels`, {n}. Received: {lengths}")

    def __len__(self) -> int:
        return len(self.labels)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays with one entry for each face that there are, by name."""
        names = ("images", "labels", "rows", "usage", "parents", "weight", "changes", "targets")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def take(self, indices: np.ndarray) -> "Faces":
        """The faces at these positions (integers or a boolean mask), in this order.

        Faces that follow one another are not copied, and of a large memory map none are: they stay on the disk.
        """
        indices = np.arange(len(self))[indices]
        if len(indices) and np.all(np.diff(indices) == 1):
            indices = slice(int(indices[0]), int(indices[-1]) + 1)
        arrays = {name: array[indices] for name, array in self.arrays().items() if name != "images"}
        return replace(self, images=pick(self.images, indices), **arrays)

    def class_counts(self) -> dict[str, int]:
        """Faces per class, by name."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}

    @property
    def origin(self) -> np.ndarray:
        """Per face "original", "copy" (made by over-sampling) or "synthetic" (interpolated)."""
        return np.where(self.rows < 0, "synthetic", np.where(self.parents[:, 0] >= 0, "copy", "original"))


def concatenate(parts: Sequence[Faces]) -> Faces:
    """One set of faces after the other; what else than arrays they have, all have from the first."""
    names = [name for name in parts[0].arrays() if name != "images"]
    arrays = {name: np.concatenate([part.arrays()[name] for part in parts]) for name in names}
    return replace(parts[0], images=_join([part.images for part in parts]), **arrays)


# --- Images that are too many to copy --------------------------------------------------------------------------------

# Of images on the disk so many bytes are copied into memory, and no more.
COPIED = 2**28


class Picked:
    """Images picked from larger arrays, in any order: read from the disk when they are asked for, not when picked.

    Stands where an array of images does: it has its `shape`, `dtype`, `nbytes` and length, and an index gives a plain
    array of what it names. Only `np.asarray`, and what calls it, reads them all into memory.

    Args:
        parts: arrays of images of equal shape and type, or memory maps.
        index: int (n,), a position for each image, counted through all parts.
    """

    def __init__(self, parts: Sequence[np.ndarray], index: np.ndarray):
        self.parts, self.index = tuple(parts), index
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self.dtype, self.shape = parts[0].dtype, (len(index), *parts[0].shape[1:])
        self.ndim, self.nbytes = len(self.shape), int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis:
            return np.asarray(self)[key]
        at = np.asarray(self.index[first])
        images = self._read(at.ravel()).reshape(*at.shape, *self.shape[1:])
        return images[(*[slice(None)] * at.ndim, *rest)] if rest else images

    def __iter__(self):
        for start in range(0, len(self), 1024):
            yield from self[start : start + 1024]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _read(self, at: np.ndarray) -> np.ndarray:
        if len(self.parts) == 1:
            return np.asarray(self.parts[0])[at]
        images = np.empty((len(at), *self.shape[1:]), self.dtype)
        part = np.searchsorted(self._starts, at, side="right") - 1
        for number in np.unique(part):
            here = part == number
            images[here] = self.parts[number][at[here] - self._starts[number]]
        return images


def pick(images: np.ndarray | Picked, indices: np.ndarray | slice) -> np.ndarray | Picked:
    """The images at these positions: of more than `COPIED` bytes on the disk, none are read.

    Args:
        images: an array, a memory map, or `Picked` from some.
        indices: positions from 0, int (n,), or a slice, which of a memory map is one, too.
    """
    if isinstance(images, Picked):
        picked = Picked(images.parts, images.index[indices])
    elif isinstance(images, np.memmap) and not isinstance(indices, slice):
        picked = Picked([images], indices)
    else:
        return images[indices]
    return picked if picked.nbytes > COPIED else np.asarray(picked)


def _join(arrays: Sequence[np.ndarray | Picked]) -> np.ndarray | Picked:
    """One set of images after the other; where some are on the disk, and they are too many to copy, as `Picked`."""
    mapped = any(isinstance(images, (np.memmap, Picked)) for images in arrays)
    if not mapped or sum(images.nbytes for images in arrays) <= COPIED:
        return np.concatenate(arrays)
    parts, indices, start = [], [], 0
    for images in arrays:
        here, index = (images.parts, images.index) if isinstance(images, Picked) else ([images], np.arange(len(images)))
        parts += here
        indices.append(index + start)
        start += sum(map(len, here))
    return Picked(parts, np.concatenate(indices))


def read_all(arrays: Sequence[np.ndarray | Picked]) -> np.ndarray:
    """One set of images after the other in memory, which holds them once: they are read a part at a time."""
    images, at = np.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype), 0
    for each in arrays:
        for start in range(0, len(each), 4096):
            part = each[start : start + 4096]
            images[at : at + len(part)] = part
            at += len(part)
    return images


def free_memory() -> int:
    """How many bytes of the host's memory are free, or can be made so."""
    import psutil

    return psutil.virtual_memory().available


# --- FER2013 ----------------------------------------------------------------------------------------------------------


def load_fer2013(path: str | Path, cache: bool = True) -> Faces:
    """Load FER2013 from Kaggle's CSV files or from image folders.

    Args:
        path: `fer2013.csv` (`emotion,pixels,Usage`), `icml_face_data.csv` (`emotion, Usage, pixels`), or a folder with
            `train/<emotion>/…` and `test/<emotion>/…` (optionally `validation/`) of 48×48 PNG or JPEG files. File names
            that carry `Training_`, `PublicTest_` or `PrivateTest_` restore the official split; without them and without
            `validation/`, `test` is split in two halves, stratified, as a note says.
        cache: keep the faces beside the source, in `.fer_keras/`, to be memory-mapped next time; a source that has
            changed is read anew, and a read-only place works without.

    Returns:
        `Faces` with uint8 images (n, 48, 48, 1), in the order of the file (or of the sorted paths).

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if a row or an image is not what FER2013 has; says which and what was expected.

    Reference:
        Goodfellow et al., "Challenges in Representation Learning: A report on three machine learning contests",
        ICONIP 2013, arXiv 1307.0414.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder {path}. Give the path of fer2013.csv or of its image folder."
        )
    files = None if path.is_file() else _list_images(path)
    stamp = stamp_of(path, files)
    folder = path.parent if path.is_file() else path
    kept = folder / ".fer_keras" / f"{path.name}-{stamp[:16]}"
    if cache and (faces := read_cache(kept)) is not None:
        return faces
    faces = _read_csv(path) if files is None else _read_folder(path, files)
    digest = hashlib.sha256(str(faces.images.shape).encode())
    for array in (faces.images, faces.labels, faces.usage.astype("U11")):
        digest.update(np.ascontiguousarray(array))
    faces = replace(faces, fingerprint=digest.hexdigest())
    if cache:
        write_cache(kept, faces)
    return faces


def as_uint8_grey(image) -> np.ndarray:
    """Convert a Pillow image of any mode (grey, 16-bit, palette, RGB, RGBA) to uint8 (height, width)."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype("float64")
        # 16-bit files use 0–65535; Pillow may also open an 8-bit range in a wide mode, which must stay as it is.
        return np.rint(values / 257 if image.mode.startswith("I;16") or values.max() > 255 else values).astype("uint8")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGB")  # transparency is dropped, the colours below it stay
    return np.asarray(image.convert("L"))


# --- CSV ------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Faces:
    try:
        with open(path, "rb") as file:
            return _parse_csv(path, file)
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: permission denied.") from None


def _parse_csv(path: Path, file) -> Faces:
    header = file.readline().removeprefix(b"\xef\xbb\xbf")
    if not header.strip():
        raise ValueError(f"{path} is empty. Expected FER2013 with the header emotion,pixels,Usage.")
    names = [name.strip().strip('"') for name in header.decode("utf-8", "replace").split(",")]
    columns = {name.lower(): index for index, name in enumerate(names)}
    if set(columns) != {"emotion", "pixels", "usage"} or len(names) != 3:
        shown = ",".join(names)[:80]
        raise ValueError(
            f"The header of {path} is {shown!r}. Expected emotion,pixels,Usage (fer2013.csv) or "
            "emotion, Usage, pixels (icml_face_data.csv)."
        )
    # One thread a core: NumPy lets them run side by side, and more would only wait for one another.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = list(pool.map(lambda block: _read_block(path, columns, *block), _blocks(file)))
    if not any(len(labels) for _, labels, _ in blocks):
        raise ValueError(f"{path} has a header and no rows. Expected a row for each face.")
    images, labels, usage = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return Faces(images, labels, np.arange(len(labels)), usage)


def _blocks(file, size: int = 1 << 20) -> list[tuple[int, int]]:
    """Where blocks of whole lines start and end, about `size` bytes each: small enough for a processor's cache."""
    starts = [file.tell()]
    end = file.seek(0, os.SEEK_END)
    while starts[-1] < end:
        file.seek(min(starts[-1] + size, end))
        file.readline()
        starts.append(file.tell())
    return list(pairwise(starts))


def _read_block(path: Path, columns: dict[str, int], start: int, stop: int):
    """Images, labels and usages of the lines between two places of the file."""
    buffer = bytearray(b" " * (BEFORE + stop - start + 1))
    with open(path, "rb") as file:
        file.seek(start)
        file.readinto(memoryview(buffer)[BEFORE:-1])
    buffer[-1:] = b"\n"
    text = np.frombuffer(buffer, "uint8")
    labels, usages, spans, lines = [], [], [], []
    emotion_at, pixels_at, usage_at = columns["emotion"], columns["pixels"], columns["usage"]
    begin = BEFORE
    for line, end in enumerate(np.flatnonzero(text == 10).tolist()):
        first = buffer.find(b",", begin, end)
        second = buffer.find(b",", first + 1, end) if first >= 0 else -1
        if second < 0 or buffer.find(b",", second + 1, end) >= 0:
            if buffer[begin:end].strip():
                fields = buffer[begin:end].count(b",") + 1
                raise ValueError(
                    f"{_line(path, start, line)}: {fields} fields, expected 3 (emotion, pixels, Usage). "
                    "Is the file cut off? Download it again."
                )
        else:
            bounds = ((begin, first), (first + 1, second), (second + 1, end))
            label = buffer[slice(*bounds[emotion_at])].strip(b' "\r')
            if not (label.isdigit() and int(label) < len(CLASS_NAMES)):
                shown = label.decode("utf-8", "replace")
                raise ValueError(f"{_line(path, start, line)}: emotion {shown!r}, expected 0 to 6.")
            usage = buffer[slice(*bounds[usage_at])].strip(b' "\r').decode("utf-8", "replace")
            if usage not in USAGES:
                raise ValueError(
                    f"{_line(path, start, line)}: Usage {usage[:40]!r}, expected one of {', '.join(USAGES)}."
                )
            labels.append(int(label))
            usages.append(usage)
            spans.append(_strip(buffer, *bounds[pixels_at]))
            lines.append(line)
        begin = end + 1
    values = _parse_pixels(text, spans)
    if values is None:  # the slow way finds the row
        for line, span in zip(lines, spans, strict=True):
            if _parse_pixels(text, [span]) is None:
                found = _describe(bytes(buffer[slice(*span)]))
                raise ValueError(f"{_line(path, start, line)}: {found}, expected {PIXELS} of 0–255 (48×48 pixels).")
    return values.reshape(-1, *IMAGE_SIZE, 1), np.array(labels, "int64"), np.array(usages, "U11")


def _line(path: Path, start: int, line: int) -> str:
    """The place to name in an error: line `line`, from 0, of the block that starts at byte `start`."""
    with open(path, "rb") as file:
        return f"{path}, line {file.read(start).count(10) + line + 1}"


def _strip(buffer: bytearray, start: int, end: int) -> tuple[int, int]:
    """The bounds of a field less the blanks and quotation marks around it."""
    while start < end and buffer[start] in b' "\r':
        start += 1
    while start < end and buffer[end - 1] in b' "\r':
        end -= 1
    return start, end


# A number's last digit is looked at together with the three bytes before it, so text needs so many before its start.
BEFORE = 3


def _parse_pixels(text: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """Parse rows of 2,304 numbers 0–255 separated by single spaces; None if any row is not like that.

    Numbers have one to three digits, so the number that ends at a byte is known from that byte and the two before it.
    Computing it at every byte, and keeping the ends, needs only passes over small integers that stay in the cache.

    Args:
        text: uint8, a piece of the file, with `BEFORE` bytes before and one byte after the rows.
        spans: where each row starts and ends in `text`.

    Returns:
        uint8 (rows · 2,304).
    """
    digit = text - np.uint8(48)
    is_digit = digit < 10
    # The byte itself, and the first, second and third byte before it.
    at, before1, before2, before3 = (slice(BEFORE - back, len(text) - 1 - back) for back in range(4))
    ends = is_digit[at] & ~is_digit[BEFORE + 1 :]
    tens = is_digit[before1]
    hundreds = tens & is_digit[before2]
    leading = digit[before2] * hundreds
    values = digit[at] + digit[before1] * tens * np.uint8(10) + leading * np.uint8(100)
    wrong = hundreds & is_digit[before3]  # too long
    wrong |= (leading > 2) | ((leading == 2) & (values < 200))  # too large: 256–299 wrap around to 0–43
    wrong &= ends
    wrong |= ~(is_digit[at] | (text[at] == 32))  # neither a digit nor a space
    inside = np.zeros(len(ends), bool)
    for start, end in spans:
        row = slice(start - BEFORE, end - BEFORE)
        inside[row] = True
        # So many numbers in so many bytes: with single spaces, a row is as long as its digits and 2,303 spaces.
        if np.count_nonzero(ends[row]) != PIXELS or np.count_nonzero(is_digit[start:end]) != end - start - PIXELS + 1:
            return None
    if np.any(wrong & inside):
        return None
    return np.compress(ends & inside, values)  # measured: a fifth of the time of values[ends]


def _describe(text: bytes) -> str:
    """What is wrong with a row of pixels."""
    numbers = text.split()
    for number in numbers:
        if not number.isdigit() or len(number) > 3 or int(number) > 255:
            return f"pixel {number.decode('utf-8', 'replace')[:20]!r}"
    spaces = "" if b" ".join(numbers) == text else " that are not separated by single spaces"
    return f"{len(numbers)} pixels{spaces}"


# --- Image folders --------------------------------------------------------------------------------------------------


def _list_images(folder: Path) -> list[Path]:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(f"The folder {folder} cannot be read: permission denied.")

    def refuse(error):  # a folder that is passed over would change the split
        raise PermissionError(f"The folder {error.filename} cannot be read: {error.strerror}.") from None

    files = sorted(
        path
        for parent, _, names in os.walk(folder, onerror=refuse, followlinks=True)
        for path in (Path(parent, name) for name in names)
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.relative_to(folder).parts[0].startswith(".")
    )
    if not files:
        raise ValueError(
            f"The folder {folder} holds no PNG or JPEG files. Expected train/<emotion>/… and test/<emotion>/…."
        )
    return files


def _read_folder(folder: Path, files: Sequence[Path]) -> Faces:
    splits, labels, marks = [], [], []
    for path in files:
        parts = path.relative_to(folder).parts
        name = parts[1].lower() if len(parts) == 3 else ""
        name = ALIASES.get(name, name)
        if len(parts) != 3 or parts[0].lower() not in ("train", "validation", "test") or name not in CLASS_NAMES:
            raise ValueError(
                f"{path} is not where FER2013's images are. Expected {folder}/train, validation or test, then a folder "
                f"named {', '.join(CLASS_NAMES)}, then the images."
            )
        splits.append(parts[0].lower())
        labels.append(CLASS_NAMES.index(name))
        mark = re.match(r"(Training|PublicTest|PrivateTest)_(\d*)", path.name)
        marks.append((mark[1], int(mark[2] or 0)) if mark else None)
    labels = np.array(labels, "int64")
    for split in dict.fromkeys(splits):
        there = set(labels[np.array(splits) == split].tolist())
        if missing := [name for code, name in enumerate(CLASS_NAMES) if code not in there]:
            raise ValueError(f"{folder / split} has no faces for {', '.join(missing)}. Expected all seven expressions.")
    if not {"train", "test"} <= set(splits):
        raise ValueError(f"{folder} has only {', '.join(sorted(set(splits)))}. Expected train and test.")

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
        images = np.stack(list(pool.map(_read_image, files)))[..., None]
    usage, notes = _official_split(splits, labels, marks)
    order = np.arange(len(files))
    numbers = [mark[1] for mark in marks if mark]
    if len(set(numbers)) == len(files):  # Kaggle-style numbers give the order of the CSV file
        order = np.argsort(numbers)
    return Faces(images[order], labels[order], np.arange(len(order)), usage[order], notes=notes)


def _official_split(splits, labels, marks):
    """Usage per image: from the file names, else from the folders, else by halving `test`."""
    if all(marks):
        return np.array([mark[0] for mark in marks], "U11"), ()
    names = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}
    usage = np.array([names[split] for split in splits], "U11")
    if "validation" in splits:
        return usage, ()
    from sklearn.model_selection import train_test_split

    test = np.flatnonzero(usage == "PrivateTest")
    validation, _ = train_test_split(test, test_size=0.5, stratify=labels[test], random_state=0)
    usage[validation] = "PublicTest"
    note = (
        f"The file names do not tell PublicTest from PrivateTest, so the {len(test):,} images in test/ were split in "
        "two halves, stratified, seed 0: results do not compare with the official split."
    )
    return usage, (note,)


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = as_uint8_grey(image)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image that can be read.") from None
    except Exception as error:  # Pillow raises many kinds on a broken file
        raise ValueError(f"{path} cannot be decoded: {error}.") from None
    if pixels.shape != IMAGE_SIZE:
        height, width = pixels.shape
        raise ValueError(f"{path} has {width}×{height} pixels, expected 48×48.")
    return pixels


# --- Cache ----------------------------------------------------------------------------------------------------------


def stamp_of(path: Path, files: Sequence[Path] | None) -> str:
    """A text that changes whenever the file, or any file of the folder, does: size, times of content and of inode."""
    digest = hashlib.sha256(str(CACHE_VERSION).encode())
    for file in files or [path]:
        stat = file.stat()
        digest.update(f"{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode())
        if files:
            digest.update(str(file.relative_to(path)).encode())
    return digest.hexdigest()


def read_cache(folder: Path) -> Faces | None:
    """The faces that `write_cache` kept in this folder, images as a read-only memory map; None if there are none."""
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        usage = np.load(folder / "usage.npy", allow_pickle=False)
        note = json.loads((folder / "note.json").read_text())
        rows = np.arange(len(labels))
        return Faces(images, labels, rows, usage, fingerprint=note["fingerprint"], notes=tuple(note["notes"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # not there, or damaged
        return None


def write_cache(folder: Path, faces: Faces) -> None:
    """Write the cache under a temporary name and rename it; where that is not possible, do without."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        np.save(temporary / "images.npy", faces.images)
        np.save(temporary / "labels.npy", faces.labels)
        np.save(temporary / "usage.npy", faces.usage)
        (temporary / "note.json").write_text(json.dumps({"fingerprint": faces.fingerprint, "notes": faces.notes}))
        name = folder.name.rpartition("-")[0]
        for old in folder.parent.iterdir():  # of a source that has changed
            if re.fullmatch(re.escape(name) + "-[0-9a-f]{16}", old.name):
                shutil.rmtree(old, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError:
        pass
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
