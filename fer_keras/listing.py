"""What other data sets of faces hold, before any image is read: their layouts, and the label of each face.

Layouts were checked against public programs that read them. Numbers become names here, and nowhere else.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fer_keras.data import ALIASES, CLASS_NAMES, IMAGE_SUFFIXES

# AffectNet's codes, as its own documentation lists them. The last three are not expressions.
AFFECTNET_CODES = {
    0: "neutral",
    1: "happy",
    2: "sad",
    3: "surprise",
    4: "fear",
    5: "disgust",
    6: "anger",
    7: "contempt",
    8: "none",
    9: "uncertain",
    10: "no-face",
}
AFFECTNET_COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)
# ExpW's codes, as the readme beside its label.lst lists them: in FER2013's order.
EXPW_CODES = {0: "angry", 1: "disgust", 2: "fear", 3: "happy", 4: "sad", 5: "surprise", 6: "neutral"}
NOT_EXPRESSIONS = ("none", "uncertain", "no-face")

SUFFIXES = IMAGE_SUFFIXES | {".bmp", ".gif", ".tif", ".tiff", ".webp"}
LABELS = ("folder", "column")
# What folders of a split are called, in FER2013's words.
SPLITS = {
    "train": "Training",
    "validation": "PublicTest",
    "val": "PublicTest",
    "valid": "PublicTest",
    "test": "PrivateTest",
}


@dataclass
class Listing:
    """What a source holds, before any image is read.

    Attributes:
        layout: how the source is laid out, in words.
        root: the folder that `files` are relative to.
        files: a path for each face; several faces may stand in one image.
        names: the expression of each face, as the source calls it.
        usage: the source's own split, in FER2013's words; "" where it has none.
        boxes: float (n, 4), left, top, right, bottom in pixels of the image; None where images are faces.
        bad: path and reason of what cannot be used.
        dropped: how many were left out on purpose, by reason.
        notes: what the reader should know.
        kept_names: the names are a user's own, so that none is unknown.
        public_from: which part lends faces to PublicTest where the source has only the two others.
    """

    layout: str
    root: Path
    files: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    usage: list[str] = field(default_factory=list)
    boxes: np.ndarray | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    kept_names: bool = False
    public_from: str = "Training"

    def take(self, kept: Sequence[bool]) -> None:
        """Keep only these rows."""
        at = np.flatnonzero(kept)
        for name in ("files", "names", "usage"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in at])
        self.boxes = None if self.boxes is None else self.boxes[at]


def list_faces(kind: str, source: Path, options: dict) -> Listing:
    """Recognise the layout of a source, which may lie one folder deeper, as in downloaded archives."""
    within = [] if kind == "folder" else sorted(path for path in source.iterdir() if path.is_dir())
    for root in (source, *within):
        for read in KINDS[kind].values():
            if (listing := read(root, options)) is not None:
                if options["margin"] is not None and listing.boxes is None:
                    raise ValueError(f"`margin` goes with faces that are cropped, and {root} holds images of faces.")
                if options["labels"] == "column" and read is not _read_copy:
                    raise ValueError(f"`labels='column'` goes with a labels.csv, and {root} has none.")
                return listing
    there = sorted(f"{path.name}/" if path.is_dir() else path.name for path in source.iterdir())
    looked = "\n".join(f"  {words}" for words in KINDS[kind])
    raise ValueError(
        f"{source} is in no known layout of {kind!r}. Looked for:\n{looked}\nFound instead: "
        f"{', '.join(there[:10]) or 'nothing'}{' …' if len(there) > 10 else ''}"
    )


def ours(name: str) -> str:
    """FER2013's name of an expression, or the name as it is."""
    small = ALIASES.get(name.strip().lower(), name.strip().lower())
    return small if small in (*CLASS_NAMES, "contempt", *NOT_EXPRESSIONS) else name


def _images(root: Path) -> list[tuple[str, ...]]:
    """The image files below a folder as parts of their path, sorted."""
    found = []
    for parent, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        parts = Path(parent).relative_to(root).parts
        found += [(*parts, name) for name in names if Path(name).suffix.lower() in SUFFIXES and name[0] != "."]
    return sorted(found)


def _first_folder(root: Path, names: Sequence[str], files: Sequence[str]) -> str:
    """Which of these folders holds the images: the first that has one of `files`, else the first that is there."""
    there = [name for name in names if (root / name).is_dir()]
    return next(
        (name for name in there if any((root / name / file).exists() for file in files)), next(iter(there), ".")
    )


