import io
import os
import pickle
import runpy
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_keras import data
from fer_keras.data import CLASS_NAMES, Faces, load_fer2013
from fer_keras.source import fingerprint_of, load

ICML = "emotion, Usage, pixels"


@pytest.fixture(scope="module")
def few(faces):
    """28 faces: of each class two to train, one in PublicTest and one in PrivateTest, mixed."""
    wanted = {"Training": 2, "PublicTest": 1, "PrivateTest": 1}
    at = [
        np.flatnonzero((faces.labels == code) & (faces.usage == usage))[:count]
        for code in range(len(CLASS_NAMES))
        for usage, count in wanted.items()
    ]
    found = faces.take(np.sort(np.concatenate(at)))
    return Faces(found.images, found.labels, np.arange(len(found)), found.usage)


@pytest.fixture
def lines(few, row):
    return [row(*given) for given in zip(few.labels, few.usage, few.images.reshape(len(few), -1), strict=True)]


def write_folder(folder, faces, name="{usage}_{row}.png", class_names=CLASS_NAMES, validation=False):
    """Write faces as image files, as FER2013's image folders have them, and return their paths."""
    paths = []
    for image, label, row, usage in zip(faces.images, faces.labels, faces.rows, faces.usage, strict=True):
        split = {"Training": "train", "PublicTest": "validation" if validation else "test"}.get(usage, "test")
        path = folder / split / class_names[label] / name.format(usage=usage, row=row)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path, quality=100)
        paths.append(path)
    return paths


def assert_same(found, expected):
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.usage, expected.usage)
    np.testing.assert_array_equal(found.rows, np.arange(len(expected)))
    assert found.images.dtype == "uint8" and found.labels.dtype == "int64"


