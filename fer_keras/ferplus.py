"""FER+'s ten votes a face: a second opinion on FER2013's labels, and labels to train with.

FER+ (`fer2013new.csv`) has one line for each face of FER2013, in the same order, without the pictures. Its image
numbers skip rows, so lines are joined by order, and the usage of every line is checked.

Reference:
    Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution",
    ICMI 2016, arXiv 1608.01041.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fer_keras.data import CLASS_NAMES, Faces
from fer_keras.duplicates import FER2013_ROWS, rows_hash

# FER+'s columns, in its order, and the names that FER2013 has for them; the last three FER2013 does not know.
VOTES = {
    "neutral": "neutral",
    "happiness": "happy",
    "surprise": "surprise",
    "sadness": "sad",
    "anger": "angry",
    "disgust": "disgust",
    "fear": "fear",
    "contempt": "contempt",
    "unknown": "unknown",
    "NF": "not a face",
}
# The opinions, in the order of tables: FER2013's classes first, then what only FER+ has, and ties.
OPINIONS = (*CLASS_NAMES, "contempt", "unknown", "not a face", "no majority")

# How votes become what a face is trained with, as in section 3 of the paper and in its authors' code.
MODES = {
    "majority": "the class with more than half of the votes; other faces are left out",
    "probability": "a class drawn anew in every epoch, as often as it got votes",
    "crossentropy": "the distribution of the votes",
}


def load_votes(path: str | Path, faces: Faces) -> np.ndarray:
    """Read FER+'s votes for these faces.

    Args:
        path: FER+'s `fer2013new.csv`.
        faces: all faces of FER2013, in Kaggle's order.

    Returns:
        int64 (n, 10), votes in the order of `VOTES`; ten a face, and eleven of one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column or a line is missing or too many, the lines are not in FER+'s order or about faces of
            another usage, or the faces are not FER2013's.
    """
    if rows_hash(faces) != FER2013_ROWS:
        raise ValueError("FER+ is about FER2013's faces in Kaggle's order, and these are not: labels or usages differ.")
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. FER+'s votes come as fer2013new.csv.")
    table = pd.read_csv(path)
    if missing := [name for name in ("Usage", "Image name", *VOTES) if name not in table]:
        raise ValueError(f"{path} has no column {', '.join(missing)}. Expected FER+'s fer2013new.csv.")
    if len(table) != len(faces):
        raise ValueError(
            f"{path} has {len(table):,} lines and there are {len(faces):,} faces. The lines are joined by their order, "
            "so there must be one for each face of FER2013."
        )
    differ = np.flatnonzero(table["Usage"].to_numpy(str) != faces.usage)
    if len(differ):
        at = differ[0]
        raise ValueError(
            f"{path}, line {at + 2}: Usage {table['Usage'][at]!r}, but that face has {faces.usage[at]!r}. The lines "
            "are joined by their order: a line may be missing before, or the faces are not in Kaggle's order."
        )
    numbers = table["Image name"].dropna().str.extract(r"(\d+)")[0].astype(int)
    if (numbers.diff() < 0).mean() > 0.001:  # FER+'s own file has four numbers out of order
        raise ValueError(f"{path}: the image names are not in FER+'s order, by which its lines are joined.")
    votes = table[list(VOTES)]
    if not all(pd.api.types.is_integer_dtype(kind) for kind in votes.dtypes) or (votes < 0).any(axis=None):
        raise ValueError(f"{path}: the votes must be whole numbers from 0.")
    return votes.to_numpy("int64")


def majority(votes: np.ndarray) -> np.ndarray:
    """The opinion with the most votes for each face, str (n,); "no majority" where two have as many."""
    names = np.array(list(VOTES.values()))
    most = votes.max(axis=1)
    return np.where((votes == most[:, None]).sum(axis=1) > 1, "no majority", names[votes.argmax(axis=1)])


def confusion(labels: np.ndarray, votes: np.ndarray) -> pd.DataFrame:
    """How many faces of each of FER2013's classes (rows) got each of FER+'s majorities (columns)."""
    ours = pd.Categorical.from_codes(labels, CLASS_NAMES)
    theirs = pd.Categorical(majority(votes), OPINIONS)
    return pd.crosstab(ours, theirs, dropna=False, rownames=["FER2013"], colnames=["FER+"])


def agreement(labels: np.ndarray, votes: np.ndarray) -> pd.DataFrame:
    """Agreement of FER2013's labels with FER+, for each class and for all.

    Returns:
        faces; agree (share whose majority is FER2013's label); votes (mean share of the votes that FER2013's label
        got); not a face (count).
    """
    columns = np.array([list(VOTES.values()).index(name) for name in CLASS_NAMES])
    share = votes[np.arange(len(labels)), columns[labels]] / np.maximum(votes.sum(axis=1), 1)
    opinion = majority(votes)
    faces = pd.DataFrame(
        {
            "class": np.array(CLASS_NAMES)[labels],
            "agree": opinion == np.array(CLASS_NAMES)[labels],
            "votes": share,
            "not a face": opinion == "not a face",
        }
    )
    both = pd.concat([faces, faces.assign(**{"class": "all"})]).groupby("class")
    counted = {"faces": ("agree", "size"), "agree": ("agree", "mean"), "votes": ("votes", "mean")}
    return both.agg(**counted, **{"not a face": ("not a face", "sum")}).reindex([*CLASS_NAMES, "all"])


# --- Labels to train with ---------------------------------------------------------------------------------------------


def fingerprint(path: str | Path) -> str:
    """SHA-256 of FER+'s file.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. FER+'s votes come as fer2013new.csv.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def distribution(votes: np.ndarray, mode: str) -> np.ndarray:
    """The share of each of the eight expressions, by the rules of the paper's authors.

    Single votes do not count. "majority" asks for more than half of the votes; "probability" and "crossentropy" take
    the most frequent opinions, and those equal to one of them, until they hold three quarters of the votes, at most
    three, and ask for more than half. A face whose first opinion is "unknown" or "not a face" has no expression.

    Args:
        votes: int (n, 10), in the order of `VOTES`.
        mode: a key of `MODES`.

    Returns:
        float32 (n, 8), in the order of FER2013's classes with contempt at the end; each row has the sum 1, or all zeros
        if the face is to be left out.

    Raises:
        ValueError: on an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"`ferplus_mode` must be one of {', '.join(MODES)}. Received: {mode!r}")
    votes = np.where(votes > 1, votes, 0).astype("float64")
    total = votes.sum(axis=1)
    if mode == "majority":
        best = votes.argmax(axis=1)
        kept = np.zeros_like(votes)
        at = np.flatnonzero(votes.max(axis=1) > total / 2)
        kept[at, best[at]] = 1
    else:
        kept = np.array([_first_opinions(row) for row in votes]).reshape(votes.shape)
    names = list(VOTES.values())
    expressions = kept[:, [names.index(name) for name in (*CLASS_NAMES, "contempt")]]
    sums = expressions.sum(axis=1, keepdims=True)
    return np.divide(expressions, sums, out=np.zeros_like(expressions), where=sums > 0).astype("float32")


def _first_opinions(votes):
    """The votes of the most frequent opinions of one face, all zeros if they do not make an expression."""
    left, kept, count = votes.copy(), np.zeros_like(votes), 0
    while kept.sum() < 0.75 * votes.sum() and count < 3:
        equal = np.flatnonzero(left == left.max())
        for opinion in equal:
            if opinion >= 8:  # "unknown" or "not a face": nothing after it counts, and alone it is no expression
                return kept if kept.any() and kept.sum() > votes.sum() / 2 and count <= 3 else np.zeros_like(votes)
            kept[opinion], left[opinion] = votes[opinion], 0
            count += 1
    return kept if kept.sum() > votes.sum() / 2 and count <= 3 else np.zeros_like(votes)


def relabeller(path: str | Path, faces: Faces, mode: str):
    """What gives the faces of a role FER+'s labels, for `fer_keras.roles.assign_roles`.

    The paper's authors validate and test with "majority" whichever mode trains, and so does this.

    Args:
        path: FER+'s `fer2013new.csv`.
        faces: all faces of FER2013.
        mode: a key of `MODES`, for those that train.
    """
    votes = load_votes(path, faces)
    distribution(votes[:0], mode)  # refuses an unknown mode before anything else is done
    return lambda part, role: relabel(part, votes, mode if role == "train" else "majority")


def relabel(faces: Faces, votes: np.ndarray, mode: str = "majority") -> Faces:
    """Give faces FER+'s labels, without those that have none by its rules.

    Args:
        faces: of FER2013, with its row ids, under eight class names.
        votes: int (35,887, 10), of all rows, from `load_votes`.
        mode: a key of `MODES`.

    Returns:
        `Faces` with the most frequent expression as label and, except for "majority", the distribution as `targets`.
    """
    shares = distribution(votes[faces.rows], mode)
    kept = np.flatnonzero(shares.any(axis=1))
    faces, shares = faces.take(kept), shares[kept]
    labels = shares.argmax(axis=1)
    return replace(faces, labels=labels, targets=None if mode == "majority" else shares)