def _read_copy(root: Path, options: dict) -> Listing | None:
    """AffectNet's Kaggle copies: `labels.csv` beside the folders, or beside Train/ and Test/ with them.

    The folders are what the annotators of AffectNet said, the column `label` is what a network made of it. The second
    copy writes Train/anger and Test/Anger, and `pth` without Train or Test, so paths are compared in small letters.
    """
    import pandas as pd

    path = root / "labels.csv"
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.") from None
    if not {"pth", "label"} <= set(table):
        return None
    paths = table["pth"].str.replace("\\", "/").str.strip()
    column = dict(zip(paths.str.lower(), table["label"], strict=True))
    listing = Listing("AffectNet, a Kaggle copy with labels.csv", root)
    seen, unlisted, disagree = set(), 0, 0
    for parts in _images(root):
        split = SPLITS.get(parts[0].lower(), "")
        inner = parts[1:] if split else parts
        key, file = "/".join(inner).lower(), "/".join(parts)
        seen.add(key)
        label = column.get(key)
        folder = inner[0] if len(inner) > 1 else None
        name = label if options["labels"] == "column" else folder
        if name is None:
            listing.bad.append((file, "image without a label"))
            continue
        unlisted += label is None
        disagree += label is not None and folder is not None and ours(label) != ours(folder)
        listing.files.append(file)
        listing.names.append(name)
        listing.usage.append(split)
    listing.bad += [(name, "missing file") for name in paths if name.lower() not in seen]
    used = {"folder": "the emotions of the folders", "column": "the column `label` of labels.csv, made by a network"}
    listing.notes.append(
        f"The labels are {used[options['labels']]}; folder and column disagree for {disagree:,} of "
        f"{len(listing.files):,} images."
    )
    if unlisted and options["labels"] == "folder":
        listing.notes.append(f"{unlisted:,} images are not in labels.csv and were used all the same.")
    return listing


def _read_manual(root: Path, options: dict) -> Listing | None:
    """AffectNet's first form: pictures of any size with the face's box in `training.csv` and `validation.csv`."""
    import pandas as pd

    folders = (
        "",
        "Manually_Annotated_file_lists",
        "Manually_Annotated",
        "Manually_Annotated/Manually_Annotated_file_lists",
    )
    lists = {
        usage: next((root / folder / name for folder in folders if (root / folder / name).is_file()), None)
        for usage, name in (("Training", "training.csv"), ("PrivateTest", "validation.csv"))
    }
    if not any(lists.values()):
        return None
    listing, boxes, images = Listing("AffectNet, official, with training.csv and validation.csv", root), [], None
    for usage, path in lists.items():
        if path is None:
            listing.notes.append(f"There is no {'training' if usage == 'Training' else 'validation'}.csv.")
            continue
        with open(path, encoding="utf-8-sig") as file:
            first = [name.strip() for name in file.readline().split(",")]
        if "subDirectory_filePath" not in first and len(first) != len(AFFECTNET_COLUMNS):
            return None
        columns = None if "subDirectory_filePath" in first else AFFECTNET_COLUMNS  # some lists come without a header
        wanted = [*AFFECTNET_COLUMNS[:5], "expression"]
        try:
            chunks = pd.read_csv(
                path,
                names=columns,
                usecols=wanted,
                dtype={"subDirectory_filePath": str},
                encoding="utf-8-sig",
                skipinitialspace=True,
                chunksize=50_000,  # the landmarks make it large
            )
            for table in chunks:
                files = table["subDirectory_filePath"].astype(str).str.replace("\\", "/").tolist()
                if images is None:
                    places = ("Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated_Images")
                    images = _first_folder(root, (*places, "Manually_Annotated", "."), files[:100])
                numbers = table[wanted[1:]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
                boxes.append(np.column_stack([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]]))
                listing.files += [file if images == "." else f"{images}/{file}" for file in files]
                listing.names += [AFFECTNET_CODES.get(code, f"{code:g}") for code in numbers[:, 4]]
                listing.usage += [usage] * len(table)
        except ValueError as error:
            raise ValueError(f"{path} is not a list of AffectNet: {error}.") from None
    listing.boxes = np.concatenate([np.empty((0, 4)), *boxes])
    return listing


