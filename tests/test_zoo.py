"""The zoo: an entry from a finished run, its file checked whenever it is loaded."""

import json
import shutil
import socketserver
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import keras
import numpy as np
import pytest
import yaml
from test_classifier import finish, network

from fer_keras import audit, evaluate, export, run, storage, zoo
from fer_keras.classifier import ExpressionClassifier, ModelError
from fer_keras.cli import main
from fer_keras.data import CLASS_NAMES, load_fer2013

if keras.backend.backend() != "tensorflow":
    pytest.skip("models are exported from TensorFlow", allow_module_level=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, faces):
    """The folder of a finished run that was scored over mirror images, and what Keras answers."""
    made = network(1)
    folder = finish(tmp_path_factory.mktemp("runs") / "outputs/demo/tuned/seed-0", made, faces, tta="flip")
    return folder, evaluate.predict(made, faces.images[:40], "flip")


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    """A zoo's folder with one entry, whose file came with it."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(zoo, "FOLDER", folder)
        zoo.add(finished[0], "compact")
    return folder


@pytest.fixture
def filled(made, tmp_path, monkeypatch):
    """A copy of it, which is the zoo."""
    shutil.copytree(made, tmp_path / "zoo")
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "zoo"


@pytest.fixture
def server(made):
    """The URL of a page with the entry's file."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=made)) as found:
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


# --- Adding ---------------------------------------------------------------------------------------------------------


def test_a_card_says_what_the_file_is_and_what_it_is_worth(filled, finished):
    found, metrics = zoo.load("compact"), run.read_metrics(finished[0])
    path = found["path"]
    assert path == filled / "compact.onnx" and zoo.names() == ["compact"]
    assert (found["size"], found["sha256"]) == (path.stat().st_size, storage.file_hash(path))
    assert found["class_names"] == list(CLASS_NAMES) and found["image_size"] == [48, 48] and found["channels"] == 1
    assert found["run"]["model_sha256"] == storage.file_hash(finished[0] / "model.keras")
    assert found["weights"] == keras.models.load_model(finished[0] / "model.keras").count_params()
    test = metrics["sets"]["test"]
    assert found["test"]["top1"] == test["top1"] and found["test"]["intervals"]["top1"] == test["intervals"]["top1"]
    for code, (name, scores) in enumerate(found["test"]["per_class"].items()):
        assert name == CLASS_NAMES[code] and scores["n"] == test["per_class"][name]["support"]
        if scores["n"]:
            assert scores["recall"] == pytest.approx(test["per_class"][name]["recall"])
            assert scores["interval"] == evaluate.wilson(test["confusion_matrix"][code][code], scores["n"])
    text = (filled / "compact.md").read_text(encoding="utf-8")
    assert text == zoo.markdown(found)
    for part in (
        found["sha256"],
        found["limits"],
        found["licence"],
        "demo/tuned/seed-0",
        "mirror image",
        "| disgust |",
    ):
        assert part in text
    assert f"top-1 {evaluate.percent(test['top1'], test['intervals']['top1'])} %" in text


def test_the_file_answers_as_the_run_was_scored(filled, finished, faces):
    found = ExpressionClassifier("compact", "whole")
    assert found.backend == "onnxruntime" and found.notes == []
    assert np.abs(found.predict(faces.images[:40]) - finished[1]).max() < 1e-3
    assert "demo/tuned/seed-0: top-1" in found.describe()


def test_the_network_that_comes_with_the_package_is_small_and_whole():
    card = zoo.load("compact")  # which checks the file
    assert card["path"].parent == zoo.FOLDER and card["size"] <= zoo.LARGEST_SHIPPED
    assert card["run"]["data"] == "fer2013" and card["run"]["protocol"] == "official" and card["chosen_by"]["n"] == 3589
    assert (zoo.FOLDER / "compact.md").read_text() == zoo.markdown(card)


def test_the_network_that_comes_with_the_package_scores_on_real_faces_what_its_card_says(real_csv):
    card, faces = zoo.card("compact"), load_fer2013(real_csv)
    test = faces.take(faces.usage == "PrivateTest")
    found = evaluate.score(test.labels, ExpressionClassifier(detector="whole").predict(test.images))
    assert found["n"] == card["test"]["n"] == 3589
    assert abs(found["top1"] - card["test"]["top1"]) < 1e-3  # a face or two may lie on the border between two classes
    assert found["top1"] > 0.6545  # what the package `fer` scores there, benchmarks/app.py
    for name, scores in card["test"]["per_class"].items():
        assert abs(found["per_class"][name]["recall"] - scores["recall"]) < 0.02


def test_without_its_file_compact_is_the_best_run(filled, finished):
    (filled / "compact.onnx").unlink()
    assert not zoo.is_shipped("compact")
    found = ExpressionClassifier("compact", "whole", outputs=finished[0].parents[2])
    assert found.notes[0] == f"The weights of compact are not here: using what was trained here, {finished[0]}."


