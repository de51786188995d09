"""The classifier over ONNX Runtime, and the export that makes its models."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from fer_keras import classifier as classifier_
from fer_keras import export, model, run, storage, zoo
from fer_keras.classifier import ExpressionClassifier
from fer_keras.data import CLASS_NAMES
from fer_keras.drawn import draw
from fer_keras.evaluate import predict

for package in ("cv2", "onnxruntime", "onnx", "tf2onnx"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[predict,export]'")
if keras.backend.backend() != "tensorflow":
    pytest.skip("models are exported from TensorFlow", allow_module_level=True)


def network(seed, channels=1, num_classes=7):
    """A small network, whose answers differ from face to face as those of a trained one."""
    keras.utils.set_random_seed(seed)
    made = model.vggnet(num_classes, width=1 / 32, channels=channels)
    last = made.get_layer("logits")
    before = keras.Model(made.input, last.input).predict(np.repeat(draw(140).images, channels, axis=3), verbose=0)
    kernel, _ = last.get_weights()
    logits = before @ kernel
    last.set_weights([kernel * 3 / logits.std(axis=0), -3 * logits.mean(axis=0) / logits.std(axis=0)])
    return made


def finish(folder, network, faces, **params):
    """A finished run with this network."""
    params = {"experiment": "tuned", "suite": "demo", "seed": 0, "data": "drawn"} | params
    some = faces.take(np.arange(40))
    parts = {"train": faces.take(np.arange(100, 140)), "test": some}
    run.save_training(folder, params, "the key", parts, None, network, 1.0)
    tta = params.get("tta", "none")
    sets = {"validation": some, "test": some}
    found = run.predictions(folder, sets, lambda images: predict(network, images, tta), tta)
    run.save_metrics(folder, params, "the key", found, "official", {}, {})
    return folder


@pytest.fixture(scope="module")
def images(faces):
    return faces.images[:90]


@pytest.fixture(scope="module")
def single(tmp_path_factory, faces):
    """The folder of a finished run, exported, and its network."""
    made = network(1)
    folder = finish(tmp_path_factory.mktemp("runs") / "outputs/demo/tuned/seed-0", made, faces)
    export.to_onnx(folder)
    return folder, made


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, faces):
    made = model.ensemble([network(1), network(2)])
    folder = finish(tmp_path_factory.mktemp("runs") / "ensemble/seed-0", made, faces, experiment="ensemble")
    return folder, made


# --- Probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "averaged"])
def test_probabilities_are_those_of_keras(request, images, kind, capfd):
    folder, made = request.getfixturevalue(kind)
    there = (folder / "model.onnx").exists()
    found = ExpressionClassifier(folder, detector="whole")
    said = capfd.readouterr().err
    assert there or f"Exporting {folder / 'model.keras'} to ONNX, once." in said
    assert found.backend == "onnxruntime"
    expected = predict(made, images)
    assert expected.std(axis=0).max() > 0.05, "the network must tell the faces apart, or equal answers mean nothing"
    assert np.abs(found.predict(images) - expected).max() < 1e-4
    assert np.abs(found.predict(images[:1, :, :, 0]) - expected[:1]).max() < 1e-4
    assert found.predict(images[:0]).shape == (0, 7)


def test_a_picture_that_is_a_face_has_the_faces_probabilities(single, images):
    folder, made = single
    seen = ExpressionClassifier(folder, detector="whole").analyze(images[3, :, :, 0])
    expected = predict(made, images[3:4])[0]
    assert len(seen) == 1 and seen[0].box == (0, 0, 48, 48) and list(seen[0].probabilities) == list(CLASS_NAMES)
    assert np.abs(np.array(list(seen[0].probabilities.values())) - expected).max() < 1e-4
    assert seen[0].label == CLASS_NAMES[expected.argmax()]
    assert json.loads(json.dumps(seen[0].as_dict()))["label"] == seen[0].label


def test_the_class_order_is_the_models_own(tmp_path, images):
    names = ("neutral", "zorn", "happy", "sad")
    path = export.to_onnx(network(3, channels=3, num_classes=4), tmp_path / "mine.onnx", names)
    found = ExpressionClassifier(path, detector="whole")
    color = np.repeat(images, 3, axis=3)
    shares = found.predict(color)
    assert found.class_names == list(names) and found.channels == 3 and shares.shape == (90, 4)
    seen = found.analyze_all(list(color))
    assert [each[0].label for each in seen] == [names[code] for code in shares.argmax(axis=1)]
    assert len({each[0].label for each in seen}) > 1


def test_eight_threads_get_the_answers_of_one(single, images):
    folder, _ = single
    found = ExpressionClassifier(folder, detector="whole")
    expected = [found.analyze(face) for face in images]
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(found.analyze, list(images) * 4))
    for one, other in zip(seen, expected * 4, strict=True):
        assert one[0].label == other[0].label
        assert list(one[0].probabilities.values()) == pytest.approx(list(other[0].probabilities.values()), abs=1e-5)


def test_a_detector_of_ones_own_and_pictures_together(single, images):
    folder, _ = single
    frame = np.full((200, 300, 3), 90, "uint8")
    frame[20:68, 30:78], frame[100:148, 200:248] = images[0], images[1]
    boxes = [[200, 100, 48, 48], [30, 20, 48, 48]]
    found = ExpressionClassifier(folder, detector=lambda image: np.array(boxes if image.std() else []), margin=0)
    blank = np.full((50, 50, 3), 90, "uint8")
    seen = found.analyze_all([frame, blank, frame])
    assert [len(each) for each in seen] == [2, 0, 2] and seen[0] == found.analyze(frame)
    assert [face.box for face in seen[0]] == [(30, 20, 48, 48), (200, 100, 48, 48)]  # from left to right
    shares = np.array([list(face.probabilities.values()) for face in seen[0]])
    assert np.abs(shares - found.predict(images[:2])).max() < 1e-5


@pytest.mark.parametrize(
    "given", [np.zeros((2, 48, 48, 1)), np.zeros((2, 40, 48, 1), "uint8"), np.zeros((2, 48, 48, 3), "uint8")]
)
def test_faces_of_another_form_are_refused(single, given):
    with pytest.raises(ValueError, match=r"uint8 of shape \(n, 48, 48, 1\)\. Received: "):
        ExpressionClassifier(single[0], detector="whole").predict(given)


# --- Which model ----------------------------------------------------------------------------------------------------


def test_the_file_says_where_it_comes_from(single, tmp_path):
    path = shutil.copy(single[0] / "model.onnx", tmp_path / "alone.onnx")
    found = ExpressionClassifier(path, detector="whole")
    about, metrics = found.about, run.read_metrics(single[0])
    assert (about["suite"], about["experiment"], about["seed"], about["protocol"]) == ("demo", "tuned", 0, "official")
    assert about["class_names"] == list(CLASS_NAMES) and about["image_size"] == [48, 48] and about["channels"] == 1
    assert about["git_commit"] == run.read_environment(single[0])["git_commit"]
    assert about["test"]["top1"] == metrics["sets"]["test"]["top1"] and about["test"]["n"] == 40
    assert "demo/tuned/seed-0: top-1" in found.describe() and "of 40 test faces of drawn" in found.describe()


@pytest.mark.parametrize(
    "spoil",
    [lambda content: content[:-100], lambda content: content[:9000] + bytes(50) + content[9050:], lambda content: b""],
    ids=["truncated", "changed", "empty"],
)
def test_a_damaged_model_of_a_run_is_one_sentence(single, tmp_path, spoil):
    folder = tmp_path / "seed-0"
    shutil.copytree(single[0], folder, ignore=shutil.ignore_patterns("model.onnx"))
    (folder / "model.keras").write_bytes(spoil((folder / "model.keras").read_bytes()))
    message = r"model.keras has [\d,]+ bytes and cannot be read: it is truncated or damaged. Copy it again, or train"
    for call in (lambda: run.load_model(folder), lambda: export.to_onnx(folder)):
        with pytest.raises(run.RunError, match=message):
            call()
    with pytest.raises(classifier_.ModelError, match=message):
        ExpressionClassifier(folder, "whole")


def score(folder, top1, data="fer2013", protocol="official"):
    """Files of a finished run, with a top-1 on validation and the contrary on test."""
    folder.mkdir(parents=True)
    sets = {"validation": {"top1": top1}, "test": {"top1": 1 - top1}}
    storage.write_json(folder / "metrics.json", {"data": data, "protocol": protocol, "sets": sets})
    storage.write_json(folder / "environment.json", {})
    (folder / "model.keras").write_bytes(b"")
    return folder


def test_the_best_run_is_chosen_by_validation_faces_on_real_faces_and_honestly(tmp_path):
    with pytest.raises(classifier_.ModelError, match=r"no run is finished below .* Train one, `make demo`"):
        classifier_.best_run(tmp_path)
    drawn = score(tmp_path / "demo/tuned/seed-0", 0.99, data="drawn")
    assert classifier_.best_run(tmp_path) == drawn
    leaky = score(tmp_path / "study/tuned/seed-0", 0.97, protocol="study")
    assert classifier_.best_run(tmp_path) == leaky
    score(tmp_path / "official/tuned/seed-0", 0.6)
    best = score(tmp_path / "official/sweep/point/seed-1", 0.7)
    score(tmp_path / "published/official/ensemble/seed-0", 0.9)
    unfinished = score(tmp_path / "official/ensemble/seed-0", 0.8)
    (unfinished / "environment.json").unlink()
    assert classifier_.best_run(tmp_path) == best


def test_compact_is_the_best_run_where_none_comes_with_the_package(single, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    found = ExpressionClassifier(detector="whole", outputs=single[0].parents[2])
    assert found.about["experiment"] == "tuned"
    assert found.notes == [f"The weights of compact are not here: using what was trained here, {single[0]}."]
    assert found.notes[0] in capsys.readouterr().err
    found = ExpressionClassifier("", detector="whole", outputs=single[0].parents[2])
    assert found.notes == [f"Using what was trained here, {single[0]}."]


def test_a_model_trained_anew_is_exported_anew(single, tmp_path, faces, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(single[0], folder)
    other = network(5)
    finish(folder, other, faces)
    asked = []
    monkeypatch.setattr(export, "to_onnx", lambda folder: asked.append(folder) or _refuse())
    found = ExpressionClassifier(folder, detector="whole")
    assert asked == [folder] and found.backend == "keras" and "cannot now. Until then Keras runs" in found.notes[-1]
    assert np.abs(found.predict(faces.images[:70]) - predict(other, faces.images[:70])).max() < 1e-4


def _refuse():
    raise export.ExportError("It cannot now.")


def test_without_onnxruntime_keras_answers_the_same(single, images, monkeypatch):
    expected = ExpressionClassifier(single[0], detector="whole").predict(images)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = ExpressionClassifier(single[0], detector="whole")
    assert found.backend == "keras" and "ONNX Runtime is not installed" in found.notes[0]
    assert np.abs(found.predict(images) - expected).max() < 1e-4
    with pytest.raises(classifier_.ModelError, match=r"needs ONNX Runtime: pip install"):
        ExpressionClassifier(single[0] / "model.onnx", detector="whole")


def foreign(path):
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    made.ir_version = 8
    onnx.save(made, path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing", lambda path: None, "There is no model '.*missing'"),
        ("text.onnx", lambda path: path.write_text("no model"), "cannot be read as an ONNX file"),
        ("other.onnx", foreign, "is no model of fer-keras: its metadata lack class_names, image_size, channels"),
        ("folder", lambda path: path.mkdir(), "holds no finished run: it needs metrics.json"),
    ],
)
def test_a_model_that_is_not_ours_is_one_sentence(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(classifier_.ModelError, match=message):
        ExpressionClassifier(tmp_path / name, detector="whole")


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "give its `class_names`"), ({"class_names": ["a", "b"]}, "7 outputs, but there are 2 class names")],
)
def test_an_export_that_would_lie_is_refused(tmp_path, given, message):
    with pytest.raises(export.ExportError, match=message):
        export.to_onnx(network(1), tmp_path / "x.onnx", **given)
    assert not (tmp_path / "x.onnx").exists()


def test_the_package_itself_stays_light():
    code = (
        "import sys, fer_keras; heavy = {'tensorflow', 'keras', 'cv2', 'onnxruntime', 'pandas', 'numpy'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "fer_keras.ExpressionClassifier; assert not {'tensorflow', 'keras', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
