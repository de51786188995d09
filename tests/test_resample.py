import numpy as np
import pytest
from imblearn.combine import SMOTEENN, SMOTETomek
from imblearn.over_sampling import SMOTE, RandomOverSampler
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

import fer_keras.resample
from fer_keras.data import CLASS_NAMES, Faces, load_fer2013
from fer_keras.resample import RESAMPLERS, ExactNeighbors, interpolate, resample
from fer_keras.roles import rebuild
from fer_keras.split import split_official

REFERENCES = {"ros": RandomOverSampler, "smote": SMOTE, "smote_tomek": SMOTETomek, "smote_enn": SMOTEENN}
COLUMNS = ("images", "labels", "rows", "usage", "parents", "weight")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For sets this small, more threads only wait for each other."""
    with threadpool_limits(1):
        yield


def vectors(faces):
    return faces.images.reshape(len(faces), -1).astype("float32")


def assert_same(found, expected):
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column), err_msg=column)


def assert_reference(given, method, random_state=0):
    """`resample` gives imbalanced-learn's rows."""
    sampler = REFERENCES[method](random_state=random_state)
    with threadpool_limits(2, user_api="openmp"):  # its order among equally far rows depends on it
        pixels, labels = sampler.fit_resample(vectors(given), given.labels)
    if method == "smote_enn":
        # ENN returns its rows class by class; `resample` returns given faces before added ones, as the others do.
        order = np.argsort(sampler.enn_.sample_indices_ >= len(given), kind="stable")
        pixels, labels = pixels[order], labels[order]
    found = resample(given, method, random_state)
    assert found.images.dtype == "uint8" and found.images.shape[1:] == given.images.shape[1:]
    np.testing.assert_array_equal(found.images.reshape(len(found), -1), np.rint(pixels))
    np.testing.assert_array_equal(found.labels, labels)
    return found


@pytest.fixture(scope="module", params=list(REFERENCES))
def method(request):
    return request.param


@pytest.fixture(scope="module")
def made(faces, method):
    return resample(faces, method, 5)


@pytest.mark.parametrize("random_state", [0, 5])
def test_resampled_faces_are_imbalanced_learns(faces, method, random_state):
    found = assert_reference(faces, method, random_state)
    if method in ("ros", "smote"):
        assert set(found.class_counts().values()) == {max(faces.class_counts().values())}


def test_faces_that_occur_several_times_are_resampled_as_by_the_reference(faces, method):
    # FER2013 has many: a face can then be its own neighbour.
    disgust = np.flatnonzero(faces.labels == 1)
    twins = faces.take(np.concatenate([np.arange(len(faces)), np.repeat(disgust[:1], 9)]))
    twins = Faces(twins.images, twins.labels, np.arange(len(twins)), twins.usage)
    found = assert_reference(twins, method)
    assert_same(rebuild(twins, found.rows, found.labels, found.parents, found.weight), found)


@pytest.mark.parametrize("method", ["smote", "smote_tomek", "smote_enn"])
def test_our_search_gives_the_faces_of_the_reference(faces, monkeypatch, method):
    calls = count_searches(monkeypatch)
    monkeypatch.setattr(fer_keras.resample, "MANY_ROWS", 0)
    assert_reference(faces, method)
    assert calls


def test_our_search_gives_the_faces_of_the_reference_where_many_are_equally_far(faces, monkeypatch):
    # Also mirrored, moved and twice, at random, and all of the largest class: 2,814 after SMOTE.
    moved = [np.roll(faces.images, move, axis=2) for move in (0, 0, 1, 5, 9)]
    images, labels = np.concatenate([*moved, faces.images[:, :, ::-1]]), np.tile(faces.labels, 6)
    order = np.random.default_rng(0).permutation(len(images))
    order = order[(labels[order] == 3) | (np.arange(len(order)) < 840)]
    many = Faces(images[order], labels[order], np.arange(len(order)), np.full(len(order), "Training"))
    calls = count_searches(monkeypatch)
    assert_reference(many, "smote_tomek")
    assert calls


@pytest.mark.parametrize("method", ["smote", "smote_tomek", "smote_enn"])
def test_the_rows_do_not_depend_on_the_number_of_threads(faces, method):
    # Each face three times: which of the same faces is a parent, scikit-learn's threads decide.
    images = np.concatenate([np.tile(faces.images[:105], (3, 1, 1, 1)), np.tile(faces.images, (2, 1, 1, 1))])
    labels = np.repeat([1, 3], [315, 560])
    given = Faces(images, labels, np.arange(len(labels)), np.full(len(labels), "Training"))
    with threadpool_limits(1):
        expected = resample(given, method)
    with threadpool_limits(4):
        assert_same(resample(given, method), expected)


