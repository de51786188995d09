"""Near-duplicates: faces that stand twice, in two sets or within one.

Found by exact hashes, and by correlation: of the pixels of two faces, each less its mean and divided by its norm, which
is 1 for the same face at another contrast or brightness. All pairs of faces are compared in place, block by block, by
matrix products on the backend's device; pairs that look alike when reduced to 12×12 are then compared at small shifts.
Both is done again with one of the two mirrored.
"""

import hashlib
import io
import warnings
from importlib import resources

import numpy as np
import pandas as pd
from tqdm import tqdm

from fer_keras.data import USAGES, Faces

# From 0.95 on, two faces of FER2013 show the same picture: the 32 pairs closest to 0.95 were looked at, all of them do.
THRESHOLD = 0.95
BLOCK = 4096  # faces on each side of one matrix product: 64 MB of similarities
CELLS = 12  # a face is reduced to 12×12 cells, and moved by at most half a cell: 2 pixels of 48
# How much less than the threshold the reduced faces of a pair may correlate whose moved faces reach it: measured on
# FER2013, where the lowest such pair has 0.856 at 12×12.
MARGINS = {CELLS: 0.15, 2 * CELLS: 0.07}
RESIDUAL = 0.75  # grey levels
KINDS = ("identical", "near", "shifted", "mirrored")

# The rows that the protocol `clean` leaves out of FER2013, version 1. `fer-keras data clean DATA` rebuilds the file.
CLEAN_FILE = "clean-fer2013-1.csv"
CLEAN_SHA256 = "784d771e62b49aec8793c102aad1677a106dde4a79806b11c6ede4602198b090"
# SHA-256 of the labels and usages of FER2013 in Kaggle's order, by which the file's rows are those of `faces`.
FER2013_ROWS = "6baecfcafde460fce706090ab8e5791efd9321b92709cdebe378bf3b08a514df"
# Which faces must not be seen by which.
HIDDEN = {"Training": ("PublicTest", "PrivateTest"), "PublicTest": ("PrivateTest",)}


def find(first: Faces, second: Faces | None = None, threshold: float = THRESHOLD, progress: bool = False):
    """Find the pairs of faces that show the same picture.

    Faces of a single colour are duplicates of nothing: they hold no picture.

    Args:
        first, second: the sets, of equal height, width and channels; without `second`, pairs within `first`.
        threshold: least correlation, 0 < threshold ≤ 1.
        progress: show a bar.

    Returns:
        A `pandas.DataFrame` with one row a pair, in the order of the positions: first, second (positions), first_row,
        second_row, first_label, second_label, similarity (−1 to 1) and kind: "identical" (equal pixels), "near" (at
        another contrast, or nearly equal), "shifted" (by up to a 24th of the side) or "mirrored" (left to right, in
        place or shifted).

    Raises:
        ValueError: if `threshold` is out of range, a set is empty, or the sets have faces of different shapes.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` must be above 0 and at most 1. Received: {threshold}")
    within = second is None
    second = first if within else second
    if not len(first) or not len(second):
        raise ValueError(f"Looking for duplicates needs faces. Received: {len(first)} and {len(second)}")
    if first.images.shape[1:] != second.images.shape[1:]:
        raise ValueError(
            "Faces can only be compared at equal height, width and channels. Received: "
            f"{first.images.shape[1:]} and {second.images.shape[1:]}"
        )
    found = [_identical(first.images, second.images)]
    starts = [(i, j) for i in range(0, len(first), BLOCK) for j in range(0, len(second), BLOCK) if i <= j or not within]
    for i, j in tqdm(starts, desc="comparing faces", disable=not progress, ncols=100):
        left, right = first.images[i : i + BLOCK], second.images[j : j + BLOCK]
        for mirrored in (False, True):
            pairs = _block(left[:, :, ::-1] if mirrored else left, right, threshold)
            if mirrored:
                pairs["kind"] = "mirrored"
            found.append(pairs.assign(first=pairs["first"] + i, second=pairs["second"] + j))
    pairs = pd.concat(found, ignore_index=True)
    if within:
        pairs = pairs[pairs["first"] < pairs["second"]]
    pairs["kind"] = pd.Categorical(pairs["kind"], KINDS, ordered=True)
    # A pair that was found in several ways is what the first of the kinds says, with its highest similarity.
    by_pair = pairs.groupby(["first", "second"], sort=True)
    pairs = by_pair.agg({"similarity": "max", "kind": "min"}).reset_index()
    pairs["similarity"] = pairs["similarity"].clip(upper=1.0)  # but for float64's rounding
    for name, faces in (("first", first), ("second", second)):
        pairs[f"{name}_row"] = faces.rows[pairs[name]]
        pairs[f"{name}_label"] = faces.labels[pairs[name]]
    return pairs


def best(pairs: pd.DataFrame, position: str = "first") -> pd.DataFrame:
    """Of each face's pairs the one that is most alike: by kind, then by similarity.

    Args:
        pairs: from `find`.
        position: the column that tells the faces apart.
    """
    order = [position, "kind", "similarity", "second_row"]
    return pairs.sort_values(order, ascending=[True, True, False, True]).drop_duplicates(position)


def normalise(images: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Faces as vectors whose product is their correlation; a face of a single colour is all zeros.

    Args:
        images: (n, height, width, channels), 0–255.

    Returns:
        `dtype` (n, height · width · channels).
    """
    vectors = images.reshape(len(images), -1).astype(dtype)
    vectors -= vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-3)


