"""Roles: which faces fit weights (`train`), which stop and select (`validation`), which are scored once (`test`).

How rows get roles is a protocol. `official` is FER2013's own split. `clean` is the same less the faces that also
stand in a part that must not see them. `study` is what the published study did: resample everything, then split at
random; it leaks by construction, and is here because it reproduces the study's numbers.
"""

import numpy as np
from sklearn.model_selection import train_test_split

from fer_keras import duplicates
from fer_keras.data import USAGES, Faces

ROLES = ("train", "validation", "test")
PROTOCOLS = {
    "official": "FER2013's own split: Training trains, PublicTest validates, PrivateTest tests.",
    "clean": "The official split less the near-duplicates of faces that validate or test.",
    "study": "Resampled first, then split 80/10/10: copies and interpolations of test faces train. It leaks.",
}


def effective_protocol(protocol: str, resampling: str, subset: int = 0, auxiliary: str = "") -> str:
    """The protocol that a run says it used.

    Under `study`, a run without resampling uses the official split, and so do those that train on an augmented subset
    or on another data set: the study's figures for them are whole numbers of 3,589 faces.

    Args:
        subset: faces of each class in an augmented subset, 0 without one.
        auxiliary: name of a data set that trains, too.

    Raises:
        ValueError: on an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {', '.join(PROTOCOLS)}. Received: {protocol!r}")
    return "official" if protocol == "study" and (resampling == "none" or subset or auxiliary) else protocol


def split_official(faces: Faces) -> dict[str, Faces]:
    """Give roles by the source's own split: Training, PublicTest, PrivateTest.

    Faces of another data set (`fer_keras.source.join`) train, too, and those of it that are held out get a role of
    their own, "test_<name>".

    Raises:
        ValueError: if one of the three has no faces.
    """
    usages = dict(zip(ROLES, USAGES, strict=True))
    parts = {role: faces.take(faces.usage == usage) for role, usage in usages.items()}
    others = np.unique(faces.usage[~np.isin(faces.usage, USAGES)])
    held_out = [name for name in others if name.startswith("test_")]
    if joining := set(others) - set(held_out):
        parts["train"] = faces.take(np.isin(faces.usage, [usages["train"], *joining]))
    parts |= {str(name): faces.take(faces.usage == name) for name in held_out}
    if empty := [usages[role] for role, part in parts.items() if not len(part)]:
        raise ValueError(f"The official split needs faces marked {', '.join(empty)}, and there are none.")
    return parts


def split_clean(faces: Faces) -> dict[str, Faces]:
    """Give roles by the official split, less the rows that `fer_keras.duplicates.rows_to_drop` names.

    Training (and what trains beside it) loses the near-duplicates of PublicTest and PrivateTest faces, PublicTest those
    of PrivateTest faces; the test faces stay as they are, so results compare with the literature.

    Raises:
        ValueError: if one of the three parts has no faces, before or after.
    """
    return split_official(faces.take(~np.isin(faces.rows, duplicates.rows_to_drop(faces))))


def split_stratified(faces: Faces, seed: int) -> dict[str, Faces]:
    """Give roles at random, 80/10/10, with equal shares of each class.

    Args:
        seed: of the draw; each run of the study draws its own split.
    """
    tenth = -(-len(faces) // 10)  # rounded up, as scikit-learn does: 6,293 of 62,923
    rest, test = train_test_split(np.arange(len(faces)), test_size=tenth, stratify=faces.labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=tenth, stratify=faces.labels[rest], random_state=seed)
    return {"train": faces.take(train), "validation": faces.take(validation), "test": faces.take(test)}