def _read_sets(root: Path, options: dict) -> Listing | None:
    """AffectNet's second form: `train_set` and `val_set` with cropped `images` and `annotations/*_exp.npy`."""
    sets = {"Training": root / "train_set", "PrivateTest": root / "val_set"}
    if not any((folder / "images").is_dir() and (folder / "annotations").is_dir() for folder in sets.values()):
        return None
    listing = Listing("AffectNet, official, with train_set and val_set", root)
    for usage, folder in sets.items():
        if not (folder / "images").is_dir() or not (folder / "annotations").is_dir():
            listing.notes.append(f"There is no {folder.name} with images and annotations.")
            continue
        annotations = {name for name in os.listdir(folder / "annotations") if name.endswith("_exp.npy")}
        for name in sorted(os.listdir(folder / "images")):
            file, annotation = f"{folder.name}/images/{name}", f"{Path(name).stem}_exp.npy"
            if Path(name).suffix.lower() not in SUFFIXES:
                continue
            if annotation not in annotations:
                listing.bad.append((file, "image without a label"))
                continue
            annotations.discard(annotation)
            listing.files.append(file)
            listing.names.append(_read_code(folder / "annotations" / annotation))
            listing.usage.append(usage)
        listing.bad += [(f"{folder.name}/annotations/{name}", "missing file") for name in sorted(annotations)]
    return listing


def _read_code(path: Path) -> str:
    """The expression in one `_exp.npy`: a single number, kept as text or as a number."""
    try:
        code = str(np.load(path, allow_pickle=False).reshape(-1)[0])
        return AFFECTNET_CODES.get(float(code), code)
    except (OSError, EOFError, ValueError, IndexError):
        return "unreadable"


def _read_expw(root: Path, options: dict) -> Listing | None:
    """ExpW: pictures with several faces, a line of `label.lst` for each: name, face id, top, left, right, bottom, …"""
    path = next(
        (root / name for name in ("label.lst", "label/label.lst", "data/label/label.lst") if (root / name).is_file()),
        None,
    )
    if path is None:
        return None
    listing, boxes = Listing("ExpW, with label.lst", root), []
    lines = [line for line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1) if line[1].strip()]
    places = ("image/origin", "data/image/origin", "origin", "image", "images", "data/image", ".")
    images = _first_folder(root, places, [line.rsplit(None, 7)[0] for _, line in lines[:100]])
    seen = set()
    for number, line in lines:
        if line in seen:
            listing.dropped["repeated line"] += 1
            continue
        seen.add(line)
        try:
            name, _, *values = line.strip().rsplit(None, 7)
            top, left, right, bottom, confidence, label = map(float, values)
        except ValueError:
            listing.bad.append((f"{path.relative_to(root).as_posix()} line {number}", "line without eight fields"))
            continue
        if options["min_confidence"] is not None and confidence < options["min_confidence"]:
            listing.dropped[f"confidence below {options['min_confidence']:g}"] += 1
            continue
        listing.files.append(name if images == "." else f"{images}/{name}")
        listing.names.append(EXPW_CODES.get(label, f"{label:g}"))
        boxes.append((left, top, right, bottom))
    listing.usage = [""] * len(listing.files)
    listing.boxes = np.array(boxes, float).reshape(-1, 4)
    return listing


def _read_folders(root: Path, options: dict) -> Listing | None:
    """A folder for each class, or `train`, `test` and optionally `validation` with them, as FER2013's images come."""
    found = _images(root)
    if not found:
        return None
    listing = Listing("A folder for each class", root, kept_names=True, public_from="PrivateTest")
    there = {SPLITS.get(parts[0].lower(), "") for parts in found if len(parts) > 1}
    if split := "Training" in there:
        if "PrivateTest" not in there:
            raise ValueError(
                f"{root} has a folder train and none named test. Expected both, or folders of classes alone."
            )
        if "" in there:
            raise ValueError(f"{root} has folders of classes beside train and test. Expected one or the other.")
    for parts in found:
        inner = parts[1:] if split and len(parts) > 1 else parts
        if len(inner) < 2:
            listing.bad.append(("/".join(parts), "image without a label"))
            continue
        listing.files.append("/".join(parts))
        listing.names.append(inner[0])
        listing.usage.append(SPLITS[parts[0].lower()] if split else "")
    return listing


# For each kind, what is looked for, in words, and what reads it.
KINDS = {
    "affectnet": {
        "labels.csv with columns pth and label, beside folders of emotions or Train/ and Test/ with them": _read_copy,
        "training.csv and validation.csv (also in Manually_Annotated_file_lists/), with Manually_Annotated_Images/ or "
        "Manually_Annotated/": _read_manual,
        "train_set/ and val_set/ with images/ and annotations/*_exp.npy": _read_sets,
    },
    "expw": {"label.lst (also in label/), with the pictures in image/origin/, origin/ or image/": _read_expw},
    "folder": {
        "a folder of images for each class, or train/, test/ and optionally validation/ with them": _read_folders
    },
}
