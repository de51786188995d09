"""What each face does in a run: it trains, validates or tests, in the order that the protocol prescribes.

A run's `rows.npz` keeps which faces did what, so that they can be rebuilt without resampling again.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fer_keras.augment import change
from fer_keras.data import Faces, pick
from fer_keras.resample import interpolate, resample
from fer_keras.split import effective_protocol, split_clean, split_official, split_stratified


def split_seed(resampling: str, seed: int) -> int:
    """Seed of the study's split, one for each method: ROS and SMOTE, whose labels are equal, must not draw the same."""
    return zlib.crc32(f"{resampling} {seed}".encode())


def assign_roles(
    faces: Faces,
    protocol: str,
    resampling: str,
    seed: int,
    *,
    relabel: Callable[[Faces, str], Faces] | None = None,
    auxiliary_alone: bool = False,
    subset: Callable[[Faces], Faces] | None = None,
) -> dict[str, Faces]:
    """Give every face its role, and prepare the faces that train.

    Args:
        faces: all faces of the source.
        protocol: a key of `fer_keras.split.PROTOCOLS`. `official` and `clean` split, then resample `train` only;
            `study` resamples everything, then splits, unless the faces come from another data set or a subset trains.
        resampling: a key of `RESAMPLERS`.
        seed: of the sampler and of the study's random split.
        relabel: gives the faces of a role other labels, after the split and before resampling.
        auxiliary_alone: of the faces that train, keep only those of another data set.
        subset: draws those that train from the resampled ones, e.g. `fer_keras.augment.subset`.

    Returns:
        The faces of "train", "validation" and "test", and of "test_<name>" where another data set has held-out faces.

    Raises:
        ValueError: on an unknown protocol or method, or on options that do not go together.
    """
    others = np.setdiff1d(faces.usage, ["", "Training", "PublicTest", "PrivateTest"])
    used = effective_protocol(protocol, resampling, bool(subset), "".join(others))
    if auxiliary_alone and not len(others):
        raise ValueError("`auxiliary_alone` needs faces of another data set: say `auxiliary`.")
    if used == "study":
        if relabel:
            raise ValueError("`labels: ferplus` depends on the role, so it goes with `protocol: official` or `clean`.")
        return split_stratified(resample(faces, resampling, seed), split_seed(resampling, seed))
    parts = split_clean(faces) if used == "clean" else split_official(faces)
    if auxiliary_alone:
        parts["train"] = parts["train"].take(parts["train"].usage != "Training")
    if relabel:
        parts = {role: relabel(part, role) for role, part in parts.items()}
    train = resample(parts["train"], resampling, seed)
    return parts | {"train": subset(train) if subset else train}


def rebuild(
    faces: Faces,
    rows: np.ndarray,
    labels: np.ndarray,
    parents: np.ndarray,
    weight: np.ndarray,
    changes: np.ndarray | None = None,
) -> Faces:
    """Rebuild the faces of a role from what a run's `rows.npz` keeps.

    Args:
        faces: all faces of the source.
        rows, labels, parents, weight, changes: as in `Faces`.

    Raises:
        ValueError: if a face that a row or a parent names is not among `faces`.
    """
    needed = np.union1d(rows, parents)
    if len(missing := np.setdiff1d(needed[needed >= 0], faces.rows)):
        raise ValueError(
            f"{len(missing)} of the faces to rebuild, the first in row {missing[0]}, are not among the {len(faces)} "
            "given. Give all faces of the source that the run used."
        )
    position = np.full(faces.rows.max() + 2, -1)  # the last entry stands for row −1
    position[faces.rows] = np.arange(len(faces))
    images = pick(faces.images, np.where(rows >= 0, position[rows], 0))
    synthetic = rows < 0
    if synthetic.any():
        images = np.array(images)
        images[synthetic] = interpolate(faces.images, position[parents[synthetic]], weight[synthetic])
    if changes is not None:
        images = change(images, changes)
    usage = np.where(synthetic, "", faces.usage[position[rows]])
    return replace(
        faces, images=images, labels=labels, rows=rows, usage=usage, parents=parents, weight=weight, changes=changes
    )
