"""The notebooks executed for real, on tiny drawn faces: by Snakemake as a suite, and one by plain papermill."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from conftest import ROOT

from fer_keras import publish, report, run, storage, worth

TINY = {
    "suite": "tiny",
    "data": "drawn",
    "drawn_faces": 280,
    "protocol": "study",
    "experiments": ["tuned", "balanced-ros", "balanced-smote", "ensemble"],
    "width": 0.03125,
    "epochs": 1,
    "batch_size": 64,
    "overrides": {
        "tuned": {"epochs": 2, "learning_rate": 0.001},
        "ensemble": {"members": ["balanced-ros", "balanced-smote"]},
    },
}


# The same faces under the other protocols, with the runs that a comparison needs.
OTHERS = {
    f"tiny-{protocol}": TINY
    | {"suite": f"tiny-{protocol}", "protocol": protocol, "experiments": experiments}
    | {"overrides": {"tuned": TINY["overrides"]["tuned"]}}
    for protocol, experiments in (("official", ["tuned", "balanced-ros"]), ("clean", ["tuned"]))
}
SUITES = ("tiny", *OTHERS)


def call(*command, cwd, timeout=280):
    """Run a program of this environment in `cwd`; returns its exit code and output."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )
    return done.returncode, done.stdout + done.stderr