def assert_refused(path, *words, error=ValueError):
    """The message names the path and has these words, and nothing is written beside the source."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(error) as caught:
        load_fer2013(path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert sorted(path.parent.rglob("*")) == before


# --- CSV ------------------------------------------------------------------------------------------------------------


def usage_second(line):
    emotion, pixels, usage = line.split(",")
    return f"{emotion},{usage},{pixels}"


def quoted(line):
    emotion, pixels, usage = line.split(",")
    return f'"{emotion}","{pixels}","{usage}"'


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (str, {}),
        (usage_second, {"header": ICML, "name": "icml_face_data.csv"}),
        (str, {"end": "\r\n"}),
        (str, {"header": "\ufeffemotion,pixels,Usage"}),
        (quoted, {"header": '"emotion","pixels","Usage"'}),
        (lambda line: line.replace(",", " , "), {"header": "emotion , pixels , Usage"}),
    ],
    ids=["fer2013", "icml", "crlf", "bom", "quoted", "spaces"],
)
def test_every_variant_of_the_csv_file_gives_the_faces(few, lines, write_csv, change, given):
    found = load_fer2013(write_csv(*map(change, lines), **given))
    assert_same(found, few)
    assert found.class_counts() == dict.fromkeys(CLASS_NAMES, 4)
    assert found.origin.tolist() == ["original"] * len(few)
    assert found.notes == ()


def test_blank_lines_and_a_missing_last_line_end_change_nothing(few, lines, write_csv):
    assert_same(load_fer2013(write_csv(*lines[:9], "", *lines[9:], "", "", name="blank.csv")), few)
    path = write_csv(*lines)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert_same(load_fer2013(path), few)


def test_every_pixel_value_at_every_place_is_read(write_csv, row):
    images = np.stack([np.roll(np.arange(2304) % 256, shift) for shift in range(0, 256, 37)])
    found = load_fer2013(write_csv(*(row(3, "PublicTest", image) for image in images)))
    np.testing.assert_array_equal(found.images.reshape(len(images), -1), images)


def test_load_takes_drawn_or_a_path(lines, write_csv, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_csv(*lines)
    assert load(str(path)).fingerprint == fingerprint_of({"data": path}) == load_fer2013(path, cache=False).fingerprint
    drawn, kept = load("drawn", 140), load("drawn", 140)
    assert isinstance(kept.images, np.memmap) and np.array_equal(drawn.images, kept.images)
    assert drawn.fingerprint == kept.fingerprint == fingerprint_of({"data": "drawn", "drawn_faces": 140})


@pytest.mark.parametrize("change", [{"emotion": 6}, {"usage": "PrivateTest"}, {"pixels": [1] + 2303 * [0]}])
def test_the_fingerprint_follows_the_content(write_csv, row, change):
    given = {"emotion": 5, "usage": "Training", "pixels": 2304 * [0]}
    first, same, other = (
        load_fer2013(write_csv(row(**given | changed), row(seed=1), name=name)).fingerprint
        for name, changed in {"a.csv": {}, "b.csv": {}, "c.csv": change}.items()
    )
    assert first == same != other


def test_a_missing_path_is_refused(tmp_path):
    assert_refused(tmp_path / "no.csv", "There is no file or folder", "Give the path", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty", "Expected FER2013 with the header emotion,pixels,Usage"]),
        (b"\n\n", ["is empty"]),
        (b"emotion,pixels,Usage\n", ["has a header and no rows", "Expected a row for each face"]),
        (b"emotion,pixels,Usage\n\n \n", ["has a header and no rows"]),
        (b"label,pixels,Usage\n", ["'label,pixels,Usage'", "Expected emotion,pixels,Usage", "emotion, Usage, pixels"]),
        (b"emotion,pixels\n", ["'emotion,pixels'", "Expected emotion,pixels,Usage"]),
        (b"emotion;pixels;Usage\n", ["'emotion;pixels;Usage'", "Expected"]),
        (b"emotion,pixels,Usage,Usage\n", ["Usage,Usage", "Expected"]),
        (b"0,70 80 82,Training\n", ["'0,70 80 82,Training'", "Expected"]),
        (b"\x89PNG\r\n\x1a\n\0\0", ["The header of", "Expected"]),
    ],
    ids=[
        "empty", "blank", "header only", "blank rows", "other name", "two columns", "semicolons", "four", "none", "png",
    ],
)  # fmt: skip
def test_a_file_that_is_not_fer2013_is_refused(tmp_path, content, words):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    assert_refused(path, *words)


GOOD = " ".join(["7"] * 2304)
PIXELS = "expected 2304 of 0–255 (48×48 pixels)"
BAD_ROWS = {
    "2303 pixels": (f"0,{GOOD[:-2]},Training", "2303 pixels", PIXELS),
    "2305 pixels": (f"0,{GOOD} 7,Training", "2305 pixels", PIXELS),
    "300 pixels": (f"0,{' '.join(['7'] * 300)},Training", "300 pixels", PIXELS),
    "no pixels": ("0,,Training", "0 pixels", PIXELS),
    "letters": (f"0,{GOOD[:-1]}abc,Training", "pixel 'abc'", PIXELS),
    "one letter": (f"0,{GOOD[:-1]}7O,Training", "pixel '7O'", PIXELS),
    "256": (f"0,{GOOD[:-1]}256,Training", "pixel '256'", PIXELS),
    "299": (f"0,299{GOOD[1:]},Training", "pixel '299'", PIXELS),
    "999": (f"0,{GOOD[:-1]}999,Training", "pixel '999'", PIXELS),
    "1000": (f"0,{GOOD[:-1]}1000,Training", "pixel '1000'", PIXELS),
    "0007": (f"0,{GOOD[:-1]}0007,Training", "pixel '0007'", PIXELS),
    "-1": (f"0,{GOOD[:-1]}-1,Training", "pixel '-1'", PIXELS),
    "7.0": (f"0,{GOOD[:-1]}7.0,Training", "pixel '7.0'", PIXELS),
    "no spaces": (f"0,{GOOD.replace(' ', '7') * 2},Training", "pixel '77777777777777777777'", PIXELS),
    "double space": (f"0,{GOOD.replace(' ', '  ', 1)},Training", "not separated by single spaces", PIXELS),
    "double space for a pixel": (f"0,{GOOD.replace(' 7 ', '  ', 1)},Training", "2303 pixels", PIXELS),
    "tab": (f"0,{GOOD.replace(' ', chr(9), 1)},Training", "not separated by single spaces", PIXELS),
    "label 9": (f"9,{GOOD},Training", "emotion '9'", "expected 0 to 6"),
    "label 7": (f"7,{GOOD},Training", "emotion '7'", "expected 0 to 6"),
    "label -1": (f"-1,{GOOD},Training", "emotion '-1'", "expected 0 to 6"),
    "label empty": (f",{GOOD},Training", "emotion ''", "expected 0 to 6"),
    "label word": (f"happy,{GOOD},Training", "emotion 'happy'", "expected 0 to 6"),
    "usage unknown": (f"0,{GOOD},Test", "Usage 'Test'", "expected one of Training, PublicTest, PrivateTest"),
    "usage empty": (f"0,{GOOD},", "Usage ''", "expected one of Training, PublicTest, PrivateTest"),
    "commas": (f"0,{GOOD.replace(' ', ',')},Training", "2306 fields", "expected 3 (emotion, pixels, Usage)"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_named(write_csv, row, bad):
    line, found, expected = BAD_ROWS[bad]
    assert_refused(write_csv(row(), row(), line, row()), "fer2013.csv, line 4: ", found, expected)


@pytest.mark.parametrize("order", [("2303 pixels", "2305 pixels"), ("2305 pixels", "2303 pixels")])
def test_two_bad_rows_do_not_make_up_for_each_other(write_csv, row, order):
    first, second = (BAD_ROWS[bad][0] for bad in order)
    assert_refused(write_csv(row(), first, second), f"line 3: {order[0]}", PIXELS)


def test_lines_are_counted_over_blank_lines_and_blocks(write_csv, row):
    good = [row()] * 1200  # more than two blocks of 4 MB
    path = write_csv(*good[:5], "", *good[5:], BAD_ROWS["256"][0], *good, BAD_ROWS["label 9"][0])
    assert path.stat().st_size > 2 << 22
    assert_refused(path, "line 1203: pixel '256'")


@pytest.mark.parametrize(
    ("header", "cut", "words"),
    [
        ("emotion,pixels,Usage", "0,7 7 7", ["2 fields, expected 3 (emotion, pixels, Usage)", "Is the file cut off?"]),
        ("emotion,pixels,Usage", f"0,{GOOD}", ["2 fields, expected 3", "Is the file cut off?"]),
        ("emotion,pixels,Usage", f"0,{GOOD},", ["Usage ''", "expected one of Training, PublicTest, PrivateTest"]),
        ("emotion,pixels,Usage", f"0,{GOOD},Private", ["Usage 'Private'", "expected one of"]),
        ("emotion,pixels,Usage", "0", ["1 fields, expected 3", "Is the file cut off?"]),
        (ICML, "0,Training", ["2 fields, expected 3", "Is the file cut off?"]),
        (ICML, f"0,Training,{GOOD[:-8]}", ["2300 pixels", PIXELS]),
    ],
    ids=["in a row", "before Usage", "after the comma", "in Usage", "in the label", "icml usage", "icml pixels"],
)
def test_a_truncated_file_is_refused(write_csv, row, header, cut, words):
    good = row() if header != ICML else usage_second(row())
    path = write_csv(good, good, cut, header=header)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert_refused(path, "fer2013.csv, line 4: ", *words)


def test_a_file_without_permission_is_refused(write_csv, row, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError

    path = write_csv(row())
    monkeypatch.setattr(data, "open", refuse, raising=False)
    assert_refused(path, "cannot be read: permission denied", error=PermissionError)


# --- Image folders --------------------------------------------------------------------------------------------------


def test_a_folder_and_a_csv_file_of_the_same_faces_are_the_same(few, lines, write_csv, tmp_path):
    write_folder(tmp_path / "images", few)
    (tmp_path / "images" / "train" / "happy" / "notes.txt").write_text("a stray file")
    (tmp_path / "images" / ".trash").mkdir()
    (tmp_path / "images" / ".trash" / "old.png").write_text("a stray file")
    from_folder, from_csv = load_fer2013(tmp_path / "images"), load_fer2013(write_csv(*lines))
    assert_same(from_folder, few)
    assert_same(from_csv, few)
    assert from_folder.fingerprint == from_csv.fingerprint
    assert from_folder.notes == ()


def test_the_numbers_in_file_names_count_not_their_spelling(few, tmp_path):
    write_folder(tmp_path, few, name="{usage}_{row:02}.png")
    assert_same(load_fer2013(tmp_path), few)  # as text, "Training_10" comes before "Training_9"


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_files_are_read_as_pillow_decodes_them(few, tmp_path, suffix):
    paths = write_folder(tmp_path, few, name="{usage}_{row}" + suffix)
    found = load_fer2013(tmp_path)
    np.testing.assert_array_equal(found.images[..., 0], [np.asarray(Image.open(path)) for path in paths])
    # JPEG rounds the coefficients of each 8×8 block: at quality 100, a few grey levels.
    np.testing.assert_allclose(found.images.astype(int), few.images.astype(int), atol=4)
    np.testing.assert_array_equal(found.labels, few.labels)
    np.testing.assert_array_equal(found.usage, few.usage)


def test_a_validation_folder_is_public_test(few, tmp_path):
    paths = write_folder(tmp_path, few, name="{row}.png", validation=True)
    order = np.argsort(paths)
    found = load_fer2013(tmp_path)
    assert_same(found, few.take(order))
    assert found.notes == ()


def test_without_official_names_test_is_halved_by_class_and_a_note_says_so(few, tmp_path):
    paths = write_folder(tmp_path / "a", few, name="{row}.png")
    found = load_fer2013(tmp_path / "a")
    order = np.argsort(paths)
    np.testing.assert_array_equal(found.images, few.images[order])
    np.testing.assert_array_equal(found.usage == "Training", few.usage[order] == "Training")
    for usage in ("PublicTest", "PrivateTest"):
        np.testing.assert_array_equal(np.bincount(found.labels[found.usage == usage]), [1] * 7)
    (note,) = found.notes
    assert "the 14 images in test/ were split in two halves, stratified, seed 0" in note
    assert load_fer2013(tmp_path / "a").notes == found.notes  # from the cache
    write_folder(tmp_path / "b", few, name="{row}.png")
    np.testing.assert_array_equal(load_fer2013(tmp_path / "b").usage, found.usage)


def test_other_names_of_the_expressions_are_known(few, tmp_path):
    names = ("Anger", "disgusted", "Fearful", "happiness", "SADNESS", "suprise", "Neutral")
    write_folder(tmp_path, few, class_names=names)
    assert_same(load_fer2013(tmp_path), few)


def luma(colours):
    """Grey as ITU-R 601-2 defines it, which Pillow follows."""
    return np.rint(colours[..., :3] @ [0.299, 0.587, 0.114])


@pytest.mark.parametrize("kind", ["1", "LA", "RGB", "RGBA", "palette", "transparent palette", "16-bit"])
def test_png_of_every_kind_becomes_grey(few, tmp_path, kind):
    paths = write_folder(tmp_path, few)
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (48, 48, 4), "uint8")
    colours[:9, :9, 3] = 0
    save = {}
    if kind == "1":
        image, expected = Image.fromarray(colours[..., 0] > 127), np.where(colours[..., 0] > 127, 255, 0)
    elif kind == "LA":
        image, expected = Image.fromarray(colours[..., 2:], "LA"), colours[..., 2]
    elif kind in ("RGB", "RGBA"):
        image, expected = Image.fromarray(colours[..., : len(kind)]), luma(colours)
    elif kind == "16-bit":
        values = rng.integers(0, 65536, (48, 48), "uint16")
        image, expected = Image.fromarray(values), np.rint(values / 257)
    else:
        palette, index = rng.integers(0, 256, (256, 3), "uint8"), colours[..., 0]
        image, expected = Image.fromarray(index), luma(palette[index])
        image.putpalette(palette.tobytes())
        save = {"transparency": int(index[0, 0])} if "transparent" in kind else {}
    image.save(paths[0], **save)
    with Image.open(paths[0]) as saved:
        assert saved.mode == {"16-bit": "I;16"}.get(kind, "P" if "palette" in kind else kind)
    found = load_fer2013(tmp_path).images
    # Pillow weighs colours in 16-bit fixed point: a value next to a half may round the other way.
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=1 if "RGB" in kind or "palette" in kind else 0)
    np.testing.assert_array_equal(found[1:], few.images[1:])


def test_wide_integers_that_hold_8_bits_stay_as_they_are():
    values = np.arange(256, dtype="int32").reshape(16, 16)
    np.testing.assert_array_equal(data.as_uint8_grey(Image.fromarray(values)), values)
    np.testing.assert_array_equal(data.as_uint8_grey(Image.fromarray(values * 257)), values)


@pytest.fixture
def folder(few, tmp_path):
    write_folder(tmp_path / "faces", few)
    return tmp_path / "faces"


def image_bytes(kind, shape=(48, 48)):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, "uint8")).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jpg", image_bytes("JPEG")[:-300], ["cannot be decoded", "truncated"]),
        ("x.jpg", image_bytes("JPEG")[:100], ["image"]),
        ("x.png", image_bytes("PNG")[:-300], ["cannot be decoded", "truncated"]),
        ("x.png", image_bytes("PNG")[:11] + b"\0" + image_bytes("PNG")[12:], ["cannot be decoded"]),
        ("x.png", image_bytes("PNG", (48, 50)), ["50×48 pixels", "expected 48×48"]),
        ("x.jpg", image_bytes("JPEG", (224, 96)), ["96×224 pixels", "expected 48×48"]),
        ("x.png", b"not an image", ["is not an image"]),
        ("x.jpeg", b"", ["is not an image"]),
    ],
    ids=["cut jpeg", "cut jpeg header", "cut png", "broken png", "width", "both sides", "text", "empty"],
)
def test_an_image_that_is_not_a_face_of_fer2013_is_named(folder, name, content, words):
    path = folder / "train" / "happy" / name
    path.write_bytes(content)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError) as caught:
        load_fer2013(folder)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_expression_is_named(folder, split):
    shutil.rmtree(folder / split / "disgust")
    shutil.rmtree(folder / split / "sad")
    (folder / split / "sad").mkdir()
    assert_refused(folder, f"{split} has no faces for disgust, sad", "Expected all seven expressions")


@pytest.mark.parametrize(
    ("kept", "words"), [("train", "has only train."), ("test", "has only test."), ("validation", "train, validation.")]
)
def test_a_folder_without_train_or_test_is_refused(folder, kept, words):
    if kept == "validation":
        (folder / "test").rename(folder / "validation")
    else:
        shutil.rmtree(folder / {"train": "test", "test": "train"}[kept])
    assert_refused(folder, words, "Expected train and test")


@pytest.mark.parametrize(
    "name", ["x.png", "train/x.png", "train/bored/x.png", "train/happy/a/x.png", "images/happy/x.png"]
)
def test_an_image_in_another_place_is_named(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(image_bytes("PNG"))
    assert_refused(folder, f"{folder / name} is not where", "train, validation or test", "named angry, disgust, fear")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "faces" / "train").mkdir(parents=True)
    (tmp_path / "faces" / "train" / "readme.txt").write_text("no image")
    assert_refused(tmp_path / "faces", "holds no PNG or JPEG files", "Expected train/<emotion>/… and test/<emotion>/…")


def test_an_unreadable_folder_is_refused(folder, monkeypatch):
    # A file's mode would not do: tests may run as root.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    assert_refused(folder, "cannot be read: permission denied", error=PermissionError)


def test_an_unreadable_folder_inside_is_named_not_passed_over(folder, monkeypatch):
    real, closed = os.scandir, folder / "test" / "happy"

    def scandir(path="."):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="cannot be read: Permission denied") as caught:
        load_fer2013(folder)
    assert str(closed) in str(caught.value)


# --- Cache ----------------------------------------------------------------------------------------------------------


KEPT = ["images.npy", "labels.npy", "note.json", "usage.npy"]


def kept(place):
    return sorted(path for path in (place / ".fer_keras").rglob("*") if path.is_file())


def plain_png(image):
    """A PNG file without compression: its size does not depend on the pixels."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG", compress_level=0)
    return file.getvalue()


