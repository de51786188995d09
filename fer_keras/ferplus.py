"""Label quality: FER+'s ten votes a face as a second opinion on FER2013's labels.

FER+ (`fer2013new.csv`) has one line for each face of FER2013, in the same order, without the pictures. Its image
numbers skip rows, so lines are joined by order, and the usage of every line is checked.

Reference:
    Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution",
    ICMI 2016, arXiv 1608.01041.
"""

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