def test_a_class_without_faces_stays_without(faces, method):
    found = assert_reference(faces.take(faces.labels != 3), method)
    assert found.class_counts()["happy"] == 0


def test_the_same_random_state_gives_the_same_faces_and_another_others(faces, method, made):
    assert_same(resample(faces, method, 5), made)
    other = resample(faces, method, 6)
    assert len(other) != len(made) or not np.array_equal(other.images, made.images)


def test_the_origin_of_each_face_is_kept(faces, method, made):
    original, copy, synthetic = (made.origin == name for name in ("original", "copy", "synthetic"))
    np.testing.assert_array_equal(made.rows == -1, synthetic)
    added = 7 * max(faces.class_counts().values()) - len(faces)
    counts = [int(kind.sum()) for kind in (original, copy, synthetic)]
    if method == "ros":
        assert counts == [len(faces), added, 0]
    elif method == "smote":
        assert counts == [len(faces), 0, added]
    else:  # these remove rows again
        assert 0 < counts[0] <= len(faces) and counts[1] == 0 and 0 < counts[2] <= added and sum(counts) < 7 * 67
    known = ~synthetic
    np.testing.assert_array_equal(made.images[known], faces.images[made.rows[known]])
    np.testing.assert_array_equal(made.labels[known], faces.labels[made.rows[known]])
    np.testing.assert_array_equal(made.usage[known], faces.usage[made.rows[known]])
    assert (made.parents[original] == -1).all() and (made.weight[known] == 0).all()
    assert len(set(made.rows[original])) == original.sum()
    np.testing.assert_array_equal(made.parents[copy], made.rows[copy][:, None].repeat(2, axis=1))
    assert (made.usage[synthetic] == "").all()
    first, second = made.parents[synthetic].T
    assert (first != second).all() and (made.weight[synthetic] > 0).all() and (made.weight[synthetic] < 1).all()
    for parent in (first, second):
        np.testing.assert_array_equal(faces.labels[parent], made.labels[synthetic])


def test_resampled_faces_are_rebuilt_from_what_a_run_keeps(faces, made):
    kept = made.rows, made.labels, made.parents, made.weight
    assert_same(rebuild(faces, *kept), made)
    mixed = faces.take(np.random.default_rng(0).permutation(len(faces)))
    assert_same(rebuild(mixed, *kept), made)


def test_rebuilding_from_other_faces_is_refused(faces, made):
    parent = made.parents[-1, 1]
    fewer = faces.take(faces.rows != parent)
    with pytest.raises(
        ValueError, match=rf"1 of the faces to rebuild, the first in row {parent}, are not among the 279"
    ):
        rebuild(fewer, made.rows, made.labels, made.parents, made.weight)


def test_the_given_faces_are_not_changed_and_may_be_read_only(faces, method, made):
    images = faces.images.copy()
    images.setflags(write=False)
    given = Faces(images, faces.labels.copy(), faces.rows.copy(), faces.usage.copy())
    assert_same(resample(given, method, 5), made)
    assert_same(given, faces)


def test_rows_of_a_part_are_those_of_the_source(faces, method):
    part = split_official(faces)["train"]
    found = assert_reference(part, method)
    named = np.concatenate([found.rows, found.parents.ravel()])
    assert np.isin(named[named >= 0], part.rows).all()
    assert_same(rebuild(faces, found.rows, found.labels, found.parents, found.weight), found)


def test_balanced_faces_get_nothing_added(faces):
    at = np.concatenate([np.flatnonzero(faces.labels == code)[:8] for code in range(7)])
    balanced = faces.take(np.sort(at))
    for method in ("none", "ros", "smote"):
        assert_same(resample(balanced, method), balanced)


def test_none_gives_the_faces_themselves(faces):
    assert resample(faces, "none") is faces


def test_an_unknown_method_is_refused(faces):
    names = ", ".join(RESAMPLERS)
    assert names == "none, ros, smote, smote_tomek, smote_enn"
    with pytest.raises(ValueError, match=rf"`resampling` must be one of {names}\. Received: 'adasyn'"):
        resample(faces, "adasyn")


