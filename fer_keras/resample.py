"""Balancing: imbalanced-learn's samplers on faces, with the origin of every row kept.

Faces go in as uint8 and come out as uint8. In between they are float32 vectors of all pixels: on uint8 the distances
between neighbours overflow. The search for neighbours, which takes nearly all of the time, is `ExactNeighbors`, which
the samplers accept in place of scikit-learn's. Memory grows to about three times the resampled set in float32:
SMOTE-Tomek on FER2013's Training peaks at 1.5 GB (benchmarks/resample.py).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from imblearn.combine import SMOTEENN, SMOTETomek
from imblearn.over_sampling import SMOTE, RandomOverSampler
from imblearn.under_sampling import EditedNearestNeighbours, TomekLinks
from joblib import cpu_count
from sklearn.metrics._pairwise_distances_reduction import ArgKmin  # private: nothing public takes its `strategy`
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_range_finder
from threadpoolctl import threadpool_limits

from fer_keras.data import Faces, free_memory

# Fewer points than these are searched by scikit-learn itself: it takes about as long.
POINTS = 10_000
# Among equally far points scikit-learn's order depends on the number of its threads, unless so few points are searched
# by one thread, or so many rows are looked up that each thread takes some. The published runs had two threads.
FEW_POINTS, MANY_ROWS, THREADS = 256, 2048, 2
# Directions of the projection, points that they and the first guess are taken from, rows searched at a time (50 MB for
# 50,000 points), and the most candidates of a row.
DIRECTIONS, SAMPLE, ROWS, CANDIDATES = 256, 2048, 256, 2048
# How many times the resampled set, in float32, is in memory at the same time.
COPIES = 3


class ExactNeighbors(NearestNeighbors):
    """scikit-learn's Euclidean neighbours by brute force, the same in the same order, found several times as fast.

    Points are projected on the directions in which they vary most; the length of what is left is one coordinate more.
    There no distance is longer than the true one, and one matrix product in float32 gives them all. A point whose
    distance there, less the bound of its rounding errors, is above the true distance of k others is none of the k
    nearest. The dozen that remain are measured in all pixels, in float32, and what that cannot tell apart in float64.
    Where two are equally far, as identical faces are, scikit-learn itself is asked for that row: it does not order
    them by their index.

    Reference:
        Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1: the bounds of the errors of sums.
    """

    def fit(self, X, y=None):
        """Keep the points, (n, features), and project them."""
        super().fit(X)
        points = self._fit_X
        self._projected = None
        if len(points) > POINTS and points.dtype == np.float32:
            self._sample = slice(None, None, -(-len(points) // SAMPLE))
            self._mean = points.mean(axis=0, dtype="float64")
            sample = points[self._sample] - self._mean.astype("float32")
            basis = randomized_range_finder(sample.T, size=min(DIRECTIONS, *sample.shape), n_iter=2, random_state=0)
            self._basis = np.linalg.qr(basis.astype("float64"))[0]
            blocks = [self._project(points[at : at + 1024]) for at in range(0, len(points), 1024)]
            projected, length = map(np.concatenate, zip(*blocks, strict=True))
            self._projected = np.column_stack([projected, length.astype("float32"), np.ones_like(projected[:, 0])])
            self._longest = length.max(), _squares(points).max()  # squared, less the mean and as they are
        return self

    def kneighbors(self, X=None, n_neighbors=None, return_distance=True):
        """Return the nearest points of each row of X, as `NearestNeighbors` does.

        Only what the samplers ask for is fast: the indices of a few points for each of many float32 rows.
        """
        k = n_neighbors or self.n_neighbors
        asked = X is not None and not return_distance and k <= SAMPLE // 32
        if not asked or self._projected is None or len(X) <= MANY_ROWS or X.dtype != np.float32:
            threads = 1 if len(self._fit_X) <= FEW_POINTS else THREADS  # a second one would only wait
            with threadpool_limits(threads, user_api="openmp"):
                return super().kneighbors(X, n_neighbors, return_distance)
        # A product in each thread rather than threads in each product: what surrounds it then runs in parallel, too.
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(8, cpu_count())) as pool:
            found = pool.map(lambda at: self._search(X[at : at + ROWS], k), range(0, len(X), ROWS))
            indices, doubtful = map(np.concatenate, zip(*found, strict=True))
        if doubtful.any():
            rows, back = np.unique(X[doubtful], axis=0, return_inverse=True)
            options = {"metric": "euclidean", "strategy": "parallel_on_X", "return_distance": False}
            indices[doubtful] = ArgKmin.compute(X=rows, Y=self._fit_X, k=k, **options)[back]
        return indices

    def _project(self, rows):
        """Coordinates, float32 (n, directions + 1), and squared lengths, float64 (n,), of rows less the mean."""
        rows = rows - self._mean
        inside, length = rows @ self._basis, _squares(rows)
        rest = np.sqrt(np.maximum(length - _squares(inside), 0))
        return np.column_stack([inside, rest]).astype("float32"), length

    def _search(self, rows, k):
        """The indices of the points nearest to some rows, (n, k), and whether equal distances leave them in doubt."""
        points, n, features, eps = self._fit_X, *rows.shape, np.finfo("float32").eps
        projected, length = self._project(rows)
        left = np.column_stack([-2 * projected, np.ones_like(projected[:, 0]), length.astype("float32")])
        distance = left @ self._projected.T
        error = (left.shape[1] + 8) * eps * (length + self._longest[0])
        # scikit-learn's own errors, with room: it takes products in float64, and does not subtract a mean.
        unsure = 4 * (features + 8) * np.finfo("float64").eps * (_squares(rows) + self._longest[1])
        # First k that are near in the projection: the farthest of them is at least as far as the k-th nearest.
        guess = np.partition(distance[:, self._sample], k - 1)[:, k - 1 : k]
        at, near = np.divmod(np.flatnonzero(distance <= guess), len(points))
        order = np.lexsort((distance[at, near], at))
        first = order[np.searchsorted(at, np.arange(n))[:, None] + np.arange(k)].ravel()
        bound = _apart(rows, points, at[first], near[first], "float32").reshape(n, k).max(axis=1)
        bound = bound * (1 + (features + 8) * eps) + 2 * unsure
        # Then all that are not farther than that.
        close = distance <= (bound + error).astype("float32")[:, None]
        close[np.count_nonzero(close, axis=1) > CANDIDATES] = False
        at, near = np.divmod(np.flatnonzero(close), len(points))
        keep = _apart(rows, points, at, near, "float32") <= bound[at]
        at, near = at[keep], near[keep]
        true = _apart(rows, points, at, near, "float64")
        order = np.lexsort((true, at))
        first, last = (np.searchsorted(at, np.arange(n), side)[:, None] for side in ("left", "right"))
        place = first + np.arange(k + 1)
        place = np.where(place < last, place, -1)
        near, true = np.append(near[order], 0)[place], np.append(true[order], np.inf)[place]
        return near[:, :k], ~(true[:, 1:] > true[:, :-1] + unsure[:, None]).all(axis=1)


def _squares(rows, dtype="float64"):
    """The squared length of each row."""
    return np.einsum("ij,ij->i", rows, rows, dtype=dtype)


def _apart(rows, points, at, near, dtype):
    """Squared distances of pairs: rows `at` and points `near`."""
    result = np.empty(len(at), dtype)
    for start in range(0, len(at), 512):  # so many stay in the cache
        part = slice(start, start + 512)
        result[part] = _squares(np.subtract(rows[at[part]], points[near[part]], dtype=dtype), dtype)
    return result


class FastTomekLinks(TomekLinks):
    """Tomek links by `ExactNeighbors`: the only one of the samplers that makes its own estimator.

    It leaves `sample_indices_`, and gives no rows: a copy of those that are kept would be the peak of memory.
    """

    def _fit_resample(self, X, y):
        nearest = ExactNeighbors(n_neighbors=2).fit(X).kneighbors(X, return_distance=False)[:, 1]
        self.sample_indices_ = np.flatnonzero(~self.is_tomek(y, nearest, self.sampling_strategy_))
        return X[:0], y[self.sample_indices_]


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


def _traced_smote(random_state):
    return TracedSMOTE(random_state=random_state, k_neighbors=ExactNeighbors(n_neighbors=6))  # a row and five others


def _smote(pixels, labels, random_state):
    sampler = _traced_smote(random_state)
    resampled, _ = sampler.fit_resample(pixels, labels)
    return sampler.parents_, sampler.weight_, np.arange(len(resampled))


def _smote_tomek(pixels, labels, random_state):
    links = FastTomekLinks(sampling_strategy="all")
    sampler = SMOTETomek(smote=_traced_smote(random_state), tomek=links, random_state=random_state)
    sampler.fit_resample(pixels, labels)
    return sampler.smote_.parents_, sampler.smote_.weight_, sampler.tomek_.sample_indices_


def _smote_enn(pixels, labels, random_state):
    cleaning = EditedNearestNeighbours(sampling_strategy="all", n_neighbors=ExactNeighbors(n_neighbors=4))
    sampler = SMOTEENN(smote=_traced_smote(random_state), enn=cleaning, random_state=random_state)
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
    pixels = None if method == "ros" else _vectors(faces, int(counts.max()) * np.count_nonzero(counts))
    parents, weight, kept = RESAMPLERS[method](pixels, faces.labels, random_state)
    del pixels
    return _combine(faces, parents, weight, kept)


def _vectors(faces, rows):
    """The pixels as float32 (n, height · width · channels), if there is memory for what balances `rows` faces."""
    size = int(np.prod(faces.images.shape[1:]))
    if (needed := COPIES * 4 * rows * size) > (free := free_memory()):
        raise ValueError(
            f"SMOTE needs some {needed / 1e9:,.1f} GB of memory to balance these to {rows:,} faces, and "
            f"{free / 1e9:,.1f} GB are free. Use `resampling: ros`, which draws rows and copies no pixels, or fewer "
            "faces."
        )
    vectors = np.empty((len(faces), size), "float32")
    for start in range(0, len(faces), 4096):  # bounded memory
        part = slice(start, start + 4096)
        vectors[part] = faces.images[part].reshape(-1, size)
    return vectors


def _combine(faces, parents, weight, kept):
    """Build the kept faces, given ones and added ones, from positions of parents and weights."""
    n = len(faces)
    given, added = kept[kept < n], kept[kept >= n] - n
    parents, weight = parents[added], weight[added]
    copied = parents[:, 0] == parents[:, 1]
    base = faces.take(np.concatenate([given, parents[:, 0]]))
    made = {}
    if not copied.all():
        images, rows, usage = np.array(base.images), base.rows.copy(), base.usage.copy()
        images[len(given) :] = interpolate(faces.images, parents, weight)
        rows[len(given) :] = np.where(copied, rows[len(given) :], -1)
        usage[len(given) :] = np.where(copied, usage[len(given) :], "")
        made = {"images": images, "rows": rows, "usage": usage}
    all_parents, all_weight = base.parents.copy(), base.weight.copy()
    all_parents[len(given) :] = faces.rows[parents]
    all_weight[len(given) :] = weight
    return replace(base, **made, parents=all_parents, weight=all_weight)


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
