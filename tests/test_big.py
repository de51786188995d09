"""Sets of faces that are too many to copy: they stay on the disk, and what is made of them is the same."""

import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from fer_keras import augment, data, evaluate, model, roles, source, train
from fer_keras import resample as resampling
from fer_keras.data import Faces, Picked


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def mixed(faces):
    """Faces whose parts follow one another in no order, as in converted sets."""
    return replace(faces, usage=np.random.default_rng(0).permutation(faces.usage))


@pytest.fixture
def mapped(mixed, tmp_path, monkeypatch):
    """The same faces on the disk, and a limit by which they are too many to copy."""
    monkeypatch.setattr(data, "COPIED", 0)
    return on_disk(mixed, tmp_path / "images.npy")


def on_disk(faces, path):
    np.save(path, faces.images)
    return replace(faces, images=np.load(path, mmap_mode="r"))


def assert_same(found, expected):
    for column in expected.arrays():
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column), err_msg=column)


# --- Picked -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def picked_and_array():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (n, 4, 5, 1), dtype="uint8") for n in (7, 1, 12)]
    index = rng.integers(0, 20, 30)
    return Picked(parts, index), np.concatenate(parts)[index]


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        np.int64(4),
        slice(2, 25, 3),
        slice(0, 0),
        [5, 5, 0],
        np.array([[1, 2], [29, 0]]),
        np.arange(30) % 2 == 0,
        (slice(3, 9), slice(None), slice(None, None, -1)),
        (2, 1),
        (..., 0),
    ],
    ids=str,
)
def test_picked_images_answer_as_an_array_does(picked_and_array, key):
    picked, array = picked_and_array
    assert type(picked[key]) is np.ndarray
    np.testing.assert_array_equal(picked[key], array[key], strict=True)


def test_picked_images_have_the_properties_of_an_array(picked_and_array):
    picked, array = picked_and_array
    for name in ("shape", "dtype", "ndim", "nbytes"):
        assert getattr(picked, name) == getattr(array, name), name
    assert len(picked) == len(array)
    np.testing.assert_array_equal(np.asarray(picked), array, strict=True)
    np.testing.assert_array_equal(list(picked), array)
    with pytest.raises(IndexError):
        picked[30]


def test_faces_picked_from_picked_ones_and_joined_are_those_of_arrays(faces, mapped, mixed, tmp_path):
    at = np.random.default_rng(1).permutation(len(mixed))[:100]
    taken, plain = mapped.take(at).take(slice(10, 90)).take(at[:40] % 80), mixed.take(at).take(slice(10, 90))
    plain = plain.take(at[:40] % 80)
    assert isinstance(taken.images, Picked)
    assert_same(taken, plain)
    other = on_disk(faces, tmp_path / "other.npy")
    joined = data.concatenate([taken, mapped, faces, other])
    assert isinstance(joined.images, Picked)
    assert_same(joined, data.concatenate([plain, mixed, faces, faces]))


def test_few_faces_of_a_map_are_copied(mixed, tmp_path):
    mapped = on_disk(mixed, tmp_path / "images.npy")
    assert mapped.images.nbytes < data.COPIED
    taken = mapped.take(np.arange(0, len(mapped), 2))
    assert type(taken.images) is np.ndarray
    assert type(data.concatenate([mapped, mapped]).images) is np.ndarray
    np.testing.assert_array_equal(data.read_all([mapped.images, taken.images])[-len(taken) :], taken.images)
    assert mapped.take(slice(3, 90)).images.base is not None, "what follows one another is a view"


# What is not resampled under the official protocol.
ORIGINAL = (("validation", "official"), ("test", "official"))


# --- Roles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "method"),
    [("official", method) for method in ("none", "ros", "smote", "smote_tomek")]
    + [("clean", "none"), ("study", "ros"), ("study", "smote")],
)
def test_roles_are_those_of_faces_in_memory(mixed, mapped, protocol, method):
    expected = roles.assign_roles(mixed, protocol, method, 3)
    found = roles.assign_roles(mapped, protocol, method, 3)
    assert found.keys() == expected.keys()
    for role, part in expected.items():
        assert_same(found[role], part)
        kept = {name: getattr(part, name) for name in ("rows", "labels", "parents", "weight")}
        assert_same(roles.rebuild(mapped, **kept), part)
        assert isinstance(found[role].images, Picked) == (method in ("none", "ros") or (role, protocol) in ORIGINAL)