@pytest.fixture(params=["csv", "folder"])
def source(request, lines, few, write_csv, tmp_path):
    """A source, the place of its cache, and one file of it with other content of the same size."""
    if request.param == "csv":
        path = write_csv(*lines)
        header, first, rest = path.read_bytes().split(b"\n", 2)
        other = str(6 - few.labels[0]).encode() if few.labels[0] != 3 else b"0"
        return path, tmp_path, path, b"\n".join([header, other + first[1:], rest])
    path = tmp_path / "faces"
    file = write_folder(path, few)[0]
    file.write_bytes(plain_png(few.images[0]))
    return path, path, file, plain_png(255 - few.images[0])


def test_the_second_time_the_faces_are_a_memory_map(source, few, monkeypatch):
    path, place, *_ = source
    first = load_fer2013(path)
    for reader in ("_read_csv", "_read_folder"):
        monkeypatch.setattr(data, reader, lambda *args: pytest.fail("read again"))
    second = load_fer2013(path)
    assert isinstance(second.images, np.memmap) and not second.images.flags.writeable
    assert_same(second, few)
    assert second.fingerprint == first.fingerprint and second.notes == first.notes
    assert [path.name for path in kept(place)] == KEPT


def test_without_cache_nothing_is_written(source, few):
    path, place, *_ = source
    assert_same(load_fer2013(path, cache=False), few)
    assert not (place / ".fer_keras").exists()


