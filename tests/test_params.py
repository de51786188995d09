import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import yaml
from papermill import inspect_notebook

from fer_keras import params

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPERIMENTS = sorted((ROOT / "params").glob("*.yaml"))
SUITES = sorted((ROOT / "params" / "suites").glob("*.yaml"))
TRAIN, ENSEMBLE, PYTORCH = (ROOT / "notebooks" / f"{name}.ipynb" for name in ("train", "ensemble", "pytorch"))
SWEEPS, SEARCHES = (sorted((ROOT / "params" / name).glob("*.yaml")) for name in ("sweeps", "searches"))


def stem(path):
    return path.stem


# --- One value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", "1e-4", 1e-4),  # what YAML makes of 1e-4, without the dot
        ("learning_rate", 1, 1.0),
        ("epochs", 3, 3),
        ("flip", True, True),
        ("data", "drawn", "drawn"),
        ("members", ["a"], ["a"]),
        ("overrides", {"a": {}}, {"a": {}}),
    ],
)
def test_a_fitting_value_comes_back_as_the_parameters_type(name, value, expected):
    checked = params.check(name, value)
    assert checked == expected and type(checked) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", True, "a whole number"),
        ("epochs", 3.0, "a whole number"),
        ("epochs", "3", "a whole number"),
        ("learning_rate", True, "a number"),
        ("learning_rate", "fast", "a number"),
        ("learning_rate", float("nan"), "a number"),
        ("learning_rate", "nan", "a number"),
        ("learning_rate", float("inf"), "a number"),
        ("learning_rate", None, "a number"),
        ("flip", 1, "true or false"),
        ("flip", "yes", "true or false"),
        ("data", 7, "text"),
        ("members", "a, b", "a list"),
        ("overrides", [], "a table"),
    ],
)
def test_an_ill_typed_value_is_refused(name, value, wanted):
    with pytest.raises(params.ParameterError, match=f"'{name}' in a.yaml must be {wanted}. Received: "):
        params.check(name, value, "a.yaml")


def test_a_misspelled_name_names_the_nearest_one():
    with pytest.raises(
        params.ParameterError, match=r"no parameter 'learning_rat' in a.yaml. Did you mean 'learning_rate'"
    ):
        params.check("learning_rat", 1.0, "a.yaml")


@pytest.mark.parametrize("name", ["xyzzy", True, 7])  # YAML reads the keys `on` and `7` as a bool and a number
def test_a_name_like_no_other_gets_the_whole_list(name):
    with pytest.raises(params.ParameterError, match="There are: experiment, suite, seed"):
        params.check(name, 1)


# --- What wins ------------------------------------------------------------------------------------------------------

DEFAULTS = {"experiment": "a", "suite": "s", "epochs": 0, "experiments": [], "overrides": {}, "seeds": []}
LAYERS = [
    {"epochs": 1},  # experiment
    {"epochs": 2},  # suite
    {"overrides": {"a": {"epochs": 3}, "b": {"epochs": 9}}},
    {"epochs": 4},  # command line
]


@pytest.mark.parametrize("count", range(5))
def test_what_is_said_later_wins(count):
    experiment, suite, overrides, command_line = LAYERS[:count] + [{}] * (4 - count)
    resolved = params.resolve(DEFAULTS, experiment, suite | overrides, command_line)
    assert resolved == {"experiment": "a", "suite": "s", "epochs": count}


def test_a_run_gets_only_the_parameters_that_its_notebook_has():
    assert "learning_rate" not in params.resolve(DEFAULTS, suite={"learning_rate": 0.1})


