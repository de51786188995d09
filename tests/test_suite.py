import base64
import shutil
from pathlib import Path

import pytest
import yaml

from fer_keras import params, suite
from fer_keras.drawn import fingerprint

ROOT = Path(__file__).parent.parent
BALANCED = {f"balanced-{name}" for name in ("ros", "smote", "smote_tomek", "smote_enn")}


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def files(tmp_path):
    """A copy of `params/`, and a way to change a file in it."""
    shutil.copytree(ROOT / "params", tmp_path / "params")

    def change(name, **values):
        path = tmp_path / "params" / f"{name}.yaml"
        content = yaml.safe_load(path.read_text()) if path.exists() else {}
        content = {key: value for key, value in (content | values).items() if value is not None}
        path.write_text(yaml.safe_dump(content))
        return tmp_path / "params"

    return change


def keys(found):
    return {name: job.key for (name, _), job in found.items()}


def changed(before, after):
    before, after = keys(before), keys(after)
    return {name for name in before | after if before.get(name) != after.get(name)}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "params" / "suites").glob("*.yaml")))
def test_needed_runs_come_first_whatever_the_order_of_the_file(name, files):
    listed = params.read(ROOT / "params" / "suites" / f"{name}.yaml")["experiments"]
    folder = files(f"suites/{name}", experiments=sorted(listed, key=lambda one: (one != "ensemble", one)))
    found = suite.jobs(name, folder=folder, fingerprint="f")
    order = list(found)
    assert {experiment for experiment, _ in order} == set(listed)
    for (experiment, seed), job in found.items():
        assert all(order.index(other) < order.index((experiment, seed)) for other in job.needs.values())
        other = {"ensemble": suite.ENSEMBLE, "best-ensemble": suite.ENSEMBLE, "pytorch": suite.PYTORCH}
        assert job.notebook == other.get(experiment, suite.TRAIN)
        assert job.folder == Path("outputs", name, experiment, f"seed-{seed}")


@pytest.mark.parametrize(
    "name", ["demo", *(f"{one}{size}" for one in ("official", "clean", "study") for size in ("", "-cpu"))]
)
def test_the_studys_suites_have_its_experiments(name):
    found = suite.jobs(name, fingerprint="f")
    assert {"ensemble", "tuned", "baseline"} | BALANCED <= {experiment for experiment, _ in found}
    assert found["balanced-ros", 0].needs == {"tuned": ("tuned", 0)} and not found["baseline", 0].needs
    assert list(found["ensemble", 0].needs) == ["balanced-ros", "balanced-smote", "balanced-smote_tomek"]


def test_a_run_without_the_path_that_it_needs_is_left_out_and_so_is_what_starts_from_it(files, tmp_path):
    listed = ["tuned", "contempt", "rgb", "expw", "pytorch", "ferplus-majority"]
    files("rgb", starts_from="contempt", auxiliary="")
    folder = files("suites/more", experiments=listed)
    missing = {name: job.missing for (name, _), job in suite.jobs("more", folder=folder, fingerprint="f").items()}
    assert missing == {
        "tuned": "",
        "contempt": "affectnet=PATH",
        "rgb": "affectnet=PATH",
        "expw": "expw=PATH",
        "pytorch": "checkpoint=PATH",
        "ferplus-majority": "ferplus_csv=PATH",
    }
    given = {"ferplus_csv": str(tmp_path / "votes.csv"), "checkpoint": str(tmp_path / "weights.pt")}
    for path in given.values():
        Path(path).write_text("one")
    first = suite.jobs("more", given, folder, "f")
    assert not first["pytorch", 0].missing and not first["ferplus-majority", 0].missing
    for path in given.values():
        Path(path).write_text("other")
    assert changed(first, suite.jobs("more", given, folder, "f")) == {"pytorch", "ferplus-majority"}


@pytest.mark.parametrize("size", ["", "-cpu"])
def test_the_suites_of_the_three_protocols_differ_in_nothing_else(size):
    official, clean, study = (
        params.read(ROOT / "params" / "suites" / f"{name}{size}.yaml") for name in ("official", "clean", "study")
    )
    listed = official["experiments"]
    overrides = {name: one for name, one in study.get("overrides", {}).items() if name in listed}
    study |= {"experiments": listed} | ({"overrides": overrides} if size else {})
    for content in (official, clean, study):
        content["protocol"] = content["suite"] = ""
    assert official == clean == study


@pytest.mark.parametrize("suite_name", ["study", "study-cpu"])
def test_a_control_differs_from_its_balanced_run_in_where_it_starts_only(suite_name):
    found = suite.jobs(suite_name, fingerprint="f")
    for method in ("ros", "smote", "smote_tomek"):
        scratch, balanced = (dict(found[f"{kind}-{method}", 0].params) for kind in ("scratch", "balanced"))
        assert (scratch.pop("starts_from"), balanced.pop("starts_from")) == ("", "tuned")
        assert scratch | {"experiment": f"balanced-{method}"} == balanced