def write_suite(project, content):
    (project / f"params/suites/{content['suite']}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what a user has, with tiny suites under the three protocols, run to their end by Snakemake."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    for content in (TINY, *OTHERS.values()):
        write_suite(folder, content)
    code, output = call("snakemake", "--config", f"suite={','.join(SUITES)}", cwd=folder, timeout=900)
    assert code == 0, output[-5000:]
    folder.joinpath("snakemake.log").write_text(output)
    return folder


def where(project, experiment, suite="tiny"):
    return run.folder_of(suite, experiment, 0, project / "outputs")


@pytest.mark.timeout(1000)
def test_a_suite_leaves_complete_run_folders_and_names_its_reports(project):
    output = (project / "snakemake.log").read_text()
    for experiment in TINY["experiments"]:
        folder = where(project, experiment)
        names = {path.name for path in folder.iterdir()}
        expected = {"notebook.ipynb", "report.html", "params.yaml", "metrics.json", "rows.npz", "predictions.npz"}
        assert expected | {"model.keras", "environment.json"} <= names
        assert ("history.csv" in names) == (experiment != "ensemble")
        assert not {name for name in names if name.startswith(".writing") or name == "checkpoint.npz"}
        assert str(folder / "report.html") in output
    assert str(project / "outputs/tiny/report/report.html") in output


def test_params_are_flat_and_the_suite_and_its_overrides_won(project):
    params = run.read_params(where(project, "tuned"))
    assert params["epochs"] == 2 and params["width"] == 0.03125 and params["suite"] == "tiny"
    assert not {"experiments", "overrides", "seeds"} & set(params)
    assert run.read_params(where(project, "balanced-ros"))["epochs"] == 1


def test_under_the_study_protocol_only_balanced_runs_say_study_and_origins_are_scored_apart(project, faces):
    tuned, ros = (run.read_metrics(where(project, name)) for name in ("tuned", "balanced-ros"))
    assert tuned["protocol"] == "official" and tuned["sets"]["test"]["n"] == (faces.usage == "PrivateTest").sum()
    assert ros["protocol"] == "study"
    origins = ros["sets"]["test"]["by_origin"]
    assert sum(part["n"] for part in origins.values()) == ros["sets"]["test"]["n"]
    assert ros["chosen_by"]["role"] == "validation"


def test_the_ensemble_under_study_scores_each_members_test_rows_and_the_pooled_ones(project):
    metrics = run.read_metrics(where(project, "ensemble"))
    # `test_unseen` only where a face is left that no run trained on: tests/test_run.py
    assert set(metrics["sets"]) - {"test_unseen"} == {"test", "test_balanced-ros", "test_balanced-smote"}
    pooled = metrics["sets"]["test_balanced-ros"]["n"] + metrics["sets"]["test_balanced-smote"]["n"]
    assert metrics["sets"]["test"]["n"] == pooled


def test_a_training_that_two_suites_have_is_made_once(project):
    made, taken = where(project, "tuned"), where(project, "tuned", "tiny-official")
    assert run.read_metrics(made)["key"] == run.read_metrics(taken)["key"]
    assert (made / "model.keras").read_bytes() == (taken / "model.keras").read_bytes()
    assert run.read_params(taken)["protocol"] == "official" and run.read_params(made)["protocol"] == "study"
    clean = where(project, "tuned", "tiny-clean")
    assert run.read_metrics(clean)["key"] != run.read_metrics(made)["key"]
    assert run.read_metrics(clean)["protocol"] == "clean"


def test_every_run_is_audited(project):
    for content in (TINY, *OTHERS.values()):
        for experiment in content["experiments"]:
            metrics = run.read_metrics(where(project, experiment, content["suite"]))
            found = metrics["audit"]["sets"]["test"]
            assert found["n"] == metrics["sets"]["test"]["n"]
            counts = [scores["n"] for kind, scores in found["top1"].items() if kind != "all_touched"]
            assert sum(counts) == found["n"]
            hits = sum(round(s["n"] * s["top1"]) for kind, s in found["top1"].items() if kind != "all_touched")
            assert hits == round(metrics["sets"]["test"]["top1"] * found["n"])
    official, study, clean = (
        run.read_metrics(where(project, *place))["audit"]["sets"]["test"]["touched"]
        for place in (("balanced-ros", "tiny-official"), ("balanced-ros", "tiny"), ("tuned", "tiny-clean"))
    )
    assert clean == 0 < official < 0.1 < 0.5 < study


@pytest.fixture
def results(project):
    found, notes = worth.collect(SUITES, project / "outputs", folder=project / "params")
    assert notes == []
    return found


def test_the_suites_stand_side_by_side(project, results):
    assert len(results) == 4 + 1 + 1, "tuned of `study` and `official` is one training"
    table = worth.side_by_side(results)
    assert table.loc["tuned", "study"] == "–" and table.loc["ensemble", "official"] == "–"
    for suite, column in (("tiny", "study"), ("tiny-official", "official")):
        test = run.read_metrics(where(project, "balanced-ros", suite))["sets"]["test"]
        assert table.loc["balanced-ros", column].startswith(f"{100 * test['top1']:.2f} (")
        assert table.loc["balanced-ros", column].endswith(f", n {test['n']}")
    points = worth.points(results)
    assert (points["protocol"] == "published").sum() == 4 and (points["low"] <= points["top1"]).sum() == 6
    parts = worth.parts(results, "study")
    assert {name: sum(n for n, _ in row.values()) for name, row in parts.items()} == {
        f"{name} (study)": run.read_metrics(where(project, name))["sets"]["test"]["n"]
        for name in ("balanced-ros", "balanced-smote", "ensemble")
    }
    assert set(worth.main_runs(results)) == {"study", "official", "clean"}
    assert worth.main_runs(results)["study"].experiment == "ensemble"
    assert worth.stops(results).loc["tuned (official), seed 0", "epochs"] == "2 of 2"
    text = worth.findings(results)
    assert "ensemble: published 97.18 %; ours" in text and "not run under official" in text


def test_paired_tests_are_of_the_same_faces_only(results):
    official = [result for result in results if result.metrics["protocol"] == "official"]
    assert list(report.against(official).index) == ["balanced-ros"]
    study = [result for result in results if result.metrics["protocol"] == "study" or result.experiment == "tuned"]
    assert not {"balanced-ros", "balanced-smote"} & set(report.against(study).index)
    assert list(worth.official_against_clean(results).index) == ["tuned"]


def test_the_ensemble_is_scored_on_every_set_that_may_be_meant(project, results):
    table = worth.ensemble_sets(results)
    sets = run.read_metrics(where(project, "ensemble"))["sets"]
    assert list(table.index) == list(sets) and table.loc["test", "n"] == str(sets["test"]["n"])
    assert worth.control(results).empty, "the tiny suites have no control"


def test_runs_that_do_not_fit_are_left_out_and_named(project, results):
    with pytest.raises(ValueError, match=r"finished in .* with these parameters and faces\. tiny-clean: Made"):
        worth.collect(["tiny-clean"], project / "outputs", project / "params", fingerprint="of other faces")
    changed = TINY | {"overrides": TINY["overrides"] | {"balanced-smote": {"dropout": 0.4}}}
    write_suite(project, changed)
    try:
        found, notes = worth.collect(SUITES, project / "outputs", folder=project / "params")
    finally:
        write_suite(project, TINY)
    assert len(results) - len(found) == 2
    assert notes == ["tiny: Made with other parameters or faces than the suite has now: balanced-smote, ensemble."]
    path = where(project, "balanced-ros") / "metrics.json"
    whole = path.read_text()
    storage.write_json(path, {name: part for name, part in json.loads(whole).items() if name != "audit"})
    try:
        found, notes = worth.collect(SUITES, project / "outputs", folder=project / "params")
    finally:
        path.write_text(whole)
    assert len(results) - len(found) == 1 and notes == [
        "tiny: balanced-ros has no leak audit: run it again, without training."
    ]


def test_nothing_to_put_side_by_side_is_refused(project, tmp_path):
    with pytest.raises(ValueError, match="No run of tiny, tiny-clean is finished"):
        worth.collect(["tiny", "tiny-clean"], tmp_path, folder=project / "params")


def test_the_page_of_the_protocols_leaves_out_faces_when_asked(project):
    page = project / "outputs/worth" / "+".join(SUITES)
    whole = (page / "report.html").read_text()
    public = report.render(page / "notebook.ipynb", project / "public.html", without_faces=True).read_text()
    assert public.count("<img") == whole.count("<img") - 1


def test_the_members_mean_is_the_ensembles_prediction(project):
    _, ensemble = run.read_predictions(where(project, "ensemble"))
    _, member = run.read_predictions(where(project, "balanced-ros"))
    assert ensemble["test_balanced-ros"].rows.tolist() == member["test"].rows.tolist()
    import keras

    models = [keras.models.load_model(where(project, f"balanced-{name}") / "model.keras") for name in ("ros", "smote")]
    whole = run.load_model(where(project, "ensemble"))
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 1), dtype="uint8")
    mean = np.mean([model.predict(images, verbose=0) for model in models], axis=0)
    np.testing.assert_allclose(whole.predict(images, verbose=0), mean, atol=1e-6)