def test_the_experiment_of_the_command_line_chooses_its_overrides():
    assert params.resolve(DEFAULTS, suite=LAYERS[2], command_line={"experiment": "b"})["epochs"] == 9


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"experiments": ["tuned"], "overrides": {"tune": {}}}, "experiment 'tune', which .* Did you mean 'tuned'"),
        ({"experiments": ["tuned"], "overrides": {1: {}}}, "experiment 1, which the suite does not have"),
        ({"overrides": {"b": {"epoch": 3}}}, "'epoch' in overrides of b. Did you mean 'epochs'"),
        ({"overrides": {"b": {"epochs": 0.5}}}, "'epochs' in overrides of b must be a whole number"),
        ({"overrides": {"b": 3}}, "overrides of b must be a table"),
        ({"overrides": {"b": {"experiment": "a"}}}, "overrides of b cannot set 'experiment', which says which run"),
        ({"overrides": {"b": {"suite": "other"}}}, "overrides of b cannot set 'suite'"),
        ({"overrides": ["b"]}, "'overrides' must be a table"),
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"epochs": "3"}, "'epochs' must be a whole number"),
    ],
)
def test_a_wrong_suite_is_refused_for_every_experiment(suite, message):
    with pytest.raises(params.ParameterError, match=message):
        params.resolve(DEFAULTS, suite=suite)


def test_an_empty_override_changes_nothing():
    assert params.resolve(DEFAULTS, suite={"overrides": {"a": None}})["epochs"] == 0


WITH_OUTPUTS = DEFAULTS | {"outputs": "outputs"}


@pytest.mark.parametrize("elsewhere", ["/home/me", "..", "outputs/../notebooks", "~", "outputs-of-mine", "."])
def test_a_file_cannot_send_results_out_of_outputs_and_the_command_line_can(elsewhere):
    given = {"outputs": elsewhere}
    for files in ({"experiment": given}, {"suite": given}, {"suite": {"overrides": {"a": given}}}):
        with pytest.raises(params.ParameterError, match=r"sends results to .*`-p outputs"):
            params.resolve(WITH_OUTPUTS, **files)
        assert params.resolve(WITH_OUTPUTS, **files, command_line=given)["outputs"] == elsewhere
        assert params.resolve(WITH_OUTPUTS, **files, command_line={"outputs": "outputs"})["outputs"] == "outputs"


@pytest.mark.parametrize("inside", ["outputs", "outputs/mine", "./outputs/a/../b"])
def test_a_file_may_send_results_to_a_folder_in_outputs(inside):
    assert params.resolve(WITH_OUTPUTS, suite={"outputs": inside})["outputs"] == inside


def test_a_folder_in_outputs_that_leads_elsewhere_is_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/away").symlink_to("/home")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(params.ParameterError, match="sends results"):
        params.resolve(WITH_OUTPUTS, suite={"outputs": "outputs/away"})


