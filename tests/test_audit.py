from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from test_run import finish

from fer_keras import audit, convert, data, duplicates, resample, roles, run, split
from fer_keras.cli import main
from fer_keras.drawn import draw

NONE = np.empty(0, int)


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
    kinds, twin = audit.touches(given.take(test), train, NONE, given)
    assert kinds.tolist() == ["identical", "near", "shifted", "mirrored"] + ["untouched"] * 6
    assert twin.tolist() == [*given.labels[[1, 2, 3, 4]].tolist(), *[-1] * 6]
    kinds, twin = audit.touches(given.take(test), np.array([5, 200, 207]), NONE, given)
    assert kinds[0] == kinds[7] == "identical", "they trained themselves"
    assert twin[7] == -1, "its own label is no second opinion"


def test_a_face_between_two_others_is_touched_when_one_of_them_trained(faces):
    balanced = resample.resample(faces, "smote")
    scored = balanced.take(np.flatnonzero(balanced.rows < 0)[:5])
    for parent in scored.parents[0]:
        for themselves, parents in (([parent], NONE), (NONE, [parent])):
            assert audit.touches(scored, np.array(themselves, int), np.array(parents, int), faces)[0][0] == "synthetic"
    far = np.setdiff1d(faces.rows, scored.parents)[:3]
    assert "synthetic" not in audit.touches(scored, far, NONE, faces)[0]


def test_a_face_that_was_only_a_parent_did_not_train(faces):
    """It is no copy: what trained lies between it and another face."""
    given = changed(faces, 201, faces.images[7].astype(float))
    kinds, twin = audit.touches(given.take([7, 8, 9, 201]), np.array([8]), np.array([7, 8]), given)
    assert kinds.tolist() == ["synthetic", "identical", "untouched", "synthetic"] and twin.tolist() == [-1] * 4
    # A twin that trained itself is the stronger touch.
    kinds, twin = audit.touches(given.take([201]), np.array([7]), np.array([201]), given)
    assert kinds.tolist() == ["identical"] and twin.tolist() == [given.labels[7]]


def test_a_face_of_a_single_colour_is_touched_only_by_itself(faces):
    given = changed(changed(faces, 0, np.full((48, 48, 1), 9)), 200, np.full((48, 48, 1), 9))
    assert audit.touches(given.take([200]), np.arange(5), NONE, given)[0].tolist() == ["untouched"]
    assert audit.touches(given.take([0]), np.arange(5), NONE, given)[0].tolist() == ["identical"]


def test_without_training_faces_nothing_is_touched(faces):
    kinds, twin = audit.touches(faces.take([1, 2]), NONE, NONE, faces)
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
    assert "2 did not train themselves and have a duplicate that did; 50.00 (" in text
    table = audit.table(scored)
    assert table.loc["identical", "faces"] == "2" and table.loc["all touched", "top-1 %"].startswith("100.00 (")


def test_the_balanced_accuracy_of_untouched_faces_is_scikit_learns(leaking, tmp_path):
    faces, test = leaking
    parts = split.split_official(faces)
    folder = finish(tmp_path, "tuned", parts, starts_from="")
    probabilities = np.random.default_rng(0).dirichlet(np.ones(7), len(parts["test"]))
    sets = {role: (part, np.full((len(part), 7), 1 / 7)) for role, part in parts.items()}
    run.save_predictions(folder, faces.class_names, sets | {"test": (parts["test"], probabilities)})
    found = audit.audit(folder, faces)
    scored, new = found["sets"]["test"]["untouched"], ~np.isin(parts["test"].rows, test)
    expected = balanced_accuracy_score(parts["test"].labels[new], probabilities.argmax(axis=1)[new])
    assert scored["n"] == new.sum() and scored["balanced_accuracy"] == pytest.approx(expected)
    assert scored["interval"][0] < expected < scored["interval"][1]
    assert f"Balanced accuracy on those that are not touched is {100 * expected:.2f} (" in audit.sentences(found)


def test_faces_that_only_an_ancestor_saw_are_counted_apart(faces, tmp_path):
    parts = split.split_official(faces)
    finish(tmp_path, "tuned", parts, starts_from="")
    study = roles.assign_roles(faces, "study", "ros", 0)
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
        folders[name] = finish(tmp_path, name, roles.assign_roles(faces, "study", name, seed), starts_from="tuned")
    sets = run.ensemble_sets(faces, folders, "study")
    folder = finish(tmp_path, "ensemble", sets, members=list(names))
    found = audit.audit(folder, faces)
    assert found["trained"]["runs"] == ["ros", "tuned", "smote"]
    themselves, parents = run.trained_rows(list(folders.values()))
    assert found["trained"]["rows"] == len(np.union1d(themselves, parents))
    assert set(found["sets"]) == set(sets)
    # What the rows say, face by face, of the pooled test faces.
    test = sets["test"]
    copies = np.isin(test.rows, themselves)
    made = ((test.rows < 0) & np.isin(test.parents, [*themselves, *parents]).any(axis=1)) | (
        ~copies & np.isin(test.rows, parents)
    )
    scored = found["sets"]["test"]["top1"]
    assert copies.any() and made.any()
    assert scored["identical"]["n"] == copies.sum() and scored["synthetic"]["n"] == made.sum()
    if "test_unseen" in sets:
        assert found["sets"]["test_unseen"]["touched"] == 0


