"""Balancing: imbalanced-learn's samplers on faces, with the origin of every row kept.

Faces go in as uint8 and come out as uint8. In between they are float32 vectors of all pixels: on uint8 the distances
between neighbours overflow. Memory grows to about three times the resampled set in float32: SMOTE-Tomek on FER2013's
Training peaks at 1.6 GB (benchmarks/resample.py).
"""

from dataclasses import replace

import numpy as np
from imblearn.combine import SMOTEENN, SMOTETomek
from imblearn.over_sampling import SMOTE, RandomOverSampler

from fer_keras.data import Faces


class TracedSMOTE(SMOTE):
    """SMOTE that keeps, for each synthetic row, the positions of its two parents and the weight between them."""

    def _fit_resample(self, X, y):
        self._labels, self.parents_, self.weight_ = y, [np.empty((0, 2), int)], [np.empty(0)]
        X_resampled, y_resampled = super()._fit_resample(X, y)
        self.parents_, self.weight_ = np.concatenate(self.parents_), np.concatenate(self.weight_)
        del self._labels
        return X_resampled, y_resampled

    def _generate_samples(self, X, nn_data, nn_num, rows, cols, steps, y_type=None, y=None):
        members = np.flatnonzero(self._labels == y_type)  # positions within the class → positions in all rows
        self.parents_.append(np.stack([members[rows], members[nn_num[rows, cols]]], axis=1))
        self.weight_.append(steps.ravel())
        return super()._generate_samples(X, nn_data, nn_num, rows, cols, steps, y_type, y)


def _random_over_sampling(pixels, labels, random_state):
    sampler = RandomOverSampler(random_state=random_state)
    sampler.fit_resample(np.arange(len(labels))[:, None], labels)  # indices, not pixels
    extra = sampler.sample_indices_[len(labels) :]
    return np.stack([extra, extra], axis=1), np.zeros(len(extra)), np.arange(len(sampler.sample_indices_))


def _smote(pixels, labels, random_state):
    sampler = TracedSMOTE(random_state=random_state)
    resampled, _ = sampler.fit_resample(pixels, labels)
    return sampler.parents_, sampler.weight_, np.arange(len(resampled))


def _smote_tomek(pixels, labels, random_state):
    sampler = SMOTETomek(smote=TracedSMOTE(random_state=random_state), random_state=random_state)
    sampler.fit_resample(pixels, labels)
    return sampler.smote_.parents_, sampler.smote_.weight_, sampler.tomek_.sample_indices_


def _smote_enn(pixels, labels, random_state):
    sampler = SMOTEENN(smote=TracedSMOTE(random_state=random_state), random_state=random_state)
    sampler.fit_resample(pixels, labels)
    return sampler.smote_.parents_, sampler.smote_.weight_, sampler.enn_.sample_indices_


# Each returns, for the added rows, the positions of both parents (twice the same for a copy) and the weight; and which
# of all rows, first the given and then the added ones, are kept.
RESAMPLERS = {
    "none": None,
    "ros": _random_over_sampling,
    "smote": _smote,
    "smote_tomek": _smote_tomek,
    "smote_enn": _smote_enn,
}


def resample(faces: Faces, method: str, random_state: int = 0) -> Faces:
    """Balance the classes of a set of faces.

    Args:
        faces: the faces to balance.
        method: a key of `RESAMPLERS`: "none"; "ros", random over-sampling; "smote" (Chawla et al. 2002); "smote_tomek"
            and "smote_enn" (Batista et al. 2004), which remove rows again after SMOTE.
        random_state: seed of the sampler.

    Returns:
        `Faces`, whose `rows` is −1 for a synthetic face, and whose `parents` and `weight` say where each added face
        comes from.

    Raises:
        ValueError: on an unknown method, if a class has fewer than the six faces that SMOTE needs, or if SMOTE is to
            interpolate between faces that have a distribution instead of a label.
    """
    if method not in RESAMPLERS:
        raise ValueError(f"`resampling` must be one of {', '.join(RESAMPLERS)}. Received: {method!r}")
    if method == "none":
        return faces
    if method != "ros" and faces.targets is not None:
        raise ValueError(
            "SMOTE interpolates between faces of one class, and these have a distribution over the classes. "
            "Use `ferplus_mode: majority`, or `resampling: ros`."
        )
    counts = np.bincount(faces.labels, minlength=len(faces.class_names))
    if method != "ros" and counts[counts > 0].min() < 6:
        name = faces.class_names[int(np.argmin(np.where(counts, counts, counts.max())))]
        raise ValueError(
            f"SMOTE interpolates between a face and its five nearest of the same class, but {name} has only "
            f"{counts[counts > 0].min()} faces. Use more faces, or `resampling: ros`."
        )
    pixels = None if method == "ros" else faces.images.reshape(len(faces), -1).astype("float32")
    parents, weight, kept = RESAMPLERS[method](pixels, faces.labels, random_state)
    del pixels
    return _combine(faces, parents, weight, kept)


def _combine(faces, parents, weight, kept):
    """Build the kept faces, given ones and added ones, from positions of parents and weights."""
    n = len(faces)
    given, added = kept[kept < n], kept[kept >= n] - n
    parents, weight = parents[added], weight[added]
    copied = parents[:, 0] == parents[:, 1]
    base = faces.take(np.concatenate([given, parents[:, 0]]))
    images = np.array(base.images)
    images[len(given) :] = interpolate(faces.images, parents, weight)
    rows, usage, all_parents, all_weight = base.rows.copy(), base.usage.copy(), base.parents.copy(), base.weight.copy()
    rows[len(given) :] = np.where(copied, rows[len(given) :], -1)
    usage[len(given) :] = np.where(copied, usage[len(given) :], "")
    all_parents[len(given) :] = faces.rows[parents]
    all_weight[len(given) :] = weight
    return replace(base, images=images, rows=rows, usage=usage, parents=all_parents, weight=all_weight)


def interpolate(images: np.ndarray, parents: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The faces between two parents, as SMOTE makes them from float32 pixels, rounded to uint8.

    Args:
        images: uint8 (n, height, width, channels).
        parents: int (m, 2), positions in `images`.
        weight: float64 (m,), 0–1.
    """
    result = np.empty((len(parents), *images.shape[1:]), "uint8")
    for start in range(0, len(parents), 4096):  # bounded memory
        part = slice(start, start + 4096)
        first = images[parents[part, 0]].astype("float32")
        towards = images[parents[part, 1]].astype("float32") - first
        between = (first + weight[part].reshape(-1, 1, 1, 1) * towards).astype("float32")
        result[part] = np.rint(between)
    return result
