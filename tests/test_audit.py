from dataclasses import replace

import numpy as np
import pytest
from test_run import finish

from fer_keras import audit, duplicates, resample, run, split
from fer_keras.drawn import draw


@pytest.fixture(scope="module")
def faces():
    """Drawn faces of which none is like another: every touch below is made on purpose."""
    drawn = draw(300, seed=2)
    alike = duplicates.find(drawn)
    drawn = drawn.take(~np.isin(np.arange(300), alike[["first", "second"]]))
    return replace(drawn, rows=np.arange(len(drawn)))


def changed(faces, at, image):
    images = np.array(faces.images)
    images[at] = np.clip(np.rint(image), 0, 255)
    return replace(faces, images=images)


def test_each_face_is_touched_in_its_own_way(faces):
    train, test = np.arange(0, 150), np.arange(200, 210)
    source = faces.images.astype(float)
    given = changed(faces, 200, source[1])
    given = changed(given, 201, 0.5 * source[2] + 40)
    given = changed(given, 202, np.roll(source[3], 2, 0))
    given = changed(given, 203, source[4][:, ::-1])
    kinds, twin = audit.touches(given.take(test), train, given)
    assert kinds.tolist() == ["identical", "near", "shifted", "mirrored"] + ["untouched"] * 6
    assert twin.tolist() == [*given.labels[[1, 2, 3, 4]].tolist(), *[-1] * 6]
    kinds, twin = audit.touches(given.take(test), np.array([5, 200, 207]), given)
    assert kinds[0] == kinds[7] == "identical", "they trained themselves"
    assert twin[7] == given.labels[207]


def test_a_face_between_two_others_is_touched_when_one_of_them_trained(faces):
    balanced = resample.resample(faces, "smote")
    scored = balanced.take(np.flatnonzero(balanced.rows < 0)[:5])
    first, second = scored.parents[0]
    assert audit.touches(scored, np.array([first]), faces)[0][0] == "synthetic"
    assert audit.touches(scored, np.array([second]), faces)[0][0] == "synthetic"
    far = np.setdiff1d(faces.rows, scored.parents)[:3]
    assert "synthetic" not in audit.touches(scored, far, faces)[0]


def test_a_face_of_a_single_colour_is_touched_only_by_itself(faces):
    given = changed(changed(faces, 0, np.full((48, 48, 1), 9)), 200, np.full((48, 48, 1), 9))
    assert audit.touches(given.take([200]), np.arange(5), given)[0].tolist() == ["untouched"]
    assert audit.touches(given.take([0]), np.arange(5), given)[0].tolist() == ["identical"]


def test_without_training_faces_nothing_is_touched(faces):
    kinds, twin = audit.touches(faces.take([1, 2]), np.empty(0, int), faces)
    assert kinds.tolist() == ["untouched"] * 2 and twin.tolist() == [-1, -1]


@pytest.fixture(scope="module")
def leaking(faces):
    """Two test faces stand in Training, too: one under the same label, one under another."""
    rows = {usage: np.flatnonzero(faces.usage == usage) for usage in ("Training", "PrivateTest")}
    test = rows["PrivateTest"][:2]
    same = rows["Training"][faces.labels[rows["Training"]] == faces.labels[test[0]]][0]
    other = rows["Training"][faces.labels[rows["Training"]] != faces.labels[test[1]]][0]
    given = changed(changed(faces, same, faces.images[test[0]]), other, faces.images[test[1]])
    return given, test


def test_the_audit_of_a_run_counts_and_scores_what_was_touched(leaking, tmp_path):
    faces, test = leaking
    parts = split.split_official(faces)
    folder = finish(tmp_path, "tuned", parts, starts_from="")
    hits = np.isin(parts["test"].rows, test)  # right on the two touched faces only
    wrong = (parts["test"].labels + 1) % 7
    probabilities = np.eye(7)[np.where(hits, parts["test"].labels, wrong)]
    sets = {role: (part, np.full((len(part), 7), 1 / 7)) for role, part in parts.items()}
    run.save_predictions(folder, faces.class_names, sets | {"test": (parts["test"], probabilities)})
    found = audit.audit(folder, faces)
    assert found["trained"] == {
        "runs": ["tuned"],
        "rows": len(parts["train"]),
        "rows_with_ancestors": len(parts["train"]),
    }
    assert list(found["sets"]) == ["validation", "test"] and found["same_person"] == "unknown"
    scored = found["sets"]["test"]
    n = len(parts["test"])
    assert scored["n"] == n and scored["touched"] == 2 / n
    assert {name: (one["n"], one["top1"]) for name, one in scored["top1"].items()} == {
        "identical": (2, 1.0),
        "untouched": (n - 2, 0.0),
        "all_touched": (2, 1.0),
    }
    assert scored["labels"]["n"] == 2 and scored["labels"]["differ"] == 0.5 == scored["labels"]["ceiling"]
    text = audit.sentences(found)
    assert f"{200 / n:.2f} % of the {n} test faces are touched" in text and "unknown" in text
    assert "2 have a duplicate that trained under another row; 50.00 (" in text
    table = audit.table(scored)
    assert table.loc["identical", "faces"] == "2" and table.loc["all touched", "top-1 %"].startswith("100.00 (")


def test_faces_that_only_an_ancestor_saw_are_counted_apart(faces, tmp_path):
    parts = split.split_official(faces)
    finish(tmp_path, "tuned", parts, starts_from="")
    study = resample.assign_roles(faces, "study", "ros", 0)
    folder = finish(tmp_path, "ros", study, starts_from="tuned")
    scored = audit.audit(folder, faces)["sets"]["test"]["top1"]
    trained, before = set(study["train"].rows.tolist()), set(parts["train"].rows.tolist())
    rows = study["test"].rows.tolist()
    expected = {
        "identical": sum(row in trained for row in rows),
        "ancestor": sum(row not in trained and row in before for row in rows),
        "untouched": sum(row not in trained | before for row in rows),
    }
    assert {name: scored[name]["n"] for name in expected if name in scored} == {k: v for k, v in expected.items() if v}


def test_an_ensemble_is_audited_with_its_members_trainings(faces, tmp_path):
    finish(tmp_path, "tuned", split.split_official(faces), starts_from="")
    names = ("ros", "smote")
    folders = {}
    for seed, name in enumerate(names):
        folders[name] = finish(tmp_path, name, resample.assign_roles(faces, "study", name, seed), starts_from="tuned")
    sets = run.ensemble_sets(faces, folders, "study")
    folder = finish(tmp_path, "ensemble", sets, members=list(names))
    found = audit.audit(folder, faces)
    assert found["trained"]["runs"] == ["ros", "tuned", "smote"]
    own = run.trained_rows(list(folders.values()))
    assert found["trained"]["rows"] == len(own)
    assert set(found["sets"]) == set(sets)
    if "test_unseen" in sets:
        assert found["sets"]["test_unseen"]["touched"] == 0
    # Every synthetic test face has a parent that trained one of the members.
    kinds, _ = audit.touches(sets["test"], own, faces)
    assert set(kinds[sets["test"].rows < 0]) <= {"synthetic", "untouched"}
