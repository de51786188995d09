"""The command line, and the download with a stand-in for kagglehub."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from fer_keras import publish, run
from fer_keras.cli import main
from fer_keras.evaluate import score
from fer_keras.fetch import fetch


@pytest.mark.parametrize("module", ["fer_keras", "fer_keras.cli", "fer_keras.lock", "fer_keras.params"])
def test_the_package_starts_without_what_takes_seconds_to_import(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert not {"keras", "tensorflow", "jax", "sklearn", "pandas", "matplotlib"} & set(loaded.split())
    assert module in loaded.split()


@pytest.fixture
def kaggle(monkeypatch, write_csv, row):
    """Stands for kagglehub: "downloads" a folder that the test fills; records what was asked for."""
    asked = []

    def download(handle):
        asked.append(handle)
        return str(download.folder)

    path = write_csv(*(row(label, usage) for usage in ("Training", "PublicTest", "PrivateTest") for label in range(7)))
    download.folder = path.parent
    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=download))
    return SimpleNamespace(asked=asked, path=path, download=download)


def test_fetch_gives_the_path_to_use_and_counts_the_faces(kaggle, capsys):
    assert main(["data", "fetch", "fer2013"]) == 0
    shown = capsys.readouterr().out
    assert kaggle.asked == ["deadskull7/fer2013"]
    assert f"make report DATA={kaggle.path}" in shown and "PrivateTest" in shown and "21" in shown


def test_a_path_of_an_unknown_user_is_one_sentence(capsys):
    for words in (["zoo", "add", "~nobody-here/run", "--name", "mine"], ["export", "~nobody-here/run"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "names a user who is not known" in error and error.count("\n") == 1


def test_fetch_takes_another_handle(kaggle):
    path, faces = fetch("fer2013", handle="someone/else")
    assert kaggle.asked == ["someone/else"] and path == kaggle.path and len(faces) == 21


def test_fetch_says_what_the_download_held_instead(kaggle, tmp_path, capsys):
    kaggle.download.folder = tmp_path / "other"
    kaggle.download.folder.mkdir()
    (kaggle.download.folder / "notes.txt").write_text("")
    assert main(["data", "fetch", "fer2013"]) == 2
    assert "holds none of fer2013.csv, icml_face_data.csv, train. Found: notes.txt" in capsys.readouterr().err


def test_fetch_without_a_network_is_one_sentence(monkeypatch, capsys):
    def refuse(handle):
        raise ConnectionError("name resolution failed\nand more")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=refuse))
    assert main(["data", "fetch", "fer2013"]) == 2
    error = capsys.readouterr().err
    assert "could not be downloaded: name resolution failed and more." in error and error.count("\n") == 1


def test_fetch_without_kagglehub_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert main(["data", "fetch", "fer2013"]) == 2
    assert "pip install -e '.[fetch]'" in capsys.readouterr().err


def test_show_counts_the_faces_of_a_file(write_csv, row, capsys):
    path = write_csv(row(3, "Training"), row(3, "PrivateTest"), row(6, "Training"))
    assert main(["data", "show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["All", "2", "1", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "show", "nothing.csv"], "There is no file or folder nothing.csv"),
        (["render", "nothing.ipynb"], "There is no notebook nothing.ipynb"),
        (["status", "ofisial"], "Did you mean 'official'?"),
        (["status", "demo", "--sweep", "dmo"], "sweeps/dmo.yaml. Did you mean 'demo'?"),
        (["publish", "demo", "--outputs", "nowhere"], "No run of the suite 'demo' is finished in nowhere"),
        (["tables", "nothing.md"], "nothing.md"),
    ],
)
def test_a_wrong_input_is_one_sentence_and_exit_code_2(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("fer-keras: ") and error.count("\n") == 1


def test_check_refuses_what_papermill_would_run_as_code(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["check", "params/tuned.yaml", "params/suites/demo.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("params/tuned.yaml: ")
    file = tmp_path / "a.yaml"
    for text, message in (
        ("\"x = 1; print('run')\": 1", "There is no parameter \"x = 1; print('run')\""),
        ("outputs: /home/me", "sends results to /home/me"),
        ("experiments: [a]\noverrides: {a: {outputs: /home/me}}", "sends results to /home/me"),
        ("overrides: {a: {'x=1': 1}}", "There is no parameter 'x=1' in overrides of a"),
    ):
        file.write_text(text)
        assert main(["check", str(file)]) == 2
        assert message in capsys.readouterr().err


def test_status_names_every_run_of_the_suite(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["status", "demo", "--outputs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and all(line.startswith("not run") for line in lines)


def test_status_names_every_point_of_a_sweep(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["status", "demo", "--sweep", "demo", "--outputs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(line.startswith("not run  demo/") for line in lines)


def test_the_readmes_tables_agree_with_the_published_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table: ") == text.count("<!-- end table -->") > 0
    assert publish.fill_tables(text) == text, "run: fer-keras tables"


PUBLISHED = sorted((ROOT / "outputs/published").glob("*/*/seed-*/metrics.json"))


def test_every_line_of_the_readmes_tables_is_of_a_published_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = [name.strip() for names in re.findall(r"<!-- table: (.+?) -->", text) for name in names.split(",")]
    assert all((ROOT / "outputs/published" / f"{name}.md").exists() for name in named if "/" in name)  # of sweeps
    suites = {name for name in named if "/" not in name}
    assert suites and {path.parents[2].name for path in PUBLISHED} >= suites
    tables = "".join(re.findall(r"<!-- table: .+? -->\n(.*?)<!-- end table -->", text, re.DOTALL))
    named = {line.split("|")[1].strip() for line in tables.splitlines() if line.startswith("| ")} - {"experiment"}
    assert named == {path.parents[1].name for path in PUBLISHED if path.parents[2].name in suites}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "/".join(path.parts[-4:-1]))
def test_published_metrics_agree_with_the_published_predictions(path):
    metrics = run.read_metrics(path.parent)
    class_names, sets = run.read_predictions(path.parent)
    assert "test" in sets
    for name, found in sets.items():
        again = score(found.labels, found.probabilities, class_names)
        kept = {key: metrics["sets"][name][key] for key in again}
        assert _close(again, kept), f"{path}: {name}"


def _close(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_close, a, b))
    return a == pytest.approx(b, rel=1e-6, abs=1e-9)
