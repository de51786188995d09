"""Converters of other data sets, on drawn faces in the layouts of the real ones."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from fer_keras import convert, layouts
from fer_keras.cli import main
from fer_keras.convert import is_converted, load, read_info
from fer_keras.data import CLASS_NAMES, USAGES, as_uint8_grey
from fer_keras.source import fingerprint_of
from fer_keras.source import load as load_source
from fer_keras.split import split_official

# As AffectNet's and ExpW's own documentation lists them, written out once more: the test must not share the table.
AFFECTNET = dict(enumerate(["neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt"]))
EXPW = dict(enumerate(["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One source of each layout, with dirt."""
    base = tmp_path_factory.mktemp("sources")
    return SimpleNamespace(
        copy=layouts.write_affectnet(base / "copy", 96, dirt=True),
        split=layouts.write_affectnet(base / "split", 104, split=True),
        manual=layouts.write_affectnet_manual(base / "manual", 121, dirt=True),
        sets=layouts.write_affectnet_sets(base / "sets", 96, dirt=True),
        expw=layouts.write_expw(base / "expw", 84, dirt=True),
        folder=layouts.write_folders(base / "folder", 77, dirt=True),
    )


KIND = {"copy": "affectnet", "split": "affectnet", "manual": "affectnet", "sets": "affectnet"}


def run(kind, source, target, **options):
    return convert.convert(kind, source, target, **{"progress": False, "max_bad": 0.2, **options})


def files_of(target):
    return (target / "files.txt").read_text().splitlines()


