from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fer_keras import data, duplicates, split
from fer_keras.drawn import draw


@pytest.fixture(scope="module")
def faces():
    """Drawn faces less those that happen to be like another, or like its mirror image."""
    drawn = draw(280)
    alike = duplicates.find(drawn)
    drawn = drawn.take(~np.isin(np.arange(280), alike[["first", "second"]]))
    assert len(drawn) >= 280 - 10
    return replace(drawn, rows=np.arange(len(drawn)))


@pytest.fixture(scope="module")
def parts(faces):
    return faces.take(slice(0, 150)), faces.take(slice(150, None))


def with_images(faces, images):
    return replace(faces, images=images)


def changed(faces, at, image):
    """`faces` with one image replaced."""
    images = np.array(faces.images)
    images[at] = np.clip(np.rint(image), 0, 255)
    return with_images(faces, images)


def of_pair(found, first, second):
    row = found[(found["first"] == first) & (found["second"] == second)]
    assert len(row) <= 1
    return (row["kind"].iloc[0], row["similarity"].iloc[0]) if len(row) else None


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda face: face, "identical"),
        (lambda face: 60 + 0.4 * face, "near"),
        (lambda face: face + np.random.default_rng(0).normal(0, 4, face.shape), "near"),
        (lambda face: 255 - face, None),
        (lambda face: np.roll(face, (2, -1), (0, 1)), "shifted"),
        (lambda face: face[:, ::-1], "mirrored"),
        (lambda face: np.roll(0.5 * face[:, ::-1] + 20, -2, 0), "mirrored"),
    ],
    ids=["equal", "contrast", "noise", "negative", "moved", "mirrored", "mirrored, moved, pale"],
)
def test_a_changed_face_is_found_for_what_it_is(parts, change, kind):
    first, second = parts
    given = changed(second, 7, change(first.images[3].astype(float)))
    found = of_pair(duplicates.find(first, given), 3, 7)
    if kind is None:
        assert found is None
    else:
        assert found[0] == kind and found[1] > 0.95
    assert of_pair(duplicates.find(first, second), 3, 7) is None, "without the change it is another face"


def test_similarity_is_the_correlation_of_numpy_whatever_the_blocks(parts, monkeypatch):
    first, second = parts
    expected = np.corrcoef(first.images.reshape(150, -1), second.images.reshape(len(second), -1))[:150, 150:]
    whole = duplicates.find(first, second, threshold=0.7)
    near = whole[whole["kind"] == "near"]
    assert set(zip(near["first"], near["second"], strict=True)) >= set(zip(*np.nonzero(expected >= 0.7), strict=True))
    in_place = near[expected[near["first"], near["second"]] >= near["similarity"] - 1e-9]
    assert len(in_place) > 10
    np.testing.assert_allclose(in_place["similarity"], expected[in_place["first"], in_place["second"]], atol=1e-9)
    monkeypatch.setattr(duplicates, "BLOCK", 37)
    pd.testing.assert_frame_equal(duplicates.find(first, second, threshold=0.7), whole)


def test_pairs_come_with_rows_and_labels_in_order(parts):
    first, second = parts
    given = changed(changed(second, 7, first.images[3]), 2, first.images[9])
    found = duplicates.find(first, given)
    assert found[["first", "second"]].to_numpy().tolist() == [[3, 7], [9, 2]]
    assert found["second_row"].tolist() == [157, 152] and found["first_row"].tolist() == [3, 9]
    assert found["first_label"].tolist() == first.labels[[3, 9]].tolist()
    assert found["second_label"].tolist() == second.labels[[7, 2]].tolist()


def test_within_one_set_each_pair_comes_once_and_no_face_with_itself(faces):
    given = changed(changed(faces, 5, faces.images[100]), 200, faces.images[100])
    found = duplicates.find(given)
    assert found[["first", "second"]].to_numpy().tolist() == [[5, 100], [5, 200], [100, 200]]
    assert set(found["kind"]) == {"identical"}