def test_reports_stand_alone(project):
    pages = [path for path in (project / "outputs").rglob("report.html") if "published" not in path.parts]
    assert len(pages) == 4 + 2 + 1 + 1 + 3 + 1  # runs, the faces, the suites, and the suites side by side
    for page in pages:
        text = page.read_text()
        assert "<img" in text
        for fetched in ('src="http', "src='http", 'href="http', "@import url"):
            links = [part[:80] for part in text.split(fetched)[1:] if not part.startswith("s://jupyter.org")]
            assert not links, f"{page} fetches {links}"
        assert "WARNING" not in text


def test_nothing_is_run_again_without_a_reason(project):
    code, output = call("snakemake", "--config", f"suite={','.join(SUITES)}", "--dry-run", cwd=project)
    assert code == 0 and "Nothing to be done" in output, output


@pytest.mark.parametrize(
    ("change", "reruns"),
    [
        ({"tuned": {"epochs": 3, "learning_rate": 0.001}}, {"tuned", "balanced-ros", "balanced-smote", "ensemble"}),
        ({"balanced-smote": {"dropout": 0.4}}, {"balanced-smote", "ensemble"}),
        ({"ensemble": {"members": ["balanced-smote", "balanced-ros"]}}, {"ensemble"}),
    ],
)
def test_a_changed_parameter_reruns_what_depends_on_it_and_nothing_else(project, change, reruns):
    write_suite(project, TINY | {"overrides": TINY["overrides"] | change})
    try:
        code, output = call("snakemake", "--config", "suite=tiny", "--dry-run", "--quiet", "host", cwd=project)
    finally:
        write_suite(project, TINY)
    assert code == 0, output
    assert _planned(output) == reruns


