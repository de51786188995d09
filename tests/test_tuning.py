"""Sweeps: their points, and what is said about them; and a small one run to its end by Snakemake."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from test_notebooks import call
from test_run import Weights

from fer_keras import evaluate, params, publish, run, split, suite, tuning

GRID = [{"optimizer": ["adam"], "learning_rate": [1e-3, 1e-2]}, {"optimizer": ["sgd"], "learning_rate": ["1e-2"]}]


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def files(tmp_path):
    """A copy of `params/`, and a way to write a sweep into it."""
    shutil.copytree(ROOT / "params", tmp_path / "params")

    def write(name="w", **values):
        content = {"sweep": name, "experiment": "tuned", "grid": GRID} | values
        content = {key: value for key, value in content.items() if value is not None}
        (tmp_path / f"params/sweeps/{name}.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "params"

    return write


def points(folder, name="w", on="demo", **given):
    return suite.jobs(on, given, folder, "f", name)


# --- Points ---------------------------------------------------------------------------------------------------------


def test_a_point_is_a_run_of_the_suite_with_its_values(files):
    found = points(files(epochs=3, seeds=[0, 2]))
    names = ["adam-lr1e-3", "adam-lr0.01", "sgd-lr0.01"]
    assert list(found) == [(f"w/{name}", seed) for seed in (0, 2) for name in names]
    tuned = suite.jobs("demo", fingerprint="f")["tuned", 0].params
    job = found["w/sgd-lr0.01", 2]
    changed = {name: value for name, value in job.params.items() if value != tuned[name]}
    assert changed == {
        "seed": 2,
        "sweep": "w",
        "point": "sgd-lr0.01",
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "epochs": 3,
    }
    assert job.folder == Path("outputs/demo/w/sgd-lr0.01/seed-2") and job.notebook == suite.TRAIN and not job.needs
    assert len({job.key for job in found.values()}) == 6


def test_values_of_a_point_win_over_the_suites_overrides_and_the_command_line_over_all(files):
    folder = files(epochs=2)
    assert points(folder)["w/adam-lr1e-3", 0].params["epochs"] == 2, "the suite says 7 for tuned"
    assert points(folder, epochs=4, outputs="there")["w/adam-lr1e-3", 0].params["epochs"] == 4


def test_a_point_equal_to_the_suites_run_has_its_key():
    tuned = suite.jobs("official-cpu", fingerprint="f")["tuned", 0]
    found = suite.jobs("official-cpu", fingerprint="f", sweep="tuning")
    assert [name for (name, _), job in found.items() if job.key == tuned.key] == ["tuning/adam-lr1e-3"]


def test_the_cost_that_the_sweep_states_is_that_of_its_points():
    found = suite.jobs("official-cpu", fingerprint="f", sweep="tuning")
    text = (ROOT / "params/sweeps/tuning.yaml").read_text()
    assert f"# {len(found)} points" in text and f"{len(found)} points × 15 epochs × 28,709 faces" in text
    assert {job.params["epochs"] for job in found.values()} == {15}
    assert {job.params["optimizer"] for job in found.values()} == set(suite_optimizers())
    assert len({job.key for job in found.values()}) == len(found)


def suite_optimizers():
    from fer_keras.train import OPTIMIZERS

    return OPTIMIZERS


def test_points_that_start_from_a_run_bring_it_along(files):
    folder = files(experiment="balanced-ros", grid={"dropout": [0.1, 0.3]})
    found = points(folder)
    assert list(found) == [("tuned", 0), ("w/dropout0.1", 0), ("w/dropout0.3", 0)]
    assert found["w/dropout0.1", 0].needs == {"tuned": ("tuned", 0)}


def test_names_stay_when_the_grid_grows_and_equal_points_are_one(files):
    before = points(files())
    more = [
        {"optimizer": ["sgd", "adam", "nadam"], "learning_rate": [1e-2, 1e-3], "schedule": ["constant"]},
        {"learning_rate": [1e-3], "optimizer": ["adam"], "l2": [0.0, 5e-4]},
    ]
    after = points(files(grid=[*GRID, *more]))
    assert {name: job.key for name, job in before.items()}.items() <= {n: j.key for n, j in after.items()}.items()
    # The demo's schedule is constant and its l2 0: what `more` says again is there already.
    assert {name for name, _ in after} - {name for name, _ in before} == {
        "w/nadam-lr1e-3-constant",
        "w/nadam-lr0.01-constant",
        "w/sgd-lr1e-3-constant",
        "w/adam-lr1e-3-l2-5e-4",
    }


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"schedule": "cosine", "l2": 5e-4, "learning_rate": 1e-3, "optimizer": "adam"}, "adam-lr1e-3-l2-5e-4-cosine"),
        ({"epochs": 150, "batch_size": 64, "flip": True}, "epochs150-batch64-flip"),
        ({"flip": False, "class_weight": "none", "starts_from": ""}, "starts_from-none-class_weight-none-no-flip"),
        ({"learning_rate": 0.000123, "dropout": 0.0, "l1": 0.25}, "lr1.23e-4-dropout0-l1-0.25"),
    ],
)
def test_a_points_name_is_short_and_says_its_values(values, name):
    assert suite.point_name(values) == name
    run.folder_of("s", name, 0, sweep="w")


def test_different_numbers_have_different_names():
    numbers = [
        1e30,
        0.0,
        1.0,
        10.0,
        100.0,
        1e3,
        1e5,
        123456.0,
        *np.geomspace(1e-7, 1, 50),
        0.1 + 0.2,
        0.3,
        1e-3,
        0.001001,
    ]
    names = {suite.point_name({"learning_rate": float(number)}) for number in numbers}
    assert len(names) == len(set(numbers))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid": [{"learning_rat": [1.0]}]}, r"'learning_rat' in .*w\.yaml. Did you mean 'learning_rate'"),
        ({"grid": {"epochs": [1.5]}}, r"'epochs' in the grid of .*w\.yaml must be a whole number. Received: 1.5"),
        ({"grid": {"epochs": 3}}, r"'epochs' must have a list of values, `epochs: \[a, b\]`. Received: 3"),
        ({"grid": {"epochs": []}}, "must have a list of values"),
        ({"grid": []}, "must have a `grid`: a table"),
        ({"grid": None}, "must have a `grid`: a table"),
        ({"grid": ["adam"]}, "must have a `grid`: a table"),
        ({"grid": {"protocol": ["official", "study"]}}, "cannot vary 'protocol'"),
        ({"grid": {"seed": [1, 2]}}, "cannot vary 'seed'"),
        ({"grid": {"members": [["a"]]}}, "cannot vary 'members'"),
        ({"protocol": "study"}, "cannot set 'protocol'"),
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"sweep": "v"}, r"w\.yaml must say `sweep: w`. Received: 'v'"),
        ({"experiment": None}, "must say which `experiment` it varies"),
        ({"experiment": "ensemble"}, "varies 'ensemble', which does not train"),
        ({"name": "report"}, "cannot be called 'report'"),
        ({"name": "tuned"}, "cannot be called 'tuned'"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused(files, values, message):
    name = values.pop("name", "w")
    with pytest.raises(params.ParameterError, match=message):
        points(files(name, **values), name)


def test_an_unknown_sweep_names_its_neighbours(files):
    with pytest.raises(FileNotFoundError, match=r"sweeps/tunign.yaml. Did you mean 'tuning'"):
        points(files(), "tunign")


def test_a_value_that_training_refuses_is_found_before_the_first_point_runs(files):
    found = points(files(grid={"optimizer": ["adam", "adan"]}))
    with pytest.raises(params.ParameterError, match="w/adan: `optimizer` must be one of adadelta"):
        suite.check(found.values())
    suite.check(points(files()).values())


# --- What is said about them ----------------------------------------------------------------------------------------

HITS = {"adam-lr1e-3": (20, 15), "adam-lr0.01": (22, 14), "sgd-lr0.01": (18, 19)}  # right on validation, on test


def answers(labels, right):
    """Probabilities by which just these faces are right."""
    chosen = np.where(np.isin(np.arange(len(labels)), right), labels, (labels + 1) % 7)
    return np.eye(7)[chosen] * 0.9 + 0.1 / 7


def finish(job, parts, right):
    """Leave a finished point with these right answers by role."""
    history = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5], "val_loss": [1.0, 0.9], "val_accuracy": [0.1, 0.5]})
    run.save_training(job.folder, job.params, job.key, parts, history, Weights(), 1.0)
    sets = {role: (parts[role], answers(parts[role].labels, right[role])) for role in right}
    names = parts["test"].class_names
    run.save_predictions(job.folder, names, sets)
    chosen_by = {"role": "validation", "n": len(parts["validation"]), "monitor": "val_accuracy", "epoch": 2}
    run.save_metrics(job.folder, job.params, job.key, run.read_predictions(job.folder)[1], "official", chosen_by, {})


@pytest.fixture
def parts(faces):
    return split.split_official(faces)


@pytest.fixture
def made(files, parts, tmp_path):
    """A sweep whose points have the `HITS` above; the right answers of all begin with the first face."""
    folder = files()
    jobs = suite.jobs("demo", {"outputs": str(tmp_path)}, folder, parts["test"].fingerprint, "w")
    for (name, _), job in jobs.items():
        validation, test = HITS[name.partition("/")[2]]
        finish(job, parts, {"validation": range(validation), "test": range(test)})
    return tuning.collect("demo", "w", tmp_path, folder)


def test_the_table_has_what_varies_and_the_best_by_validation_first(made, parts):
    results, notes = made
    table = tuning.points(results)
    assert notes == [] and tuning.varying(table) == ["optimizer", "learning_rate"]
    assert table.index.tolist() == ["adam-lr0.01", "adam-lr1e-3", "sgd-lr0.01"]
    n = {role: len(parts[role]) for role in ("validation", "test")}
    for name, (validation, test) in HITS.items():
        row = table.loc[name]
        assert row["validation"] == pytest.approx(validation / n["validation"])
        assert row["test"] == pytest.approx(test / n["test"])
        assert (row["epochs"], row["best epoch"], row["seeds"]) == (2, 2, 1)
    shown = tuning.readable(table, results)
    low, high = evaluate.wilson(14, n["test"])
    assert shown.loc["adam-lr0.01", "test top-1 %"] == f"{1400 / n['test']:.2f} ({100 * low:.1f}–{100 * high:.1f})"
    assert "seeds" not in shown


def test_validation_chooses_and_the_flattery_is_the_difference(made, parts):
    results, _ = made
    table, n = tuning.points(results), len(parts["test"])
    assert tuning.choices(table) == ("adam-lr0.01", "sgd-lr0.01")
    text = tuning.findings(results, table)
    assert f"validation faces choose adam-lr0.01: top-1 {2200 / len(parts['validation']):.2f} % on them" in text
    assert f"would have chosen sgd-lr0.01, and {1900 / n:.2f} % would have been reported: {500 / n:+.2f} points" in text
    pair = tuning.against_each_other(results, table)
    # The five faces that only the second has right: McNemar's p is 2 · 0.5⁵.
    assert pair.index.tolist() == [0] and pair.loc[0, "p (McNemar)"] == f"{2 * 0.5**5:.3f}"
    assert pair.loc[0, "top-1, points"].startswith(f"{500 / n:+.2f} (")


def test_where_both_choose_the_same_point_nothing_is_flattered(made):
    results, _ = made
    results = [result for result in results if result.experiment != "sgd-lr0.01"]
    table = tuning.points(results).drop(index="adam-lr0.01")
    assert tuning.choices(table) == ("adam-lr1e-3", "adam-lr1e-3")
    assert tuning.against_each_other(results, table).empty
    assert "would have chosen the same point" in tuning.findings(results, table)


def test_what_k_points_flatter_is_the_mean_over_all_ways_to_try_k(made):
    table = tuning.points(made[0])
    found = tuning.by_number_of_points(table)
    assert found.index.tolist() == [1, 2, 3]
    for k in found.index:
        tried = [table.loc[list(names)] for names in combinations(table.index, k)]
        by_test = np.mean([part["test"].max() for part in tried])
        by_validation = np.mean([part.loc[part["validation"].idxmax(), "test"] for part in tried])
        assert found.loc[k].tolist() == pytest.approx([by_test, by_validation])


def test_the_marginals_are_the_best_of_each_value(made):
    found = tuning.marginals(tuning.points(made[0])).set_index(["parameter", "value"])
    assert found["points"].to_dict() == {
        ("optimizer", "adam"): 2,
        ("optimizer", "sgd"): 1,
        ("learning_rate", 0.001): 1,
        ("learning_rate", 0.01): 2,
    }
    assert found.loc[("optimizer", "adam"), "best point"] == "adam-lr0.01"
    assert found.loc[("learning_rate", 0.01), "best point"] == "adam-lr0.01"
    alone = tuning.points(made[0][:1])
    assert tuning.varying(alone) == [] and tuning.marginals(alone)["validation"].empty


def test_luck_is_none_for_equal_answers_and_the_normal_laws_for_two_points(files, parts, tmp_path):
    folder = files(grid={"optimizer": ["adam", "sgd"]})
    jobs = suite.jobs("demo", {"outputs": str(tmp_path)}, folder, parts["test"].fingerprint, "w")
    n = len(parts["test"])
    rng = np.random.default_rng(3)
    rights = [rng.permutation(n)[: n // 2] for _ in jobs]
    for job, right in zip(jobs.values(), rights, strict=True):
        finish(job, parts, {"validation": [0], "test": right})
    results, _ = tuning.collect("demo", "w", tmp_path, folder)
    found = tuning.luck(results)
    first, second = (np.isin(np.arange(n), right).astype(float) for right in rights)
    # Of two, the expected maximum of normal deviations is the standard deviation of their difference over √(2π).
    expected = (first - second).std() / np.sqrt(n) / np.sqrt(2 * np.pi)
    assert found["points"] == 2 and found["n"] == n
    assert found["expected"] == pytest.approx(expected, rel=0.1) and found["quantile"] > found["expected"]
    for job in jobs.values():
        finish(job, parts, {"validation": [0], "test": rights[0]})
    # The same deviations for both: their maximum is on average nothing, up to the noise of 2,000 draws.
    same = tuning.luck(tuning.collect("demo", "w", tmp_path, folder)[0])
    assert abs(same["expected"]) < 4 * 0.5 / np.sqrt(n * 2000)


def test_several_seeds_are_averaged_and_points_with_fewer_not_chosen(files, parts, tmp_path):
    folder = files(seeds=[0, 1])
    jobs = suite.jobs("demo", {"outputs": str(tmp_path)}, folder, parts["test"].fingerprint, "w")
    for (name, seed), job in jobs.items():
        if (name, seed) != ("w/adam-lr0.01", 1):
            validation, test = HITS[name.partition("/")[2]]
            finish(job, parts, {"validation": range(validation + seed), "test": range(test - seed)})
    results, notes = tuning.collect("demo", "w", tmp_path, folder)
    table = tuning.points(results)
    assert notes == ["Not run: adam-lr0.01 seed 1."]
    assert table.loc["sgd-lr0.01", "test"] == pytest.approx(18.5 / len(parts["test"]))
    assert tuning.choices(table) == ("adam-lr1e-3", "sgd-lr0.01")
    assert tuning.readable(table, results)["seeds"].tolist() == [1, 2, 2]
    assert len(tuning.against_each_other(results, table)) == 2
    assert "2 seeds" in tuning.findings(results, table)


def test_points_that_do_not_fit_are_left_out_and_named(made, files, tmp_path):
    folder = files(dropout=0.4)
    with pytest.raises(ValueError, match=r"No point of the sweep 'w' is finished in .*Made with other parameters"):
        tuning.collect("demo", "w", tmp_path, folder)
    folder = files(grid=[*GRID, {"optimizer": ["nadam", "rmsprop"]}])
    failed = run.folder_of("demo", "nadam", 0, tmp_path, "w")
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="Input contains NaN.\nmore", traceback=[])
    failed.mkdir(parents=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[error])]), failed / "notebook.ipynb"
    )
    results, notes = tuning.collect("demo", "w", tmp_path, folder)
    assert len(results) == 3
    assert notes == ["Failed: nadam seed 0: ValueError: Input contains NaN.", "Not run: rmsprop."]


# --- Run by Snakemake -----------------------------------------------------------------------------------------------

TINY = {
    "suite": "tiny",
    "data": "drawn",
    "drawn_faces": 280,
    "protocol": "official",
    "experiments": ["tuned"],
    "width": 0.03125,
    "epochs": 1,
    "batch_size": 64,
}


@pytest.mark.timeout(600)
def test_a_sweep_runs_to_its_page_also_when_a_point_fails(tmp_path, monkeypatch):
    """One point cannot be built: the page is made of the others and names it; corrected, only that point runs."""
    for name in ("notebooks", "params", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    (tmp_path / "params/suites/tiny.yaml").write_text(yaml.safe_dump(TINY))
    sweep = tmp_path / "params/sweeps/few.yaml"
    sweep.write_text(yaml.safe_dump({"sweep": "few", "experiment": "tuned", "grid": {"crop": [0, 41]}}))
    command = ("snakemake", "--config", "suite=tiny", "sweep=few")
    page = tmp_path / "outputs/tiny/few"

    code, output = call(*command, cwd=tmp_path)
    assert code != 0, output[-5000:]
    for said in ("Failed: few/crop41: ValueError: `image_size` (or `crop`", "1 of 2 runs done", "1 failed"):
        assert said in output
    assert "1 of 2 runs are done." in output and str(page / "crop41/seed-0/notebook.ipynb") in output
    assert "CalledProcessError" not in output
    status = call("fer-keras", "status", "tiny", "--sweep", "few", cwd=tmp_path)[1]
    assert "failed   few/crop41 seed 0: ValueError: `image_size`" in status and "done     few/crop0" in status
    text = (page / "report.html").read_text()
    assert "Failed: crop41 seed 0: ValueError: `image_size` (or `crop`" in text and "1 points were compared" in text
    monkeypatch.chdir(tmp_path)
    done = run.folder_of("tiny", "crop0", 0, sweep="few")
    first = run.read_environment(done)

    sweep.write_text(sweep.read_text().replace("41", "40"))
    code, output = call(*command, cwd=tmp_path)
    assert code == 0, output[-5000:]
    assert str(page / "report.html") in output and run.read_environment(done) == first
    results, notes = tuning.collect("tiny", "few")
    assert [result.experiment for result in results] == ["crop0", "crop40"] and notes == []
    executed = json.dumps(nbformat.read(page / "notebook.ipynb", 4), ensure_ascii=False)
    for line in tuning.findings(results, tuning.points(results)).splitlines():
        assert line in executed
    assert run.read_params(done)["sweep"] == "few" and run.read_params(done)["point"] == "crop0"

    code, output = call(*command, "--dry-run", cwd=tmp_path)
    assert code == 0 and "Nothing to be done" in output, output
    code, output = call("fer-keras", "status", "tiny", "--sweep", "few", cwd=tmp_path)
    assert code == 0 and output.count("done     few/") == 2, output

    written = publish.publish_sweep("tiny", "few")
    assert [path.relative_to(tmp_path / "outputs").as_posix() for path in written] == [
        "published/tiny/few.md",
        "published/tiny/few.html",
    ]
    told = [f"- {line}" for line in tuning.findings(results, tuning.points(results)).splitlines()]
    assert all(line in written[0].read_text() for line in [*told, "| point | crop |"])
    text = publish.fill_tables("<!-- table: tiny/few -->\nold\n<!-- end table -->\n")
    assert text == "\n".join(["<!-- table: tiny/few -->", *told, "<!-- end table -->", ""])
