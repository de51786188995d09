import json
import shutil
import stat
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest

from fer_keras import data, evaluate, lock, model, resample, roles, run, source, split, storage, train
from fer_keras.data import CLASS_NAMES
from fer_keras.params import EVALUATION, HARDWARE, LOCATIONS, NAMES, PARAMETERS

PARAMS = {
    "experiment": "tuned",
    "suite": "s",
    "seed": 0,
    "data": "drawn",
    "outputs": "outputs",
    "epochs": 3,
    "flip": False,
}


class Weights:
    """Stands for a trained model where only its file matters."""

    content = b"weights"

    def save(self, path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("metadata.json", json.dumps({"date_saved": time.time()}))
            file.writestr("config.json", "{}")
            file.writestr("model.weights.h5", self.content)


def finish(outputs, experiment, parts=None, class_names=CLASS_NAMES, ancestors=None, **given):
    """Leave a finished run, with predictions for its faces."""
    folder = run.folder_of("s", experiment, given.get("seed", 0), outputs)
    params = PARAMS | {"experiment": experiment, "outputs": str(outputs)} | given
    history = pd.DataFrame({"epoch": [1], "loss": [0.5]})
    run.save_training(folder, params, f"key of {experiment}", parts or {}, history, Weights(), 1.0, ancestors or {})
    sets = {
        role: (part, np.full((len(part), len(class_names)), 1 / len(class_names)))
        for role, part in (parts or {}).items()
    }
    run.save_predictions(folder, class_names, sets)
    return folder


def assert_same_faces(found, expected):
    for name in ("images", "labels", "rows", "usage", "parents", "weight"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.class_names == expected.class_names and found.fingerprint == expected.fingerprint


# --- Identity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_key_changes_with_every_parameter_that_changes_weights(name):
    values = {"protocol": ("official", "clean"), "resampling": ("ros", "smote")}.get(name, ("one", "two"))
    keys = {run.key_of(PARAMS | {"protocol": "study", name: value}, "f", {}) for value in values}
    assert len(keys) == (1 if name in (*NAMES, *LOCATIONS, *HARDWARE, *EVALUATION) else 2)


def test_without_resampling_the_study_and_the_official_split_are_one_training():
    def key(**given):
        return run.key_of(PARAMS | given, "f", {})

    assert key(protocol="study", resampling="none") == key(protocol="official", resampling="none")
    assert key(protocol="study", resampling="ros") != key(protocol="official", resampling="ros")


def test_a_training_of_another_suite_is_adopted_if_it_is_the_same(faces, tmp_path, monkeypatch):
    there = finish(tmp_path, "tuned", {"test": faces})
    here = run.folder_of("other", "tuned", 0, tmp_path)
    params = PARAMS | {"suite": "other"}
    assert run.adopt(here, params, "another key") is None and not here.exists()
    assert run.adopt(there, PARAMS, "key of tuned") is None, "not its own"
    assert run.adopt(here, params, "key of tuned") == there
    assert run.is_trained(here, "key of tuned") and run.read_params(here)["suite"] == "other"
    for name in ("model.keras", "history.csv", "rows.npz", "environment.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert not (here / "predictions.npz").exists()
    monkeypatch.setattr(run, "LOADED_CODE", "newer")
    assert run.adopt(run.folder_of("third", "tuned", 0, tmp_path), params, "key of tuned") is None


def test_a_point_and_the_suites_own_run_take_over_from_each_other(faces, tmp_path):
    there = finish(tmp_path, "tuned", {"test": faces})
    here = run.folder_of("s", "adam-lr1e-3", 0, tmp_path, "tuning")
    assert here == tmp_path / "s" / "tuning" / "adam-lr1e-3" / "seed-0"
    point = PARAMS | {"sweep": "tuning", "point": "adam-lr1e-3"}
    assert run.adopt(here, point, "key of tuned") == there
    assert run.is_trained(here, "key of tuned") and run.read_params(here)["point"] == "adam-lr1e-3"
    other = run.folder_of("another", "tuned", 0, tmp_path)
    shutil.rmtree(there)
    assert run.adopt(other, PARAMS | {"suite": "another"}, "key of tuned") == here
    assert run.adopt(run.folder_of("s", "b", 0, tmp_path, "second"), point | {"sweep": "second"}, "key of tuned")


def test_a_point_starts_from_a_run_of_its_suite(faces, tmp_path):
    tuned = finish(tmp_path, "tuned", {"test": faces})
    given = PARAMS | {"experiment": "balanced-ros", "starts_from": "tuned", "sweep": "w", "point": "p"}
    point = run.folder_of("s", "p", 0, tmp_path, "w")
    history = pd.DataFrame({"epoch": [1], "loss": [0.5]})
    run.save_training(point, given, "key of p", {"test": faces}, history, Weights(), 1.0, {"tuned": tuned})
    assert run.lineage(point) == [point, tuned] and run.trainings(point) == [point, tuned]
    for folder in (tuned, point):
        storage.write_json(folder / "metrics.json", {})
    assert run.state(point, "key of p") == "done"
    found = run.read_environment(tuned)
    storage.write_json(tuned / "environment.json", found | {"model_sha256": "trained again"})
    assert run.state(point, "key of p") == "stale"


@pytest.mark.parametrize("off", [0, 0.0, False, "", "none", [], {}])
def test_a_parameter_that_is_off_does_not_count(off):
    assert run.key_of(PARAMS | {"new": off}, "f", {}) == run.key_of(PARAMS, "f", {})
    assert run.key_of(PARAMS | {"new": 1}, "f", {}) != run.key_of(PARAMS, "f", {})


@pytest.mark.parametrize(("name", "value"), run.USUAL.items())
def test_a_parameter_that_runs_did_not_have_counts_only_where_it_is_not_what_they_were(name, value):
    assert run.key_of(PARAMS | {name: value}, "f", {}) == run.key_of(PARAMS, "f", {})


def test_the_key_depends_on_faces_and_ancestors_and_on_no_order():
    ancestors = {"a": "1", "b": "2"}
    key = run.key_of(PARAMS, "f", ancestors)
    assert run.key_of(dict(reversed(PARAMS.items())), "f", dict(reversed(ancestors.items()))) == key
    others = [
        run.key_of(PARAMS, "g", ancestors),
        run.key_of(PARAMS, "f", {"a": "1"}),
        run.key_of(PARAMS, "f", {"a": "2", "b": "1"}),
        run.key_of({n: v for n, v in PARAMS.items() if n != "epochs"}, "f", ancestors),
    ]
    assert len({key, *others}) == 5


@pytest.mark.parametrize("inside", [".", "notebooks", "params/suites"])
def test_outputs_are_the_projects_from_each_of_its_folders(tmp_path, monkeypatch, inside):
    (tmp_path / "params" / "suites").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / inside)
    assert run.folder_of("s", "e", 0).resolve() == tmp_path / "outputs" / "s" / "e" / "seed-0"
    assert run.folder_of("s", "e", 0, tmp_path / "there") == tmp_path / "there" / "s" / "e" / "seed-0"


def test_outside_of_a_project_outputs_are_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.folder_of("s", "e", 0) == Path("outputs/s/e/seed-0")


def test_the_folder_says_suite_experiment_and_seed(tmp_path):
    found = run.folder_of("official-cpu", "balanced-smote_tomek", 3, tmp_path)
    assert found == tmp_path / "official-cpu" / "balanced-smote_tomek" / "seed-3"
    assert run.folder_of("s", "e", 0, "~/outputs").is_absolute()


@pytest.mark.parametrize("name", ["../x", "..", "a/b", "/x", "", ".hidden", "a\n", "a b"])
def test_a_name_that_could_lead_out_of_outputs_is_refused(name):
    if name:
        with pytest.raises(ValueError, match="`sweep` must be a plain name"):
            run.folder_of("s", "e", 0, sweep=name)
    for suite, experiment in ((name, "e"), ("s", name)):
        with pytest.raises(ValueError, match="must be a plain name"):
            run.folder_of(suite, experiment, 0)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the package's source, which `source_hash` reads, and a way to change a module in it."""
    shutil.copytree(Path(run.__file__).parent, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(run, "__file__", str(tmp_path / "copy" / "run.py"))

    def change(module, old, new):
        path = tmp_path / "copy" / f"{module}.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("module", "old", "new", "counts"),
    [
        ("model", "\n\ndef ", "\n\n# A remark.\n\n\ndef ", False),
        ("model", '"""The networks', '"""Some networks', False),
        ("model", '"""Build the VGGNet', '"""Make the VGGNet', False),
        ("train", '"""Trains `inner`', '"""Teaches `inner`', False),
        ("plots", "figsize=(9, 3.2)", "figsize=(8, 3)", False),
        ("model", "(64, 128, 256, 512)", "(64, 128, 256, 511)", True),
        ("augment", '"horizontal"', '"vertical"', True),
        *((module, "\nimport ", "\nimport sys\nimport ", True) for module in run.TRAINING_MODULES),
    ],
)
def test_the_source_hash_sees_the_code_that_makes_weights_and_nothing_else(sources, module, old, new, counts):
    before = run.source_hash()
    sources(module, old, new)
    assert (run.source_hash() != before) == counts


# --- Writing --------------------------------------------------------------------------------------------------------


def test_replacing_shows_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    storage.write_json(path, {"a": 1})
    with storage.replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".json" and json.loads(path.read_text()) == {"a": 1}
        temporary.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_replacing_leaves_nothing_behind_on_an_error(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(error), storage.replacing(tmp_path / name) as temporary:
            temporary.write_text("half")
            raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_score_that_is_not_a_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "metrics.json", {"top1": float("nan")})
    assert not list(tmp_path.iterdir())


def test_predictions_come_back_as_they_were(faces, tmp_path):
    balanced = resample.resample(faces, "smote")
    rng = np.random.default_rng(0)
    sets = {name: (part, rng.random((len(part), 7))) for name, part in (("test", faces), ("test_a.b-c", balanced))}
    run.save_predictions(tmp_path, CLASS_NAMES, sets)
    class_names, found = run.read_predictions(tmp_path)
    assert class_names == list(CLASS_NAMES) and list(found) == list(sets)
    for name, (part, probabilities) in sets.items():
        assert found[name].probabilities.dtype == "float32"
        np.testing.assert_array_equal(found[name].probabilities, probabilities.astype("float32"))
        for column in ("rows", "labels", "origin"):
            np.testing.assert_array_equal(getattr(found[name], column), getattr(part, column))


def test_predictions_are_made_once(faces, tmp_path):
    def predict(images):
        return np.eye(7)[images[:, 0, 0, 0] % 7]

    made = run.predictions(tmp_path, {"test": faces}, predict)
    read = run.predictions(tmp_path, {"test": faces}, lambda images: pytest.fail("predicted again"))
    np.testing.assert_array_equal(made["test"].probabilities, read["test"].probabilities)


def test_a_finished_training_is_known_by_its_key_and_its_model_loads(faces, tmp_path):
    network = model.vggnet(width=1 / 32, crop=40, num_classes=7)
    history = pd.DataFrame({"epoch": [1, 2], "loss": [0.1 + 0.2, 1e-300]})
    run.save_training(tmp_path, PARAMS, "key", {"test": faces}, history, network, 12.345)
    assert run.is_trained(tmp_path, "key") and not run.is_trained(tmp_path, "another key")
    assert run.read_params(tmp_path) == PARAMS
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history, check_exact=True)
    images = faces.images[:4]
    np.testing.assert_array_equal(run.load_model(tmp_path)(images), network(images))
    found = run.read_environment(tmp_path)
    assert found["training_seconds"] == 12.3 and found["source_hash"] == run.LOADED_CODE
    assert {"python", "keras", "numpy", "fer-keras"} <= set(found["versions"])
    (tmp_path / "model.keras").unlink()
    assert not run.is_trained(tmp_path, "key")


def test_predictions_with_another_test_time_augmentation_are_made_anew(faces, tmp_path):
    def predict(images):
        return np.full((len(images), 7), 1 / 7)

    for tta, made in (("none", 1), ("none", 0), ("flip", 1), ("flip", 0), ("none", 1)):
        calls = []
        run.predictions(tmp_path, {"test": faces}, lambda images, c=calls: c.append(1) or predict(images), tta)
        assert len(calls) == made


def begun(folder):
    return json.loads((folder / "started.json").read_text())["source_hash"]


def test_a_training_that_goes_on_under_changed_code_is_stale(faces, tmp_path, monkeypatch):
    folder = run.folder_of("s", "tuned", 0, tmp_path)
    new = run.LOADED_CODE
    monkeypatch.setattr(run, "LOADED_CODE", "old")
    run.begin(folder, "key of tuned")
    monkeypatch.setattr(run, "LOADED_CODE", new)
    run.checkpoint_path(folder).write_bytes(b"")
    run.begin(folder, "key of tuned")
    assert begun(folder) == "old" and run.checkpoint_path(folder).exists()
    finish(tmp_path, "tuned", {"test": faces})
    (folder / "metrics.json").write_text("{}")
    assert run.read_environment(folder)["source_hash"] == "old" and run.state(folder) == "stale"
    assert not (folder / "started.json").exists()


def test_retraining_does_not_go_on_from_a_checkpoint_of_other_code(tmp_path, monkeypatch):
    run.begin(tmp_path, "key")
    run.checkpoint_path(tmp_path).write_bytes(b"")
    run.begin(tmp_path, "key", retrain=True)  # of the same code: interrupted while it trained again
    assert run.checkpoint_path(tmp_path).exists()
    monkeypatch.setattr(run, "LOADED_CODE", "new")
    run.begin(tmp_path, "key", retrain=True)
    assert begun(tmp_path) == "new" and not run.checkpoint_path(tmp_path).exists()
    # A checkpoint of a run with other parameters is not resumed by `fit`, so the note is the new code's.
    run.checkpoint_path(tmp_path).write_bytes(b"")
    monkeypatch.setattr(run, "LOADED_CODE", "newer")
    run.begin(tmp_path, "another key")
    assert begun(tmp_path) == "newer"


def test_a_checkpoint_that_other_rows_trained_is_not_resumed(faces, tmp_path, capsys):
    parts = {"train": faces.take(slice(0, 100)), "test": faces}
    for given, kept in ((parts, True), (parts | {"train": faces.take(slice(1, 101))}, False)):
        run.begin(tmp_path, "key", parts=parts)
        run.checkpoint_path(tmp_path).write_bytes(b"")
        run.begin(tmp_path, "key", parts=given)
        assert run.checkpoint_path(tmp_path).exists() == kept
        assert ("starts anew" in capsys.readouterr().out) != kept
    soft = replace(faces, targets=np.full((len(faces), 7), 1 / 7, "float32"))
    run.begin(tmp_path, "key", parts={"train": faces})
    run.checkpoint_path(tmp_path).write_bytes(b"")
    run.begin(tmp_path, "key", parts={"train": soft})
    assert not run.checkpoint_path(tmp_path).exists()


def test_training_again_does_not_take_the_checkpoint_of_a_finished_training(faces, tmp_path):
    """Killed after its results were written, before its checkpoint was removed."""
    folder = run.folder_of("s", "tuned", 0, tmp_path)
    run.begin(folder, "key of tuned")
    note = (folder / "started.json").read_text()
    finish(tmp_path, "tuned", {"test": faces})
    (folder / "started.json").write_text(note)
    run.checkpoint_path(folder).write_bytes(b"")
    with pytest.raises(run.RunError, match="Another process finished"):
        run.begin(folder, "key of tuned")
    run.begin(folder, "key of tuned", retrain=True)
    assert not run.checkpoint_path(folder).exists()


def test_a_run_that_another_process_writes_is_refused_and_not_harmed(faces, tmp_path):
    folder = finish(tmp_path, "tuned", {"test": faces})
    note = {"pid": 12, "host": "elsewhere", "since": "2026-01-01 00:00:00", "command": "papermill"}
    (folder / lock.NAME).write_text(json.dumps(note))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    writers = (
        lambda: run.begin(folder, "key", retrain=True),
        lambda: finish(tmp_path, "tuned", {"test": faces}),
        lambda: run.save_metrics(folder, PARAMS, "key", {}, "official", {}, {}),
        lambda: run.predictions(folder, {"test": faces}, lambda images: None, "flip"),
    )
    for write in writers:
        with pytest.raises(lock.LockError, match="process 12 on elsewhere"):
            write()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_equal_trainings_leave_equal_files(tmp_path):
    hashes, answers = set(), []
    for number in range(2):
        keras.backend.clear_session()  # as in a new process
        train.seed_everything(0)
        network = model.vggnet(width=1 / 32)
        run.save_training(tmp_path / str(number), PARAMS, "key", {}, None, network, 1.0)
        hashes.add(run.read_environment(tmp_path / str(number))["model_sha256"])
        loaded = run.load_model(tmp_path / str(number))
        answers.append(loaded.predict(np.full((1, 48, 48, 1), 99, "uint8"), verbose=0))
        np.testing.assert_array_equal(answers[-1], network.predict(np.full((1, 48, 48, 1), 99, "uint8"), verbose=0))
        time.sleep(2.1)  # the times in a ZIP file are of two seconds
    assert len(hashes) == 1


def test_an_ensemble_is_averaged_anew_when_a_member_was_trained_again(faces, tmp_path, monkeypatch):
    member = finish(tmp_path, "tuned", {"test": faces})
    ensemble = finish(tmp_path, "mean", {"test": faces}, ancestors={"tuned": member})
    assert run.state(ensemble) == "not run" and not run.is_stale(ensemble), "its scores were deleted"
    monkeypatch.setattr(Weights, "content", b"trained again")
    finish(tmp_path, "tuned", {"test": faces})
    assert run.is_stale(ensemble) and not run.is_stale(tmp_path / "nowhere")


def test_the_state_of_a_run(faces, tmp_path, monkeypatch):
    parts = split.split_official(faces)
    tuned = run.folder_of("s", "tuned", 0, tmp_path)
    assert run.state(tuned) == "not run"
    finish(tmp_path, "tuned", parts)
    assert run.state(tuned) == "not run", "trained, and not scored"
    (tuned / "metrics.json").write_text("{}")
    assert run.state(tuned) == run.state(tuned, "key of tuned") == "done"
    assert run.state(tuned, "another key") == "other parameters"
    ros = finish(tmp_path, "ros", parts, ancestors={"tuned": tuned})
    (ros / "metrics.json").write_text("{}")
    assert run.state(ros) == "done"
    monkeypatch.setattr(Weights, "content", b"trained again")
    finish(tmp_path, "tuned", parts)
    assert run.state(ros) == "stale"
    ros = finish(tmp_path, "ros", parts, ancestors={"tuned": tuned})
    (ros / "metrics.json").write_text("{}")
    assert run.state(ros) == "done"
    environment = run.read_environment(tuned)
    storage.write_json(tuned / "environment.json", environment | {"source_hash": "older"})
    (tuned / "metrics.json").write_text("{}")
    assert run.state(tuned) == run.state(ros) == "stale"


def test_killed_between_any_two_steps_a_training_leaves_no_mixture_with_the_one_before(faces, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def until(n, patched):
        """Kill before the n-th file is renamed or removed."""
        left = [n]

        def counted(function):
            def step(*given, **named):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return function(*given, **named)

            return step

        for owner, name in ((storage.os, "replace"), (Path, "unlink")):
            patched.setattr(owner, name, counted(getattr(owner, name)))

    killed = True
    for n in range(40):
        folder = finish(tmp_path / str(n), "tuned", {"test": faces})
        storage.write_json(folder / "metrics.json", {})
        run.begin(folder, "new")
        storage.write_arrays(run.checkpoint_path(folder), note=np.array("whole"))
        with monkeypatch.context() as patched:
            patched.setattr(Weights, "content", b"others")
            until(n, patched)
            try:
                run.save_training(folder, PARAMS, "new", {"test": faces}, pd.DataFrame({"epoch": [1]}), Weights(), 1.0)
                killed = False
            except Killed:
                pass
        found = run.read_environment(folder)
        if found is None:  # what resuming needs is there
            assert run.checkpoint_path(folder).exists() and (folder / "started.json").exists(), n
        else:
            assert storage.file_hash(folder / "model.keras") == found["model_sha256"], n
            assert (folder / "predictions.npz").exists() == (found["key"] == "key of tuned"), n
        if not killed:
            break
    assert 10 < n < 39


def test_training_again_takes_back_what_the_old_weights_gave(faces, tmp_path):
    folder = finish(tmp_path, "tuned", {"test": faces})
    (folder / "metrics.json").write_text("{}")
    run.checkpoint_path(folder).write_text("")

    class Broken:
        def save(self, path):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        run.save_training(folder, PARAMS, "new", {"test": faces}, None, Broken(), 1.0)
    assert run.read_environment(folder) is None and run.checkpoint_path(folder).exists(), (
        "unfinished, and to be resumed"
    )
    left = {path.name for path in folder.iterdir()}
    assert left == {"params.yaml", "rows.npz", "history.csv", "model.keras", "checkpoint.npz"}
    finish(tmp_path, "tuned", {"test": faces})
    assert run.is_trained(folder, "key of tuned") and not run.checkpoint_path(folder).exists()


@pytest.mark.parametrize("resampling", ["none", "smote"])
def test_metrics_say_what_was_scored_and_split_by_origin(faces, tmp_path, resampling):
    parts = roles.assign_roles(faces, "study", resampling, 0)
    folder = finish(tmp_path, "tuned", parts)
    sets = run.read_predictions(folder)[1]
    chosen_by = {"role": "validation", "n": len(parts["validation"])}
    given = run.save_metrics(folder, PARAMS, "key", sets, "study", chosen_by, {"sets": {}})
    found = run.read_metrics(folder)
    assert found == given == json.loads(json.dumps(given))
    assert (found["key"], found["protocol"], found["data"], found["chosen_by"]) == ("key", "study", "drawn", chosen_by)
    for name, part in parts.items():
        scores = found["sets"][name]
        assert (
            scores["n"] == len(part) and scores["top1"] == evaluate.score(part.labels, sets[name].probabilities)["top1"]
        )
        origins = {n: int((part.origin == n).sum()) for n in ("original", "synthetic")}
        by_origin = {n: one["n"] for n, one in scores.get("by_origin", {}).items()}
        assert by_origin == (origins if resampling == "smote" else {})


# --- Reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "resampling"),
    [(protocol, resampling) for protocol in split.PROTOCOLS for resampling in resample.RESAMPLERS],
)
def test_the_faces_of_a_run_are_rebuilt_without_resampling(faces, tmp_path, monkeypatch, protocol, resampling):
    parts = roles.assign_roles(faces, protocol, resampling, seed=1)
    folder = finish(tmp_path, "tuned", parts)
    monkeypatch.setattr(resample, "RESAMPLERS", {})
    found = run.load_roles(folder, faces)
    assert list(found) == list(parts)
    for role, part in parts.items():
        assert_same_faces(found[role], part)


def test_sets_with_longer_names_are_rebuilt_too(faces, tmp_path):
    parts = {"test": faces, "test_balanced-smote_tomek": faces.take(slice(0, 9))}
    found = run.load_roles(finish(tmp_path, "ensemble", parts), faces)
    assert list(found) == list(parts)
    assert_same_faces(found["test_balanced-smote_tomek"], parts["test_balanced-smote_tomek"])


def test_a_missing_sibling_is_named_with_the_way_to_make_it(tmp_path):
    p = SimpleNamespace(suite="s", seed=0, outputs=str(tmp_path))
    with pytest.raises(run.RunError, match=r"'tuned' of suite 's' with seed 0 is needed.*-f params/tuned.yaml"):
        run.sibling(p, "tuned")
    folder = finish(tmp_path, "tuned")
    assert run.sibling(p, "tuned") == folder
    (folder / "environment.json").unlink()
    with pytest.raises(run.RunError, match="is not finished"):
        run.sibling(p, "tuned")


def test_a_run_is_named_by_its_experiment_and_where_it_is_another_by_its_seed(tmp_path):
    assert run.place_of("tuned", 4) == ("tuned", 4) and run.place_of("a.b-1/seed-12", 4) == ("a.b-1", 12)
    for wrong in ("", "tuned/", "tuned/seed-", "tuned/seed--1", "../tuned", "tuned/seed-1/x", "/tuned"):
        with pytest.raises(ValueError, match="named by its experiment"):
            run.place_of(wrong, 0)
    p = SimpleNamespace(suite="s", seed=0, outputs=str(tmp_path))
    with pytest.raises(run.RunError, match=r"with seed 1 is needed.* -p seed 1"):
        run.sibling(p, "tuned/seed-1")
    folder = finish(tmp_path, "tuned", seed=1)
    assert run.sibling(p, "tuned/seed-1") == folder and run.beside(folder, "other") == tmp_path / "s/other/seed-1"
    assert run.beside(folder, "other/seed-0") == tmp_path / "s/other/seed-0"


def test_ten_crops_of_an_ensemble_need_members_with_one_crop(tmp_path):
    folders = {name: finish(tmp_path, name, crop=crop) for name, crop in (("a", 40), ("b", 40), ("c", 0))}
    assert run.crop_of_members(folders, "flip") == 40
    with pytest.raises(run.RunError, match=r"same `crop`; these have 40 \(a\), 40 \(b\), 0 \(c\). Use `tta: flip`"):
        run.crop_of_members(folders, "ten_crop")
    del folders["c"]
    assert run.crop_of_members(folders, "ten_crop") == 40


@pytest.fixture
def family(faces, tmp_path):
    """Runs under the study's protocol as the study has them: tuned, two balanced from it, their ensemble."""
    folders = {"tuned": finish(tmp_path, "tuned", split.split_official(faces), starts_from="")}
    for seed, name in enumerate(("ros", "smote")):
        parts = roles.assign_roles(faces, "study", name, seed)
        folders[name] = finish(tmp_path, name, parts, starts_from="tuned")
    sets = run.ensemble_sets(faces, {name: folders[name] for name in ("ros", "smote")}, "study")
    folders["ensemble"] = finish(tmp_path, "ensemble", sets, members=["ros", "smote"])
    return folders


def test_lineage_is_the_run_and_all_before_it_nearest_first(family):
    assert run.lineage(family["tuned"]) == [family["tuned"]]
    assert run.lineage(family["ros"]) == [family["ros"], family["tuned"]]
    expected = [family[name] for name in ("ensemble", "ros", "tuned", "smote", "tuned")]
    assert run.lineage(family["ensemble"]) == expected
    assert run.ancestor_keys({"a": family["ros"]}) == {"a": "key of ros"}


def test_trainings_are_the_runs_that_fitted_weights_and_members_those_that_are_averaged(family, faces):
    names = ("ros", "tuned", "smote")
    assert run.trainings(family["ensemble"]) == [family[name] for name in names]
    assert run.members(family["ensemble"]) == [family["ros"], family["smote"]]
    assert run.members(family["ros"]) == [family["ros"]]
    parts = {name: run.load_roles(family[name], faces)["train"] for name in names}
    themselves, parents = run.trained_rows([family[name] for name in names])
    assert themselves.tolist() == sorted({row for part in parts.values() for row in part.rows.tolist()} - {-1})
    assert parents.tolist() == sorted({row for part in parts.values() for row in part.parents.ravel().tolist()} - {-1})
    assert [len(rows) for rows in run.trained_rows([])] == [0, 0]


def test_a_run_whose_ancestor_trained_on_its_test_faces_is_refused_except_under_study(faces, family):
    parts = split.split_official(faces)
    run.check_ancestors(family["tuned"], {"test": parts["test"]}, "official")
    trained = run.load_roles(family["ros"], faces)["train"].rows
    shared = len(np.intersect1d(trained, parts["test"].rows))
    with pytest.raises(run.RunError, match=rf"ros.* trained on {shared} of the {len(parts['test'])} faces"):
        run.check_ancestors(family["ros"], {"test": parts["test"]}, "official")
    with pytest.raises(run.RunError, match=r"tuned.* trained on 5 of the 5 faces"):
        run.check_ancestors(family["tuned"], {"test": parts["train"].take(slice(0, 5))}, "official")
    with pytest.raises(run.RunError, match=r"ros.* trained on"):
        run.check_ancestors(family["ensemble"], {"test": parts["test"]}, "official")
    run.check_ancestors(family["ros"], {"test": parts["test"]}, "study")


def test_another_data_set_under_the_same_name_is_refused_and_its_own_test_faces_count(faces, tmp_path):
    joined = source.load("drawn", 280, auxiliary="drawn")
    parts = roles.assign_roles(joined, "official", "none", 0)
    folder = finish(tmp_path, "auxiliary", parts, starts_from="")
    run.check_ancestors(folder, parts, "official")
    run.check_ancestors(folder, split.split_official(faces), "official")  # the same `data` alone
    own, other = joined.fingerprint.split("+")
    changed = {role: replace(part, fingerprint=f"{own}+drawn:0123") for role, part in parts.items()}
    with pytest.raises(run.RunError, match=r"this run has \(0123\).* Give both the same `drawn`"):
        run.check_ancestors(folder, changed, "official")
    assert other.startswith("drawn:")
    seen = parts | {"test_drawn": parts["train"].take(parts["train"].usage == "drawn")}
    with pytest.raises(run.RunError, match="that this run tests as 'test_drawn'"):
        run.check_ancestors(folder, seen, "official")


def test_an_audit_knows_the_labels_that_trained(faces, tmp_path):
    train = replace(faces.take(slice(10, 30)), labels=np.full(20, 6))
    folder = finish(tmp_path, "a", {"train": train}, starts_from="")
    mixed = faces.take(np.random.default_rng(0).permutation(len(faces)))
    found = run.with_trained_labels(mixed, [folder])
    trained = np.isin(mixed.rows, train.rows)
    assert (found.labels[trained] == 6).all() and np.array_equal(found.labels[~trained], mixed.labels[~trained])


def test_a_run_made_from_other_faces_is_refused(faces, family):
    with pytest.raises(run.RunError, match=r"made from other faces \(fingerprint .* Give both the same `data`"):
        run.check_ancestors(family["tuned"], {"test": replace(faces, fingerprint="0123456789")}, "official")


def test_what_chose_the_members_chose_the_ensemble():
    def metrics(protocol, n):
        return {"protocol": protocol, "chosen_by": {"role": "validation", "n": n, "monitor": "val_loss", "epoch": 2}}

    same = run.chosen_by_members({"a": metrics("official", 5), "b": metrics("official", 5)})
    assert same["n"] == 5 and same["monitor"] == "val_loss" and same["members"]["b"]["epoch"] == 2
    assert run.chosen_by_members({"a": metrics("study", 5), "b": metrics("study", 6)})["n"] == 11


def test_training_on_an_interpolation_of_a_test_face_counts(faces, tmp_path):
    balanced = resample.resample(faces, "smote")
    synthetic = balanced.take(balanced.rows < 0)
    folder = finish(tmp_path, "tuned", {"train": synthetic})
    run.check_ancestors(folder, {"test": faces.take(~np.isin(faces.rows, synthetic.parents))}, "official")
    with pytest.raises(run.RunError, match="trained on 2 of the 2 faces"):
        run.check_ancestors(folder, {"test": faces.take(synthetic.parents[0])}, "official")


def test_members_must_have_one_class_order(faces, tmp_path):
    same = {name: finish(tmp_path, name, {"test": faces}) for name in ("a", "b")}
    assert run.check_members(same) == list(CLASS_NAMES)
    other = finish(tmp_path, "c", {"test": faces}, class_names=sorted(CLASS_NAMES))
    with pytest.raises(run.RunError, match=r"a has angry, .*, neutral; c has angry, .*, neutral, sad, surprise"):
        run.check_members(same | {"c": other})
    with pytest.raises(run.RunError, match="`members` is empty"):
        run.check_members({})


def test_an_ensemble_under_official_is_scored_on_its_members_roles(faces, tmp_path):
    members = {
        name: finish(tmp_path, name, roles.assign_roles(faces, "official", name, 0), starts_from="")
        for name in ("ros", "smote")
    }
    found = run.ensemble_sets(faces, members, "official")
    for role, part in split.split_official(faces).items():
        assert_same_faces(found[role], part)


def test_members_that_were_scored_on_other_faces_are_not_averaged(faces, tmp_path):
    parts = {"train": faces.take(slice(0, 9)), "test": faces.take(slice(9, 20))}
    members = {"a": finish(tmp_path, "a", parts, starts_from="")}
    members["b"] = finish(tmp_path, "b", parts | {"test": faces.take(slice(9, 19))}, starts_from="")
    with pytest.raises(run.RunError, match="same faces: a has 11 test faces, b 10 others"):
        run.ensemble_sets(faces, members, "official")


def test_an_ensemble_under_study_is_scored_on_each_members_test_faces_all_and_unseen_ones(faces, family, tmp_path):
    members = {name: family[name] for name in ("ros", "smote")}
    found = run.ensemble_sets(faces, members, "study")
    assert {"test", "test_ros", "test_smote"} <= set(found) <= {"test", "test_unseen", "test_ros", "test_smote"}
    for name, folder in members.items():
        assert_same_faces(found[f"test_{name}"], run.load_roles(folder, faces)["test"])
    assert_same_faces(found["test"], data.concatenate([found["test_ros"], found["test_smote"]]))
    trained = [run.load_roles(family[name], faces)["train"] for name in ("tuned", "ros", "smote")]
    touched = {-1} | {row for part in trained for row in [*part.rows.tolist(), *part.parents.ravel().tolist()]}
    unseen = [row for row in faces.rows if row not in touched]
    assert (found["test_unseen"].rows.tolist() if "test_unseen" in found else []) == unseen
    # Three quarters of the faces trained nobody when only the rest did.
    few = finish(tmp_path, "few", {"train": faces.take(slice(0, 70)), "test": faces}, starts_from="")
    assert_same_faces(run.ensemble_sets(faces, {"few": few}, "study")["test_unseen"], faces.take(slice(70, None)))


def test_an_ensemble_whose_members_trained_on_every_face_has_no_unseen_set(faces, tmp_path):
    folder = finish(tmp_path, "all", {"train": faces, "test": faces.take(slice(0, 9))}, starts_from="")
    assert list(run.ensemble_sets(faces, {"all": folder}, "study")) == ["test", "test_all"]


def test_sets_are_joined_in_order(faces):
    first, second = faces.take(slice(0, 9)), faces.take(slice(9, None))
    assert_same_faces(data.concatenate([first, second]), replace(faces, notes=()))