def test_a_changed_file_is_read_anew_even_with_its_size_and_time(source):
    path, place, file, changed = source
    first, before = load_fer2013(path), file.stat()
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of the file system ticks every few milliseconds
        file.write_bytes(changed)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = load_fer2013(path)
    assert second.fingerprint != first.fingerprint
    assert second.fingerprint == load_fer2013(path, cache=False).fingerprint
    assert [path.name for path in kept(place)] == KEPT  # the old one is gone


def test_a_new_image_is_noticed(folder, few):
    load_fer2013(folder)
    shutil.copy(next((folder / "train" / "happy").iterdir()), folder / "train" / "happy" / "Training_99.png")
    assert len(load_fer2013(folder)) == len(few) + 1


def test_sources_side_by_side_keep_their_caches(lines, write_csv, tmp_path):
    names = ("fer-b.csv", "fer[b].csv", "fer.csv", "fer")
    paths = [write_csv(*lines[: 5 + i], name=name) for i, name in enumerate(names)]
    for path in paths:
        load_fer2013(path)
    assert len(kept(tmp_path)) == len(names) * len(KEPT)
    assert [len(load_fer2013(path)) for path in paths] == [5, 6, 7, 8]
    write_csv(*lines[:9], name="fer[b].csv")
    assert len(load_fer2013(paths[1])) == 9
    assert len(kept(tmp_path)) == len(names) * len(KEPT)  # the old one is gone