def _planned(output):
    return {name for name in TINY["experiments"] if f"outputs/tiny/{name}/seed-0/metrics.json" in _outputs(output)}


def test_a_folder_that_holds_another_run_is_run_again(project):
    path = where(project, "balanced-smote") / "environment.json"
    whole = path.read_text()
    storage.write_json(path, json.loads(whole) | {"key": "of another run"})
    try:
        given = ("--config", f"suite={','.join(SUITES)}", "--dry-run", "--quiet", "host")
        code, output = call("snakemake", *given, cwd=project)
    finally:
        path.write_text(whole)
    assert code == 0, output
    assert _planned(output) == {"balanced-smote", "ensemble"}


def test_a_wrong_suite_or_path_is_one_sentence(project):
    for given, message in (
        ("suite=tinny", "There is no params/suites/tinny.yaml. Did you mean 'tiny'?"),
        ("data=nowhere.csv", "There is no file or folder nowhere.csv."),
    ):
        code, output = call("snakemake", "--config", "suite=tiny", given, "--dry-run", cwd=project)
        assert code != 0 and message in output and "Traceback" not in output


def _outputs(text):
    return [
        part.strip(" ,")
        for line in text.splitlines()
        if line.strip().startswith("output:")
        for part in line[11:].split(",")
    ]


def test_changed_code_marks_runs_stale_and_reruns_nothing(project, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "source_hash", lambda: "other")
    states = {r.experiment: r.state for r in report.collect("tiny", project / "outputs", project / "params")}
    assert set(states.values()) == {"stale"}
    # Snakemake itself, with a copy of the package whose training code differs.
    shutil.copytree(ROOT / "fer_keras", tmp_path / "fer_keras", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "fer_keras" / "train.py", "a") as file:
        file.write("\nCHANGED = True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, output = call("fer-keras", "status", "tiny", cwd=project)
    assert code == 0 and output.count("stale") == 4 and "done" not in output, output
    code, output = call("snakemake", "--config", f"suite={','.join(SUITES)}", "--dry-run", cwd=project)
    assert code == 0 and "Nothing to be done" in output, output


def test_status_says_when_parameters_or_faces_are_others(project):
    def states(given=TINY, **more):
        write_suite(project, given)
        try:
            found = report.collect("tiny", project / "outputs", project / "params", **more)
        finally:
            write_suite(project, TINY)
        return {result.experiment: result.state for result in found}

    assert set(states().values()) == {"done"}
    changed = TINY | {"overrides": TINY["overrides"] | {"balanced-smote": {"dropout": 0.4}}}
    assert states(changed) == {
        "tuned": "done",
        "balanced-ros": "done",
        "balanced-smote": "other parameters",
        "ensemble": "other parameters",
    }
    assert set(states(fingerprint="of other faces").values()) == {"other parameters"}
    assert states(TINY | {"data": "elsewhere.csv"})["tuned"] == "done"


@pytest.mark.timeout(300)
def test_a_training_outlives_a_failure_after_it(project, tmp_path):
    """A picture that fails must not cost the training: the next call goes on with the weights."""
    notebook = nbformat.read(project / "notebooks/train.ipynb", 4)
    broken = next(cell for cell in notebook.cells if "plots.training_curves" in cell.source)
    broken.source = "raise RuntimeError('no picture')"
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    given = ("-f", "params/tuned.yaml", "-f", "params/suites/tiny.yaml", "-p", "seed", "5", "-p", "outputs", tmp_path)
    code, output = call("papermill", tmp_path / "broken.ipynb", tmp_path / "out.ipynb", *given, cwd=project)
    folder = run.folder_of("tiny", "tuned", 5, tmp_path)
    assert code != 0 and "no picture" in output and not (folder / "metrics.json").exists()
    model = (folder / "model.keras").read_bytes()
    code, output = call("papermill", "notebooks/train.ipynb", tmp_path / "out.ipynb", *given, cwd=project)
    assert code == 0, output[-3000:]
    assert (folder / "model.keras").read_bytes() == model and (folder / "metrics.json").exists()


@pytest.mark.timeout(300)
def test_a_finished_run_is_shown_again_without_training(project):
    folder = where(project, "tuned")
    before = {name: (folder / name).read_bytes() for name in ("model.keras", "history.csv", "predictions.npz")}
    (folder / "metrics.json").unlink()
    code, output = call(
        *("papermill", "notebooks/train.ipynb", folder / "notebook.ipynb"),
        *("-f", "params/tuned.yaml", "-f", "params/suites/tiny.yaml", "--no-progress-bar"),
        cwd=project,
    )
    assert code == 0, output[-3000:]
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "Trained before" in (folder / "notebook.ipynb").read_text()
    assert json.loads((folder / "metrics.json").read_text())["experiment"] == "tuned"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("-p", "learning_rat", "0.1"), "There is no parameter 'learning_rat'. Did you mean 'learning_rate'?"),
        (("-p", "epochs", "many"), "The parameter 'epochs' must be a whole number. Received: 'many'"),
        (
            ("-p", "starts_from", "nothing"),
            "The run 'nothing' of suite 'tiny' with seed 0 is needed and is not finished",
        ),
    ],
)
def test_a_wrong_parameter_stops_papermill_and_harms_nothing(project, tmp_path, given, message):
    before = sorted((path, path.stat().st_mtime_ns) for path in (project / "outputs").rglob("*"))
    code, output = call(
        *("papermill", "notebooks/train.ipynb", tmp_path / "failed.ipynb", "--no-progress-bar"),
        *("-f", "params/tuned.yaml", "-f", "params/suites/tiny.yaml", *given),
        cwd=project,
    )
    assert code != 0 and message in output
    assert sorted((path, path.stat().st_mtime_ns) for path in (project / "outputs").rglob("*")) == before
    assert "papermill-error-cell-tag" in json.dumps(nbformat.read(tmp_path / "failed.ipynb", 4))


