"""The leak audit: which of the faces that were scored had been seen in training, and what that is worth.

A scored face is *touched* if it trained the run, or a run that this one comes from, or has a near-duplicate that did.
Whether two faces show the same person is unknown: none of these data sets says.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from fer_keras import convert, data, duplicates, run
from fer_keras.data import CLASS_NAMES, Faces
from fer_keras.evaluate import percent, score, score_by, wilson

# How a scored face was seen, the most certain first, in words that fit a table's cell. All but the last two are by the
# run itself (or its members).
TOUCHES = {
    "identical": "it trained, or a face with equal pixels did",
    "synthetic": "one was made from the other, or both from one",
    "near": "the same picture trained, at another contrast",
    "shifted": "the same picture trained, moved",
    "mirrored": "its mirror image trained",
    "ancestor": "all this by a run that this one starts from",
    "untouched": "nothing like it trained",
}


def touches(scored: Faces, themselves: np.ndarray, parents: np.ndarray, faces: Faces) -> tuple[np.ndarray, np.ndarray]:
    """How each scored face was seen by a training.

    Args:
        scored: original, copied or synthetic faces.
        themselves: rows of the source that trained.
        parents: rows of the source between which the synthetic faces lie that trained.
        faces: all faces of the source.

    Returns:
        Keys of `TOUCHES`, without "ancestor", str (n,); and, of the faces that did not train themselves, the label of
        the most alike duplicate that did, int (n,), −1 without one.
    """
    found, twin = np.full(len(scored), "untouched", dtype="U9"), np.full(len(scored), -1)
    rows = np.union1d(themselves, parents)
    found[np.isin(scored.rows, parents)] = "synthetic"
    found[(scored.rows < 0) & np.isin(scored.parents, rows).any(axis=1)] = "synthetic"
    found[np.isin(scored.rows, themselves)] = "identical"
    # Whether a synthetic face, or one that trained, looks like others, too, changes nothing.
    rest = np.flatnonzero((found != "identical") & (scored.rows >= 0))
    trained = faces.take(np.isin(faces.rows, rows))
    if len(rest) and len(trained):
        pairs = duplicates.best(duplicates.find(scored.take(rest), trained))
        at, kinds = rest[pairs["first"]], pairs["kind"].astype(str).to_numpy()
        itself = np.isin(pairs["second_row"], themselves)
        kinds[(kinds == "identical") & ~itself] = "synthetic"  # equal to a face that was only a parent
        twin[at[itself]] = pairs["second_label"][itself]
        kept = (found[at] == "synthetic") & (kinds != "identical")  # what is known comes before what looks alike
        found[at[~kept]] = kinds[~kept]
    return found, twin


def audit(folder: Path, faces: Faces) -> dict:
    """Audit a finished run, for `metrics.json`.

    Args:
        folder: the run's, with `rows.npz` and `predictions.npz`.
        faces: all faces of the source.

    Returns:
        trained: the runs that count, and how many rows of the source trained this run (or its members), and these and
        its ancestors; threshold; per set other than `train`: n, touched (share of all but "untouched"), top1 of each
        kind of touch (n, top1, interval), of `all_touched` and `untouched`; untouched: the balanced accuracy of these
        (n, balanced_accuracy, interval); and labels: of the faces that did not train
        themselves and have a duplicate that did, the share whose label differs from that of the most alike one, with
        its interval, and `ceiling`: the top-1 of answering with that label.
        `same_person` is "unknown".
    """
    own, lineage = run.members(folder), run.trainings(folder)
    before = [path for path in lineage if path not in own]
    trained, older = run.trained_rows(own), run.trained_rows(before)
    faces = run.with_trained_labels(faces, own)  # which may be others than the source's
    result: dict = {
        "trained": {
            "runs": [
                path.parent.name if path.name == folder.name else f"{path.parent.name}/{path.name}" for path in lineage
            ],
            "rows": len(np.union1d(*trained)),
            "rows_with_ancestors": len(np.unique(np.concatenate([*trained, *older]))),
        },
        "threshold": duplicates.THRESHOLD,
        "same_person": "unknown",
        "sets": {},
    }
    _, predictions = run.read_predictions(folder)
    for name, scored in run.load_roles(folder, faces, without=["train"]).items():
        kinds, twin = touches(scored, *trained, faces)
        rest = np.flatnonzero(kinds == "untouched")
        if before and len(rest):
            earlier, _ = touches(scored.take(rest), *older, faces)
            kinds[rest[earlier != "untouched"]] = "ancestor"
        result["sets"][name] = _worth(scored, kinds, twin, predictions[name])
    return result


def _worth(scored: Faces, kinds, twin, predicted) -> dict:
    labels, probabilities = predicted.labels, predicted.probabilities
    new = kinds == "untouched"
    seen = np.where(new, "untouched", "all_touched")
    other = twin >= 0
    n, differ = int(other.sum()), int((twin[other] != scored.labels[other]).sum())
    return {
        "n": len(scored),
        "touched": float(np.mean(~new)),
        "top1": score_by(labels, probabilities, kinds, list(TOUCHES))
        | score_by(labels, probabilities, seen, ["all_touched"]),
        "untouched": _balanced(labels[new], probabilities[new], scored.class_names),
        "labels": {"n": n, "differ": differ / n, "interval": wilson(differ, n), "ceiling": 1 - differ / n} if n else {},
    }


def _balanced(labels, probabilities, class_names) -> dict:
    if not len(labels):
        return {}
    scores = score(labels, probabilities, class_names)
    interval = scores["intervals"]["balanced_accuracy"]
    return {"n": len(labels), "balanced_accuracy": scores["balanced_accuracy"], "interval": interval}


def table(found: Mapping):
    """The audit of one set as a table for readers: how many faces of each kind of touch, and top-1 on them."""
    names = {**TOUCHES, "all_touched": "all that had been seen in some way"}
    rows = {
        name.replace("_", " "): {
            "faces": f"{scores['n']:,}",
            "share %": percent(scores["n"] / found["n"]),
            "top-1 %": percent(scores["top1"], scores["interval"]),
            "what it means": names[name],
        }
        for name, scores in found["top1"].items()
    }
    return pd.DataFrame(rows).T


def sentences(found: Mapping, name: str = "test") -> str:
    """What the audit of one set means, in sentences computed from it."""
    part = found["sets"][name]
    top1 = part["top1"]
    lines = [
        f"{percent(part['touched'])} % of the {part['n']:,} {name} faces are touched by what trained "
        f"({found['trained']['rows_with_ancestors']:,} faces, over {', '.join(found['trained']['runs'])})."
    ]
    if "all_touched" in top1 and "untouched" in top1:
        seen, new = (percent(top1[name]["top1"], top1[name]["interval"]) for name in ("all_touched", "untouched"))
        lines.append(f"Top-1 on the touched ones is {seen} %, on the others {new} %.")
    if balanced := part.get("untouched"):  # audits of before lack it
        new = percent(balanced["balanced_accuracy"], balanced["interval"])
        lines[-1] += f" Balanced accuracy on those that are not touched is {new} %."
    if labels := part["labels"]:
        lines.append(
            f"{labels['n']:,} did not train themselves and have a duplicate that did; "
            f"{percent(labels['differ'], labels['interval'])} % of them carry another label than it, so answering "
            f"from memory has {percent(labels['ceiling'])} % of these right."
        )
    lines.append("Whether the same person is in both is unknown.")
    return "\n".join(lines)


# --- Other people's data --------------------------------------------------------------------------------------------


def load(path: str, size: int = 48, resize: bool = True, progress: bool = False) -> Faces:
    """Load faces from any folder of images, a converted set, or a CSV file like FER2013's, as grey faces of one size.

    Args:
        path: a folder, looked through with all its subfolders (one named after an expression gives the label); a set
            that `fer-keras data convert` wrote; or a CSV file with a column `pixels` of square faces, and optionally
            `emotion` and `Usage`. `PATH:USAGE` takes the rows of one usage, e.g. `fer2013.csv:Training`.
        size: height and width to bring all faces to.
        resize: whether to resize faces of another size; a note says how many. Otherwise they are refused.
        progress: show a bar.

    Returns:
        `Faces`; labels are −1 where they are not known, and rows count files in the order of their names.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if there are no faces, or a face cannot be read, or has another size and `resize` is false.
    """
    if size < 8:
        raise ValueError(f"`size` must be at least 8 pixels. Received: {size}")
    file, _, usage = path.rpartition(":")
    if not file or Path(path).expanduser().exists():
        file, usage = path, ""
    where = Path(file).expanduser()
    if not where.exists():
        raise FileNotFoundError(f"There is no file or folder {where}. Give a folder of images or a CSV file.")
    if convert.is_converted(where):
        return _part(_load_converted(where, size, resize), usage, where)
    if where.is_dir():
        if usage:
            raise ValueError(f"{where} is a folder: it has no usage {usage!r}. Name the folder inside it.")
        return _load_folder(where, size, resize, progress)
    return _part(_load_csv(where, size, resize), usage, where)


def _part(faces: Faces, usage: str, where: Path) -> Faces:
    if not usage:
        return faces
    if usage not in faces.usage:
        raise ValueError(f"{where} has no rows of usage {usage!r}. There are: {', '.join(dict.fromkeys(faces.usage))}.")
    return faces.take(faces.usage == usage)


def files_of(folder: str | Path) -> list[Path]:
    """The images of a folder and its subfolders, or of a converted set, in the order of the rows that `load` gives."""
    if convert.is_converted(folder):
        names = (Path(folder).expanduser() / "files.txt").read_bytes().splitlines()
        return [Path(convert.read_info(folder)["source"], os.fsdecode(name)) for name in names]
    paths = Path(folder).expanduser().rglob("*")
    return sorted(path for path in paths if path.suffix.lower() in data.IMAGE_SUFFIXES and path.is_file())


def _load_folder(folder, size, resize, progress):
    from PIL import Image

    files = files_of(folder)
    if not files:
        raise ValueError(f"The folder {folder} holds no PNG or JPEG files.")
    images, labels, resized = [], [], 0
    for path in tqdm(files, desc=f"reading {folder.name}", disable=not progress, ncols=100):
        try:
            with Image.open(path) as image:
                pixels = data.as_uint8_grey(image)
        except Exception as error:  # Pillow raises many kinds on a broken file
            raise ValueError(f"{path} cannot be read as an image: {error}.") from None
        resized += pixels.shape != (size, size)
        images.append(_fit(pixels, size, resize, path))
        name = path.parent.name.lower()
        name = data.ALIASES.get(name, name)
        labels.append(CLASS_NAMES.index(name) if name in CLASS_NAMES else -1)
    return _as_faces(images, labels, [""] * len(files), resized, size)


def _load_converted(folder, size, resize):
    """Its faces as they are if they are grey and of this size: the file stays mapped, and no copy is made."""
    from PIL import Image

    faces = convert.load(folder)
    code = np.array([CLASS_NAMES.index(name) if name in CLASS_NAMES else -1 for name in faces.class_names])
    faces = replace(faces, labels=code[faces.labels], class_names=CLASS_NAMES, notes=())
    if faces.images.shape[1:] == (size, size, 1):
        return faces
    pixels = (np.asarray(Image.fromarray(image.squeeze()).convert("L")) for image in faces.images)
    fitted = [_fit(image, size, resize, f"{folder}, row {row}") for row, image in enumerate(pixels)]
    resized = len(faces) * (faces.images.shape[1:3] != (size, size))
    return _as_faces(fitted, faces.labels, faces.usage, resized, size)


def _load_csv(path, size, resize):
    try:
        faces = data.load_fer2013(path)
        if size == data.IMAGE_SIZE[0]:
            return faces
        images, labels, usage = faces.images[..., 0], faces.labels, faces.usage
    except ValueError:  # not FER2013 itself: another size, or without emotion or Usage
        images, labels, usage = _parse_csv(path)
    resized = sum(image.shape != (size, size) for image in images)
    fitted = [_fit(image, size, resize, f"{path}, line {line}") for line, image in enumerate(images, start=2)]
    return _as_faces(fitted, labels, usage, resized, size)


def _parse_csv(path):
    """Images, labels and usages of a CSV file with square faces of any size."""
    try:
        table = pd.read_csv(path, skipinitialspace=True, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own errors are of this kind
        raise ValueError(f"{path} cannot be read as CSV: {error}") from None
    table.columns = [name.strip().lower() for name in table.columns]
    if "pixels" not in table or not len(table):
        raise ValueError(f"{path} has no rows with a column `pixels`, so it is not like fer2013.csv.")
    images, labels = [], []
    for line, row in enumerate(table["pixels"].str.split(), start=2):
        side = round(len(row) ** 0.5)
        if not row or len(row) != side * side or not all(value.isdigit() and int(value) < 256 for value in row):
            raise ValueError(f"{path}, line {line}: {len(row)} pixels, expected a square number of 0–255.")
        images.append(np.array(row, int).astype("uint8").reshape(side, side))
    for line, text in enumerate(table["emotion"].str.strip() if "emotion" in table else [""] * len(table), start=2):
        if text and not (text.isdigit() and int(text) < len(CLASS_NAMES)):
            raise ValueError(f"{path}, line {line}: emotion {text!r}, expected 0 to 6, or nothing.")
        labels.append(int(text) if text else -1)
    return images, labels, table["usage"].str.strip().to_numpy(str) if "usage" in table else [""] * len(table)


def _fit(pixels, size, resize, where):
    from PIL import Image

    if pixels.shape == (size, size):
        return pixels
    if not resize:
        height, width = pixels.shape
        raise ValueError(f"{where} has {width}×{height} pixels, expected {size}×{size}, and resizing was not wanted.")
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0))


def _as_faces(images, labels, usage, resized, size):
    notes = (f"{resized:,} of {len(images):,} faces were resized to {size}×{size}.",) if resized else ()
    images = np.stack(images)[..., None]
    return Faces(images, np.asarray(labels, "int64"), np.arange(len(images)), np.asarray(usage, "U32"), notes=notes)


def audit_sets(train: Faces, test: Faces, threshold: float = duplicates.THRESHOLD, progress: bool = False):
    """Audit two sets of faces of which nothing is known but their pixels.

    Returns:
        How each test face was seen, str (n,), keys of `TOUCHES`: "synthetic" if it lies between two training faces,
        or is one of two that a training face lies between; and the pairs of `fer_keras.duplicates.find(test, train)`.
    """
    pairs = duplicates.find(test, train, threshold, progress)
    found = np.full(len(test), "untouched", dtype="U9")
    if min(train.labels.min(), test.labels.min()) < 0:  # where labels are not known, any two faces may be parents
        train, test = (replace(faces, labels=np.zeros(len(faces), int)) for faces in (train, test))
    found[duplicates.interpolations(test, train, progress)["position"].astype(int)] = "synthetic"
    made = duplicates.interpolations(train, run.concatenate([test, train]), progress)
    parents = np.unique(made[["first", "second"]].to_numpy(int))
    found[parents[parents < len(test)]] = "synthetic"
    best = duplicates.best(pairs)
    found[best["first"]] = best["kind"].astype(str)
    return found, pairs


def describe(kinds: np.ndarray, pairs: pd.DataFrame) -> str:
    """What `audit_sets` found, in sentences."""
    n, touched = len(kinds), int((kinds != "untouched").sum())
    lines = [
        f"{touched:,} of {n:,} test faces had been seen in training: {percent(touched / n, wilson(touched, n))} %."
    ]
    for kind, meaning in TOUCHES.items():
        if kind != "untouched" and (count := int((kinds == kind).sum())):
            lines.append(f"  {kind:10} {count:7,}   {meaning}")
    known = pairs[(pairs["first_label"] >= 0) & (pairs["second_label"] >= 0)]
    best = duplicates.best(known)
    if len(best):
        differ = int((best["first_label"] != best["second_label"]).sum())
        share = percent(differ / len(best), wilson(differ, len(best)))
        lines.append(f"Of {len(best):,} with a duplicate, {differ:,} carry another label than it: {share} %.")
    lines.append("Whether the same person is in both is unknown.")
    return "\n".join(lines)