def test_faces_of_a_single_colour_are_duplicates_of_nothing(parts):
    first, second = parts
    first, second = changed(first, 0, np.full((48, 48, 1), 90)), changed(second, 0, np.full((48, 48, 1), 90))
    second = changed(second, 1, np.full((48, 48, 1), 10))
    assert duplicates.find(first, second, threshold=0.5).query("first == 0 or second in (0, 1)").empty


def test_colour_faces_and_other_sizes_are_compared_too(faces):
    small = faces.take(slice(0, 6))
    images = np.pad(small.images * np.array([1, 0.7, 0.4]), ((0, 0), (8, 8), (6, 6), (0, 0)), mode="edge")
    small = with_images(small, images.astype("uint8"))
    found = duplicates.find(small, changed(small, 2, np.roll(small.images[4].astype(float), 2, 0)))
    assert of_pair(found, 4, 2)[0] == "shifted"
    assert found.query("kind == 'identical'")["first"].tolist() == [0, 1, 3, 4, 5]


def test_without_another_face_there_is_no_pair(parts):
    found = duplicates.find(*parts)
    assert found.empty and {"similarity", "kind", "first_row", "second_label"} <= set(found.columns)


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(parts, threshold):
    with pytest.raises(ValueError, match="`threshold` must be above 0 and at most 1"):
        duplicates.find(*parts, threshold=threshold)


def test_a_threshold_of_one_finds_equal_pictures_at_any_contrast(parts):
    first, second = parts
    image = first.images[3] // 2 * 2
    first = changed(first, 3, image)
    found = duplicates.find(first, changed(second, 7, image / 2 + 17), threshold=1)
    assert of_pair(found, 3, 7)[0] == "near" and len(found) == 1


def test_a_threshold_that_makes_much_work_says_so(parts):
    with pytest.warns(UserWarning, match=r"% of the pairs look alike when reduced to 12×12"):
        duplicates.find(*parts, threshold=0.3)


def test_sets_that_cannot_be_compared_are_refused(parts):
    first, second = parts
    with pytest.raises(ValueError, match=r"equal height, width and channels.*\(48, 48, 1\) and \(48, 48, 3\)"):
        duplicates.find(first, with_images(second, np.repeat(second.images, 3, axis=3)))
    with pytest.raises(ValueError, match=r"needs faces\. Received: 150 and 0"):
        duplicates.find(first, second.take(slice(0, 0)))


# --- Interpolations -------------------------------------------------------------------------------------------------


def test_smotes_faces_are_found_with_their_parents(faces):
    from fer_keras.resample import resample

    balanced = resample(faces, "smote")
    made = balanced.take(balanced.rows < 0)
    found = duplicates.interpolations(made, faces)
    # A face all but at one of its parents is a near-duplicate, not counted here.
    counted = np.abs(made.weight - 0.5) < 0.45
    assert np.isin(np.flatnonzero(counted), found["position"]).mean() > 0.98
    assert found["residual"].max() < 0.5 and found["position"].is_monotonic_increasing
    parents = np.sort(faces.rows[found[["first", "second"]]], axis=1)
    np.testing.assert_array_equal(parents, np.sort(made.parents[found["position"]], axis=1))
    first = made.parents[found["position"], 0] == faces.rows[found["first"]]
    weight = np.where(first, found["weight"], 1 - found["weight"])
    np.testing.assert_allclose(weight, made.weight[found["position"]], atol=0.02)


def test_a_face_of_a_single_colour_lies_between_no_others(parts):
    first, _ = parts
    for at, value in ((0, 0), (1, 128), (2, 255)):
        first = changed(first, at, np.full((48, 48, 1), value))
    first = replace(first, labels=np.zeros(len(first), int))
    assert duplicates.interpolations(first, first).empty


def test_faces_that_nobody_made_lie_between_no_others(parts):
    assert duplicates.interpolations(*parts).empty
    assert duplicates.interpolations(parts[0], parts[0]).empty, "a face is not between itself and another"