@pytest.mark.parametrize("where", [(Path, "mkdir"), (tempfile, "mkdtemp"), (np, "save"), (os, "replace")])
def test_a_read_only_place_works_without_cache(source, few, monkeypatch, where):
    path, place, *_ = source

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(*where, refuse)
        for _ in range(2):
            assert_same(load_fer2013(path), few)
    assert kept(place) == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"]
)
def test_no_half_written_cache_is_left(source, few, monkeypatch, error):
    path, place, *_ = source
    real = np.save

    def save(file, array):
        if Path(file).name == "usage.npy":  # the third file
            raise error
        real(file, array)

    monkeypatch.setattr(np, "save", save)
    if isinstance(error, OSError):
        assert_same(load_fer2013(path), few)
    else:
        with pytest.raises(KeyboardInterrupt):
            load_fer2013(path)
    assert list((place / ".fer_keras").iterdir()) == []
    monkeypatch.setattr(np, "save", real)
    assert_same(load_fer2013(path), few)
    assert [path.name for path in kept(place)] == KEPT


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.npy", lambda content: b""),
        ("images.npy", lambda content: content[:-1]),
        ("labels.npy", lambda content: b""),
        ("labels.npy", lambda content: content[:200]),
        ("labels.npy", lambda content: pickled()),
        ("usage.npy", lambda content: pickle.dumps(Bomb())),
        ("usage.npy", None),
        ("note.json", lambda content: content[:9]),
        ("note.json", lambda content: b"{}"),
        ("note.json", lambda content: b"null"),
    ],
)
def test_a_damaged_cache_is_made_anew_and_never_unpickled(few, lines, write_csv, tmp_path, name, damage):
    path = write_csv(*lines)
    expected = load_fer2013(path)
    (file,) = (file for file in kept(tmp_path) if file.name == name)
    content = file.read_bytes()
    file.unlink() if damage is None else file.write_bytes(damage(content))
    found = load_fer2013(path)
    assert_same(found, few)
    assert found.fingerprint == expected.fingerprint
    assert file.read_bytes() == content