# --- Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1", "is not valid YAML: .* line 1"),
        ("", "must hold a table"),
        ("- epochs", "must hold a table"),
        ("epoch: 3", r"'epoch' in .*a\.yaml. Did you mean 'epochs'"),
        ("on: 3", r"no parameter True in .*a\.yaml"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML: could not determine a constructor"),
        ('"epochs = 1; import os; x": 3', "There is no parameter 'epochs = 1; import os; x'"),
        ("epochs: many", r"'epochs' in .*a\.yaml must be a whole number. Received: 'many' \(str\)"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(params.ParameterError, match=message):
        params.read(tmp_path / "a.yaml")


# A quote in what papermill writes as it prints would begin code.
CODE = """'"}; import os; os.system("touch ran") #'"""


@pytest.mark.parametrize(
    "text",
    [
        f"class_map: {{a: !!set {{{CODE}}}}}",
        f"members: [!!set {{{CODE}}}]",
        "class_map: {a: !!binary Iic=}",
        "class_map: {!!binary Iic=: a}",
        "members: [2026-01-01]",
        f"overrides: {{tuned: {{class_map: {{a: [!!set {{{CODE}}}]}}}}}}",
        "class_map: &a {a: *a}",
    ],
)
def test_a_list_or_table_holds_nothing_that_papermill_could_write_as_code(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(params.ParameterError, match=r"in .*a\.yaml may hold nothing but text, numbers"):
        params.read(tmp_path / "a.yaml")


def test_text_in_a_list_or_table_reaches_the_notebook_as_text():
    from papermill.translators import PythonTranslator

    hostile = [CODE, '"', "'", "\\", '\\"', "a\nb", '"""', "{x}", "#"]
    for value in (hostile, {text: [text, {text: 1}] for text in hostile}):
        name = "members" if isinstance(value, list) else "class_map"
        namespace = {}
        exec(PythonTranslator.codify({name: params.check(name, value)}), namespace)
        assert namespace[name] == value


def test_a_folder_and_a_file_that_is_no_text_are_refused(tmp_path):
    with pytest.raises(params.ParameterError, match="is a folder"):
        params.read(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"suite: \xe4\n")
    with pytest.raises(params.ParameterError, match="is no text in UTF-8"):
        params.read(tmp_path / "a.yaml")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbflearning_rate: 1e-4\n")
    assert params.read(tmp_path / "a.yaml") == {"learning_rate": 1e-4}


def test_outside_of_a_clone_the_error_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="Run this in a clone of the fer-keras repository"):
        params.read(tmp_path / "params" / "suites" / "demo.yaml")


def test_readers_see_of_paths_the_last_part():
    table = params.table(SimpleNamespace(data="/home/me/fer2013.csv", ferplus_csv="/home/me/votes.csv", epochs=3))
    assert table["value"].tolist() == ["fer2013.csv", "votes.csv", "3"]


def test_a_missing_file_names_its_neighbours(tmp_path):
    for name in ("tuned", "baseline"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(FileNotFoundError, match="Did you mean 'tuned'"):
        params.read(tmp_path / "tunde.yaml")
    with pytest.raises(FileNotFoundError, match="There are: baseline, tuned"):
        params.read(tmp_path / "xyzzy.yaml")


# --- The files and notebooks of the repository ----------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENTS, ids=stem)
def test_an_experiment_fits_its_notebook(path):
    content = params.read(path)
    notebook = ENSEMBLE if "members" in content else PYTORCH if "checkpoint" in content else TRAIN
    there = inspect_notebook(str(notebook))
    assert content["experiment"] == path.stem
    assert {name: type(value).__name__ for name, value in content.items()} == {
        name: there[name]["inferred_type_name"] for name in content
    }


@pytest.mark.parametrize("path", SUITES, ids=stem)
def test_a_suite_fits_the_notebooks_and_the_experiments(path):
    content = params.read(path)
    there = inspect_notebook(str(TRAIN)) | inspect_notebook(str(ENSEMBLE))
    assert content["suite"] == path.stem
    assert set(content["experiments"]) <= {experiment.stem for experiment in EXPERIMENTS}
    for table in (content, *content.get("overrides", {}).values()):
        types = {name: type(params.check(name, value)).__name__ for name, value in table.items()}
        assert types == {name: there[name]["inferred_type_name"] for name in table}
    for name in content["experiments"]:  # as it will run
        params.resolve(params.notebook_defaults(TRAIN), params.read(ROOT / "params" / f"{name}.yaml"), content)


@pytest.mark.parametrize("path", SWEEPS + SEARCHES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_sweep_or_search_fits_the_notebook_and_varies_an_experiment(path):
    varied = {"sweeps": "grid", "searches": "space"}[path.parent.name]
    content = params.read(path, besides=(varied, "pruner"))
    there = inspect_notebook(str(TRAIN)) | inspect_notebook(str(ROOT / "notebooks" / "search.ipynb"))
    there |= inspect_notebook(str(ROOT / "notebooks" / "tuning.ipynb"))
    assert content[path.parent.name.removesuffix("es" if varied == "space" else "s")] == path.stem
    assert content["experiment"] in {experiment.stem for experiment in EXPERIMENTS}
    tables = content.pop(varied)
    for table in tables if isinstance(tables, list) else [tables]:
        for name, values in table.items():
            given = values if varied == "grid" else values.get("choices") or [values["low"], values["high"]]
            types = {type(params.check(name, value)).__name__ for value in given}
            assert types == {there[name]["inferred_type_name"]}
    content.pop("pruner", "")
    assert {name: type(value).__name__ for name, value in content.items()} == {
        name: there[name]["inferred_type_name"] for name in content
    }


@pytest.mark.parametrize("path", EXPERIMENTS + SUITES + SWEEPS + SEARCHES, ids=stem)
def test_a_file_opens_with_its_name_cost_and_expectation(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.stem} – ") and "# Costs" in text and "# Expect" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_a_parameters_cell_annotates_and_explains_what_the_package_knows(path):
    there = inspect_notebook(str(path))
    assert there, "no cell is tagged `parameters`, or it is empty"
    assert {n: e["inferred_type_name"] for n, e in there.items()} == {n: params.PARAMETERS[n].__name__ for n in there}
    assert [name for name, entry in there.items() if not entry["help"]] == []
    assert list(params.notebook_defaults(path)) == list(there)


def test_every_parameter_is_in_a_notebook():
    assert set(params.PARAMETERS) == {name for path in NOTEBOOKS for name in inspect_notebook(str(path))}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_a_notebook_is_stored_without_results(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


# --- Inside a notebook ----------------------------------------------------------------------------------------------

CELL = (
    'experiment: str = "tuned"  # name\nlearning_rate: float = 1.0e-3  # step\nepochs: int = 8  # at most\n'
    "experiments: list = []  # suite\noverrides: dict = {}  # suite\n"
)


def notebook(monkeypatch, injected="", command=()):
    """What `globals()` holds below the `parameters` cell and the cell that papermill injected."""
    monkeypatch.setattr(
        psutil, "Process", lambda: SimpleNamespace(parent=lambda: SimpleNamespace(cmdline=lambda: command))
    )
    namespace = {}
    exec(CELL, namespace)
    exec(injected, namespace)
    return namespace | {"In": ["", CELL, *([f"# Parameters\n{injected}"] if injected else []), "p = …"]}


def test_a_notebook_by_itself_has_its_defaults(monkeypatch):
    found = vars(params.from_notebook(notebook(monkeypatch)))
    assert found == {"experiment": "tuned", "learning_rate": 1e-3, "epochs": 8}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ([], 3),
        (["papermill", "in", "out", "-f", "s.yaml", "-p", "learning_rate", "1"], 3),
        (["papermill", "in", "out", "-p", "epochs", "5"], 5),
        (["papermill", "in", "out", "--parameters_raw", "epochs", "5"], 5),
        (["papermill", "in", "out", "-y", "{epochs: 5}"], 5),
        (["papermill", "in", "out", "-y"], 3),
    ],
)
def test_only_the_command_line_wins_over_overrides(monkeypatch, command, expected):
    injected = 'epochs = 5\nlearning_rate = "1e-4"\noverrides = {"tuned": {"epochs": 3}, "other": {"epochs": 4}}\n'
    found = params.from_notebook(notebook(monkeypatch, injected, command))
    assert vars(found) == {"experiment": "tuned", "learning_rate": 1e-4, "epochs": expected}


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("learning_rte = 0.1", "Did you mean 'learning_rate'"),
        ("epochs = True", "'epochs' must be a whole number"),
        ("epochs = float('nan')", "'epochs' must be a whole number"),
        ("overrides = {'tuned': {'epoch': 3}}", "Did you mean 'epochs'"),
    ],
)
def test_what_papermill_only_warns_of_stops_the_notebook(monkeypatch, injected, message):
    with pytest.raises(params.ParameterError, match=message):
        params.from_notebook(notebook(monkeypatch, injected))


def test_papermill_resolves_files_and_command_line(tmp_path):
    """The real papermill: files merge, overrides win over files, `-p` wins over overrides."""
    cells = [
        nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("from fer_keras import params\nprint(vars(params.from_notebook(globals())))"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")
    (tmp_path / "e.yaml").write_text("experiment: tuned\nepochs: 1\nlearning_rate: 1e-4\n")
    overrides = {"tuned": {"epochs": 3, "learning_rate": 0.5}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"epochs": 2, "width": 0.5, "overrides": overrides}))
    words = "in.ipynb out.ipynb -f e.yaml -f s.yaml -p epochs 7 --no-progress-bar"
    subprocess.run([sys.executable, "-m", "papermill", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    printed = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[-1]["text"]
    assert yaml.safe_load(printed) == {"experiment": "tuned", "learning_rate": 0.5, "epochs": 7}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_no_cell_gives_a_parameters_name_another_value(path):
    """Otherwise running the notebook's cells again, in Jupyter, would take that value for the parameter."""
    names = set(inspect_notebook(str(path)))
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []) and "%pip" not in cell.source:
            stored = {
                n.id
                for n in ast.walk(ast.parse(cell.source))
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
            imported = {
                a.asname or a.name
                for n in ast.walk(ast.parse(cell.source))
                if isinstance(n, ast.ImportFrom)
                for a in n.names
            }
            assert not (stored | imported) & names