def test_neither_roles_nor_over_sampling_nor_rebuilding_copy_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "COPIED", 2**16)
    n, rng = 4000, np.random.default_rng(0)
    np.save(tmp_path / "images.npy", np.zeros((n, 48, 48, 1), "uint8"))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    usage = rng.choice(["Training", "PublicTest", "PrivateTest"], n, p=[0.8, 0.1, 0.1])
    faces = Faces(images, rng.choice(7, n, p=[0.4, *[0.1] * 6]), np.arange(n), usage)

    def relabel(part, role):
        return part.take(part.labels != 6)

    tracemalloc.start()
    parts = roles.assign_roles(faces, "official", "ros", 0, relabel=relabel)
    joined = source.join(faces, faces, "expw")
    again = roles.rebuild(faces, *(getattr(parts["train"], c) for c in ("rows", "labels", "parents", "weight")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(parts["train"]) > 6000 and len(again) == len(parts["train"]) and len(joined) == 2 * n
    assert peak < faces.images.nbytes / 3, "labels, rows, usages and indices of 15,000 faces, and no pixels"


def test_an_augmented_subset_and_a_grey_copy_are_those_of_faces_in_memory(mixed, mapped):
    draw = partial(augment.subset, per_class=5, rotation=20.0, noise=15.0)
    found, expected = (roles.assign_roles(f, "official", "ros", 0, subset=draw)["train"] for f in (mapped, mixed))
    assert_same(found, expected)
    part = mapped.take(np.arange(0, 100, 3))
    rgb = source.in_color(part, "rgb")
    assert_same(source.in_color(rgb, "grey"), mixed.take(np.arange(0, 100, 3)))


@pytest.mark.parametrize("method", ["smote", "smote_tomek", "smote_enn"])
def test_smote_on_more_than_memory_holds_says_so_and_what_to_do(mixed, method, monkeypatch):
    monkeypatch.setattr(resampling, "free_memory", lambda: 10**6)
    message = (
        r"needs some 0\.0 GB of memory to balance these to 469 faces, and 0\.0 GB are free\. Use `resampling: ros`"
    )
    with pytest.raises(ValueError, match=message):
        resampling.resample(mixed, method)
    assert len(resampling.resample(mixed.take(slice(0, 99)), "ros")) >= 99


# --- Training and predicting ------------------------------------------------------------------------------------------


def trained(faces, method="none", **given):
    parts = roles.assign_roles(faces, "official", method, 0)
    train.seed_everything(0)
    network = model.vggnet(width=1 / 32)
    history = train.fit(network, parts["train"], parts["validation"], epochs=2, batch_size=64, **given)
    return network, history, evaluate.predict(network, parts["test"].images, "flip")


def test_training_from_the_disk_gives_what_memory_gives_and_reads_batches_alone(mixed, mapped, monkeypatch):
    read, real = [], Picked._read
    network, history, probabilities = trained(mixed, "ros")
    monkeypatch.setattr(Picked, "_read", lambda self, at: read.append(len(at)) or real(self, at))
    monkeypatch.setattr(train, "free_memory", lambda: 0)  # so that the faces are too many for the device
    streamed, streamed_history, streamed_probabilities = trained(mapped, "ros")
    assert max(read) == 64
    pd.testing.assert_frame_equal(streamed_history, history, check_exact=True)
    np.testing.assert_array_equal(streamed_probabilities, probabilities)
    for a, b in zip(streamed.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_predictions_read_some_faces_at_a_time(mapped, mixed, monkeypatch):
    class Mean:
        def predict(self, images, batch_size, verbose):
            return np.asarray(images, "float32").mean(axis=(1, 2))

    read, real = [], Picked._read
    monkeypatch.setattr(Picked, "_read", lambda self, at: read.append(len(at)) or real(self, at))
    at = np.random.default_rng(0).permutation(len(mapped))
    found = evaluate.predict(Mean(), mapped.take(at).images, batch_size=4)
    np.testing.assert_array_equal(found, evaluate.predict(Mean(), mixed.take(at).images, batch_size=4))
    assert max(read) == 64 and sum(read) == len(mapped)