def test_under_the_study_protocol_what_balances_nothing_is_the_official_run():
    official, study = (suite.jobs(name, fingerprint="f") for name in ("official-cpu", "study-cpu"))
    for name in ("baseline", "tuned"):
        assert official[name, 0].key == study[name, 0].key
    assert official["balanced-ros", 0].key != study["balanced-ros", 0].key


def test_each_seed_has_its_own_runs(files):
    found = suite.jobs("demo", folder=files("suites/demo", seeds=[0, 3]), fingerprint="f")
    assert len(found) == 14 and len({job.key for job in found.values()}) == 14
    assert all(job.params["seed"] == seed and job.folder.name == f"seed-{seed}" for (_, seed), job in found.items())


def test_an_ensemble_across_seeds_is_one_run_that_waits_for_all_its_members(files):
    seeds, members = [3, 0, 1], ["tuned/seed-0", "tuned/seed-1", "balanced-ros/seed-3"]
    folder = files("suites/demo", seeds=seeds)
    files("ensemble", members=members)
    found = suite.jobs("demo", folder=folder, fingerprint="f")
    assert [seed for name, seed in found if name == "ensemble"] == [3] and len(found) == 19
    needs = found["ensemble", 3].needs
    assert needs == {members[0]: ("tuned", 0), members[1]: ("tuned", 1), members[2]: ("balanced-ros", 3)}
    # its own seed where none is said
    files("ensemble", members=["tuned", "tuned/seed-1"])
    found = suite.jobs("demo", folder=folder, fingerprint="f")
    assert [found["ensemble", seed].needs["tuned"] for seed in seeds] == [("tuned", seed) for seed in seeds]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["tuned/seed-0", "tuned/seed-7"], "needs the run 'tuned' with seed 7, which the suite 'demo' does not list"),
        (["tuned", "../tuned"], r"named by its experiment, or .* as in tuned/seed-1. Received: '../tuned'"),
        (["tuned", "tuned/1"], "Received: 'tuned/1'"),
    ],
)
def test_a_member_that_cannot_be_is_refused(files, members, message):
    with pytest.raises(ValueError, match=message):
        suite.jobs("demo", folder=files("ensemble", members=members), fingerprint="f")


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        ("tuned", {"l2": 0.001}, {"tuned", "ensemble"} | BALANCED),
        ("baseline", {"l2": 0.001}, {"baseline"}),
        ("balanced-smote", {"flip": True}, {"balanced-smote", "ensemble"}),
        ("balanced-smote_enn", {"flip": True}, {"balanced-smote_enn"}),
        ("ensemble", {"members": ["balanced-ros", "balanced-smote"]}, {"ensemble"}),
        ("suites/demo", {"batch_size": 16}, {"baseline", "tuned"} | BALANCED | {"ensemble"}),
        ("suites/demo", {"checkpoint_seconds": 5.0, "retrain": True}, set()),
        ("tuned", {"width": 0.5}, set()),  # the suite says otherwise
    ],
)
def test_a_change_changes_the_run_and_those_that_need_it(files, file, values, expected):
    before = suite.jobs("demo", fingerprint="f")
    assert changed(before, suite.jobs("demo", folder=files(file, **values), fingerprint="f")) == expected


def test_another_learning_rate_for_tuned_alone(files):
    before = suite.jobs("demo", fingerprint="f")
    overrides = params.read(ROOT / "params" / "suites" / "demo.yaml")["overrides"]
    overrides["tuned"]["learning_rate"] = "5e-4"
    after = suite.jobs("demo", folder=files("suites/demo", overrides=overrides), fingerprint="f")
    assert after["tuned", 0].params["learning_rate"] == 5e-4
    assert changed(before, after) == {"tuned", "ensemble"} | BALANCED


def test_moving_data_or_outputs_changes_no_key_and_other_faces_change_all():
    before = suite.jobs("demo", {"data": "here.csv"}, fingerprint="f")
    moved = suite.jobs("demo", {"data": "there.csv", "outputs": "elsewhere"}, fingerprint="f")
    assert keys(before) == keys(moved) and moved["tuned", 0].folder == Path("elsewhere/demo/tuned/seed-0")
    assert {name: job.encoded() for name, job in before.items()} == {name: job.encoded() for name, job in moved.items()}
    assert len(changed(before, suite.jobs("demo", {"data": "here.csv"}, fingerprint="g"))) == 7


