"""Where a run's faces come from: what its parameters name, brought to one shape, one class order and one row count."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fer_keras import convert, drawn, ferplus
from fer_keras.data import (
    CLASS_NAMES,
    USAGES,
    Faces,
    concatenate,
    load_fer2013,
    read_cache,
    stamp_of,
    write_cache,
)
from fer_keras.listing import SUFFIXES

EIGHT = (*CLASS_NAMES, "contempt")
COLORS = {"grey": 1, "rgb": 3}
LABELS = ("fer2013", "ferplus")
DATASETS = ("fer2013", "folder")
# Data sets whose faces can join those that train, each named by a parameter that holds its path; "drawn", which has
# contempt, too, needs none.
AUXILIARY = ("affectnet", "expw", "drawn")
ROWS = 1_000_000
# The parameters that say which faces a run has.
PARAMETERS = ("data", "drawn_faces", "dataset", "class_map", "num_classes", "color", "labels", "auxiliary")
LOCATIONS = ("ferplus_csv", "affectnet", "expw")
# Luminance of ITU-R 601, as Pillow computes it.
LUMINANCE = np.array([299, 587, 114]) / 1000


def cache_folder() -> Path:
    """Where faces are kept that have no place beside their source."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fer_keras")


def load_for(params: Mapping) -> Faces:
    """The faces of a run, from its parameters; those that `load` does not take are passed over."""
    return load(**_chosen(params))


def _chosen(params: Mapping) -> dict:
    return {name: params[name] for name in (*PARAMETERS, *LOCATIONS) if name in params}


def load(
    data: str | Path,
    drawn_faces: int = 2800,
    *,
    dataset: str = "fer2013",
    class_map: Mapping[str, str] | None = None,
    num_classes: int = 0,
    color: str = "",
    labels: str = "fer2013",
    ferplus_csv: str | Path = "",
    auxiliary: str = "",
    affectnet: str | Path = "",
    expw: str | Path = "",
) -> Faces:
    """Load the faces that a run's parameters name.

    Args:
        data: "drawn" for `drawn_faces` faces made by `fer_keras.drawn` with seed 0, kept in the user's cache folder;
            the folder of a set made by `fer_keras.convert`; otherwise FER2013, see `fer_keras.data.load_fer2013`.
        drawn_faces: how many faces to draw.
        dataset: "fer2013", or "folder": `data` is a folder of one's own faces, in one folder for each class, which is
            converted into the cache first (`fer_keras.convert`).
        class_map: with "folder", names of its folders and the class each stands for; others keep their names.
        num_classes: 7, or 8 with contempt, of FER2013's classes; 0 takes what the source has.
        color: "grey", "rgb" (grey faces get three equal channels), or "" for what the source has.
        labels: "fer2013", or "ferplus" for a run that `fer_keras.ferplus.relabel` gives the labels of `ferplus_csv`:
            then there are eight classes.
        ferplus_csv: FER+'s `fer2013new.csv`.
        auxiliary: one of `AUXILIARY`, whose faces train, too: they follow the others, with the name as their usage, and
            "test_<name>" where they are held out.
        affectnet, expw: folders of converted sets.

    Returns:
        `Faces`. Its fingerprint is that of `data`, followed by "+<name>:" and that of what adds to it.

    Raises:
        ValueError: if a value is unknown or a path is needed and empty.
    """
    for name, value, choices in (
        ("dataset", dataset, DATASETS),
        ("labels", labels, LABELS),
        ("color", color, ("", *COLORS)),
        ("auxiliary", auxiliary, ("", *AUXILIARY)),
        ("num_classes", num_classes, (0, 7, 8)),
    ):
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {value!r}")
    if labels == "ferplus" and (auxiliary or dataset != "fer2013"):
        raise ValueError("FER+ has labels for FER2013's faces only: `labels: ferplus` goes without other data sets.")
    faces = _load_one(data, drawn_faces, dataset, class_map, color)
    if labels == "ferplus":
        faces = replace(
            faces,
            fingerprint=f"{faces.fingerprint}+ferplus:{ferplus.fingerprint(_needed('ferplus_csv', ferplus_csv))}",
        )
        num_classes = 8
    if faces.class_names in (CLASS_NAMES, EIGHT) or num_classes == 8:  # other classes stay as they are
        faces = with_classes(faces, num_classes)
    faces = in_color(faces, color)
    if auxiliary:
        other = _load_auxiliary(auxiliary, {"affectnet": affectnet, "expw": expw}, drawn_faces)
        faces = join(faces, other, auxiliary)
    if num_classes == 8 and labels != "ferplus" and not (faces.labels == 7).any():
        raise ValueError(
            "`num_classes: 8` needs faces of contempt, and there are none. Add a data set that has some: AffectNet, "
            "converted with --contempt."
        )
    return faces


