"""Scores: what a model says about faces, and what that is worth.

Metrics come from scikit-learn where it has them, intervals from SciPy and a seeded bootstrap.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from fer_keras.data import CLASS_NAMES

TTA = ("none", "flip", "ten_crop")
BOOTSTRAP_SAMPLES = 2000
# Names for readers, in the order of tables; those of the main ones come with intervals.
LABELS = {
    "top1": "top-1 %",
    "top2": "top-2 %",
    "top3": "top-3 %",
    "balanced_accuracy": "balanced accuracy %",
    "f1_macro": "macro F1 %",
}
MAIN = ("top1", "balanced_accuracy")


def predict(model, images: np.ndarray, tta: str = "none", crop: int = 0, batch_size: int = 256) -> np.ndarray:
    """Class probabilities of faces, averaged over the views of test-time augmentation.

    Args:
        model: a Keras model from uint8 faces to probabilities.
        images: uint8 (n, height, width, channels), 0–255.
        tta: "none"; "flip", the face and its mirror image; "ten_crop", four corners and the centre, each also mirrored.
        crop: side of the central square that the model sees, 0 for the whole face.
        batch_size: faces in a step; bounds the memory.

    Returns:
        float32 (n, num_classes).

    Raises:
        ValueError: on an unknown `tta`, or "ten_crop" for a model that was not trained with `crop`.
    """
    check_tta(tta, crop)
    step = batch_size * 16
    return np.concatenate(
        [
            np.mean([model.predict(v, batch_size=batch_size, verbose=0) for v in _views(part, tta, crop)], axis=0)
            for part in (images[start : start + step] for start in range(0, len(images), step))
        ]
    )


def check_tta(tta: str, crop: int) -> None:
    """Check a choice of test-time augmentation; see `predict`."""
    if tta not in TTA:
        raise ValueError(f"`tta` must be one of {', '.join(TTA)}. Received: {tta!r}")
    if tta == "ten_crop" and not crop:
        raise ValueError(
            "`tta: ten_crop` needs a model trained with `crop` (40 for 48×48 faces); this one sees the whole face. "
            "Use `tta: flip`."
        )


def _views(images, tta, crop):
    if tta == "none":
        return [images]
    shifts = [(0, 0)]
    if tta == "ten_crop":
        # The model crops the centre: moving the face by the border's width puts a corner there.
        y, x = ((side - crop) // 2 for side in images.shape[1:3])
        shifts += [(y, x), (y, -x), (-y, x), (-y, -x)]
    moved = [np.roll(images, shift, axis=(1, 2)) for shift in shifts]  # what wraps around is outside the crop
    return moved + [view[:, :, ::-1] for view in moved]


def score(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str] = CLASS_NAMES) -> dict:
    """All metrics of one set of faces, as `metrics.json` has them.

    Args:
        labels: int (n,), the true classes.
        probabilities: float (n, num_classes), rows summing to 1.
        class_names: in the order of the columns.

    Returns:
        n, top1, top2, top3, balanced_accuracy (mean recall over the classes present), f1_macro, log_loss,
        calibration_error, per_class (precision, recall, f1, support), confusion_matrix (rows are true), and intervals:
        95 % intervals of top1–3 (Wilson), balanced_accuracy and f1_macro (bootstrap). Shares are 0–1.

    Raises:
        ValueError: if the shapes do not fit, or there are no faces.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, "float64")
    codes = np.arange(len(class_names))
    if len(labels) == 0 or probabilities.shape != (len(labels), len(codes)):
        raise ValueError(
            f"`probabilities` must be ({len(labels)}, {len(codes)}) for {len(labels)} labels and {len(codes)} classes, "
            f"with at least one row. Received: {probabilities.shape}"
        )
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, labels=codes)
    present = np.unique(labels)
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=codes, zero_division=0.0)
    result = {"n": len(labels), "top1": float(accuracy_score(labels, predicted))}
    for k in (2, 3):
        if k < len(codes):
            result[f"top{k}"] = float(top_k_accuracy_score(labels, _break_ties(probabilities), k=k, labels=codes))
    result |= {
        # scikit-learn warns when a class was predicted that is not there; its mean over present classes is meant.
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted))
        if set(predicted) <= set(present)
        else float(recall[present].mean()),
        "f1_macro": float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0.0)),
        "log_loss": float(log_loss(labels, probabilities, labels=codes)),
        "calibration_error": calibration_error(labels, probabilities),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in zip(class_names, precision, recall, f1, support, strict=True)
        },
        "confusion_matrix": matrix.tolist(),
    }
    result["intervals"] = {
        name: wilson(round(value * len(labels)), len(labels)) for name, value in result.items() if name[:3] == "top"
    } | bootstrap(matrix)
    return result


