"""Exports of a run's model, as it was scored, and the comparison with Keras that each goes through."""

import json
import sys

import keras
import numpy as np
import pytest
from test_classifier import finish, network

from fer_keras import evaluate, export, model, run
from fer_keras.classifier import ExpressionClassifier
from fer_keras.cli import main
from fer_keras.data import CLASS_NAMES

if keras.backend.backend() != "tensorflow":
    pytest.skip("models are exported from TensorFlow", allow_module_level=True)


@pytest.fixture(scope="module")
def run_(tmp_path_factory, faces):
    """The folder of a finished run that was scored over faces and mirror images, and its network."""
    made = network(1)
    return finish(tmp_path_factory.mktemp("runs") / "s/tuned/seed-0", made, faces, tta="flip", drawn_faces=280), made


@pytest.fixture(scope="module")
def expected(run_, faces):
    """What Keras answers, and how far that is from the answers without mirror images."""
    answers = evaluate.predict(run_[1], faces.images[:60], "flip")
    assert np.abs(answers - evaluate.predict(run_[1], faces.images[:60])).max() > 0.02
    return answers


@pytest.mark.parametrize("format", ["onnx", "litert", "saved_model"])
def test_a_file_answers_as_the_run_was_scored(run_, faces, expected, tmp_path, format):
    path = tmp_path / ("new/model" + export.SUFFIXES[format])
    found = export.export(run_[0], path, format)
    assert found[0] == path and 0 <= found[1]["mean"] <= found[1]["largest"] < 1e-4 and found[1]["same_class"] == 1
    answers = export.READERS[format](path)(faces.images[:60])
    assert np.abs(answers - expected).max() < 1e-4
    about = {"litert": path.with_suffix(".json"), "saved_model": path / "fer_keras.json"}
    if format == "onnx":
        assert np.abs(ExpressionClassifier(path, "whole").predict(faces.images[:60]) - expected).max() < 1e-4
    else:
        assert json.loads(about[format].read_text())["class_names"] == list(CLASS_NAMES)
    assert not list(path.parent.glob(".writing*"))


@pytest.mark.parametrize("format", ["onnx", "litert", "saved_model"])
def test_a_network_that_sees_a_crop_answers_as_in_prediction(faces, tmp_path, format):
    """Keras's `CenterCrop` takes a call to be in training where none says otherwise."""
    keras.utils.set_random_seed(3)
    made = model.vggnet(width=1 / 32, crop=40, head="pooling")
    for layer in made.layers:
        if layer.name.endswith("_bn"):
            scale, shift, mean, variance = layer.get_weights()
            layer.set_weights([scale, shift, mean + 0.1, variance * 0.05])  # far from those of any batch
    path, found = export.export(made, tmp_path / f"x{export.SUFFIXES[format]}", format, CLASS_NAMES)
    assert found["largest"] < 1e-4
    expected = evaluate.predict(made, faces.images[:9])
    assert expected.std(axis=0).max() > 0.01
    np.testing.assert_allclose(export.READERS[format](path)(faces.images[:9]), expected, atol=1e-4)


def test_a_run_that_was_scored_anew_answers_as_it_is_scored_now(run_, faces, tmp_path):
    """Its parameters keep saying how it was scored when it trained."""
    folder, made = tmp_path / "seed-0", run_[1]
    finish(folder, made, faces)
    sets = {"test": faces.take(range(40))}
    found = run.predictions(folder, sets, lambda images: evaluate.predict(made, images, "flip"), "flip")
    assert run.read_params(folder).get("tta", "none") == "none" and export.describe(folder)["tta"] == "flip"
    answers = export.READERS["onnx"](export.to_onnx(folder))(sets["test"].images)
    assert np.abs(answers - found["test"].probabilities).max() < 1e-4