def test_the_fingerprint_is_that_of_the_suites_faces():
    assert keys(suite.jobs("demo")) == keys(
        suite.jobs("demo", fingerprint=fingerprint(suite.jobs("demo")["tuned", 0].params["drawn_faces"]))
    )
    assert len(changed(suite.jobs("demo"), suite.jobs("demo", {"drawn_faces": 140}))) == 7


def test_snakemake_and_papermill_resolve_alike():
    """What Snakemake hands over, and what `papermill -f experiment -f suite` merges, give the same parameters."""
    given = {"data": "drawn", "outputs": "elsewhere"}
    content = params.read("params/suites/demo.yaml")
    for (name, _), job in suite.jobs("demo", given, fingerprint="f").items():
        defaults = params.notebook_defaults(job.notebook)
        handed = yaml.safe_load(base64.b64decode(job.encoded()))
        assert not handed.keys() & given.keys()
        assert params.resolve(defaults, handed | given, {}, given) == job.params
        merged = params.read(f"params/{name}.yaml") | content | given
        assert params.resolve(defaults, merged, {}, given) == job.params


@pytest.mark.parametrize(
    ("file", "values", "error", "message"),
    [
        (
            "suites/demo",
            {"experiments": ["balanced-ros"], "overrides": {}},
            ValueError,
            "balanced-ros needs the run 'tuned'",
        ),
        ("tuned", {"starts_from": "tuned"}, ValueError, "start from each other: tuned → tuned"),
        ("tuned", {"starts_from": "balanced-ros"}, ValueError, "each other: tuned → balanced-ros → tuned"),
        ("tuned", {"experiment": "baseline"}, params.ParameterError, "tuned.yaml must say `experiment: tuned`"),
        ("suites/demo", {"suite": "study"}, params.ParameterError, "must say `suite: demo`. Received: 'study'"),
        ("suites/demo", {"experiments": None}, params.ParameterError, "must list its `experiments`"),
        ("suites/demo", {"experiments": ["tunde"]}, FileNotFoundError, "Did you mean 'tuned'"),
        ("suites/demo", {"seeds": ["a"]}, params.ParameterError, "'seed' must be a whole number"),
        ("suites/demo", {"overrides": {"tunde": {}}}, params.ParameterError, "Did you mean 'tuned'"),
        ("suites/demo", {"experiments": [{"a": "b"}]}, ValueError, "`experiment` must be a plain name"),
        ("suites/demo", {"experiments": ["../params/tuned"]}, ValueError, "`experiment` must be a plain name"),
        ("suites/demo", {"seeds": [-1]}, params.ParameterError, "from 0 on. Received: -1"),
        ("suites/demo", {"point": "p"}, params.ParameterError, "says `point: p`"),
        ("tuned", {"sweep": "x"}, params.ParameterError, "tuned says `sweep: x`"),
        ("ensemble", {"members": [1]}, ValueError, "Another run is named by its experiment.* Received: 1"),
        (
            "tuned",
            {"outputs": "outputs/mine"},
            params.ParameterError,
            "share their `outputs`, and those of 'demo' have 2: outputs, outputs/mine",
        ),
        (
            "suites/demo",
            {"overrides": {"tuned": {"drawn_faces": 70}}},
            params.ParameterError,
            "share their `drawn_faces`, and those of 'demo' have 2: 1600, 70",
        ),
    ],
)
def test_a_suite_that_cannot_run_is_refused(files, file, values, error, message):
    with pytest.raises(error, match=message):
        suite.jobs("demo", folder=files(file, **values), fingerprint="f")


def test_a_suites_seed_is_that_of_its_runs(files):
    found = suite.jobs("demo", folder=files("suites/demo", seed=5), fingerprint="f")
    assert {seed for _, seed in found} == {5} and {job.params["seed"] for job in found.values()} == {5}


@pytest.mark.parametrize("name", ["../other", "..", "/etc/passwd", "a b", "", "demo;ls"])
def test_a_name_that_could_lead_out_of_outputs_is_refused(files, name):
    folder = files("other", suite="other", sweep="other", experiments=["tuned"], experiment=None)
    with pytest.raises(ValueError, match="`suite` must be a plain name"):
        suite.jobs(name, folder=folder, fingerprint="f")
    if name:
        with pytest.raises(ValueError, match="`sweep` must be a plain name"):
            suite.jobs("demo", folder=folder, fingerprint="f", sweep=name)


def test_an_unknown_suite_or_parameter_is_refused():
    with pytest.raises(FileNotFoundError, match=r"There is no .*dmo.yaml. Did you mean 'demo'"):
        suite.jobs("dmo")
    with pytest.raises(params.ParameterError, match=r"'dat' in the command line. Did you mean 'data'"):
        suite.jobs("demo", {"dat": "x"}, fingerprint="f")