def _break_ties(probabilities):
    """Ranks in which the lower class wins a tie, as with argmax: a tie must not count as correct for both."""
    ranks = np.argsort(np.argsort(-probabilities, axis=1, kind="stable"), axis=1)
    return -ranks.astype("float64")


def wilson(successes: int, n: int, confidence: float = 0.95) -> list[float]:
    """Wilson's interval of a share (Wilson 1927), from SciPy."""
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return [float(interval.low), float(interval.high)]


def bootstrap(matrix: np.ndarray, confidence: float = 0.95, random_state: int = 0) -> dict[str, list[float]]:
    """Percentile bootstrap intervals of balanced accuracy and macro F1 (Efron 1979).

    Drawing faces with replacement is drawing the cells of the confusion matrix from a multinomial.

    Args:
        matrix: int (num_classes, num_classes), rows are true.
    """
    n, size = int(matrix.sum()), len(matrix)
    rng = np.random.default_rng(random_state)
    drawn = rng.multinomial(n, matrix.ravel() / n, BOOTSTRAP_SAMPLES).reshape(-1, size, size)
    hits, true, predicted = np.diagonal(drawn, axis1=1, axis2=2), drawn.sum(axis=2), drawn.sum(axis=1)
    with np.errstate(invalid="ignore"):
        recall, f1 = hits / true, 2 * hits / (true + predicted)
    f1[true == 0] = np.nan  # the means are over the classes present, as in `score`
    samples = {"balanced_accuracy": np.nanmean(recall, axis=1), "f1_macro": np.nanmean(f1, axis=1)}
    tail = (1 - confidence) / 2
    return {name: [float(v) for v in np.quantile(values, [tail, 1 - tail])] for name, values in samples.items()}


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Confidence and accuracy of the faces in equal bins of confidence, the probability of the predicted class.

    Returns:
        One row for each bin that has faces: n, confidence and accuracy (means, 0–1).
    """
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    faces = pd.DataFrame({"bin": index, "confidence": confidence, "accuracy": hit})
    return faces.groupby("bin").agg(
        n=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy, over equal bins of confidence.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599.
    """
    found = reliability(labels, probabilities, bins)
    return float(np.average(np.abs(found["accuracy"] - found["confidence"]), weights=found["n"]))


def score_by(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, names: Sequence[str]
) -> dict[str, dict]:
    """Top-1 of groups of faces apart, e.g. of original, copied and synthetic ones.

    Args:
        labels: int (n,).
        probabilities: float (n, num_classes).
        groups: str (n,), the name of each face's group.
        names: the groups, in the order of the result.

    Returns:
        For each group that has faces: n, top1 and its Wilson interval.
    """
    hit = probabilities.argmax(axis=1) == labels
    result = {}
    for name in names:
        n, hits = int((groups == name).sum()), int(hit[groups == name].sum())
        if n:
            result[name] = {"n": n, "top1": hits / n, "interval": wilson(hits, n)}
    return result


def compare(first, second, confidence: float = 0.95, random_state: int = 0) -> dict:
    """Compare two runs on the same faces, by paired tests.

    Args:
        first, second: predictions of one set by two runs, with rows, labels and probabilities, as from
            `fer_keras.run.read_predictions`.
        confidence: of the intervals.
        random_state: seed of the bootstrap.

    Returns:
        n; top1 and balanced_accuracy, each with difference (second less first) and interval; only_first, only_second:
        faces that one of the two alone has right; p_value: McNemar's exact test of equal top-1; within_noise: whether
        it is at least 1 − confidence.

    Raises:
        ValueError: if the two do not have the same faces in the same order.

    Reference:
        McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947.
        The intervals are percentile bootstraps over faces (Efron 1979).
    """
    num_classes = first.probabilities.shape[1]
    if (
        len(first.rows) != len(second.rows)
        or np.any(first.rows != second.rows)
        or np.any(first.labels != second.labels)
    ):
        shared = len(np.intersect1d(first.rows, second.rows))
        raise ValueError(
            f"Only runs that were scored on the same faces can be compared. Received: {len(first.rows):,} and "
            f"{len(second.rows):,} faces, of which {shared:,} are shared. Use runs of one protocol and data set."
        )
    labels, n = first.labels, len(first.labels)
    hits = [part.probabilities.argmax(axis=1) == labels for part in (first, second)]
    only_first, only_second = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    apart = only_first + only_second
    # Drawing faces with replacement is drawing from the 4 · num_classes kinds of face: class, and who has it right.
    cells = np.bincount(labels * 4 + hits[0] * 2 + hits[1], minlength=4 * num_classes)
    drawn = np.random.default_rng(random_state).multinomial(n, cells / n, BOOTSTRAP_SAMPLES)
    tail = (1 - confidence) / 2
    result = {"n": n}
    for name, difference in (("top1", _top1_difference), ("balanced_accuracy", _balanced_difference)):
        low, high = np.quantile(difference(drawn), [tail, 1 - tail])
        result[name] = {"difference": float(difference(cells[None])[0]), "interval": [float(low), float(high)]}
    p_value = float(binomtest(only_first, apart).pvalue) if apart else 1.0
    return result | {
        "only_first": only_first,
        "only_second": only_second,
        "p_value": p_value,
        "within_noise": p_value >= 1 - confidence,
    }


