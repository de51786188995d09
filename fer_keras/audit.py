"""The leak audit: which of the faces that were scored had been seen in training, and what that is worth.

A scored face is *touched* if it trained the run, or a run that this one comes from, or has a near-duplicate that did.
Whether two faces show the same person is unknown: none of these data sets says.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fer_keras import duplicates, run
from fer_keras.data import Faces
from fer_keras.evaluate import score_by, wilson

# How a scored face was seen, the most certain first. All but the last two are by the run itself (or its members).
TOUCHES = {
    "identical": "it trained, or a face with equal pixels did",
    "synthetic": "one was interpolated from the other, or both from one face",
    "near": "a face that trained is the same picture at another contrast, or nearly",
    "shifted": "a face that trained is the same picture, moved",
    "mirrored": "a face that trained is its mirror image",
    "ancestor": "one of these is true of a run that this one starts from, not of this one",
    "untouched": "nothing like it trained",
}
DUPLICATES = ("identical", "near", "shifted", "mirrored")


def touches(scored: Faces, rows: np.ndarray, faces: Faces) -> tuple[np.ndarray, np.ndarray]:
    """How each scored face was seen by a training on these rows.

    Args:
        scored: original, copied or synthetic faces.
        rows: rows of the source that trained, themselves or as parents of synthetic faces.
        faces: all faces of the source.

    Returns:
        Keys of `TOUCHES`, without "ancestor", str (n,); and the label of the most alike duplicate that trained, int
        (n,), −1 without one.
    """
    found, twin = np.full(len(scored), "untouched", dtype="U9"), np.full(len(scored), -1)
    trained = faces.take(np.isin(faces.rows, rows))
    synthetic = scored.rows < 0
    found[synthetic & np.isin(scored.parents, rows).any(axis=1)] = "synthetic"
    same = np.isin(scored.rows, rows)
    found[same], twin[same] = "identical", scored.labels[same]
    # What is known from the rows needs no comparison of pixels.
    rest = np.flatnonzero(found == "untouched")
    if len(rest) and len(trained):
        pairs = duplicates.find(scored.take(rest), trained)
        pairs = pairs.sort_values(["first", "kind", "similarity"], ascending=[True, True, False])
        best = pairs.drop_duplicates("first")
        found[rest[best["first"]]] = best["kind"].astype(str)
        twin[rest[best["first"]]] = best["second_label"]
    return found, twin


def audit(folder: Path, faces: Faces) -> dict:
    """Audit a finished run, for `metrics.json`.

    Args:
        folder: the run's, with `rows.npz` and `predictions.npz`.
        faces: all faces of the source.

    Returns:
        trained: the runs that count, and how many rows of the source trained this run (or its members), and these and
        its ancestors; threshold; per set other than `train`: n, touched (share of all but "untouched"), top1 of each
        kind of touch (n, top1, interval), of `all_touched` and `untouched`; and labels: of the faces with a duplicate
        that trained under another row, the share whose labels differ, with its interval, and `ceiling`: what remains.
        `same_person` is "unknown".
    """
    own, lineage = run.members(folder), run.trainings(folder)
    rows = {"own": run.trained_rows(own), "all": run.trained_rows(lineage)}
    result: dict = {
        "trained": {
            "runs": [path.parent.name for path in lineage],
            "rows": len(rows["own"]),
            "rows_with_ancestors": len(rows["all"]),
        },
        "threshold": duplicates.THRESHOLD,
        "same_person": "unknown",
        "sets": {},
    }
    _, predictions = run.read_predictions(folder)
    for name, scored in run.load_roles(folder, faces, without=["train"]).items():
        kinds, twin = touches(scored, rows["own"], faces)
        rest = np.flatnonzero(kinds == "untouched")
        if len(rows["all"]) > len(rows["own"]) and len(rest):
            before, _ = touches(scored.take(rest), np.setdiff1d(rows["all"], rows["own"]), faces)
            kinds[rest[before != "untouched"]] = "ancestor"
        result["sets"][name] = _worth(scored, kinds, twin, predictions[name], rows["own"])
    return result


def _worth(scored: Faces, kinds, twin, predicted, rows) -> dict:
    labels, probabilities = predicted.labels, predicted.probabilities
    seen = np.where(kinds == "untouched", "untouched", "all_touched")
    # Of a face that trained itself, its own label is no second opinion.
    other = (twin >= 0) & ~np.isin(scored.rows, rows)
    n, differ = int(other.sum()), int((twin[other] != scored.labels[other]).sum())
    return {
        "n": len(scored),
        "touched": float(np.mean(kinds != "untouched")),
        "top1": score_by(labels, probabilities, kinds, list(TOUCHES))
        | score_by(labels, probabilities, seen, ["all_touched"]),
        "labels": {"n": n, "differ": differ / n, "interval": wilson(differ, n), "ceiling": 1 - differ / n} if n else {},
    }


def table(found: Mapping):
    """The audit of one set as a table for readers: how many faces of each kind of touch, and top-1 on them."""
    import pandas as pd

    from fer_keras.evaluate import percent

    names = {**TOUCHES, "all_touched": "all of these but the last"}
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
    from fer_keras.evaluate import percent

    part = found["sets"][name]
    top1 = part["top1"]
    lines = [
        f"{percent(part['touched'])} % of the {part['n']:,} {name} faces are touched by what trained "
        f"({found['trained']['rows_with_ancestors']:,} faces, over {', '.join(found['trained']['runs'])})."
    ]
    if "all_touched" in top1 and "untouched" in top1:
        seen, new = (percent(top1[name]["top1"], top1[name]["interval"]) for name in ("all_touched", "untouched"))
        lines.append(f"Top-1 on the touched ones is {seen} %, on the others {new} %.")
    if labels := part["labels"]:
        lines.append(
            f"{labels['n']:,} have a duplicate that trained under another row; "
            f"{percent(labels['differ'], labels['interval'])} % of them carry another label than it, so whoever "
            f"answers from memory has at most {percent(labels['ceiling'])} % of these right."
        )
    lines.append("Whether the same person is in both is unknown.")
    return "\n".join(lines)
