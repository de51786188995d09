import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_keras import convert, source
from fer_keras.data import CLASS_NAMES, Faces, load_fer2013
from fer_keras.drawn import draw, draw_face
from fer_keras.source import EIGHT


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def others(faces):
    """Colour faces of another data set: its own class order, one class that FER2013 lacks, its own split."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 48, 48, 3), "uint8")
    names = ("neutral", "happy", "contempt")
    usage = np.repeat(["Training", "PublicTest", "PrivateTest"], [70, 10, 10])
    return Faces(images, np.arange(90) % 3, np.arange(90), usage, class_names=names, fingerprint="b", notes=("other",))


# --- One shape, one class order ------------------------------------------------------------------------------------


def test_grey_faces_in_colour_have_three_equal_channels_and_come_back(faces):
    colour = source.in_color(faces, "rgb")
    assert colour.images.shape == (len(faces), 48, 48, 3)
    assert all(np.array_equal(colour.images[..., [channel]], faces.images) for channel in range(3))
    np.testing.assert_array_equal(source.in_color(colour, "grey").images, faces.images)
    assert source.in_color(faces, "").images is source.in_color(faces, "grey").images is faces.images


def test_grey_is_pillows_luminance(others):
    found = source.in_color(others, "grey").images[..., 0].astype(int)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in others.images])
    assert np.abs(found - expected).max() <= 1  # Pillow cuts off where this rounds


def test_contempt_is_the_eighth_class_and_is_left_out_of_seven(faces):
    eight = source.with_classes(faces, 8)
    assert eight.class_names == EIGHT and np.array_equal(eight.labels, faces.labels)
    scorn = replace(eight, labels=np.where(np.arange(len(faces)) < 9, 7, eight.labels))
    seven = source.with_classes(scorn, 7)
    assert seven.class_names == CLASS_NAMES and seven.rows.tolist() == list(range(9, len(faces)))
    assert source.with_classes(scorn, 0) is scorn


def test_other_classes_are_not_made_to_fit(others):
    with pytest.raises(ValueError, match="These faces have 3: neutral, happy, contempt"):
        source.with_classes(others, 7)


# --- Another data set beside ------------------------------------------------------------------------------------------


def test_the_faces_of_another_data_set_follow_by_class_name_in_grey(faces, others):
    joined = source.join(faces, others, "affectnet")
    assert joined.take(slice(0, len(faces))).labels.tolist() == faces.labels.tolist()
    new = joined.take(slice(len(faces), None))
    kept = others.labels != 2  # contempt is none of the seven
    expected = [["neutral", "happy"][label] for label in others.labels[kept]]
    assert [CLASS_NAMES[label] for label in new.labels] == expected
    assert (new.rows == 1_000_000 + others.rows[kept]).all() and len(set(joined.rows)) == len(joined)
    assert not set(source.join(faces, others, "expw").rows[len(faces) :]) & set(new.rows), "each set has its own rows"
    assert new.usage.tolist() == ["test_affectnet" if u == "PrivateTest" else "affectnet" for u in others.usage[kept]]
    np.testing.assert_array_equal(new.images, source.in_color(others.take(kept), "grey").images)
    assert joined.fingerprint == f"{faces.fingerprint}+affectnet:b" and joined.notes == (*faces.notes, "other")


def test_with_eight_classes_and_colour_nothing_is_lost(faces, others):
    joined = source.join(source.in_color(source.with_classes(faces, 8), "rgb"), others, "expw")
    new = joined.take(slice(len(faces), None))
    np.testing.assert_array_equal(new.images, others.images)
    assert [EIGHT[label] for label in new.labels] == [others.class_names[label] for label in others.labels]


def test_faces_of_another_size_or_of_other_classes_are_refused(faces, others):
    with pytest.raises(ValueError, match=r"expw have 40×48 pixels, and the others 48×48.*--image-size 48"):
        source.join(faces, replace(others, images=others.images[:, :, 4:44]), "expw")
    with pytest.raises(ValueError, match="expw has the classes a, b, c, none of angry, "):
        source.join(faces, replace(others, class_names=("a", "b", "c")), "expw")


def test_a_second_drawn_set_stands_for_another_data_set():
    found = source.load("drawn", 140, auxiliary="drawn")
    first, second = draw(140, 0), draw(140, 1, contempt=True)
    seven = second.take(second.labels < 7)
    assert second.class_names == EIGHT and len(seven) < len(second)
    np.testing.assert_array_equal(found.images, np.concatenate([first.images, seven.images]))
    eight = source.load("drawn", 140, auxiliary="drawn", num_classes=8)
    np.testing.assert_array_equal(eight.images, np.concatenate([first.images, second.images]))
    given = {"data": "drawn", "drawn_faces": 140, "auxiliary": "drawn", "epochs": 3}
    assert source.load_for(given).fingerprint == source.fingerprint_of(given) == found.fingerprint
    assert source.fingerprint_of(given, own="a") == "a+drawn:" + second.fingerprint
    assert set(found.usage) == {"Training", "PublicTest", "PrivateTest", "drawn", "test_drawn"}


# --- One's own faces --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Twelve faces each of two classes, 64×80 in colour, without a split."""
    rng = np.random.default_rng(0)
    for name, expression in (("smiling", "happy"), ("bored", "neutral")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(12):
            image = Image.fromarray(draw_face(expression, rng)).convert("RGB").resize((64, 80))
            image.save(tmp_path / "mine" / name / f"{number}.png")
    return tmp_path / "mine"


def test_a_folder_of_ones_own_faces_keeps_its_classes_or_maps_them(folder):
    own = source.load(folder, dataset="folder")
    assert own.class_names == ("bored", "smiling") and own.images.shape == (24, 48, 48, 1)
    assert own.class_counts() == {"bored": 12, "smiling": 12}
    assert {"Training", "PublicTest", "PrivateTest"} == set(own.usage)
    mapped = source.load(folder, dataset="folder", class_map={"smiling": "happy", "bored": "neutral"})
    assert mapped.fingerprint != own.fingerprint
    assert {n: c for n, c in mapped.class_counts().items() if c} == {"happy": 12, "neutral": 12}
    assert source.load(folder, dataset="folder").fingerprint == own.fingerprint
    assert not [path for path in folder.rglob("*") if path.suffix not in (".png", "")], "the source is left alone"
    (folder / "bored" / "0.png").unlink()
    assert len(source.load(folder, dataset="folder")) == 23, "a folder that has changed is read anew"
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere\. `dataset: folder` needs"):
        source.load(folder / "nowhere", dataset="folder")


# --- What is wrong or missing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "foldr"}, "`dataset` must be one of 'fer2013', 'folder'. Received: 'foldr'"),
        ({"labels": "fer+"}, "`labels` must be one of"),
        ({"color": "gray"}, "`color` must be one of '', 'grey', 'rgb'. Received: 'gray'"),
        ({"auxiliary": "ck+"}, "`auxiliary` must be one of '', 'affectnet', 'expw', 'drawn'"),
        ({"num_classes": 6}, "`num_classes` must be one of 0, 7, 8. Received: 6"),
        (
            {"auxiliary": "affectnet"},
            "needs the parameter `affectnet`: the path of AffectNet as `fer-keras data convert",
        ),
        ({"num_classes": 8}, "`num_classes: 8` needs faces of contempt, and there are none"),
        ({"labels": "ferplus"}, "needs the parameter `ferplus_csv`"),
        ({"labels": "ferplus", "auxiliary": "drawn"}, "FER.2013's faces only|goes without other data sets"),
    ],
    ids=str,
)
def test_a_wrong_value_or_a_missing_path_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        source.load("drawn", 140, **given)


