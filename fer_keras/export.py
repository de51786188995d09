"""A trained model as a file for use without Keras: ONNX, which `fer-keras predict` runs, LiteRT or a SavedModel.

The Keras model takes uint8 faces and scales them itself, so the file does, too, and it answers as the run was scored:
where that was over a face and its mirror image, the file holds both. What says where the model comes from, and the
class names in the order of the outputs, is in an ONNX file's metadata properties, beside a LiteRT file as JSON, and in
a SavedModel's folder. Every file is run once and compared with Keras before it gets its name.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from fer_keras import __version__, storage

FORMAT = "1"
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite", "saved_model": ""}
INSTALL = "pip install -e '.[cpu,export]' in the project's folder"
# How far a file's probabilities may be from Keras's: the largest difference in floating point, the mean one in int8.
TOLERANCE, INT8_TOLERANCE = 1e-3, 0.05
CALIBRATION = 500  # faces that show the range of each layer's values before they are put into 8 bits


class ExportError(ValueError):
    """A model that cannot be exported, or what that needs is not installed."""


def to_onnx(
    source,
    path: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    about: Mapping | None = None,
) -> Path:
    """Write a model as ONNX; see `export`.

    Returns:
        The path.
    """
    return export(source, path, "onnx", class_names, about)[0]


def export(
    source,
    path: str | Path | None = None,
    format: str = "onnx",
    class_names: Sequence[str] | None = None,
    about: Mapping | None = None,
    *,
    calibration: np.ndarray | None = None,
    float16: bool = False,
) -> tuple[Path, dict]:
    """Write a model as a file, and compare its answers with Keras's.

    Args:
        source: the folder of a finished run, or a Keras model from uint8 faces to probabilities; an ensemble is one.
        path: the file, or the new folder of a SavedModel, to write; `model.onnx` and so on in the run's folder by
            default.
        format: a key of `SUFFIXES`.
        class_names: in the order of the outputs; of a run, its own.
        about: what else the metadata shall say, plain values by name; of a run it is found, see `describe`.
        calibration: uint8 (n, height, width, channels), faces like those that will come: weights and values become
            int8, by their ranges on these. Of ONNX and LiteRT.
        float16: keep the weights in 16 bits; they are computed with in 32, since processors do so faster. Of ONNX.

    Returns:
        The path; and the agreement: `largest` and `mean` difference of a probability, and the share of faces that get
        the `same_class`.

    Raises:
        ExportError: if the run is not finished, a model comes without class names or path, the names do not fit it,
            Keras does not run on TensorFlow, a package is missing, or the file does not answer as Keras does.
    """
    if format not in SUFFIXES:
        raise ExportError(f"`format` must be one of {', '.join(SUFFIXES)}. Received: {format!r}")
    int8 = calibration is not None
    if (int8 and format == "saved_model") or (float16 and (int8 or format != "onnx")):
        raise ExportError("int8 goes with the formats onnx and litert, float16 with onnx, and not with each other.")
    about, folder = dict(about or {}), None
    if isinstance(source, (str, Path)):
        folder = Path(source).expanduser()
        about = describe(folder) | about
        class_names = class_names or about["class_names"]
        path = path or folder / f"{'saved_' if format == 'saved_model' else ''}model{'-int8' * int8}{SUFFIXES[format]}"
    elif class_names is None or path is None:
        raise ExportError("To export a Keras model, give its `class_names` and the `path` to write.")
    path = Path(path).expanduser()
    if format == "litert" and path.suffix != ".tflite":
        raise ExportError(f"A LiteRT file must be called `.tflite`. Received: {path}")
    if format == "saved_model" and path.exists():
        raise ExportError(f"There is already {path}, and nothing is overwritten. Give another folder.")
    _check_packages(format)
    model = load_scored(folder) if folder else source
    if len(model.inputs) != 1 or model.inputs[0].dtype != "uint8" or len(model.output_shape) != 2:
        raise ExportError("The model must take uint8 faces and give one row of probabilities for each.")
    if model.output_shape[-1] != len(class_names):
        raise ExportError(
            f"The model has {model.output_shape[-1]} outputs, but there are {len(class_names)} class names."
        )
    *size, channels = model.inputs[0].shape[1:]
    if int8 and (calibration.dtype != np.uint8 or calibration.shape[1:] != (*size, channels) or not len(calibration)):
        raise ExportError(
            f"The faces for int8 must be uint8 of {(*size, channels)}. Received: {calibration.dtype} "
            f"{calibration.shape[1:]}, {len(calibration)} of them"
        )
    about |= {"class_names": list(class_names), "image_size": size, "channels": channels}
    about |= {"fer_keras_format": FORMAT, "fer_keras": __version__}
    about |= {"weights": "int8"} if int8 else {"weights": "float16"} if float16 else {}
    fixed = _as_in_prediction(model)
    # A model from a file has no call to trace yet.
    fixed(np.zeros((1, *size, channels), "uint8"))
    with _replacing(path, format) as temporary:
        WRITERS[format](fixed, temporary, about, calibration, float16)
        found = agreement(model, temporary, format, calibration[:100] if int8 else some_faces((*size, channels)))
        if (found["mean"] > INT8_TOLERANCE) if int8 else (found["largest"] > TOLERANCE):
            raise ExportError(
                f"The file was not kept: its answers differ from Keras's by up to {found['largest']:.2g}, "
                f"{found['mean']:.2g} on average; {'int8 may by ' if int8 else ''}"
                + (f"{INT8_TOLERANCE} on average." if int8 else f"at most {TOLERANCE} is allowed.")
            )
    if format == "litert":
        storage.write_json(path.with_suffix(".json"), about)
    return path, found


def _as_in_prediction(model):
    """The model with every layer as in prediction: Keras exports a call that does not say which, and `CenterCrop` then
    takes it, and with it the normalisations behind it, to be in training."""
    from keras import Model, layers

    inputs = layers.Input(model.input_shape[1:], dtype="uint8", name="faces")
    return Model(inputs, model(inputs, training=False), name="net")


@contextlib.contextmanager
def _replacing(path: Path, format: str):
    """As `storage.replacing`, also for a folder."""
    if format != "saved_model":
        with storage.replacing(path) as temporary:
            yield temporary
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_packages(format):
    needed = ("onnx", "tf2onnx", "onnxruntime") if format == "onnx" else ()
    try:
        import keras

        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the first import; it would report its use
        for name in needed:
            __import__(name)
    except ImportError as error:
        raise ExportError(f"Exporting needs {', '.join(['Keras', *needed])}: {INSTALL} ({error}).") from None
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"Exporting needs TensorFlow as Keras's backend, which is {keras.backend.backend()!r}. The saved model is "
            "the same for all backends: set KERAS_BACKEND=tensorflow."
        )


# --- Writing --------------------------------------------------------------------------------------------------------


def _write_onnx(model, path, about, calibration, float16):
    import onnx

    with _quiet():
        model.export(path, format="onnx", verbose=False)
    if calibration is not None:
        _quantize_onnx(path, calibration)
    content = onnx.load(path)
    if float16:
        _halve_weights(content)
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    onnx.helper.set_model_props(content, values)
    content.doc_string = "Facial expressions: uint8 faces to probabilities, in the order of class_names."
    onnx.save(content, path)


@contextlib.contextmanager
def _quiet():
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf2onnx and Keras, on NumPy's older names; TensorFlow, on its interpreter
        yield


def _quantize_onnx(path, calibration):
    from onnxruntime import quantization

    batches = iter([{"faces": calibration[at : at + 50]} for at in range(0, len(calibration), 50)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    with storage.replacing(path) as temporary, _quiet():
        quantization.quantize_static(
            path, temporary, Reader(), per_channel=True, weight_type=quantization.QuantType.QInt8
        )


def _halve_weights(content):
    """Keep the weights in float16; ONNX Runtime makes them float32 once, when it loads the file."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in content.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 1:
            name, values = tensor.name, numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values.astype("float16"), f"{name}_float16"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        content.graph.node.insert(0, node)