@pytest.mark.timeout(300)
def test_the_command_line_wins_over_the_suites_overrides(project, tmp_path):
    code, output = call(
        *("papermill", "notebooks/train.ipynb", tmp_path / "out.ipynb", "--no-progress-bar"),
        *("-f", "params/tuned.yaml", "-f", "params/suites/tiny.yaml"),
        *("-p", "epochs", "1", "-p", "outputs", tmp_path),
        cwd=project,
    )
    assert code == 0, output[-3000:]
    params = run.read_params(run.folder_of("tiny", "tuned", 0, tmp_path))
    assert params["epochs"] == 1 and params["learning_rate"] == 0.001


def test_publishing_leaves_out_faces_and_rebuilds_the_tables(project, monkeypatch):
    monkeypatch.chdir(project)
    changed = TINY | {"overrides": TINY["overrides"] | {"balanced-smote": {"dropout": 0.4}}}
    write_suite(project, changed)
    with pytest.raises(ValueError, match="balanced-smote, ensemble of 'tiny' were made with other parameters"):
        publish.publish(SUITES)
    assert not (project / "outputs/published").exists(), "checked before anything is copied"
    write_suite(project, TINY)
    written = publish.publish(SUITES[::-1])
    page = project / "outputs/published/tiny/tuned/seed-0/report.html"
    assert page in [project / path for path in written]
    whole = (where(project, "tuned") / "report.html").read_text()
    assert page.read_text().count("<img") == whole.count("<img") - 2  # samples and mistakes
    assert page.read_text().count("Faces are not shown on this page.") == 2 and "not shown" not in whole
    kept = run.read_predictions(page.parent)[1]
    whole = run.read_predictions(where(project, "tuned"))[1]
    assert set(kept) == {"validation", "test"} == set(whole) - {"train"}
    np.testing.assert_array_equal(kept["test"].probabilities, whole["test"].probabilities)
    assert project / "outputs/published/worth" / f"{'+'.join(SUITES)}.html" in [project / path for path in written]
    assert "data" not in run.read_params(page.parent)
    text = publish.fill_tables(f"a\n<!-- table: {', '.join(SUITES)} -->\nold\n<!-- end table -->\nb")
    assert "| tuned | 66.15 (official) | – |" in text and "\n- ensemble: published 97.18 %" in text
    text = publish.fill_tables("before\n<!-- table: tiny -->\nold\n<!-- end table -->\nafter")
    assert "old" not in text and "| tuned | 66.15 / 82.22 / 90.89 |" in text and text.endswith("after")
    top1 = run.read_metrics(where(project, "tuned"))["sets"]["test"]["top1"]
    assert f"{100 * top1:.2f} (" in text


