"""A trained model as one ONNX file that says everything about itself, for use without Keras.

The Keras model takes uint8 faces and scales them itself, so the file does, too. Its metadata properties hold the class
names in the order of the outputs, and where the model comes from; `fer_keras.classifier` needs nothing else.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_keras import __version__, storage

FORMAT = "1"
INSTALL = "pip install -e '.[cpu,export]' in the project's folder"


class ExportError(ValueError):
    """A model that cannot be exported, or what that needs is not installed."""


def to_onnx(
    source,
    path: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    about: Mapping | None = None,
) -> Path:
    """Write a model as ONNX.

    Args:
        source: the folder of a finished run, or a Keras model from uint8 faces to probabilities; an ensemble is one.
        path: the file to write; in the run's folder by default.
        class_names: in the order of the outputs; of a run, its own.
        about: what else the metadata shall say, plain values by name; of a run it is found, see `describe`.

    Returns:
        The path.

    Raises:
        ExportError: if the run is not finished, a model comes without class names or path, the names do not fit it, or
            Keras does not run on TensorFlow with tf2onnx.
    """
    about = dict(about or {})
    if isinstance(source, (str, Path)):
        folder = Path(source).expanduser()
        about = describe(folder) | about
        class_names = class_names or about["class_names"]
        path = path or folder / "model.onnx"
    elif class_names is None or path is None:
        raise ExportError("To export a Keras model, give its `class_names` and the `path` to write.")
    path = Path(path).expanduser()
    _check_packages()
    import onnx

    from fer_keras import run

    model = run.load_model(folder) if isinstance(source, (str, Path)) else source
    if len(model.inputs) != 1 or model.inputs[0].dtype != "uint8" or len(model.output_shape) != 2:
        raise ExportError("The model must take uint8 faces and give one row of probabilities for each.")
    if model.output_shape[-1] != len(class_names):
        raise ExportError(
            f"The model has {model.output_shape[-1]} outputs, but there are {len(class_names)} class names."
        )
    *size, channels = model.inputs[0].shape[1:]
    about |= {"class_names": list(class_names), "image_size": size, "channels": channels}
    about |= {"fer_keras_format": FORMAT, "fer_keras": __version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.replacing(path) as temporary:
        _export(model, temporary)
        content = onnx.load(temporary)
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
        onnx.helper.set_model_props(content, values)
        content.doc_string = "Facial expressions: uint8 faces to probabilities, in the order of class_names."
        onnx.save(content, temporary)
    return path


def _check_packages():
    try:
        import keras
        import onnx  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ExportError(f"Exporting needs Keras, onnx and tf2onnx: {INSTALL} ({error}).") from None
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"Exporting needs TensorFlow as Keras's backend, which is {keras.backend.backend()!r}. The saved model is "
            "the same for all backends: set KERAS_BACKEND=tensorflow."
        )


def _export(model, path):
    import numpy as np

    # A model from a file has no call to trace yet.
    model(np.zeros((1, *model.inputs[0].shape[1:]), "uint8"), training=False)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf2onnx and Keras, on NumPy's older names
        model.export(path, format="onnx", verbose=False)


def describe(folder: Path) -> dict:
    """What a run's files say about its model: where it comes from, its class names and its scores.

    Raises:
        ExportError: if there is no finished run.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        environment = json.loads((folder / "environment.json").read_text())
        there = (folder / "model.keras").exists()
    except (OSError, json.JSONDecodeError):
        there = False
    if not there:
        raise ExportError(
            f"{folder} holds no finished run: it needs metrics.json, environment.json and model.keras. Give the folder "
            "of one, outputs/SUITE/EXPERIMENT/seed-0."
        )
    names = ("suite", "experiment", "seed", "data", "protocol", "class_names")
    about = {name: metrics[name] for name in names}
    about |= {name: environment[name] for name in ("git_commit", "model_sha256", "key")}
    kept = ("n", "top1", "top2", "top3", "balanced_accuracy", "f1_macro", "log_loss", "calibration_error")
    for role in ("validation", "test"):
        scores = metrics["sets"].get(role, {})
        if scores:
            about[role] = {name: scores[name] for name in kept if name in scores}
            about[role]["top1_interval"] = scores["intervals"]["top1"]
            about[role]["per_class"] = scores["per_class"]
    return about
