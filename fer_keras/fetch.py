"""Downloading data sets from Kaggle, for users who have none on disk."""

from pathlib import Path

from fer_keras import convert
from fer_keras.data import Faces, load_fer2013
from fer_keras.source import cache_folder

# Kaggle's handle of the copy to download, and the names by which its faces are recognised, best first.
SOURCES = {
    "fer2013": ("deadskull7/fer2013", ("fer2013.csv", "icml_face_data.csv", "train")),
    "affectnet": ("noamsegal/affectnet-training-data", ("labels.csv",)),
}


def fetch(name: str, handle: str | None = None) -> tuple[Path, Faces]:
    """Download a data set through kagglehub, or find it in kagglehub's cache, and load it to check it.

    AffectNet is converted on the way, to 48×48 grey and seven classes, into the user's cache folder.

    Args:
        name: a key of `SOURCES`.
        handle: another Kaggle data set, "owner/name", with the same faces.

    Returns:
        The path to give as the parameter `data`, and the faces.

    Raises:
        ValueError: on an unknown name, if the download fails, or if it holds no faces in a known layout.
    """
    if name not in SOURCES:
        raise ValueError(f"`name` must be one of {', '.join(SOURCES)}. Received: {name!r}")
    try:
        import kagglehub
    except ImportError:
        raise ValueError("Downloading needs kagglehub: pip install -e '.[fetch]' in the project's folder.") from None
    source, wanted = SOURCES[name]
    source = handle or source
    try:
        folder = Path(kagglehub.dataset_download(source))
    except Exception as error:  # kagglehub raises many kinds, requests' among them
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(
            f"Kaggle's {source} could not be downloaded: {reason}. An account may be needed: see kagglehub's README."
        ) from None
    for file in wanted:
        found = sorted(folder.rglob(file), key=lambda path: len(path.parts))
        if found:
            if name == "affectnet":
                path = cache_folder() / source.replace("/", "-")
                return path, convert.convert("affectnet", found[0].parent, path)
            path = found[0] if found[0].is_file() else found[0].parent
            return path, load_fer2013(path)
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise ValueError(f"Kaggle's {source} holds none of {', '.join(wanted)}. Found: {there}")
