"""Files written so that a reader never sees half of one: under a temporary name, and renamed when they are whole."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path of the same suffix, and rename it to `path` when the block ends without an error.

    Raises:
        FileExistsError: if `path` is a device, a pipe or a socket, which the new file would replace.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(f"{path} is no file but a device or a pipe, and would be replaced. Give another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".writing-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # so that a power cut, too, leaves the old file or the new one
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written under temporary names; only where nobody else writes them."""
    for path in [*folder.glob(".writing-*"), *folder.glob(".checkpoint.npz.tmp")]:
        if path.suffix not in (".html", ".onnx"):  # which a reader may be making now, from a finished run
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file, or those of these names."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names or file.files}


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