def test_an_audit_and_other_data_are_told(finished, faces, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    metrics = run.read_metrics(folder) | {"data": "expw", "audit": audit.audit(folder, faces)}
    storage.write_json(folder / "metrics.json", metrics)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    monkeypatch.setattr(export, "TOLERANCE", 1e-2)  # its network's answers are enlarged, and so is what 16 bits lose
    found = zoo.add(folder, "other-1", url="https://example.org/other-1.onnx", float16=True)
    assert found["audit"] == audit.sentences(metrics["audit"]) and "of the 40 test faces are touched" in found["audit"]
    assert found["licence"] == "The network was trained on expw, whose owners' terms apply."
    assert found["size"] < 0.7 * 4 * found["weights"] and found["format"] == "onnx, weights in float16"
    assert "from https://example.org/other-1.onnx." in (tmp_path / "zoo/other-1.md").read_text(encoding="utf-8")


def change(folder, name, **values):
    path = folder / name
    if name == "predictions.npz":
        storage.write_arrays(path, **storage.read_arrays(path) | values)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("predictions.npz", {"tta": "ten_crop"}, "was scored over ten crops, .* Score it anew"),
        ("metrics.json", {"protocol": "study"}, "is a run under `study`, whose test faces train"),
        ("metrics.json", {"chosen_by": {"role": "test", "n": 40}}, "was chosen by its test faces, as published"),
        ("metrics.json", {"class_names": sorted(CLASS_NAMES)}, "are angry, disgust, fear, happy, neutral, sad"),
    ],
)
def test_a_run_that_would_mislead_is_refused(finished, tmp_path, monkeypatch, file, values, message):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    change(folder, file, **values)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    with pytest.raises(zoo.ZooError, match=message):
        zoo.add(folder, "compact")
    with pytest.raises(export.ExportError, match="holds no finished run"):
        zoo.add(tmp_path, "compact")
    with pytest.raises(zoo.ZooError, match="must be of small letters"):
        zoo.add(folder, "../compact")
    assert not (tmp_path / "zoo").exists()


def test_a_card_tells_other_labels_and_other_data_of_all_that_trained(finished, tmp_path, monkeypatch):
    folder = tmp_path / "outputs/demo/tuned/seed-0"
    shutil.copytree(finished[0], folder)
    params = run.read_params(folder)
    before = tmp_path / "outputs/demo/before/seed-0"
    for where, more in ((folder, {"labels": "ferplus", "starts_from": "before"}), (before, {"auxiliary": "affectnet"})):
        storage.write_text(where / "params.yaml", yaml.safe_dump(params | more))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    found = zoo.add(folder, "x")
    assert found["run"]["labels"] == "ferplus" and found["run"]["auxiliary"] == ["affectnet"]
    own = zoo.LICENCES["drawn"]
    assert found["licence"] == f"{own} The network was trained on affectnet, whose owners' terms apply."
    text = zoo.markdown(found)
    assert "drawn with the labels of ferplus, `official`; affectnet among what trained." in text
    assert "on 40 test faces with the labels of ferplus top-1" in text
    assert (
        "test faces of drawn with the labels of ferplus under official" in ExpressionClassifier("x", "whole").describe()
    )
    shutil.rmtree(before)
    with pytest.raises(zoo.ZooError, match=r"comes from another run, which is not there: .*before/seed-0/params.yaml"):
        zoo.add(folder, "x", replace=True)


def test_a_network_is_replaced_only_when_that_is_said(finished, filled, capsys):
    before = (filled / "compact.onnx").read_bytes(), (filled / "compact.json").read_bytes()
    words = ["zoo", "add", str(finished[0]), "--name", "compact"]
    assert main(words) == 2
    assert "has a network 'compact' already" in capsys.readouterr().err
    assert before == ((filled / "compact.onnx").read_bytes(), (filled / "compact.json").read_bytes())
    storage.write_json(filled / "compact.json", json.loads(before[1]) | {"url": "https://example.org/of-before"})
    assert main([*words, "--replace"]) == 0
    assert zoo.card("compact")["url"] == "" and zoo.load("compact")["sha256"] == zoo.card("compact")["sha256"]


def test_an_ensembles_card_says_that_it_is_one(made):
    card = json.loads((made / "compact.json").read_text())
    text = zoo.markdown(card | {"chosen_by": {"role": "validation", "n": 40, "members": {"a": {}, "b": {}}}})
    assert f"**Network:** mean of 2 VGGNets with {card['weights']:,} weights in all; onnx" in text