def _load_one(data, drawn_faces, dataset, class_map, color):
    if not str(data):
        raise ValueError("Say where the faces are: `data` must be the path of fer2013.csv or of its image folder.")
    if dataset == "folder":
        return _load_folder(Path(data).expanduser(), class_map or {}, color)
    if str(data) != "drawn":
        return convert.load(data) if convert.is_converted(data) else load_fer2013(data)
    return _load_drawn(drawn_faces)


def _load_drawn(drawn_faces, seed=0, contempt=False):
    name = f"drawn-{drawn_faces}-{seed}" if contempt else f"drawn-{drawn_faces}"
    kept = cache_folder() / f"{name}-{drawn.fingerprint(drawn_faces, seed, contempt)[:16]}"
    if (faces := read_cache(kept)) is None:
        faces = drawn.draw(drawn_faces, seed, contempt)
        write_cache(kept, faces)
    return replace(faces, class_names=EIGHT if contempt else CLASS_NAMES)


def _load_folder(folder, class_map, color):
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. `dataset: folder` needs one folder for each class.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    options = {"class_map": dict(class_map), "color": color or "grey"}
    name = hashlib.sha256(f"{folder.resolve()} {sorted(options['class_map'].items())} {color}".encode()).hexdigest()
    kept = cache_folder() / f"folder-{name[:16]}-{stamp_of(folder, files)[:16]}"
    for old in cache_folder().glob(f"folder-{name[:16]}-*"):  # of what the folder was before
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    return convert.convert("folder", folder, kept, **options)


def _needed(name, path):
    if not str(path):
        raise ValueError(f"This run needs the parameter `{name}`: the path of {NEEDS[name]}.")
    return path


# What is at the end of a path that only some runs need.
NEEDS = {
    "ferplus_csv": "FER+'s fer2013new.csv",
    "affectnet": "AffectNet as `fer-keras data convert affectnet` leaves it",
    "expw": "ExpW as `fer-keras data convert expw` leaves it",
    "checkpoint": "the PyTorch checkpoint to import",
}


def needed(params: Mapping) -> str:
    """The parameter that must say where a file is, without which this run cannot be; "" if it needs none."""
    if "checkpoint" in params:
        return "checkpoint"
    if params.get("labels") == "ferplus":
        return "ferplus_csv"
    return params["auxiliary"] if params.get("auxiliary") in NEEDS else ""


def lacks(params: Mapping) -> str:
    """What this run needs and does not have, for the sentence "needs …"; "" if it has all."""
    name = needed(params)
    if not name:
        return ""
    path = params.get(name)
    if not path:
        return f"{name}=PATH"
    if name in AUXILIARY and convert.is_converted(path):
        info = convert.read_info(path)
        if params.get("num_classes") == 8 and EIGHT[-1] not in info["class_names"]:
            return f"{name} converted with --contempt"
        if params.get("color") == "rgb" and info["options"]["color"] != "rgb":
            return f"{name} converted with --color rgb"
    return ""


def name_of(params: Mapping) -> str:
    """What the faces of a run are called: "fer2013", "drawn", "folder", or the kind of a converted set."""
    data = str(params["data"])
    if data == "drawn" or not convert.is_converted(data):
        return "drawn" if data == "drawn" else params.get("dataset", "fer2013")
    return convert.read_info(data)["kind"]


def _load_auxiliary(name, paths, drawn_faces):
    if name == "drawn":
        return _load_drawn(drawn_faces, seed=1, contempt=True)
    path = _needed(name, paths.get(name, ""))
    if not convert.is_converted(path):
        raise ValueError(
            f"{path} holds no converted data set. Convert it first: fer-keras data convert {name} SOURCE {path}"
        )
    if (kind := convert.read_info(path)["kind"]) != name:
        raise ValueError(f"{path} holds a converted {kind}, and is given as {name}.")
    return convert.load(path)


