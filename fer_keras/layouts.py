"""Drawn faces in the layouts of other data sets, so that their converters run without a download.

Each function writes files like those of the real thing, in colour, and, with `dirt=True`, with what is wrong in the
real ones. `fer_keras.drawn` draws the faces.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fer_keras.data import CLASS_NAMES
from fer_keras.drawn import draw_face
from fer_keras.listing import AFFECTNET_CODES, AFFECTNET_COLUMNS, EXPW_CODES

SIZE = 96
# The folders of AffectNet's Kaggle copies.
AFFECTNET_FOLDERS = ("anger", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")


def draw_color(expression: str, rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """Draw one face in colour."""
    grey = Image.fromarray(draw_face({"anger": "angry"}.get(expression, expression), rng))
    return _tint(grey, rng, size)


def write_affectnet(root: str | Path, n: int = 160, seed: int = 0, dirt: bool = False, split: bool = False) -> Path:
    """Write AffectNet's Kaggle copy: `labels.csv` (`,pth,label,relFCs`) and a folder for each emotion.

    Args:
        root: the folder to write to.
        n: number of images, in turn of each emotion.
        seed: of the drawing.
        dirt: also a missing file, an image without a label, and an empty and a truncated JPEG. In any case the column
            `label` says something else than the folder for every 16th image.
        split: the second copy, with Train/anger and Test/Anger, and `pth` without Train or Test.
    """
    root, rng = Path(root), np.random.default_rng(seed)
    rows = []
    for number, emotion in zip(range(n), _turns(AFFECTNET_FOLDERS), strict=False):
        name = f"image{number:07d}.jpg"
        folder = root / emotion
        if split:
            folder = root / "Test" / emotion.capitalize() if number // 8 % 5 == 4 else root / "Train" / emotion
        _save(draw_color(emotion, rng), folder / name)
        label = AFFECTNET_FOLDERS[number % 7] if number % 16 == 15 else emotion
        rows.append((f"{emotion}/{name}", label, rng.uniform(0.5, 0.9)))
    if dirt:
        folder = root / "Train" if split else root
        rows.append(("sad/image9000000.jpg", "sad", 0.7))  # no such file
        _save(draw_color("happy", rng), folder / "happy" / "image9000001.jpg")  # not in the list
        _save(draw_color("fear", rng), folder / "image9000002.jpg")  # in no folder, not in the list
        (folder / "fear" / "image9000003.jpg").write_bytes(b"")
        _cut(draw_color("anger", rng), folder / "anger" / "image9000004.jpg")
        rows += [("fear/image9000003.jpg", "fear", 0.7), ("anger/image9000004.jpg", "anger", 0.7)]
    lines = [",pth,label,relFCs", *(f"{i},{path},{label},{value:.6f}" for i, (path, label, value) in enumerate(rows))]
    (root / "labels.csv").write_text("\n".join([*lines, ""]))
    return root


def write_affectnet_manual(root: str | Path, n: int = 160, seed: int = 0, dirt: bool = False) -> Path:
    """Write AffectNet's first official form: `Manually_Annotated/…` with pictures larger than the face, and two lists.

    The expressions are its codes 0–10; faces of 8 to 10 have no box ("NULL"), as in the real lists.

    Args:
        dirt: also a line without a file, a box without size, one outside the picture, one that reaches beyond its
            border, an unknown code and a truncated JPEG.
    """
    root, rng = Path(root), np.random.default_rng(seed)
    images, lists = root / "Manually_Annotated" / "Manually_Annotated_Images", root / "Manually_Annotated_file_lists"
    lists.mkdir(parents=True, exist_ok=True)
    rows = {"training": [], "validation": []}

    def add(part, code, change=None, **wrong):
        name = AFFECTNET_CODES.get(code, "neutral")
        face = draw_color(name if code < 8 else "neutral", rng, int(rng.integers(60, 130)))
        picture, box = _place(face, rng)
        number = sum(map(len, rows.values()))
        path = f"{number % 3 + 1}/{number:056x}.{'png' if number % 7 == 3 else 'jpg'}"
        values = {"face_x": box[0], "face_y": box[1], "face_width": face.width, "face_height": face.height}
        if code in (8, 9, 10):
            values = dict.fromkeys(values, "NULL")
        values |= change(picture, values) if change else wrong
        rows[part].append([path, *values.values(), "12.5;30.1;14.2;33.0", code, 0.1, -0.2])
        return picture, images / path

    for number in range(n):
        _save(*add("validation" if number % 5 == 4 else "training", number % 11))
    if dirt:
        add("training", 1)  # no such file
        _save(*add("training", 1, face_width=0))
        _save(*add("training", 2, face_x=5000))
        _save(*add("training", 3, lambda picture, box: {"face_x": picture.width - box["face_width"] + 20}))
        _save(*add("training", 12))
        picture, path = add("training", 4)
        _cut(picture, path.with_suffix(".jpg"))
        rows["training"][-1][0] = rows["training"][-1][0].replace(".png", ".jpg")
    for part, lines in rows.items():
        text = "\n".join([",".join(AFFECTNET_COLUMNS), *(",".join(map(str, line)) for line in lines), ""])
        (lists / f"{part}.csv").write_text(text)
    return root


def write_affectnet_sets(root: str | Path, n: int = 160, seed: int = 0, dirt: bool = False) -> Path:
    """Write AffectNet's second official form: `train_set` and `val_set` with `images` and `annotations/*_exp.npy`.

    Args:
        dirt: also an image without a label, a label without an image, and a truncated JPEG.
    """
    root, rng = Path(root), np.random.default_rng(seed)

    def add(number, part, code, image=True, label=True):
        folder = root / part
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        if image:
            _save(draw_color(AFFECTNET_CODES[code], rng, 224), folder / "images" / f"{number}.jpg")
        if label:
            annotations = {"exp": str(code), "val": "0.25", "aro": "-0.5", "lnd": np.zeros(136)}
            for name, value in annotations.items():
                np.save(folder / "annotations" / f"{number}_{name}.npy", value)

    for number in range(n):
        add(number, "val_set" if number % 5 == 4 else "train_set", number % 8)
    if dirt:
        add(900001, "train_set", 1, label=False)
        add(900002, "train_set", 2, image=False)
        add(900003, "val_set", 3)
        _cut(draw_color("surprise", rng, 224), root / "val_set" / "images" / "900003.jpg")
    return root


def write_expw(root: str | Path, n: int = 80, seed: int = 0, dirt: bool = False) -> Path:
    """Write ExpW: `label/label.lst` and pictures in `image/origin`, each with one to three faces.

    Args:
        n: number of pictures.
        dirt: also a line without a file, a box without size, one outside the picture, one that reaches beyond its
            border, a line cut off, an unknown label and a truncated JPEG.
    """
    root, rng = Path(root), np.random.default_rng(seed)
    images = root / "image" / "origin"
    lines, codes = [], _turns(EXPW_CODES)

    def add(name, faces, change=lambda box, picture: box, code=None):
        picture = _background(rng, 180 * faces, 200)
        for face_id in range(faces):
            label = next(codes)
            side = int(rng.integers(70, 150))
            face = draw_color(EXPW_CODES[label], rng, side)
            left, top = 180 * face_id + int(rng.integers(0, 180 - side)), int(rng.integers(0, 200 - side))
            picture.paste(face, (left, top))
            box = change([top, left, left + side, top + side], picture)
            confidence = rng.uniform(20, 100)
            lines.append(
                f"{name} {face_id} {' '.join(map(str, box))} {confidence:.4f} {label if code is None else code}"
            )
        return picture, images / name

    for number in range(n):
        _save(*add(f"drawn_face_{number}.jpg", 1 + number % 3))
    if dirt:
        add("missing.jpg", 1)
        _save(*add("flat.jpg", 1, lambda box, picture: [box[0], box[1], box[2], box[0]]))
        _save(*add("outside.jpg", 1, lambda box, picture: [500, 500, 600, 600]))
        _save(*add("border.jpg", 1, lambda box, picture: [-20, -30, 60, 70]))
        _save(*add("unknown.jpg", 1, code=7))
        _cut(*add("cut.jpg", 2))
        lines.append("short.jpg 0 10 10 60")
    (root / "label").mkdir(parents=True, exist_ok=True)
    (root / "label" / "label.lst").write_text("\n".join([*lines, ""]))
    return root


def write_folders(
    root: str | Path, n: int = 140, seed: int = 0, dirt: bool = False, splits: tuple[str, ...] = ("",), names=None
) -> Path:
    """Write a folder of images for each expression.

    Args:
        dirt: also an image outside the folders and a truncated JPEG.
        splits: folders above, as "train" and "test", in turn.
        names: what the folders are called, by expression.
    """
    root, rng = Path(root), np.random.default_rng(seed)
    names = names or {}
    for number, expression in zip(range(n), _turns(CLASS_NAMES), strict=False):
        folder = root / splits[number // 7 % len(splits)] / names.get(expression, expression)
        _save(draw_color(expression, rng, 64), folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    if dirt:
        _save(draw_color("sad", rng), root / "lost.jpg")
        _cut(draw_color("sad", rng), root / splits[0] / names.get("sad", "sad") / "cut.jpg")
        (root / "readme.txt").write_text("not an image")
    return root


def _tint(grey: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    pixels = np.asarray(grey.resize((size, size), Image.Resampling.BICUBIC), float)[..., None]
    tint = np.array([rng.uniform(0.95, 1.15), rng.uniform(0.75, 0.95), rng.uniform(0.6, 0.85)])
    return Image.fromarray(np.rint(np.clip(pixels * tint, 0, 255)).astype("uint8"))


def _turns(names) -> Iterator:
    """The names again and again."""
    while True:
        yield from names


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    small = rng.integers(0, 256, (5, 5, 3), dtype="uint8")
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _place(face: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int]]:
    """Put a face somewhere into a larger picture; and where it is."""
    picture = _background(rng, *(int(side + rng.integers(10, 120)) for side in face.size))
    at = int(rng.integers(0, picture.width - face.width)), int(rng.integers(0, picture.height - face.height))
    picture.paste(face, at)
    return picture, at


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=92)


def _cut(image: Image.Image, path: Path) -> None:
    """Save an image and cut its file in half, as after a broken download."""
    _save(image, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