def test_a_pooling_network_in_float16_is_half_as_large(faces, tmp_path):
    keras.utils.set_random_seed(2)
    made = model.vggnet(width=1 / 8, head="pooling")
    paths = [tmp_path / "32.onnx", tmp_path / "16.onnx"]
    export.to_onnx(made, paths[0], CLASS_NAMES)
    _, found = export.export(made, paths[1], class_names=CLASS_NAMES, float16=True)
    assert 0 < found["largest"] < 1e-3
    sizes = [path.stat().st_size for path in paths]
    assert sizes[1] < 0.6 * sizes[0] and sizes[0] < 4.2 * made.count_params() + 20_000
    classifier = ExpressionClassifier(paths[1], "whole")
    assert classifier.about["weights"] == "float16"
    np.testing.assert_allclose(
        classifier.predict(faces.images[:9]), made.predict(faces.images[:9], verbose=0), atol=1e-3
    )


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_in_int8_a_file_is_small_and_answers_nearly_the_same(run_, faces, expected, tmp_path, format, capsys):
    small = tmp_path / f"small{export.SUFFIXES[format]}"
    assert main(["export", str(run_[0]), str(small), "--format", format, "--int8"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(small) and "differ from Keras's by at most" in shown.err
    # Of so small a network's file, half is the names of its nodes.
    assert small.stat().st_size < 0.6 * 4 * run_[1].count_params()
    answers = export.READERS[format](small)(faces.images[:60])
    assert 1e-6 < np.abs(answers - expected).mean() < export.INT8_TOLERANCE
    # Of an untrained network, whose enlarged answers are often near a tie; one that answers anything has 1 in 7 right.
    assert np.mean(answers.argmax(axis=1) == expected.argmax(axis=1)) > 0.75


def test_int8_is_calibrated_on_faces_that_trained(run_, faces, monkeypatch):
    np.testing.assert_array_equal(export.calibration_faces(run_[0]), faces.images[100:140])
    monkeypatch.setattr(export, "CALIBRATION", 3)
    np.testing.assert_array_equal(export.calibration_faces(run_[0]), faces.images[[100, 119, 139]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "pickle"}, "`format` must be one of onnx, litert, saved_model. Received: 'pickle'"),
        (
            {"format": "saved_model", "calibration": np.zeros((1, 48, 48, 1), "uint8")},
            "int8 goes with the formats onnx",
        ),
        ({"format": "litert", "float16": True}, "float16 with onnx"),
        ({"format": "litert"}, "must be called `.tflite`"),
        (
            {"calibration": np.zeros((4, 40, 40, 1), "uint8")},
            r"must be uint8 of \(48, 48, 1\). Received: uint8 \(40, 40",
        ),
        ({"calibration": np.zeros((0, 48, 48, 1), "uint8")}, "0 of them"),
    ],
    ids=["format", "saved_model int8", "litert float16", "suffix", "shape", "none"],
)
def test_an_impossible_export_is_refused_before_it_begins(run_, tmp_path, given, message):
    with pytest.raises(export.ExportError, match=message):
        export.export(run_[1], tmp_path / "x.onnx", class_names=CLASS_NAMES, **given)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_no_file_that_answers_otherwise_is_kept(run_, tmp_path, monkeypatch):
    with pytest.raises(export.ExportError, match=r"There is already .* nothing is overwritten"):
        export.export(run_[0], tmp_path, "saved_model")
    monkeypatch.setitem(export.READERS, "onnx", lambda path: lambda faces: np.full((len(faces), 7), 1 / 7))
    with pytest.raises(export.ExportError, match=r"was not kept: its answers differ from Keras's by up to 0\."):
        export.to_onnx(run_[0], tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_one_sentence(run_, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(export.ExportError, match=r"Exporting needs Keras, onnx, tf2onnx, onnxruntime: pip install -e"):
        export.to_onnx(run_[0], tmp_path / "x.onnx")


def test_without_onnxruntime_keras_answers_as_the_run_was_scored(run_, faces, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = ExpressionClassifier(run_[0], "whole")
    assert found.backend == "keras"
    assert np.abs(found.predict(faces.images[:60]) - expected).max() < 1e-4


@pytest.mark.parametrize("shape", [(48, 48, 1), (40, 64, 3)])
def test_answers_are_compared_on_drawn_faces_of_the_models_shape(shape):
    found = export.some_faces(shape, 5)
    assert found.shape == (5, *shape) and found.dtype == "uint8" and found.std() > 20