def _write_litert(model, path, about, calibration, float16):
    given = {}
    if calibration is not None:
        import tensorflow as tf  # LiteRT's converter is TensorFlow's, and so is the name of what it shall do

        given = {
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "representative_dataset": lambda: ([face[None]] for face in calibration),
        }
    with _quiet():
        model.export(path, format="litert", verbose=False, **given)


def _write_saved_model(model, path, about, calibration, float16):
    with _quiet():
        model.export(path, format="tf_saved_model", verbose=False)
    storage.write_json(path / "fer_keras.json", about)


WRITERS = {"onnx": _write_onnx, "litert": _write_litert, "saved_model": _write_saved_model}


# --- Comparing ------------------------------------------------------------------------------------------------------


def some_faces(shape: Sequence[int], n: int = 70) -> np.ndarray:
    """Drawn faces to compare answers on, uint8 (n, height, width, channels); they need no data set."""
    from fer_keras.drawn import draw

    height, width, channels = shape
    images = draw(140).images[:n]
    rows, columns = (
        np.arange(side) * old // side for side, old in zip((height, width), images.shape[1:3], strict=True)
    )
    return np.repeat(images[:, rows][:, :, columns], channels, axis=3)


def agreement(model, path: Path, format: str, faces: np.ndarray) -> dict:
    """How far a file's answers are from a Keras model's: see `export`."""
    expected = model.predict(faces, verbose=0)
    found = READERS[format](path)(faces)
    apart = np.abs(found - expected)
    return {
        "largest": float(apart.max()),
        "mean": float(apart.mean()),
        "same_class": float(np.mean(found.argmax(axis=1) == expected.argmax(axis=1))),
    }