def _top1_difference(cells):
    kinds = cells.reshape(len(cells), -1, 4)  # of each class: none right, the second, the first, both
    return (kinds[..., 1] - kinds[..., 2]).sum(axis=1) / cells.sum(axis=1)


def _balanced_difference(cells):
    kinds = cells.reshape(len(cells), -1, 4)
    with np.errstate(invalid="ignore"):  # a class without faces does not count
        return np.nanmean((kinds[..., 1] - kinds[..., 2]) / kinds.sum(axis=2), axis=1)


def top_confusions(matrix: Sequence[Sequence[int]], class_names: Sequence[str], k: int = 5) -> list[tuple]:
    """The most frequent confusions: (true name, predicted name, faces, share of the true class)."""
    matrix = np.array(matrix)
    off = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off, axis=None, kind="stable")[:k]
    totals = np.maximum(matrix.sum(axis=1), 1)
    cells = (np.unravel_index(cell, off.shape) for cell in order)
    return [
        (class_names[t], class_names[p], int(off[t, p]), float(off[t, p] / totals[t])) for t, p in cells if off[t, p]
    ]


def table(sets: Mapping[str, dict]) -> pd.DataFrame:
    """The sets of a run's `metrics.json` as a table for readers: per cent, with 95 % intervals of the two main ones."""
    rows = {}
    for name, scores in sets.items():
        row = {"n": f"{scores['n']:,}"}
        for metric in ("top1", "top2", "top3", "balanced_accuracy", "f1_macro"):
            if metric in scores:
                row[LABELS[metric]] = percent(
                    scores[metric], scores["intervals"].get(metric) if metric in MAIN else None
                )
        row |= {"log loss": f"{scores['log_loss']:.3f}", "calibration error": percent(scores["calibration_error"])}
        rows[name] = row
    return pd.DataFrame(rows).T


def percent(value: float, interval: Sequence[float] | None = None) -> str:
    """A share as per cent with two decimals, and its interval with one."""
    text = f"{value * 100:.2f}"
    return text if interval is None else f"{text} ({interval[0] * 100:.1f}–{interval[1] * 100:.1f})"


def summary(metrics: Mapping) -> str:
    """What a run found, in a few sentences computed from its metrics."""
    test, train = metrics["sets"]["test"], metrics["sets"].get("train")
    tested = [item for item in test["per_class"].items() if item[1]["support"]]
    classes = sorted(tested, key=lambda item: item[1]["recall"])
    chosen = metrics["chosen_by"]
    parts = [
        f"{metrics['experiment']} (protocol {metrics['protocol']}, seed {metrics['seed']}): top-1 on {test['n']:,} "
        f"test faces is {percent(test['top1'], test['intervals']['top1'])} %, balanced accuracy "
        f"{percent(test['balanced_accuracy'], test['intervals']['balanced_accuracy'])} %.",
        f"Hardest class: {classes[0][0]} (recall {percent(classes[0][1]['recall'])} %); "
        f"easiest: {classes[-1][0]} ({percent(classes[-1][1]['recall'])} %).",
        f"Rows that chose the model: {chosen['n']:,} of role {chosen['role']}.",
    ]
    if train:
        gap = (train["top1"] - test["top1"]) * 100
        parts.insert(
            1, f"On the {train['n']:,} faces that trained it is {percent(train['top1'])} %, {gap:+.1f} points."
        )
    if metrics["protocol"] == "study":
        parts.append("Under this protocol copies and interpolations of test faces trained the model: the score leaks.")
    return "\n".join(parts)