def test_six_faces_of_a_class_are_enough_and_five_are_refused(faces, method):
    disgust = np.flatnonzero(faces.labels == CLASS_NAMES.index("disgust"))
    six, five = (faces.take(np.setdiff1d(faces.rows, disgust[count:])) for count in (6, 5))
    assert_reference(six, method)
    if method == "ros":
        assert_reference(five, method)
    else:
        with pytest.raises(ValueError, match=r"disgust has only 5 faces\. Use more faces, or `resampling: ros`"):
            resample(five, method)


def test_interpolation_is_rounded_float32_and_does_not_depend_on_its_blocks():
    rng = np.random.default_rng(0)
    images, parents = rng.integers(0, 256, (9, 3, 2, 1), "uint8"), rng.integers(0, 9, (5000, 2))
    weight = rng.random(5000)
    weight[:2] = 0, 1
    first, second = images[parents].astype("float32").swapaxes(0, 1)
    expected = np.rint((first + weight[:, None, None, None] * (second - first)).astype("float32"))
    found = interpolate(images, parents, weight)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[0], images[parents[0, 0]])
    np.testing.assert_array_equal(found[1], images[parents[1, 1]])


# --- Neighbours -------------------------------------------------------------------------------------------------------


def count_searches(monkeypatch):
    """Sets of every size are searched by us; returns a list that grows with every search."""
    calls, real = [], ExactNeighbors._search
    monkeypatch.setattr(fer_keras.resample, "POINTS", 0)
    monkeypatch.setattr(ExactNeighbors, "_search", lambda self, *given: calls.append(1) or real(self, *given))
    return calls


def points(kind, n=2200):
    rng = np.random.default_rng(0)
    random = rng.random((n, 40))
    return {
        "random": random,
        "more dimensions than directions": rng.normal(size=(n, 400)) * np.geomspace(1, 0.01, 400),
        "far from zero": 4096 + random,
        "small": 1e-12 * random,
        "few whole numbers, many ties": rng.integers(0, 3, (n, 6)),
        "each several times": rng.integers(0, 256, (n // 5, 100)).repeat(5, axis=0),
        "one of them everywhere": np.where(rng.random((n, 1)) < 0.5, 7.0, random),
        "all the same": np.ones((n, 20)),
        "hardly different": 128 + 1e-4 * rng.integers(0, 4, (n, 30)),
    }[kind].astype("float32")


@pytest.mark.parametrize(
    "kind",
    [
        "random",
        "more dimensions than directions",
        "far from zero",
        "small",
        "few whole numbers, many ties",
        "each several times",
        "one of them everywhere",
        "all the same",
        "hardly different",
    ],
)
@pytest.mark.parametrize("k", [2, 6])
def test_neighbours_are_scikit_learns_in_its_order(monkeypatch, kind, k):
    calls = count_searches(monkeypatch)
    monkeypatch.setattr(fer_keras.resample, "DIRECTIONS", 64)
    monkeypatch.setattr(fer_keras.resample, "CANDIDATES", 300)
    rows = points(kind)
    expected = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(rows, return_distance=False)
    found = ExactNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(rows, return_distance=False)
    np.testing.assert_array_equal(found, expected)
    assert len(calls) == 9  # 2,200 rows, 256 at a time


def test_neighbours_of_other_rows_than_the_points_are_scikit_learns(monkeypatch):
    calls = count_searches(monkeypatch)
    rows, others = points("random", 6000)[::2], points("random", 6000)[1::2]
    ours, reference = (kind(n_neighbors=3).fit(rows) for kind in (ExactNeighbors, NearestNeighbors))
    found = ours.kneighbors(others, return_distance=False)
    np.testing.assert_array_equal(found, reference.kneighbors(others, return_distance=False))
    assert calls
    for given in (rows[:9], rows.astype("float64"), None):  # these scikit-learn does itself
        np.testing.assert_array_equal(
            ours.kneighbors(given, return_distance=False), reference.kneighbors(given, return_distance=False)
        )
    for found, expected in zip(ours.kneighbors(others), reference.kneighbors(others), strict=True):
        np.testing.assert_array_equal(found, expected)


# --- The real faces -------------------------------------------------------------------------------------------------


def test_smote_on_the_real_training_faces_gives_50505(real_csv):
    found = resample(split_official(load_fer2013(real_csv))["train"], "smote")
    assert len(found) == 50505
    assert set(found.class_counts().values()) == {7215}
    assert (found.origin == "original").sum() == 28709