def content(folder):
    """Everything in a folder: path, bytes and time."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def result(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def plain(path, box=None, size=48, mode="L"):
    """A face as Pillow makes it, step by step."""
    image = Image.open(path)
    image = image if box is None else image.crop(box)
    pixels = np.asarray(image.convert(mode).resize((size, size), Image.Resampling.BICUBIC))
    return pixels.reshape(size, size, -1)


def names(faces):
    return [faces.class_names[label] for label in faces.labels]


def paint(path, color=(200, 100, 50), size=(96, 96), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


@pytest.fixture
def tiny(tmp_path):
    """A folder of 24 plain images in two classes."""
    for i in range(24):
        paint(tmp_path / "tiny" / ("happy" if i % 2 else "sad") / f"{i:02d}.png", (10 * i, 5 * i, i))
    return tmp_path / "tiny"


# --- Every layout ---------------------------------------------------------------------------------------------------


def test_affectnets_copy_by_folder(sources, tmp_path):
    faces = run("affectnet", sources.copy, tmp_path / "out")
    files = files_of(tmp_path / "out")
    assert faces.class_names == CLASS_NAMES and faces.images.shape == (len(files), 48, 48, 1)
    folders = [file.split("/")[0] for file in files]
    assert names(faces) == [{"anger": "angry"}.get(folder, folder) for folder in folders]
    assert len(files) == 84 + 1  # of 96 in eight classes seven, and one that is not in the list
    for row, file in enumerate(files):
        np.testing.assert_array_equal(faces.images[row], plain(sources.copy / file))
    info = read_info(tmp_path / "out")
    assert info["dropped"] == {"class contempt": 12}
    assert {reason: (bad["count"], len(bad["files"])) for reason, bad in info["bad"].items()} == {
        "cannot be decoded": (2, 2),
        "image without a label": (1, 1),
        "missing file": (1, 1),
    }
    assert info["bad"]["missing file"]["files"] == ["sad/image9000000.jpg"]
    assert any("folder and column disagree for 6 of" in note for note in faces.notes)
    assert any("12 class contempt" in note for note in faces.notes)


def test_affectnets_copy_by_column_and_with_contempt(sources, tmp_path):
    faces = run("affectnet", sources.copy, tmp_path / "out", labels="column", contempt=True)
    assert faces.class_names == (*CLASS_NAMES, "contempt")
    lines = [line.split(",") for line in (sources.copy / "labels.csv").read_text().splitlines()[1:]]
    column = {path: label for _, path, label, _ in lines}
    wanted = [{"anger": "angry"}.get(column[file], column[file]) for file in files_of(tmp_path / "out")]
    assert names(faces) == wanted and len(wanted) == 96
    assert read_info(tmp_path / "out")["bad"]["image without a label"]["count"] == 2
    assert any("column `label`" in note for note in faces.notes)


def test_affectnets_other_copy_keeps_its_test_faces(sources, tmp_path):
    faces = run("affectnet", sources.split, tmp_path / "out")
    files = files_of(tmp_path / "out")
    assert {file.split("/")[0] for file in files} == {"Train", "Test"}
    assert names(faces) == [{"anger": "angry"}.get(name, name) for name in (f.split("/")[1].lower() for f in files)]
    test = np.array([file.startswith("Test/") for file in files])
    np.testing.assert_array_equal(faces.usage == "PrivateTest", test)
    public = np.bincount(faces.labels[faces.usage == "PublicTest"], minlength=7)
    assert public.min() >= 1 and public.sum() == round((~test).sum() / 10)
    assert not read_info(tmp_path / "out")["bad"]  # Test/Anger/… was found for anger/…


def test_affectnets_pictures_are_cropped(sources, tmp_path):
    faces = run("affectnet", sources.manual, tmp_path / "out", margin=0)
    rows, part_of = {}, {}
    for part in ("training", "validation"):
        lines = (sources.manual / "Manually_Annotated_file_lists" / f"{part}.csv").read_text().splitlines()[1:]
        for line in lines:
            path, *values = line.split(",")
            file = f"Manually_Annotated/Manually_Annotated_Images/{path}"
            rows[file], part_of[file] = values, part
    files = files_of(tmp_path / "out")
    for row, file in enumerate(files):
        x, y, width, height = map(int, rows[file][:4])
        np.testing.assert_array_equal(
            faces.images[row], plain(sources.manual / file, (x, y, x + width, y + height)), err_msg=file
        )
        assert faces.class_names[faces.labels[row]] == AFFECTNET[int(rows[file][5])]
        assert (faces.usage[row] == "PrivateTest") == (part_of[file] == "validation")
    assert set(faces.usage) == set(USAGES)
    info = read_info(tmp_path / "out")
    assert info["dropped"] == {"class contempt": 11, "class no-face": 11, "class none": 11, "class uncertain": 11}
    assert {reason: bad["count"] for reason, bad in info["bad"].items()} == dict.fromkeys(
        ["box outside the picture", "box without size", "cannot be decoded", "missing file", "unknown label"], 1
    )
    # 77 of the seven expressions, and of the dirt the face that reaches beyond the border
    assert len(faces) == 78


def test_the_lists_of_affectnet_may_lie_elsewhere_and_without_a_header(sources, tmp_path):
    expected = run("affectnet", sources.manual, tmp_path / "expected", contempt=True)
    other = tmp_path / "other"
    other.mkdir()
    os.rename(sources.manual / "Manually_Annotated" / "Manually_Annotated_Images", other / "Manually_Annotated_Images")
    try:
        for part in ("training", "validation"):
            text = (sources.manual / "Manually_Annotated_file_lists" / f"{part}.csv").read_text()
            (other / f"{part}.csv").write_text(text.split("\n", 1)[1])
        found = run("affectnet", other, tmp_path / "found", contempt=True)
    finally:
        os.rename(
            other / "Manually_Annotated_Images", sources.manual / "Manually_Annotated" / "Manually_Annotated_Images"
        )
    assert found.fingerprint == expected.fingerprint


def test_affectnets_sets(sources, tmp_path):
    faces = run("affectnet", sources.sets, tmp_path / "out", contempt=True)
    for row, file in enumerate(files_of(tmp_path / "out")):
        part, _, name = file.split("/")
        code = np.load(sources.sets / part / "annotations" / name.replace(".jpg", "_exp.npy"))
        assert faces.class_names[faces.labels[row]] == AFFECTNET[int(code)]
        assert (faces.usage[row] == "PrivateTest") == (part == "val_set")
        np.testing.assert_array_equal(faces.images[row], plain(sources.sets / file))
    bad = {reason: bad["files"] for reason, bad in read_info(tmp_path / "out")["bad"].items()}
    assert bad.pop("cannot be decoded")[0].startswith(
        "val_set/images/900003.jpg: cannot be decoded: image file is trunc"
    )
    assert bad == {
        "image without a label": ["train_set/images/900001.jpg"],
        "missing file": ["train_set/annotations/900002_exp.npy"],
    }


def test_expw(sources, tmp_path):
    faces = run("expw", sources.expw, tmp_path / "out", margin=0)
    lines = [line.split() for line in (sources.expw / "label" / "label.lst").read_text().splitlines()]
    wrong = {"missing.jpg", "flat.jpg", "outside.jpg", "unknown.jpg", "cut.jpg", "short.jpg"}
    lines = [line for line in lines if line[0] not in wrong]
    files = files_of(tmp_path / "out")
    assert files == [f"image/origin/{line[0]}" for line in lines]
    assert names(faces) == [EXPW[int(line[7])] for line in lines]
    for row, (name, _, *box, _, _) in enumerate(lines):
        top, left, right, bottom = map(int, box)
        expected = plain(sources.expw / "image" / "origin" / name, (left, top, right, bottom))
        np.testing.assert_array_equal(faces.images[row], expected, err_msg=name)
    assert {reason: bad["count"] for reason, bad in read_info(tmp_path / "out")["bad"].items()} == {
        "box outside the picture": 1,
        "box without size": 1,
        "cannot be decoded": 2,
        "line without eight fields": 1,
        "missing file": 1,
        "unknown label": 1,
    }


def test_faces_of_one_picture_have_one_usage(sources, tmp_path):
    faces = run("expw", sources.expw, tmp_path / "out")
    usages = {}
    for file, usage in zip(files_of(tmp_path / "out"), faces.usage, strict=True):
        usages.setdefault(file, set()).add(str(usage))
    assert len(usages) < len(faces) and all(len(found) == 1 for found in usages.values())
    share = Counter(usage for found in usages.values() for usage in found)
    assert share["PublicTest"] in (8, 9) and share["PrivateTest"] in (8, 9)
    assert any("The faces of one picture stay together" in note for note in faces.notes)


def test_expws_confidence_and_repeated_lines(sources, tmp_path):
    source = tmp_path / "expw"
    for i in range(30):
        paint(source / "origin" / f"{i}.jpg", (i, i, i))
    lines = [f"{i}.jpg 0 10 10 60 60 {i}.5 {i % 7}" for i in range(30)]
    (source / "label.lst").write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(ValueError, match="No class has 10 images"):
        run("expw", source, tmp_path / "few", min_confidence=20)
    lines = [line[:-1] + str(i % 2) for i, line in enumerate(lines)]
    (source / "label.lst").write_text("\n".join([*lines, lines[-1]]))
    faces = run("expw", source, tmp_path / "out", min_confidence=9.5)
    assert files_of(tmp_path / "out") == [f"origin/{i}.jpg" for i in range(9, 30)] and len(faces) == 21
    assert read_info(tmp_path / "out")["dropped"] == {"confidence below 9.5": 9, "repeated line": 1}


def test_an_archive_with_a_folder_around_it_is_found(sources, tmp_path):
    outer = tmp_path / "download"
    outer.mkdir()
    (outer / "archive (3)").symlink_to(sources.split)
    assert len(run("affectnet", outer, tmp_path / "out")) == 91


# --- Cropping -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gradient(tmp_path):
    """Writes ExpW with these boxes (left, top, right, bottom) on one 200×160 picture, and 30 whole ones around."""
    y, x = np.mgrid[0:160, 0:200]
    picture = np.stack([40 + x, 30 + y, (x + y) % 256], -1).astype("uint8")

    def write(*boxes):
        source = tmp_path / "gradient"
        (source / "image").mkdir(parents=True)
        Image.fromarray(picture).save(source / "image" / "a.png")
        lines = [f"a.png {i} {top} {left} {right} {bottom} 90 3" for i, (left, top, right, bottom) in enumerate(boxes)]
        for i in range(30):
            Image.fromarray(picture).save(source / "image" / f"whole {i}.png")
            lines.append(f"whole {i}.png 0 50 50 100 100 90 {i % 2}")
        (source / "label.lst").write_text("\n".join(lines))
        return source

    return write, Image.fromarray(picture)


@pytest.mark.parametrize(
    ("box", "margin", "crop"),
    [
        ((0, 0, 200, 160), 0, (0, -20, 200, 180)),  # the whole picture: made square
        ((0, 0, 60, 60), 0, (0, 0, 60, 60)),  # at the corner
        ((0, 0, 60, 60), 0.5, (-30, -30, 90, 90)),
        ((140, 100, 200, 160), 0.25, (125, 85, 215, 175)),  # at the other corner
        ((-20, -10, 60, 70), 0, (-20, -10, 60, 70)),  # beyond the border, more than half of it inside
        ((50, 20, 90, 120), 0, (20, 20, 120, 120)),  # a high box: the shorter side is lengthened
        ((50, 50, 100, 100), None, (45, 45, 105, 105)),  # a tenth on each side by default
        ((10.4, 20.6, 70.4, 80.6), 0, (10, 21, 70, 81)),
    ],
)
def test_what_is_cropped(gradient, tmp_path, box, margin, crop):
    write, picture = gradient
    faces = run("expw", write(box), tmp_path / "out", margin=margin)
    wide = Image.new("RGB", (600, 560))  # black around
    wide.paste(picture, (200, 200))
    window = wide.crop([side + 200 for side in crop])
    expected = np.asarray(window.convert("L").resize((48, 48), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(faces.images[0, ..., 0], expected)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((50, 50, 50, 90), "box without size"),
        ((90, 50, 60, 90), "box without size"),
        ((300, 50, 360, 90), "box outside the picture"),
        ((-50, -50, -10, -10), "box outside the picture"),
        ((-40, 0, 30, 60), "box outside the picture"),  # less than half of it inside
        (("nan", 0, 30, 60), "no box"),
    ],
)
def test_boxes_that_cannot_be_cropped(gradient, tmp_path, box, reason):
    write, _ = gradient
    faces = run("expw", write(box), tmp_path / "out")
    assert read_info(tmp_path / "out")["bad"] == {reason: {"count": 1, "files": ["image/a.png"]}}
    assert len(faces) == 30 and "image/a.png" not in files_of(tmp_path / "out")


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path):
    source, rng = tmp_path / "large", np.random.default_rng(0)
    faces = [layouts.draw_color("happy", rng, 700) for _ in range(12)]
    for i, face in enumerate(faces):
        (source / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        face.save(source / f"c{i % 2}" / f"{i}.jpg", quality=95)
    with pytest.raises(ValueError, match="No class has 10 images"):
        run("folder", source, tmp_path / "no")
    for i, face in enumerate(faces):
        face.save(source / "c0" / f"more{i}.jpg", quality=95)
    found = run("folder", source, tmp_path / "out")
    differences = [
        np.abs(found.images[row].astype(int) - plain(source / file))
        for row, file in enumerate(files_of(tmp_path / "out"))
    ]
    assert 0 < np.mean(differences) < 1.5 and np.max(differences) < 30


# --- Size, colour and classes ---------------------------------------------------------------------------------------


def test_another_size_and_colour(sources, tmp_path):
    faces = run("folder", sources.folder, tmp_path / "out", image_size=(40, 32), color="rgb")
    assert faces.images.shape == (77, 40, 32, 3)
    for row, file in enumerate(files_of(tmp_path / "out")):
        image = Image.open(sources.folder / file).convert("RGB").resize((32, 40), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(faces.images[row], np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_images_of_every_mode(tiny, tmp_path, mode, color):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype="uint8")
    image = Image.fromarray(pixels)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(np.asarray(image.convert("L")).astype("uint16") * 257)
        image = image if mode == "I;16" else image.convert(mode)
    else:
        image = image.convert(mode)
    path = tiny / "happy" / f"zz.{'tif' if mode in ('CMYK', 'I', 'F') else 'png'}"
    image.save(path)
    faces = run("folder", tiny, tmp_path / "out", color=color)
    found = faces.images[files_of(tmp_path / "out").index(f"happy/{path.name}")]
    if color == "grey" or mode in ("I;16", "I", "F"):
        np.testing.assert_array_equal(found, np.broadcast_to(as_uint8_grey(Image.open(path))[..., None], found.shape))
    else:
        np.testing.assert_array_equal(found, np.asarray(Image.open(path).convert("RGB")))


def test_transparency_shows_the_colours_below(tiny, tmp_path):
    path = tiny / "happy" / "zz.png"
    Image.new("RGBA", (48, 48), (90, 90, 90, 0)).save(path)
    faces = run("folder", tiny, tmp_path / "out")
    assert set(faces.images[files_of(tmp_path / "out").index("happy/zz.png")].ravel()) == {90}


def test_a_photograph_taken_with_the_camera_turned_is_put_upright(tiny, tmp_path):
    upright = np.zeros((48, 48, 3), "uint8")
    upright[:12] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    path = tiny / "sad" / "zz.png"
    Image.fromarray(np.rot90(upright)).save(path, exif=exif)
    faces = run("folder", tiny, tmp_path / "out")
    np.testing.assert_array_equal(faces.images[files_of(tmp_path / "out").index("sad/zz.png"), ..., 0], upright[..., 0])


def test_folders_are_named_by_alias_by_map_or_as_they_are(tmp_path):
    source = layouts.write_folders(
        tmp_path / "source", 77, names={"angry": "Anger", "happy": "joy", "sad": "Mask", "fear": "bored"}
    )
    faces = run("folder", source, tmp_path / "out", class_map={"Joy": "happy", "mask": "sad"})
    assert faces.class_names == ("angry", "disgust", "happy", "sad", "surprise", "neutral", "bored")
    folder_of = {"Anger": "angry", "joy": "happy", "Mask": "sad"}
    folders = [file.split("/")[0] for file in files_of(tmp_path / "out")]
    assert names(faces) == [folder_of.get(name, name) for name in folders]
    with pytest.raises(ValueError, match=r"`class_map` names jooy, but the folders are Anger, Mask, bored"):
        run("folder", source, tmp_path / "no", class_map={"jooy": "happy"})


def test_classes_choose_and_order(sources, tmp_path):
    faces = run("folder", sources.folder, tmp_path / "out", classes=["sad", "contempt", "happy"])
    assert faces.class_names == ("sad", "contempt", "happy") and faces.class_counts() == {
        "sad": 11,
        "contempt": 0,
        "happy": 11,
    }
    assert read_info(tmp_path / "out")["dropped"]["class neutral"] == 11
    assert "contempt in Training" in faces.notes[-1]
    faces = run("folder", sources.folder, tmp_path / "two", class_map=dict.fromkeys(CLASS_NAMES[:5]))
    assert faces.class_names == ("surprise", "neutral")


def test_folders_with_a_split(tmp_path):
    for splits in (("train", "test"), ("Train", "validation", "test")):
        source = layouts.write_folders(tmp_path / "-".join(splits), 84, splits=splits)
        faces = run("folder", source, tmp_path / f"{len(splits)}")
        for file, usage in zip(files_of(tmp_path / f"{len(splits)}"), faces.usage, strict=True):
            part = file.split("/")[0].lower()
            assert usage in {"train": ["Training"], "validation": ["PublicTest"]}.get(part, USAGES[3 - len(splits) :])
            assert (part == "train") == (usage == "Training")
    halves = load(tmp_path / "2")
    counts = [np.bincount(halves.labels[halves.usage == usage], minlength=7).tolist() for usage in USAGES[1:]]
    assert counts == [[3] * 7, [3] * 7]  # test/ in two halves, as `load_fer2013` does
    assert "The split is the source's own." in load(tmp_path / "3").notes


def test_half_a_split_is_refused(tmp_path):
    source = layouts.write_folders(tmp_path / "source", 28, splits=("train", "val"))
    with pytest.raises(ValueError, match="has a folder train and none named test"):
        run("folder", source, tmp_path / "out")
    source = layouts.write_folders(tmp_path / "both", 28, splits=("train", "test", ""))
    with pytest.raises(ValueError, match="folders of classes beside train and test"):
        run("folder", source, tmp_path / "out")


# --- The converted set ----------------------------------------------------------------------------------------------


def test_what_is_loaded(sources, tmp_path, monkeypatch):
    target = tmp_path / "out"
    faces = run("affectnet", sources.copy, target)
    assert is_converted(target) and not is_converted(tmp_path) and not is_converted(sources.copy)
    assert sorted(path.name for path in target.iterdir()) == sorted(convert.FILES)
    assert isinstance(faces.images, np.memmap) and not faces.images.flags.writeable
    assert faces.labels.dtype == np.int64 and faces.rows.tolist() == list(range(len(faces)))
    digest = hashlib.sha256(str(faces.images.shape).encode())
    for array in (faces.images, faces.labels, faces.usage):
        digest.update(array.tobytes())
    assert faces.fingerprint == digest.hexdigest() == fingerprint_of({"data": target})
    assert load_source(str(target)).notes == faces.notes
    parts = split_official(faces)
    sizes = {role: len(part) for role, part in parts.items()}
    assert sum(sizes.values()) == len(faces) and abs(sizes["test"] - 8.5) < 1.5 and abs(sizes["validation"] - 8.5) < 1.5
    info = read_info(target)
    for usage in USAGES:
        counts = np.bincount(faces.labels[faces.usage == usage], minlength=7)
        assert list(info["counts"][usage].values()) == counts.tolist() and counts.min() >= 1


def test_the_source_is_only_read(sources, tmp_path):
    for name in ("copy", "manual", "sets", "expw", "folder"):
        source = getattr(sources, name)
        before = content(source)
        run(KIND.get(name, name), source, tmp_path / name)
        assert content(source) == before


def test_several_processes_give_the_same(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "FEW", 0)
    run("expw", sources.expw, tmp_path / "one", workers=1)
    children = []
    run(
        *("expw", sources.expw, tmp_path / "two"),
        workers=2,
        progress=lambda done, total: children.append(len(psutil.Process().children())),
    )
    assert children[-1] >= 2
    assert result(tmp_path / "one") == result(tmp_path / "two")


def test_the_same_again_does_nothing_and_anything_else_is_refused(tiny, tmp_path):
    target = tmp_path / "out"
    first = run("folder", tiny, target)
    before = content(target)
    assert run("folder", tiny, target).fingerprint == first.fingerprint and content(target) == before
    for options in ({"image_size": 32}, {"color": "rgb"}, {"classes": ["happy", "sad"]}):
        with pytest.raises(ValueError, match="another source or with other options"):
            run("folder", tiny, target, **options)
    paint(tiny / "sad" / "99.png", (1, 2, 3))
    with pytest.raises(ValueError, match="another source or with other options"):
        run("folder", tiny, target)
    assert content(target) == before


def test_targets_that_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="is inside the source"):
        run("folder", tiny, tiny / "out")
    with pytest.raises(ValueError, match="is inside the source"):
        run("folder", tiny, tiny)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images.npy").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files: images\.npy"):
        run("folder", tiny, tmp_path / "mine")
    assert result(tmp_path / "mine") == {"images.npy": b"mine"}
    with pytest.raises(ValueError, match="is a file"):
        run("folder", tiny, tmp_path / "mine" / "images.npy")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "labels.npy").write_bytes(b"x"), "is damaged"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(3, int)), "is damaged"),
        (lambda folder: (folder / "usage.npy").unlink(), "is damaged"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), "is not what"),
        (lambda folder: (folder / "dataset.json").write_text('{"format": 9}'), "has the format 9, expected 1"),
        (lambda folder: (folder / "dataset.json").unlink(), "is no converted set"),
    ],
)
def test_a_damaged_set_is_refused(tiny, tmp_path, damage, message):
    run("folder", tiny, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path / "out")


# --- Interruptions --------------------------------------------------------------------------------------------------


@pytest.fixture
def blocks(monkeypatch):
    """Progress is noted every ten faces."""
    monkeypatch.setattr(convert, "BLOCK_ROWS", 10)


@pytest.mark.parametrize("at", [0, 10, 40, 60])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(sources, tmp_path, blocks, at):
    run("affectnet", sources.copy, tmp_path / "whole")
    calls = []

    def interrupt(done, total):
        calls.append(done)
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("affectnet", sources.copy, tmp_path / "out", progress=interrupt)
    assert not is_converted(tmp_path / "out") and calls[-1] == at
    calls.clear()
    run("affectnet", sources.copy, tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (at, 87) and calls[-1] == (87, 87)
    assert result(tmp_path / "out") == result(tmp_path / "whole")


def test_half_a_note_and_bytes_that_were_not_noted_are_dropped(tiny, tmp_path, blocks):
    run("folder", tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run("folder", tiny, tmp_path / "out", progress=_interrupt_at(10))
    work = tmp_path / "out" / convert.WORK
    with open(work / "images.npy", "ab") as images, open(work / "progress.jsonl", "a") as notes:
        images.write(b"half a block")
        notes.write("[[1")
    seen = []
    run("folder", tiny, tmp_path / "out", progress=lambda done, total: seen.append(done))
    assert seen == [10, 20, 24] and result(tmp_path / "out") == result(tmp_path / "whole")


def test_images_shorter_than_noted_are_read_anew(tiny, tmp_path, blocks):
    run("folder", tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run("folder", tiny, tmp_path / "out", progress=_interrupt_at(20))
    os.truncate(tmp_path / "out" / convert.WORK / "images.npy", 1000)
    seen = []
    run("folder", tiny, tmp_path / "out", progress=lambda done, total: seen.append(done))
    assert seen[0] == 0 and result(tmp_path / "out") == result(tmp_path / "whole")


@pytest.mark.parametrize("change", ["options", "source"])
def test_other_options_or_another_source_start_anew(tiny, tmp_path, blocks, change):
    with pytest.raises(KeyboardInterrupt):
        run("folder", tiny, tmp_path / "out", progress=_interrupt_at(10))
    if change == "source":
        paint(tiny / "happy" / "01.png", (250, 250, 250))
    seen = []
    options = {"image_size": 32} if change == "options" else {}
    faces = run("folder", tiny, tmp_path / "out", progress=lambda done, total: seen.append(done), **options)
    assert seen[0] == 0
    np.testing.assert_array_equal(faces.images[0], plain(tiny / "happy" / "01.png", size=options.get("image_size", 48)))


@pytest.mark.parametrize("call", range(1, 8))
def test_a_full_disk_keeps_what_was_done(tiny, tmp_path, blocks, monkeypatch, call):
    run("folder", tiny, tmp_path / "whole")
    left, real = [call], os.fsync

    def full(handle):
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="is full"):
        run("folder", tiny, tmp_path / "out")
    assert not is_converted(tmp_path / "out")
    monkeypatch.setattr(os, "fsync", real)
    run("folder", tiny, tmp_path / "out")
    assert result(tmp_path / "out") == result(tmp_path / "whole")


def test_a_disk_that_is_too_small_is_refused_at_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"The faces need 0\.0 GB, and the disk of .* has 0\.0 free"):
        run("folder", tiny, tmp_path / "out")


@pytest.mark.parametrize("call", range(1, 7))
def test_killed_while_files_are_moved(tiny, tmp_path, monkeypatch, call):
    run("folder", tiny, tmp_path / "whole")
    left, real = [call], os.replace

    def kill(source, target):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        run("folder", tiny, tmp_path / "out")
    assert not is_converted(tmp_path / "out")
    monkeypatch.setattr(os, "replace", real)
    run("folder", tiny, tmp_path / "out")
    assert result(tmp_path / "out") == result(tmp_path / "whole")


def test_two_conversions_to_one_target_are_refused(tiny, tmp_path):
    def second(done, total):
        run("folder", tiny, tmp_path / "out")

    with pytest.raises(ValueError, match="Another conversion is writing"):
        run("folder", tiny, tmp_path / "out", progress=second)


def _interrupt_at(at):
    def report(done, total):
        if done >= at:
            raise KeyboardInterrupt

    return report


# --- Wrong input ----------------------------------------------------------------------------------------------------


def test_more_than_a_twentieth_bad_stops_with_the_first_ten(tiny, tmp_path, blocks):
    for i in range(12):
        (tiny / "sad" / f"b{i:02d}.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError) as caught:
        convert.convert("folder", tiny, tmp_path / "out", progress=False)
    lines = str(caught.value).splitlines()
    assert "of the 36 faces" in lines[0] and "more than 5%" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == [f"sad/b{i:02d}.jpg" for i in range(len(lines) - 1)]
    assert 2 <= len(lines) - 1 <= 10 and not is_converted(tmp_path / "out")
    faces = convert.convert("folder", tiny, tmp_path / "out", progress=False, max_bad=0.5)
    assert len(faces) == 24
    one = tmp_path / "one"
    for i in range(20):
        paint(one / ("happy" if i % 2 else "sad") / f"{i}.png")
    (one / "sad" / "b.png").write_bytes(b"")
    assert len(convert.convert("folder", one, tmp_path / "one-out", progress=False)) == 20  # 1 of 21 is below 5 %


def test_missing_files_stop_before_anything_is_read(sources, tmp_path):
    source = tmp_path / "expw"
    (source / "origin").mkdir(parents=True)
    (source / "label.lst").write_text("\n".join(f"{i}.jpg 0 1 1 9 9 90 3" for i in range(40)))
    with pytest.raises(
        ValueError, match=r"40 of the 40 faces in .* cannot be used(?s:.*)\n  origin/9.jpg: missing file$"
    ):
        run("expw", source, tmp_path / "out")


@pytest.mark.parametrize("kind", ["affectnet", "expw", "folder"])
def test_a_wrong_root_says_what_was_looked_for_and_found(tmp_path, kind):
    (tmp_path / "source" / "docs").mkdir(parents=True)
    (tmp_path / "source" / "notes.txt").write_text("")
    with pytest.raises(ValueError) as caught:
        run(kind, tmp_path / "source", tmp_path / "out")
    message = str(caught.value)
    assert f"no known layout of '{kind}'" in message and message.endswith("Found instead: docs/, notes.txt")
    assert all(words in message for words in convert.KINDS[kind])
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        run(kind, tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("afectnet", {}, "`kind` must be one of affectnet, expw, folder. Received: 'afectnet'"),
        ("folder", {"color": "gray"}, "`color` must be one of grey, rgb. Received: 'gray'"),
        ("affectnet", {"labels": "csv"}, "`labels` must be one of folder, column"),
        ("folder", {"image_size": 0}, "`image_size` must be one positive number"),
        ("folder", {"image_size": (48, 48, 3)}, "`image_size` must be"),
        ("expw", {"margin": -0.1}, "`margin` must be a share"),
        ("folder", {"contempt": True}, "`contempt` goes with the kind 'affectnet'"),
        ("affectnet", {"min_confidence": 5}, "`min_confidence` goes with the kind 'expw'"),
        ("expw", {"class_map": {"a": "b"}}, "`class_map` goes with the kind 'folder'"),
        ("folder", {"classes": ["sad", "sad"]}, "`classes` must be a list of two or more different names"),
        ("folder", {"classes": "sad"}, "`classes` must be"),
        ("folder", {"max_bad": 5}, "`max_bad` must be 0–1"),
        ("folder", {"workers": 0}, "`workers` at least 1"),
        ("folder", {"margin": 0.2}, "`margin` goes with faces that are cropped"),
        ("folder", {"labels": "column"}, "`labels='column'` goes with a labels.csv"),
        ("folder", {"classes": ["bored", "tired"]}, "No faces are left of"),
    ],
)
def test_wrong_options(tiny, tmp_path, kind, options, message):
    with pytest.raises(ValueError) as caught:
        run(kind, tiny, tmp_path / "out", **options)
    assert message in str(caught.value)
    assert not is_converted(tmp_path / "out")


def test_a_list_that_is_none(tmp_path):
    source = layouts.write_affectnet(tmp_path / "source", 8)
    (source / "labels.csv").write_text("file,emotion\na.jpg,happy\n")
    with pytest.raises(ValueError, match="no known layout"):
        run("affectnet", source, tmp_path / "out")
    (source / "labels.csv").write_text('pth,label\n"a.jpg,happy\n')
    with pytest.raises(ValueError, match=r"labels\.csv cannot be read as a table"):
        run("affectnet", source, tmp_path / "out")


# --- The command line -----------------------------------------------------------------------------------------------


def test_convert_and_show(sources, tmp_path, capsys):
    target = tmp_path / "out"
    arguments = ["data", "convert", "affectnet", str(sources.copy), str(target), "--contempt", "--image-size", "32"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "folder and column disagree for" in shown and "missing file, 1:\n  sad/image9000000.jpg" in shown
    assert "contempt" in shown and "97 faces in" in shown and "a second" in shown and f"They are at {target}" in shown
    assert load(target).images.shape == (97, 32, 32, 1)
    assert main(["data", "show", str(target)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "97"
    assert main([*arguments[:-2]]) == 2
    assert "another source or with other options" in capsys.readouterr().err


def test_convert_takes_every_option(sources, tmp_path, capsys):
    options = ["--color=rgb", "--class-map", "happy=joy", "sad=grief", "--classes", "joy", "grief", "--max-bad=0.2"]
    assert main(["data", "convert", "folder", str(sources.folder), str(tmp_path / "f"), *options]) == 0
    assert load(tmp_path / "f").class_names == ("joy", "grief") and load(tmp_path / "f").images.shape[-1] == 3
    options = ["--margin=0.3", "--min-confidence=40", "--workers=1"]
    assert main(["data", "convert", "expw", str(sources.expw), str(tmp_path / "e"), *options]) == 0
    info = json.loads((tmp_path / "e" / "dataset.json").read_text())
    assert info["options"]["margin"] == 0.3 and info["dropped"]["confidence below 40"] > 10


def test_fetch_affectnet_converts_it(sources, tmp_path, monkeypatch, capsys):
    shutil.copytree(sources.copy, tmp_path / "download" / "inner")
    asked = []

    def download(handle):
        asked.append(handle)
        return str(tmp_path / "download")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=download))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["data", "fetch", "affectnet"]) == 0
    path = tmp_path / "cache" / "fer_keras" / "noamsegal-affectnet-training-data"
    assert asked == ["noamsegal/affectnet-training-data"] and is_converted(path)
    assert f"The faces are at {path}" in capsys.readouterr().out
    assert main(["data", "fetch", "affectnet"]) == 0  # found, not converted again


def test_an_interrupted_command_says_how_to_go_on(tiny, tmp_path, monkeypatch, capsys):
    def interrupt(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "convert", interrupt)
    assert main(["data", "convert", "folder", str(tiny), str(tmp_path / "out")]) == 130
    assert "Give the same command again" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "convert", "folder", str(tiny), str(tmp_path / "out"), "--class-map", "happy"])
    assert "expected FOLDER=CLASS, received 'happy'" in capsys.readouterr().err
