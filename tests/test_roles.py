import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from fer_keras import augment, ferplus, source
from fer_keras.resample import resample
from fer_keras.roles import assign_roles, rebuild, split_seed
from fer_keras.split import split_official, split_stratified


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For sets this small, more threads only wait for one another."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module", params=["ros", "smote", "smote_tomek", "smote_enn"])
def method(request):
    return request.param


def assert_same(found, expected):
    for column in ("images", "labels", "rows", "usage", "parents", "weight"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column), err_msg=column)


def sources(faces):
    """The rows of the source that these faces, or their parents, are."""
    named = np.concatenate([faces.rows, faces.parents.ravel()])
    return set(named[named >= 0].tolist())


def test_the_official_protocol_resamples_only_what_trains(faces, method):
    roles, parts = assign_roles(faces, "official", method, 1), split_official(faces)
    assert_same(roles["train"], resample(parts["train"], method, 1))
    assert_same(roles["validation"], parts["validation"])
    assert_same(roles["test"], parts["test"])
    assert not sources(roles["train"]) & (sources(roles["validation"]) | sources(roles["test"]))


def test_the_studys_protocol_resamples_first_and_so_leaks(faces, method):
    roles, expected = (
        assign_roles(faces, "study", method, 1),
        split_stratified(resample(faces, method, 1), split_seed(method, 1)),
    )
    for role, part in roles.items():
        assert_same(part, expected[role])
        assert_same(rebuild(faces, part.rows, part.labels, part.parents, part.weight), part)
    assert sources(roles["train"]) & sources(roles["test"])


def test_under_the_study_protocol_each_method_draws_its_own_split(faces):
    ros, smote = (assign_roles(faces, "study", method, 0)["test"] for method in ("ros", "smote"))
    assert len(ros) == len(smote)
    assert set(ros.rows.tolist()) != set(smote.rows[smote.rows >= 0].tolist())
    originals = [set(part.rows[part.origin == "original"].tolist()) for part in (ros, smote)]
    assert originals[0] != originals[1]


@pytest.mark.parametrize("protocol", ["official", "study"])
def test_without_resampling_both_protocols_use_the_official_split(faces, protocol):
    roles, parts = assign_roles(faces, protocol, "none", 1), split_official(faces)
    for role, part in parts.items():
        assert_same(roles[role], part)


@pytest.mark.parametrize(("protocol", "resampling"), [("leaky", "smote"), ("study", "adasyn"), ("official", "adasyn")])
def test_unknown_roles_are_refused(faces, protocol, resampling):
    with pytest.raises(ValueError, match="must be one of"):
        assign_roles(faces, protocol, resampling, 0)


# --- Another data set, another set of labels, a subset ----------------------------------------------------------------


@pytest.fixture(scope="module")
def joined():
    return source.load("drawn", 280, auxiliary="drawn")


def test_another_data_set_trains_and_what_it_holds_out_is_a_role_of_its_own(joined, faces):
    parts, own = assign_roles(joined, "official", "none", 0), split_official(faces)
    assert list(parts) == ["train", "validation", "test", "test_drawn"]
    for role in ("validation", "test"):
        assert_same(parts[role], own[role])
    assert set(parts["train"].usage) == {"Training", "drawn"} and set(parts["test_drawn"].usage) == {"test_drawn"}
    assert sum(map(len, parts.values())) == len(joined)
    alone = assign_roles(joined, "official", "none", 0, auxiliary_alone=True)
    assert_same(alone["train"], joined.take(joined.usage == "drawn"))
    assert_same(alone["test"], own["test"])


def test_the_studys_protocol_is_official_for_another_data_set_and_for_a_subset(joined, faces):
    for given, more in ((joined, {}), (faces, {"subset": partial(augment.subset, per_class=20)})):
        study, official = (assign_roles(given, protocol, "ros", 0, **more) for protocol in ("study", "official"))
        for role, part in official.items():
            assert_same(study[role], part)