def test_the_cache_holds_no_pickles(lines, write_csv, tmp_path):
    load_fer2013(write_csv(*lines))
    arrays = [np.load(file, allow_pickle=False) for file in kept(tmp_path) if file.suffix == ".npy"]
    assert [array.dtype.kind for array in arrays] == ["u", "i", "U"]


# --- Faces ----------------------------------------------------------------------------------------------------------


def test_taking_faces_keeps_their_columns_together(few):
    for indices in (np.array([5, 3, 3]), few.labels == 2):
        part = few.take(indices)
        np.testing.assert_array_equal(part.images, few.images[part.rows])
        np.testing.assert_array_equal(part.labels, few.labels[part.rows])
        np.testing.assert_array_equal(part.usage, few.usage[part.rows])
    assert part.class_counts() == dict.fromkeys(CLASS_NAMES, 0) | {"fear": 4}


def test_faces_that_follow_one_another_are_taken_from_a_memory_map_without_a_copy(few, lines, write_csv):
    path = write_csv(*lines)
    data.load_fer2013(path)
    mapped = data.load_fer2013(path)
    part = mapped.take(mapped.rows >= 3)
    assert np.shares_memory(part.images, mapped.images) and part.rows.tolist() == list(range(3, len(few)))
    assert not np.shares_memory(mapped.take(np.array([1, 0])).images, mapped.images)
    assert len(mapped.take(mapped.rows < 0)) == 0