def _read_onnx(path) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda faces: session.run(None, {session.get_inputs()[0].name: faces})[0]


def _read_litert(path) -> Callable:
    import tensorflow as tf

    with _quiet():
        interpreter = tf.lite.Interpreter(str(path))
    given, answer = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(faces):
        interpreter.resize_tensor_input(given, faces.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, faces)
        interpreter.invoke()
        return interpreter.get_tensor(answer)

    return run


def _read_saved_model(path) -> Callable:
    import keras

    layer = keras.layers.TFSMLayer(path, call_endpoint="serve")
    return lambda faces: keras.ops.convert_to_numpy(layer(faces))


READERS = {"onnx": _read_onnx, "litert": _read_litert, "saved_model": _read_saved_model}


# --- Runs -----------------------------------------------------------------------------------------------------------


def load_scored(folder: Path):
    """The model of a run as it was scored: with `tta: flip` the mean over the face and its mirror image."""
    from fer_keras import run

    model = run.load_model(folder)
    return with_mirror_image(model) if _tta(folder) == "flip" else model


def _tta(folder: Path) -> str:
    """How the run was scored. Its parameters say how it was when it trained; later scoring is in its predictions."""
    with contextlib.suppress(FileNotFoundError, KeyError):  # there are none, or from before there were two kinds
        return str(storage.read_arrays(folder / "predictions.npz", ["tta"])["tta"])
    return _params(folder).get("tta", "none")


def _params(folder: Path, of_member: bool = False) -> dict:
    """A run's parameters; those that say what faces it has are, of an ensemble, its members'."""
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    if of_member and params.get("members"):
        from fer_keras import run  # not above: a model that is exported already is loaded without it

        with contextlib.suppress(FileNotFoundError):  # a member that is no longer there
            return _params(run.members(folder)[0])
    return params


def with_mirror_image(model):
    """A Keras model that answers with the mean of `model`'s answers on the face and on its mirror image."""
    from keras import Model, layers, ops

    inputs = layers.Input(model.input_shape[1:], dtype="uint8", name="faces")
    # One batch with both, since two calls would put each weight into an exported file twice.
    both = model(ops.concatenate([inputs, ops.flip(inputs, axis=2)], axis=0))
    halves = ops.reshape(both, (2, -1, model.output_shape[-1]))
    return Model(inputs, ops.mean(halves, axis=0), name="mirrored")


def calibration_faces(folder: str | Path, data: str = "") -> np.ndarray:
    """Faces that trained a run, evenly chosen, for int8: see `export`.

    Args:
        folder: of the run.
        data: where the run's faces are, if no longer at the place that it names.
    """
    from fer_keras import run, source

    folder = Path(folder).expanduser()
    describe(folder)
    faces = source.load_for(run.read_params(folder) | ({"data": data} if data else {}))
    images = run.load_roles(folder, faces, without=["validation", "test"])["train"].images
    return np.ascontiguousarray(images[np.linspace(0, len(images) - 1, min(CALIBRATION, len(images))).astype(int)])


def describe(folder: Path) -> dict:
    """What a run's files say about its model: where it comes from, its class names and its scores.

    Raises:
        ExportError: if there is no finished run.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        environment = json.loads((folder / "environment.json").read_text())
        tta, labels = _tta(folder), _params(folder, of_member=True).get("labels")
        there = (folder / "model.keras").exists()
    except (OSError, ValueError, zipfile.BadZipFile):
        there = False
    if not there:
        raise ExportError(
            f"{folder} holds no finished run: it needs metrics.json, environment.json and model.keras. Give the folder "
            "of one, outputs/SUITE/EXPERIMENT/seed-0."
        )
    names = ("suite", "experiment", "seed", "data", "protocol", "class_names")
    about = {name: metrics[name] for name in names}
    about |= {name: environment[name] for name in ("git_commit", "model_sha256", "key")} | {"tta": tta}
    about |= {"labels": labels} if labels == "ferplus" else {}
    kept = ("n", "top1", "top2", "top3", "balanced_accuracy", "f1_macro", "log_loss", "calibration_error")
    for role in ("validation", "test"):
        scores = metrics["sets"].get(role, {})
        if scores:
            about[role] = {name: scores[name] for name in kept if name in scores}
            about[role]["top1_interval"] = scores["intervals"]["top1"]
            about[role]["per_class"] = scores["per_class"]
    return about