def test_the_maps_of_a_run_have_a_page_and_an_ensemble_has_none(project):
    words = ["papermill", "notebooks/explain.ipynb", "maps.ipynb", "--no-progress-bar", "-p", "drawn_faces", "280"]
    code, output = call(*words, "-p", "suite", "tiny-official", "-p", "experiment", "tuned", cwd=project)
    assert code == 0, output[-3000:]
    cells = [cell for cell in nbformat.read(project / "maps.ipynb", 4).cells if cell.cell_type == "code"]
    assert "of the saliency lies in the face's upper third" in cells[-1].outputs[0]["text"]
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs) == 3
    code, output = call(*words, "-p", "suite", "tiny", "-p", "experiment", "ensemble", cwd=project)
    assert code != 0 and "Of an ensemble, give one of its members." in output


# What goes beyond: another data set with eight classes, in colour, mixed; an augmented subset; one without its data.
MORE = TINY | {
    "suite": "tiny-more",
    "protocol": "official",
    "experiments": ["tuned", "augmented-ros", "contempt", "expw"],
    "overrides": {
        "tuned": TINY["overrides"]["tuned"],
        "augmented-ros": {"subset_per_class": 20},
        "contempt": {"auxiliary": "drawn", "color": "rgb", "mixup": 0.2},
    },
}


@pytest.mark.timeout(600)
def test_more_data_classes_and_colour_and_what_is_missing_is_left_out(project):
    write_suite(project, MORE)
    code, output = call("snakemake", "--config", "suite=tiny-more", cwd=project, timeout=580)
    assert code == 0 and "Not run: expw (needs expw=PATH)" in output, output[-3000:]
    folders = {name: where(project, name, "tiny-more") for name in MORE["experiments"]}
    assert not folders["expw"].exists()

    contempt = run.read_metrics(folders["contempt"])
    assert contempt["class_names"][-1] == "contempt" and contempt["sets"]["test"]["n"] == 29
    assert (
        {"train", "validation", "test", "test_drawn"}
        == set(contempt["sets"])
        == {
            *contempt["audit"]["sets"],
            "train",
        }
    )
    assert run.load_model(folders["contempt"]).input_shape == (None, 48, 48, 3)
    text = (folders["contempt"] / "notebook.ipynb").read_text()
    assert "The first kernels of tuned are repeated over three channels." in text and "new: contempt." in text

    rows = storage.read_arrays(folders["augmented-ros"] / "rows.npz")
    assert len(rows["train_rows"]) == len(rows["train_changes"]) == 140 and rows["train_changes"][:, 0].any()
    assert run.read_metrics(folders["augmented-ros"])["protocol"] == "official"

    states = {
        result.experiment: result.state
        for result in report.collect("tiny-more", project / "outputs", project / "params")
    }
    assert states == {"tuned": "done", "augmented-ros": "done", "contempt": "done", "expw": "not run"}
    page = (project / "outputs/tiny-more/report/report.html").read_text()
    assert "Not run: expw (needs `expw`: ExpW as" in page