# --- The protocol clean ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def leaking(faces):
    """Drawn faces of which some stand in two parts: rows by usage, and which of them must go."""
    rows = {usage: np.flatnonzero(faces.usage == usage) for usage in data.USAGES}
    training, public, private = (rows[usage] for usage in data.USAGES)
    given = faces
    for target, source in ((training[0], private[0]), (training[1], public[0]), (public[1], private[1])):
        given = changed(given, target, faces.images[source])
    given = changed(given, training[2], faces.images[public[1]])  # of a face that is overwritten: no duplicate any more
    return given, {training[0], training[1], public[1]}


def test_clean_leaves_out_what_validation_or_test_must_not_see(leaking):
    faces, expected = leaking
    assert set(duplicates.rows_to_drop(faces)) == expected
    official, clean = split.split_official(faces), split.split_clean(faces)
    assert clean["test"].rows.tolist() == official["test"].rows.tolist()
    for role in ("train", "validation"):
        assert clean[role].rows.tolist() == [row for row in official[role].rows if row not in expected]
    for seen, held in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert duplicates.find(clean[seen], clean[held]).empty


def test_the_list_says_of_what_each_row_is_a_duplicate(leaking):
    faces, _ = leaking
    table = duplicates.clean_list(faces).set_index("row")
    for row, line in table.iterrows():
        np.testing.assert_array_equal(faces.images[row], faces.images[line["duplicate_of"]])
        assert (line["usage"], line["duplicate_usage"]) == (faces.usage[row], faces.usage[line["duplicate_of"]])


def test_clean_needs_no_duplicates(faces):
    assert len(duplicates.rows_to_drop(faces)) == 0
    no_test = faces.take(faces.usage == "Training")
    assert len(duplicates.rows_to_drop(no_test)) == 0


def test_the_shipped_list_is_whole_and_a_changed_one_is_refused(monkeypatch):
    table = duplicates.read_clean_list()
    assert table["row"].is_unique and table["row"].is_monotonic_increasing
    assert duplicates.clean_csv(table).decode().startswith("row,usage,duplicate_of,duplicate_usage,similarity,kind\n")
    assert set(table["kind"]) <= set(duplicates.KINDS) and table["similarity"].between(0.95, 1).all()
    # Row numbers of Kaggle's order: Training, then PublicTest, then PrivateTest.
    usage = pd.cut(table["row"], [-1, 28708, 32297, 35886], labels=list(data.USAGES))
    assert (usage == table["usage"]).all()
    monkeypatch.setattr(duplicates, "CLEAN_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="has been changed: its SHA-256 is 784d"):
        duplicates.read_clean_list()


# --- The real faces -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_csv):
    faces = data.load_fer2013(real_csv)
    return faces, split.split_official(faces)


@pytest.mark.parametrize(("role", "identical", "near"), [("test", 288, 394), ("validation", 279, 375)])
def test_fer2013s_own_split_shares_faces_with_training(real, role, identical, near):
    _, parts = real
    found = duplicates.find(parts["train"], parts[role])
    in_place = found[found["kind"].isin(["identical", "near"])]
    assert in_place.query("kind == 'identical'")["second"].nunique() == identical
    assert in_place["second"].nunique() == near
    assert found["second"].nunique() > near, "more are shifted or mirrored"


def test_the_shipped_list_is_the_one_that_is_found(real):
    faces, parts = real
    assert duplicates.rows_hash(faces) == duplicates.FER2013_ROWS
    assert duplicates.clean_csv(duplicates.clean_list(faces)) == duplicates.clean_csv(duplicates.read_clean_list())
    clean = split.split_clean(faces)
    assert len(clean["test"]) == 3589
    assert len(parts["train"]) - len(clean["train"]) + len(parts["validation"]) - len(clean["validation"]) == len(
        duplicates.read_clean_list()
    )