# --- Other people's data --------------------------------------------------------------------------------------------


@pytest.fixture
def folders(faces, tmp_path):
    """Two folders of images: training faces, and test faces of which some stand in training in some way."""

    def write(name, images, labels):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / name / faces.class_names[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(path)
        return tmp_path / name

    test = faces.images[:12].copy()
    test[0] = faces.images[100]
    test[1] = faces.images[101][:, ::-1]
    train = write("train", faces.images[100:160], faces.labels[100:160])
    return train, write("test", test, faces.labels[:12])


def test_two_folders_of_images_are_audited_from_their_pixels(folders, tmp_path, capsys):
    train, test = map(str, folders)
    assert main(["audit", train, test, "--csv", str(tmp_path / "pairs.csv")]) == 0
    out = capsys.readouterr().out
    assert f"{train}: 60 faces." in out and "2 of 12 test faces had been seen in training: 16.67 (" in out
    assert "identical        1" in out and "mirrored         1" in out and "unknown" in out
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    columns = ["test_row", "train_row", "test_label", "train_label", "kind", "similarity", "train_file", "test_file"]
    assert list(pairs.columns) == columns and pairs["similarity"].max() == 1
    same = pairs[pairs["kind"] == "identical"].iloc[0]
    with Image.open(same["train_file"]) as left, Image.open(same["test_file"]) as right:
        assert left.tobytes() == right.tobytes()
    assert sorted(pairs["kind"]) == ["identical", "mirrored"]


@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_a_converted_set_is_audited_and_its_files_are_named(folders, tmp_path, capsys, color):
    train, test = folders
    convert.convert("folder", train, tmp_path / "set", color=color, class_map={"happy": "smiling"}, progress=False)
    assert main(["audit", f"{tmp_path / 'set'}", str(test), "--csv", str(tmp_path / "pairs.csv")]) == 0
    assert "2 of 12 test faces had been seen in training" in capsys.readouterr().out
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    same = pairs[pairs["kind"] == "identical"].iloc[0]
    with Image.open(same["train_file"]) as left, Image.open(same["test_file"]) as right:
        assert left.tobytes() == right.tobytes()
    loaded = audit.load(str(tmp_path / "set"))
    assert set(loaded.labels) <= {-1, *range(7)} and (loaded.labels == 3).sum() == 0 < (loaded.labels == -1).sum()
    some = audit.load(f"{tmp_path / 'set'}:Training")
    assert set(some.usage) == {"Training"} and 0 < len(some) < len(loaded)
    with pytest.raises(ValueError, match="no rows of usage 'Private'"):
        audit.load(f"{tmp_path / 'set'}:Private")


def test_faces_between_two_training_faces_and_their_parents_are_found_without_their_rows(faces):
    balanced = resample.resample(faces.take(faces.usage == "Training"), "smote")
    made = balanced.take(np.flatnonzero(balanced.rows < 0))
    clear = np.abs(made.weight - 0.5) < 0.4
    made = made.take(np.flatnonzero(clear)[:20])
    others = faces.take(faces.usage == "PrivateTest")
    train = faces.take(faces.usage == "Training")
    kinds, _ = audit.audit_sets(train, data.concatenate([made, others]))
    assert np.mean(np.isin(kinds[:20], ["synthetic", "near"])) > 0.9
    assert set(kinds[20:]) == {"untouched"}
    # The other way round: what trained was made from faces that are tested.
    parents = faces.take(np.unique(made.parents))
    kinds, _ = audit.audit_sets(made, parents)
    assert np.mean(np.isin(kinds, ["synthetic", "near"])) > 0.9


def test_sets_without_common_labels_are_compared_by_their_pixels(faces):
    balanced = resample.resample(faces, "smote")
    made = balanced.take(np.flatnonzero((balanced.rows < 0) & (np.abs(balanced.weight - 0.5) < 0.3))[:10])
    unknown = replace(made, labels=np.full(len(made), -1))
    kinds, _ = audit.audit_sets(faces, unknown)
    assert np.mean(np.isin(kinds, ["synthetic", "near"])) > 0.9
    happy, angry = (faces.take(faces.labels == label) for label in (3, 0))
    kinds, pairs = audit.audit_sets(happy, angry)
    assert set(kinds) == {"untouched"} and "Whether the same person" in audit.describe(kinds, pairs)


@pytest.mark.parametrize("size", [48, 32])
def test_images_of_other_sizes_are_resized_and_counted_or_refused(folders, tmp_path, size):
    train, _ = folders
    image = Image.open(next(train.rglob("*.png")))
    image.resize((90, 90)).convert("RGB").save(train / "big.jpg")
    found = audit.load(str(train), size)
    assert found.images.shape == (61, size, size, 1) and found.images.dtype == "uint8"
    assert found.notes == (f"{1 if size == 48 else 61} of 61 faces were resized to {size}×{size}.",)
    assert found.labels[found.labels >= 0].size == 60, "big.jpg lies in no expression's folder"
    with pytest.raises(ValueError, match=r"big\.jpg has 90×90 pixels, expected 48×48, and resizing was not wanted"):
        audit.load(str(train), 48, resize=False)


def test_a_csv_file_like_fer2013s_may_have_other_sizes_and_fewer_columns(tmp_path):
    rng = np.random.default_rng(0)
    rows = [" ".join(map(str, rng.integers(0, 256, 100))) for _ in range(3)]
    path = tmp_path / "small.csv"
    path.write_text("Usage, pixels\n" + "".join(f"{usage},{row}\n" for usage, row in zip("aba", rows, strict=True)))
    found = audit.load(f"{path}:a", 10)
    assert found.images.shape == (2, 10, 10, 1) and found.labels.tolist() == [-1, -1]
    assert found.images[1].ravel().tolist() == [int(value) for value in rows[2].split()]
    assert audit.load(str(path), 48).notes == ("3 of 3 faces were resized to 48×48.",)
    with pytest.raises(ValueError, match=r"no rows of usage 'c'\. There are: a, b"):
        audit.load(f"{path}:c", 10)
    path.write_text("pixels\n1 2 3\n")
    with pytest.raises(ValueError, match=r"line 2: 3 pixels, expected a square number"):
        audit.load(str(path))
    path.write_text("emotion,pixels\n,1 2 3 4\n9,1 2 3 4\n")
    with pytest.raises(ValueError, match=r"line 3: emotion '9', expected 0 to 6, or nothing"):
        audit.load(str(path))
    path.write_text("")
    with pytest.raises(ValueError, match=r"small\.csv cannot be read as CSV"):
        audit.load(str(path))
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no rows with a column `pixels`"):
        audit.load(str(path))


def test_fer2013_by_usage(write_csv, row):
    path = write_csv(row(0, "Training"), row(1, "Training", seed=1), row(2, "PrivateTest", seed=2))
    assert audit.load(f"{path}:Training").rows.tolist() == [0, 1]
    assert audit.load(f"{path}:PrivateTest").labels.tolist() == [2]
    assert audit.load(str(path), 24).images.shape == (3, 24, 24, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "test"], "There is no file or folder"),
        (["empty", "test"], "holds no PNG or JPEG files"),
        (["broken", "test"], "cannot be read as an image"),
        (["train:Training", "test"], "is a folder: it has no usage 'Training'"),
        (["train", "test", "--threshold", "1.5"], "`threshold` must be above 0 and at most 1"),
        (["train"], "holds no finished run"),
        (["nowhere"], "There is no nowhere"),
        (["train", "test", "--size", "0"], "`size` must be at least 8"),
        (["train", "--csv", "x.csv"], "go with two sets of faces, not with a run"),
        (["train", "test", "empty"], "Received: 3 paths"),
    ],
)
def test_wrong_inputs_are_one_sentence(folders, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG not")
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fer-keras: ") and message in error


def test_a_run_is_audited_from_its_folder(faces, tmp_path, monkeypatch, capsys):
    drawn = draw(140)
    parts = split.split_official(drawn)
    folder = finish(tmp_path, "tuned", parts, starts_from="", data="drawn", drawn_faces=140)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["audit", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "untouched" in out and f"of the {len(parts['test'])} test faces are touched" in out
    other = finish(tmp_path, "other", split.split_official(draw(150)), starts_from="", data="drawn", drawn_faces=140)
    assert main(["audit", str(other)]) == 2
    assert "holds other faces than this run had" in capsys.readouterr().err


def test_the_list_of_clean_is_rebuilt_and_compared(faces, write_csv, row, tmp_path, capsys):
    same = row(0, "Training", seed=5)
    path = write_csv(
        same, row(1, "Training", seed=1), same.replace("Training", "PrivateTest"), row(2, "PublicTest", seed=3)
    )
    assert main(["data", "clean", str(path), str(tmp_path / "list.csv")]) == 0
    assert "1 of 4 rows are left out" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "list.csv")[["row", "duplicate_of", "kind"]].to_numpy().tolist() == [
        [0, 2, "identical"]
    ]