def reduce(images: np.ndarray, cells: int) -> np.ndarray:
    """Faces reduced to `cells` × `cells` means, float32; what does not fill a cell at the border is left out."""
    height, width = (side // cells for side in images.shape[1:3])
    cut = images[:, : height * cells, : width * cells]
    return cut.reshape(len(cut), cells, height, cells, width, -1).mean(axis=(2, 4), dtype="float32")


def _identical(first, second):
    """Pairs of equal pixels, by hash."""

    def hashes(images):
        return [
            hashlib.blake2b(image.tobytes(), digest_size=16).digest() if picture else None
            for image, picture in zip(images, _not_flat(images), strict=True)
        ]

    left, right = (
        pd.DataFrame({"hash": hashes(images), name: range(len(images))}).dropna()
        for name, images in (("first", first), ("second", second))
    )
    return left.merge(right, on="hash")[["first", "second"]].assign(similarity=1.0, kind="identical")


def _block(left, right, threshold):
    """Pairs of two blocks that correlate by `threshold`, in place or shifted."""
    least = threshold - 1e-9  # so that a threshold of 1 finds the same face at another contrast
    # float32 finds them, on some GPUs with ten bits of mantissa only; float64 says how much they correlate.
    near = _pairs(left, right, threshold - 2e-3)
    near = near.assign(similarity=_best_shift(left, right, near, 0), kind="near")
    found = [near[near["similarity"] >= least]]
    if shift := min(left.shape[1:3]) // CELLS // 2:
        pairs = _pairs(reduce(left, CELLS), reduce(right, CELLS), threshold - MARGINS[CELLS])
        if len(pairs) > max(10_000, 0.02 * len(left) * len(right)):
            warnings.warn(
                f"{len(pairs) / (len(left) * len(right)):.0%} of the pairs look alike when reduced to {CELLS}×{CELLS}, "
                f"and all of these are compared at small shifts: at threshold {threshold} this takes long.",
                stacklevel=3,
            )
        halves = reduce(left, 2 * CELLS), reduce(right, 2 * CELLS)
        pairs = pairs[_best_shift(*halves, pairs, 1) >= threshold - MARGINS[2 * CELLS]]
        pairs = pairs.assign(similarity=_best_shift(left, right, pairs, shift), kind="shifted")
        found.append(pairs[pairs["similarity"] >= least])
    return pd.concat(found)


def _pairs(left, right, least):
    """Positions of the pairs of two blocks that correlate by at least `least`, in float32 on the device."""
    from keras import ops

    product = ops.matmul(normalise(left), ops.transpose(ops.convert_to_tensor(normalise(right))))
    first, second = (ops.convert_to_numpy(at).astype("int64") for at in ops.nonzero(product >= least))
    return pd.DataFrame({"first": first, "second": second})


def _best_shift(left, right, pairs, shift):
    """Highest correlation of each pair over moves of up to `shift` pixels, of the middle that stays inside."""
    best = np.full(len(pairs), -1.0)
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()
    height, width = left.shape[1] - 2 * shift, left.shape[2] - 2 * shift
    for start in range(0, len(pairs), 1024):  # bounded memory
        part = slice(start, start + 1024)
        middle = normalise(left[first[part], shift : shift + height, shift : shift + width], "float64")
        others = right[second[part]]
        for y in range(2 * shift + 1):
            for x in range(2 * shift + 1):
                moved = normalise(others[:, y : y + height, x : x + width], "float64")
                best[part] = np.maximum(best[part], np.einsum("ij,ij->i", middle, moved))
    return best


def interpolations(faces: Faces, among: Faces, progress: bool = False) -> pd.DataFrame:
    """Find the faces that lie, pixel by pixel, between two others, as SMOTE's do.

    Of each face the nearest 64 of its class are looked at, two by two. A face counts if it is nowhere but rounding away
    from the line between two: by less than 0.75 grey levels in the root mean square, where rounding gives about 0.3. A
    face that is as near to one of the two is a near-duplicate and does not count.

    Args:
        faces: those that may have been made.
        among: those that they may have been made from, of equal shape.
        progress: show a bar.

    Returns:
        One row for each face found, in order: position (in `faces`), first, second (positions in `among`), weight (0–1,
        how far from the first towards the second) and residual (grey levels).
    """
    found, blocks = [], []
    pictures, others = _not_flat(faces.images), _not_flat(among.images)
    for label in np.unique(faces.labels):
        members = np.flatnonzero(pictures & (faces.labels == label))
        same = np.flatnonzero(others & (among.labels == label))
        if len(same):
            blocks += [(members[start : start + BLOCK], same) for start in range(0, len(members), BLOCK)]
    for members, others in tqdm(blocks, desc="looking between faces", disable=not progress, ncols=100):
        nearest = others[_nearest(faces.images[members], among.images, others)]
        for position, parents in zip(members, nearest, strict=True):
            image = faces.images[position].ravel().astype("float64")
            steps = among.images[parents].reshape(len(parents), -1) - image
            products = steps @ steps.T / len(image)
            square = np.diag(products)
            apart = np.maximum(square[:, None] + square - 2 * products, 1e-9)
            weight = (square[:, None] - products) / apart
            residual = np.sqrt(np.maximum(square[:, None] - weight**2 * apart, 0))
            same = np.sqrt(square) < RESIDUAL
            residual[(weight <= 0) | (weight >= 1) | same | same[:, None]] = np.inf
            if residual.size and residual.min() < RESIDUAL:
                i, j = np.unravel_index(residual.argmin(), residual.shape)
                found.append((position, parents[i], parents[j], weight[i, j], residual[i, j]))
    columns = ["position", "first", "second", "weight", "residual"]
    return pd.DataFrame(found, columns=columns).sort_values("position", ignore_index=True)


def _not_flat(images):
    """Which faces have more than one colour."""
    return np.array([image.min() < image.max() for image in images], bool)


def _nearest(images, among, others, count=64):
    """Places in `others`, positions in `among`, of the `count` nearest faces of each image by squared differences."""
    from keras import ops

    def vectors(images):  # less a constant, so that float32 keeps the differences of bright faces
        return images.reshape(len(images), -1).astype("float32") - 128

    left = vectors(images)
    best, where = np.full((len(images), 0), 0.0), np.empty((len(images), 0), int)
    for start in range(0, len(others), BLOCK):
        right = vectors(among[others[start : start + BLOCK]])
        product = ops.convert_to_numpy(ops.matmul(left, ops.transpose(ops.convert_to_tensor(right))))
        distances = np.concatenate([best, (right**2).sum(axis=1) - 2 * product], axis=1)
        places = np.concatenate([where, np.broadcast_to(np.arange(len(right)) + start, product.shape)], axis=1)
        kept = min(count, distances.shape[1])
        chosen = np.argpartition(distances, kept - 1, axis=1)[:, :kept]
        best, where = np.take_along_axis(distances, chosen, 1), np.take_along_axis(places, chosen, 1)
    return where


# --- The protocol `clean` -------------------------------------------------------------------------------------------


def clean_list(faces: Faces, progress: bool = False) -> pd.DataFrame:
    """Find the rows that the protocol `clean` leaves out: near-duplicates of faces that must not be seen.

    Training rows that duplicate a PublicTest or PrivateTest row, and PublicTest rows that duplicate a PrivateTest row.

    Returns:
        One row for each face left out, with the duplicate that is most alike: row, usage, duplicate_of,
        duplicate_usage, similarity, kind.
    """
    parts = {usage: faces.take(faces.usage == usage) for usage in ("Training", "PublicTest", "PrivateTest")}
    found = []
    for usage, others in HIDDEN.items():
        for other in others:
            if len(parts[usage]) and len(parts[other]):
                pairs = find(parts[usage], parts[other], progress=progress)
                found.append(pairs.assign(usage=usage, duplicate_usage=other))
    if not found:
        return pd.DataFrame({"row": np.empty(0, int)})
    columns = ["row", "usage", "duplicate_of", "duplicate_usage", "similarity", "kind"]
    pairs = best(pd.concat(found), "first_row").rename(columns={"first_row": "row", "second_row": "duplicate_of"})
    return pairs[columns].reset_index(drop=True)


def rows_to_drop(faces: Faces) -> np.ndarray:
    """Rows that the protocol `clean` leaves out: of FER2013 by the list that ships, of other faces found anew."""
    own = np.isin(faces.usage, USAGES)
    others = faces.take(~own & ~np.char.startswith(faces.usage, "test_"))
    faces = faces.take(own)
    dropped = read_clean_list() if rows_hash(faces) == FER2013_ROWS else clean_list(faces)
    if len(others):  # of another data set
        found = find(others, faces.take(faces.usage != "Training"))
        return np.union1d(dropped["row"], found["first_row"])
    return dropped["row"].to_numpy()


def rows_hash(faces: Faces) -> str:
    """SHA-256 of labels and usages in their order: it tells FER2013's rows, whichever copy the pixels come from."""
    digest = hashlib.sha256(faces.labels.astype("int64").tobytes())
    digest.update(faces.usage.astype("U11").tobytes())
    return digest.hexdigest()


def read_clean_list() -> pd.DataFrame:
    """The list of `clean_list` for FER2013 that ships with the package.

    Raises:
        ValueError: if the file is not the one of this version.
    """
    content = resources.files("fer_keras").joinpath(CLEAN_FILE).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != CLEAN_SHA256:
        raise ValueError(
            f"fer_keras/{CLEAN_FILE} has been changed: its SHA-256 is {found}, expected {CLEAN_SHA256}. Install again."
        )
    return pd.read_csv(io.BytesIO(content))


def clean_csv(table: pd.DataFrame) -> bytes:
    """The text of the file that ships: a header and one line a row, similarity with four decimals."""
    return table.to_csv(index=False, float_format="%.4f", lineterminator="\n").encode()
