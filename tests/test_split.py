import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from fer_keras import split
from fer_keras.data import Faces


def labelled(labels):
    """Faces of one pixel."""
    n = len(labels)
    return Faces(np.zeros((n, 1, 1, 1), "uint8"), np.asarray(labels), np.arange(n), np.full(n, "Training"))


def test_the_official_split_is_the_sources_own(faces):
    parts = split.split_official(faces)
    assert list(parts) == ["train", "validation", "test"]
    for part, usage in zip(parts.values(), ("Training", "PublicTest", "PrivateTest"), strict=True):
        at = np.flatnonzero(faces.usage == usage)
        np.testing.assert_array_equal(part.rows, at)
        np.testing.assert_array_equal(part.images, faces.images[at])
        np.testing.assert_array_equal(part.labels, faces.labels[at])
    assert sum(map(len, parts.values())) == len(faces)


@pytest.mark.parametrize("missing", [["PublicTest"], ["Training", "PrivateTest"]])
def test_an_official_split_with_an_empty_part_is_refused(faces, missing):
    with pytest.raises(ValueError, match=f"needs faces marked {', '.join(missing)}, and there are none"):
        split.split_official(faces.take(~np.isin(faces.usage, missing)))


@pytest.mark.parametrize("n", [280, 273, 271])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_stratified_split_is_scikit_learns(faces, n, seed):
    given = faces.take(np.arange(n))
    parts = split.split_stratified(given, seed)
    rest, test = train_test_split(np.arange(n), test_size=0.1, stratify=given.labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=len(test), stratify=given.labels[rest], random_state=seed)
    for role, at in {"train": train, "validation": validation, "test": test}.items():
        np.testing.assert_array_equal(parts[role].rows, given.rows[at])
        np.testing.assert_array_equal(parts[role].images, given.images[at])


def test_the_stratified_split_has_each_face_once_and_equal_shares(faces):
    parts = split.split_stratified(faces, 0)
    rows = np.concatenate([part.rows for part in parts.values()])
    np.testing.assert_array_equal(np.sort(rows), faces.rows)
    counts = np.bincount(faces.labels)
    for part, share in zip(parts.values(), (0.8, 0.1, 0.1), strict=True):
        # Rounding a tenth, twice, moves a class by at most two faces.
        np.testing.assert_allclose(np.bincount(part.labels, minlength=7), counts * share, atol=2)


def test_the_studys_62923_rows_split_as_published():
    parts = split.split_stratified(labelled(np.arange(62923) % 7), 0)
    assert [len(part) for part in parts.values()] == [50337, 6293, 6293]


def test_another_seed_splits_otherwise(faces):
    first, second, other = (split.split_stratified(faces, seed)["test"].rows for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert set(first) != set(other)


@pytest.mark.parametrize(
    ("protocol", "resampling", "expected"),
    [
        ("official", "none", "official"),
        ("official", "smote", "official"),
        ("study", "none", "official"),
        ("study", "ros", "study"),
        ("study", "smote_enn", "study"),
    ],
)
def test_the_study_without_resampling_used_the_official_split(protocol, resampling, expected):
    assert split.effective_protocol(protocol, resampling) == expected


@pytest.mark.parametrize("resampling", ["none", "smote"])
def test_an_unknown_protocol_is_refused(resampling):
    with pytest.raises(ValueError, match=r"`protocol` must be one of official, clean, study\. Received: 'random'"):
        split.effective_protocol("random", resampling)