def test_origin_follows_rows_and_parents(few):
    three = few.take(np.arange(3))
    parents = np.array([[-1, -1], [1, 1], [0, 2]])
    made = Faces(three.images, three.labels, np.array([0, 1, -1]), three.usage, parents=parents)
    assert made.origin.tolist() == ["original", "copy", "synthetic"]


def test_columns_of_different_lengths_are_refused(few):
    with pytest.raises(ValueError, match=r"as many rows as `labels`, 28\. Received: .*'usage': 27"):
        Faces(few.images, few.labels, few.rows, few.usage[1:])


# --- The real faces -------------------------------------------------------------------------------------------------


def test_the_real_file_holds_the_faces_of_the_mosaics(real_csv):
    unpack = runpy.run_path(str(Path(os.environ["FER_KERAS_TEST_DATA"], "fer2013", "unpack.py")))
    images, labels, usage = unpack["load"]()
    for found in (load_fer2013(real_csv), load_fer2013(real_csv)):  # the file, then the cache
        assert_same(found, Faces(images[..., None], labels, np.arange(len(labels)), usage))
        assert [int((found.usage == name).sum()) for name in data.USAGES] == [28709, 3589, 3589]
        assert list(found.class_counts().values()) == [4953, 547, 5121, 8989, 6077, 4002, 6198]
    assert isinstance(found.images, np.memmap)