def with_classes(faces: Faces, num_classes: int) -> Faces:
    """The faces under seven or eight class names; contempt, the eighth, is left out of seven.

    Args:
        num_classes: 7, 8, or 0 for what there is.
    """
    if not num_classes or len(faces.class_names) == num_classes:
        return faces
    if faces.class_names not in (CLASS_NAMES, EIGHT):
        raise ValueError(
            f"`num_classes: {num_classes}` is for FER2013's classes and contempt. These faces have "
            f"{len(faces.class_names)}: {', '.join(faces.class_names)}."
        )
    if num_classes == 8:
        return replace(faces, class_names=EIGHT)
    seven = faces.take(faces.labels < len(CLASS_NAMES))
    note = f"{len(faces) - len(seven):,} faces of contempt are left out: `num_classes` is 7."
    return replace(seven, class_names=CLASS_NAMES, notes=(*faces.notes, note))


def in_color(faces: Faces, color: str) -> Faces:
    """The faces with one channel ("grey", by luminance) or three ("rgb"); "" leaves them as they are."""
    channels = COLORS[color] if color else faces.images.shape[-1]
    if channels == faces.images.shape[-1]:
        return faces
    if channels == 3:
        return replace(faces, images=np.repeat(faces.images, 3, axis=-1))
    grey = np.empty((*faces.images.shape[:-1], 1), "uint8")
    for start in range(0, len(faces), 4096):  # bounded memory
        part = slice(start, start + 4096)
        grey[part, ..., 0] = np.rint(faces.images[part] @ LUMINANCE)
    return replace(faces, images=grey)


def join(faces: Faces, other: Faces, name: str) -> Faces:
    """Put the faces of another data set behind these.

    Args:
        faces: the source whose split a run uses.
        other: a set with a split of its own, of equal height and width; brought to the channels and classes of `faces`
            by name. Its PrivateTest faces are held out, all others are there to train.
        name: their usage will be `name`, that of the held-out ones "test_<name>".

    Raises:
        ValueError: if the sizes differ, or no class is common.
    """
    if faces.images.shape[1:3] != other.images.shape[1:3]:
        (height, width), (other_height, other_width) = faces.images.shape[1:3], other.images.shape[1:3]
        raise ValueError(
            f"The faces of {name} have {other_width}×{other_height} pixels, and the others {width}×{height}. "
            f"Convert them again with --image-size {height}."
        )
    code = np.array([faces.class_names.index(n) if n in faces.class_names else -1 for n in other.class_names])
    if (code < 0).all():
        raise ValueError(
            f"{name} has the classes {', '.join(other.class_names)}, none of {', '.join(faces.class_names)}."
        )
    kept = np.flatnonzero(code[other.labels] >= 0)
    other = other.take(kept) if len(kept) < len(other) else other
    notes = other.notes
    if faces.images.shape[-1] > other.images.shape[-1]:
        notes = (*notes, f"The faces of {name} are grey, so their three channels are equal.")
    other = in_color(other, {1: "grey", 3: "rgb"}[faces.images.shape[-1]])
    usage = np.where(other.usage == USAGES[2], f"test_{name}", name)
    if len(other) and other.rows.max() >= ROWS:
        raise ValueError(f"{name} has more than {ROWS:,} faces, more than can join others.")
    # Every data set has row numbers of its own, so that runs with different ones can be told apart.
    first = (int(faces.rows.max()) // ROWS + 1 + AUXILIARY.index(name)) * ROWS
    moved = replace(other, labels=code[other.labels], usage=usage, rows=other.rows + first)
    joined = concatenate([faces, moved])
    return replace(joined, fingerprint=f"{faces.fingerprint}+{name}:{other.fingerprint}", notes=(*faces.notes, *notes))


def fingerprint_of(params: Mapping, own: str | None = None) -> str:
    """The fingerprint of what `load_for` returns, without drawing or joining faces.

    Args:
        own: that of `data` itself, if it is known.
    """
    given = {"drawn_faces": 2800, **_chosen(params)}
    if own is None:
        drawn_too = str(given["data"]) == "drawn"
        own = drawn.fingerprint(given["drawn_faces"]) if drawn_too else load(**_only(given)).fingerprint
    found = own
    if given.get("labels") == "ferplus":
        found += f"+ferplus:{ferplus.fingerprint(_needed('ferplus_csv', given.get('ferplus_csv', '')))}"
    if given.get("auxiliary") == "drawn":
        found += f"+drawn:{drawn.fingerprint(given['drawn_faces'], 1, contempt=True)}"
    elif name := given.get("auxiliary"):
        found += f"+{name}:{_load_auxiliary(name, given, 0).fingerprint}"
    return found


def _only(given):
    """Of a run's parameters, those of `data` itself."""
    return {name: given[name] for name in ("data", "drawn_faces", "dataset", "class_map", "color") if name in given}
