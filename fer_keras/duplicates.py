"""Near-duplicates: faces that stand twice, in two sets or within one, found by exact hashes and by correlation.

The correlation of two faces is that of their pixels, each face less its mean and divided by its norm: 1 for the same
face at another contrast or brightness. All pairs are compared, block by block, by matrix products.
"""

import numpy as np
import pandas as pd

from fer_keras.data import Faces

THRESHOLD = 0.95
BLOCK = 4096  # faces on each side of one matrix product: 64 MB of similarities


def normalise(images: np.ndarray) -> np.ndarray:
    """Faces as vectors whose product is their correlation; a face of a single colour is all zeros.

    Args:
        images: uint8 (n, height, width, channels).

    Returns:
        float32 (n, height · width · channels).
    """
    vectors = images.reshape(len(images), -1).astype("float32")
    vectors -= vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-3)


def find(first: np.ndarray, second: np.ndarray, threshold: float = THRESHOLD) -> pd.DataFrame:
    """Find the pairs of faces, one of each set, that correlate at least by `threshold`.

    Args:
        first, second: uint8 (n, height, width, channels) of equal height, width and channels.
        threshold: least correlation, 0 < threshold ≤ 1.

    Returns:
        One row a pair: first, second (positions), similarity.

    Raises:
        ValueError: if `threshold` is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` must be above 0 and at most 1. Received: {threshold}")
    found = []
    for start in range(0, len(first), BLOCK):
        left = normalise(first[start : start + BLOCK])
        for other in range(0, len(second), BLOCK):
            similarity = left @ normalise(second[other : other + BLOCK]).T
            i, j = np.nonzero(similarity >= threshold)
            found.append(pd.DataFrame({"first": i + start, "second": j + other, "similarity": similarity[i, j]}))
    return pd.concat(found, ignore_index=True)


def rows_to_drop(faces: Faces, threshold: float = THRESHOLD) -> np.ndarray:
    """Rows that the protocol `clean` leaves out: near-duplicates of faces that must not be seen.

    Training rows that duplicate a PublicTest or PrivateTest row, and PublicTest rows that duplicate a PrivateTest row.
    """
    parts = {usage: np.flatnonzero(faces.usage == usage) for usage in ("Training", "PublicTest", "PrivateTest")}
    dropped = []
    for seen, held in (("Training", "PublicTest"), ("Training", "PrivateTest"), ("PublicTest", "PrivateTest")):
        pairs = find(faces.images[parts[seen]], faces.images[parts[held]], threshold)
        dropped.append(faces.rows[parts[seen][pairs["first"]]])
    return np.unique(np.concatenate(dropped))