def test_a_path_that_holds_no_converted_set_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no converted data set\. Convert it first: fer-keras data convert expw"):
        source.load("drawn", 140, auxiliary="expw", expw=tmp_path)


def test_a_set_of_another_kind_or_converted_otherwise_is_told(folder, tmp_path):
    convert.convert("folder", folder, tmp_path / "converted", progress=False)
    with pytest.raises(ValueError, match="holds a converted folder, and is given as expw"):
        source.load("drawn", 140, auxiliary="expw", expw=tmp_path / "converted")
    given = {"auxiliary": "affectnet", "affectnet": str(tmp_path / "converted")}
    assert source.lacks(given) == "" and source.lacks({"auxiliary": "affectnet"}) == "affectnet=PATH"
    assert source.lacks(given | {"num_classes": 8}) == "affectnet converted with --contempt"
    assert source.lacks(given | {"color": "rgb"}) == "affectnet converted with --color rgb"
    assert source.name_of({"data": str(tmp_path / "converted")}) == "folder"
    assert [source.name_of({"data": data}) for data in ("drawn", "fer2013.csv")] == ["drawn", "fer2013"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"auxiliary": "", "labels": "fer2013"}, ""),
        ({"auxiliary": "drawn"}, ""),
        ({"auxiliary": "expw", "expw": "somewhere"}, "expw"),
        ({"labels": "ferplus"}, "ferplus_csv"),
        ({"checkpoint": ""}, "checkpoint"),
        ({}, ""),
    ],
    ids=str,
)
def test_what_a_run_needs_is_known_from_its_parameters(given, expected):
    assert source.needed(given) == expected


def test_real_faces_with_ferplus_labels_have_eight_classes(real_csv):
    votes = Path(os.environ["FER_KERAS_TEST_DATA"], "fer2013", "fer2013new.csv")
    found = source.load(real_csv, labels="ferplus", ferplus_csv=votes)
    own = load_fer2013(real_csv)
    assert found.class_names == EIGHT and found.fingerprint.startswith(own.fingerprint + "+ferplus:")
    assert np.array_equal(found.labels, own.labels)