def test_a_large_file_does_not_come_with_the_package_and_is_loaded_from_its_place(
    finished, tmp_path, monkeypatch, faces, capsys
):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    monkeypatch.setattr(zoo, "LARGEST_SHIPPED", 1000)
    with pytest.raises(
        zoo.ZooError, match=r"has \d\.\d MB, and what comes with the package may have 0 MB. Write it else"
    ):
        zoo.add(finished[0], "vggnet")
    assert zoo.names() == [] and not list((tmp_path / "zoo").glob("*"))
    file = tmp_path / "release" / "vggnet.onnx"
    storage.write_text(tmp_path / "zoo" / "vggnet.onnx", "what an older entry had")
    assert main(["zoo", "add", str(finished[0]), "--name", "vggnet", "--file", str(file)]) == 0
    assert storage.file_hash(file) in capsys.readouterr().out
    assert main(["zoo", "list"]) == 0 and main(["zoo", "show", "vggnet"]) == 0
    shown = capsys.readouterr().out
    assert "of 40 test faces of drawn under official; give its path" in shown and "# vggnet" in shown
    with pytest.raises(
        zoo.ZooError, match=r"does not come with fer-keras: get vggnet.onnx \(.* zoo.load\('vggnet', PATH"
    ):
        zoo.load("vggnet")
    with pytest.raises(ModelError, match="does not come with fer-keras"):
        ExpressionClassifier("vggnet", "whole")
    for source in (file, file.parent):
        assert zoo.load("vggnet", source)["path"] == file
    classifier = ExpressionClassifier(zoo.load("vggnet", file)["path"], "whole")
    assert np.abs(classifier.predict(faces.images[:40]) - finished[1]).max() < 1e-3


# --- Loading --------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_and_kept(filled, server, tmp_path):
    (filled / "compact.onnx").unlink()
    first = zoo.load("compact", f"{server}/compact.onnx")
    assert first["path"].is_relative_to(tmp_path / "cache") and first["path"].stat().st_size == first["size"]
    assert zoo.load("compact")["path"] == first["path"], "no place is needed any more"
    card = json.loads((filled / "compact.json").read_text())
    (filled / "compact.json").write_text(json.dumps(card | {"url": f"{server}/compact.onnx"}))
    first["path"].unlink()
    assert zoo.load("compact")["path"] == first["path"] and first["path"].exists()


@pytest.mark.parametrize("place", ["package", "path", "url"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:-100], r"is truncated: it has [\d,]+ of [\d,]+ bytes. Download or copy it again"),
        (lambda content: content + b"x", r"is not the file of 'compact': its SHA-256 is \w{12}…, expected \w{12}…"),
        (lambda content: b"x" + content[1:], "is not the file of 'compact': its SHA-256 is"),
    ],
    ids=["truncated", "longer", "changed"],
)
def test_a_file_that_is_not_the_cards_is_refused_and_not_kept(filled, made, server, tmp_path, place, spoil, message):
    content = spoil((made / "compact.onnx").read_bytes())
    file = {"package": filled / "compact.onnx", "path": tmp_path / "x.onnx", "url": made / "spoilt.onnx"}[place]
    file.write_bytes(content)
    source = {"package": "", "path": file, "url": f"{server}/spoilt.onnx"}[place]
    with pytest.raises(zoo.ZooError, match=message):
        zoo.load("compact", source)
    assert not list((tmp_path / "cache").rglob("*.onnx"))
    if place == "package":
        with pytest.raises(ModelError, match=message):
            ExpressionClassifier("compact", "whole")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "vggnet",
            "",
            r"has no network 'vggnet': it has only compact. Make one .* fer-keras zoo add RUN --name vggnet",
        ),
        ("compact", "nowhere.onnx", "There is no file 'nowhere.onnx' for the network 'compact'"),
        ("compact", "http://127.0.0.1:9/x.onnx", "could not be downloaded from http://127.0.0.1:9/x.onnx: .*refused"),
        ("compact", "ftp2://x/y", "could not be downloaded from ftp2://x/y: .*unknown url type"),
    ],
)
def test_what_is_not_there_is_one_sentence(filled, name, source, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.load(name, source)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nshort", "IncompleteRead"),
        (b"HTTP/one\r\n\r\n", "HTTP/one"),
    ],
    ids=["broken off", "no answer of a web server"],
)
def test_a_server_that_breaks_off_is_one_sentence(filled, tmp_path, answer, reason):
    class Bad(socketserver.StreamRequestHandler):
        def handle(self):
            self.rfile.readline()
            self.wfile.write(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Bad) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/compact.onnx"
        with pytest.raises(zoo.ZooError, match=f"could not be downloaded from {url}: .*{reason}"):
            zoo.load("compact", url)
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_an_empty_zoo_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "none")
    with pytest.raises(zoo.ZooError, match="it is still empty"):
        zoo.load("compact")
    assert main(["zoo", "list"]) == 0 and "still empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "value"), [("class_names", sorted(CLASS_NAMES)), ("image_size", [40, 40]), ("channels", 3)]
)
def test_a_network_with_other_classes_or_another_input_than_its_card_is_refused(filled, part, value):
    change(filled, "compact.json", **{part: value})
    with pytest.raises(ModelError, match=f"has {part} .*, but the card of 'compact' says .*do not belong together"):
        ExpressionClassifier("compact", "whole")
