"""Where a run's faces come from: what its parameter `data` names."""

import os
from pathlib import Path

from fer_keras import convert, drawn
from fer_keras.data import Faces, load_fer2013, read_cache, write_cache


def cache_folder() -> Path:
    """Where faces are kept that have no place beside their source."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fer_keras")


def load(data: str | Path, drawn_faces: int = 2800) -> Faces:
    """Load the faces that the parameter `data` names: "drawn", or the path of FER2013.

    Args:
        data: "drawn" for `drawn_faces` faces made by `fer_keras.drawn` with seed 0, kept in the user's cache folder;
            a folder that `fer_keras.convert` wrote; otherwise see `fer_keras.data.load_fer2013`.
        drawn_faces: how many faces to draw.

    Raises:
        ValueError: if `data` is empty, as in a suite that leaves it to the user.
    """
    if not str(data):
        raise ValueError("Say where the faces are: `data` must be the path of fer2013.csv or of its image folder.")
    if str(data) != "drawn":
        return convert.load(data) if convert.is_converted(data) else load_fer2013(data)
    kept = cache_folder() / f"drawn-{drawn_faces}-{drawn.fingerprint(drawn_faces)[:16]}"
    if (faces := read_cache(kept)) is None:
        faces = drawn.draw(drawn_faces)
        write_cache(kept, faces)
    return faces


def fingerprint_of(data: str | Path, drawn_faces: int = 2800) -> str:
    """The fingerprint of what `load` returns, without drawing faces."""
    return drawn.fingerprint(drawn_faces) if str(data) == "drawn" else load(data).fingerprint