def test_under_clean_what_trains_beside_loses_its_duplicates_too(joined):
    # The first face of the other set, and the mirror image of another one, are now test faces.
    tests = np.flatnonzero(joined.usage == "PrivateTest")[:2]
    beside = np.flatnonzero(joined.usage == "drawn")[:2]
    images = joined.images.copy()
    images[beside[0]], images[beside[1]] = images[tests[0]], images[tests[1], :, ::-1]
    given = replace(joined, images=images)
    official, clean = (assign_roles(given, protocol, "none", 0) for protocol in ("official", "clean"))
    twins = set(joined.rows[beside])
    assert twins <= set(official["train"].rows) and not twins & set(clean["train"].rows)
    assert_same(clean["test"], official["test"])


def test_labels_change_by_role_before_resampling(faces):
    def relabel(part, role):
        # Whatever trains is angry or happy; what validates and tests keeps its label, less the first face.
        return replace(part, labels=np.where(part.labels == 0, 0, 3)) if role == "train" else part.take(slice(1, None))

    parts, own = assign_roles(faces, "official", "ros", 0, relabel=relabel), split_official(faces)
    counts = {name: count for name, count in parts["train"].class_counts().items() if count}
    assert counts["angry"] == counts["happy"] and len(counts) == 2
    assert_same(parts["test"], own["test"].take(slice(1, None)))
    with pytest.raises(ValueError, match="depends on the role, so it goes with `protocol: official` or `clean`"):
        assign_roles(faces, "study", "ros", 0, relabel=relabel)


def test_a_face_with_a_distribution_is_copied_with_it_and_not_interpolated(faces):
    shares = np.random.default_rng(0).dirichlet(np.ones(7), len(faces)).astype("float32")
    given = replace(faces, targets=shares)
    copied = resample(given, "ros")
    np.testing.assert_array_equal(copied.targets, shares[copied.rows])
    with pytest.raises(ValueError, match=r"have a distribution over the classes\. Use `ferplus_mode: majority`, or"):
        resample(given, "smote")


@pytest.mark.parametrize("resampling", ["ros", "smote"])
def test_an_augmented_subset_is_rebuilt_from_what_a_run_keeps(faces, resampling):
    draw = partial(augment.subset, per_class=30, rotation=20.0, noise=15.0, random_state=3)
    train = assign_roles(faces, "official", resampling, 0, subset=draw)["train"]
    assert set(train.class_counts().values()) == {30}
    assert_same(rebuild(faces, train.rows, train.labels, train.parents, train.weight, train.changes), train)


def test_only_another_data_set_can_be_alone(faces):
    with pytest.raises(ValueError, match="`auxiliary_alone` needs faces of another data set"):
        assign_roles(faces, "official", "none", 0, auxiliary_alone=True)


def test_real_faces_have_ferplus_labels_in_every_role(real_csv):
    votes = Path(os.environ["FER_KERAS_TEST_DATA"], "fer2013", "fer2013new.csv")
    faces = source.load(real_csv, labels="ferplus", ferplus_csv=votes)
    parts = assign_roles(faces, "official", "none", 0, relabel=ferplus.relabeller(votes, faces, "majority"))
    assert [len(parts[role]) for role in ("train", "validation", "test")] == [25060, 3199, 3153]
    soft = assign_roles(faces, "official", "none", 0, relabel=ferplus.relabeller(votes, faces, "crossentropy"))
    assert [len(soft[role]) for role in ("validation", "test")] == [3199, 3153] and soft["test"].targets is None
    np.testing.assert_allclose(soft["train"].targets.sum(axis=1), 1, atol=1e-6)
    clean = assign_roles(faces, "clean", "none", 0, relabel=ferplus.relabeller(votes, faces, "majority"))
    np.testing.assert_array_equal(clean["test"].rows, parts["test"].rows)
