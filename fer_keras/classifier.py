"""The classifier for people with pictures: `ExpressionClassifier().analyze("photograph.jpg")`.

A model is an ONNX file that `fer_keras.export` wrote, and ONNX Runtime runs it: TensorFlow is not imported. Where a run
has no such file yet, it is exported once; where that is not possible, Keras runs the run's own model.
"""

import difflib
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fer_keras import faces as faces_
from fer_keras import zoo
from fer_keras.params import root

BATCH = 64  # faces in a step; bounds the memory
HOW_TO_TRAIN = (
    "Train one, `make demo` (drawn faces, for a try) or `make report DATA=/path/to/fer2013.csv SUITE=official-cpu`, or "
    "give the path of an .onnx file or of a run's folder, or a name that `fer-keras zoo list` shows."
)


class ModelError(ValueError):
    """There is no model, or it is not one of ours."""


@dataclass(frozen=True)
class Face:
    """A face in a picture.

    Attributes:
        box: left, top, width, height in pixels of the upright picture; parts may lie outside it.
        score: how sure the detector is, 0–1.
        label: the likeliest class.
        probabilities: of each class, in the model's order; they sum to 1.
    """

    box: tuple[int, int, int, int]
    score: float
    label: str
    probabilities: dict[str, float]

    def as_dict(self) -> dict:
        """The same as plain values, for JSON."""
        return asdict(self)


class ExpressionClassifier:
    """Finds faces in pictures and tells their expressions.

    One classifier may be used from several threads. The first answer takes no longer than the others: the model and the
    detector run once when they are loaded.

    Args:
        model: the path of an .onnx file, or of a finished run's folder, whose model is exported on first use; or the
            name of a network of the zoo, see `fer_keras.zoo`. "compact" is the network that comes with fer-keras; ""
            is the best finished run below `outputs/`, see `best_run`.
        detector: see `fer_keras.faces.detector`; or a function from uint8 (height, width, 3) RGB to (n, 4) boxes (left,
            top, width, height), possibly with scores and eyes, see `fer_keras.faces.COLUMNS`.
        align: turn faces so that their eyes are level.
        margin: share of a box's side to add on each side; each detector has its own.
        threads: that ONNX Runtime uses for one call; all cores by default.
        outputs: where finished runs are looked for.

    Attributes:
        class_names: in the order of the probabilities.
        image_size: height and width of a face.
        channels: 1 for grey, 3 for RGB.
        about: what the model says about itself: suite, experiment, seed, protocol, git_commit, test …
        backend: "onnxruntime" or "keras".
        notes: sentences on how the model was come by.

    Raises:
        ModelError: if there is no such model, or it is not one of ours.
        ValueError: if the detector cannot be had.
    """

    def __init__(
        self,
        model: str | Path = "compact",
        detector: str | Callable[[np.ndarray], np.ndarray] = "auto",
        align: bool = False,
        margin: float | None = None,
        threads: int = 0,
        outputs: str | Path = "outputs",
    ):
        self.notes: list[str] = []
        self._run, self.about, self.backend = self._load(model, threads, outputs)
        self.class_names = list(self.about["class_names"])
        self.image_size, self.channels = tuple(self.about["image_size"]), int(self.about["channels"])
        if callable(detector):
            self.detector, self._detect = "own", detector
        else:
            self.detector, self._detect = faces_.detector(detector, say=self._say)
        self.align = align
        self.margin = faces_.MARGINS.get(self.detector, faces_.MARGIN) if margin is None else margin
        if not -0.4 <= self.margin <= 2:
            raise ValueError(f"`margin` must be a share of the box's side, −0.4 to 2. Received: {margin}")
        warm = self.predict(np.zeros((1, *self.image_size, self.channels), "uint8"))
        if warm.shape != (1, len(self.class_names)) or not np.isfinite(warm).all():
            raise ModelError(
                f"The model gives {warm.shape[1:]} numbers for a face, but names {len(self.class_names)} classes."
            )

    def predict(self, faces: np.ndarray) -> np.ndarray:
        """Class probabilities of faces that are cropped already.

        Args:
            faces: uint8 (n, height, width, channels), 0–255, of `image_size` and `channels`; grey ones may lack the
                last dimension.

        Returns:
            float32 (n, num_classes), in the order of `class_names`.

        Raises:
            ValueError: on faces of another form.
        """
        faces = np.asarray(faces)
        if faces.ndim == 3 and self.channels == 1:
            faces = faces[..., None]
        if faces.dtype != np.uint8 or faces.shape[1:] != (*self.image_size, self.channels):
            height, width = self.image_size
            raise ValueError(
                f"Faces must be uint8 of shape (n, {height}, {width}, {self.channels}). Received: {faces.dtype} "
                f"{faces.shape}"
            )
        parts = [self._run(np.ascontiguousarray(faces[at : at + BATCH])) for at in range(0, len(faces), BATCH)]
        return np.concatenate([np.empty((0, len(self.class_names)), "float32"), *parts])

    def analyze(self, image) -> list[Face]:
        """The faces of a picture and their expressions, from left to right; none is no error.

        Args:
            image: the path of a file, a Pillow image, or uint8 (height, width), (height, width, 3) in RGB or
                (height, width, 4). OpenCV's frames are BGR: give `frame[..., ::-1]`.

        Raises:
            ValueError: if it is no picture, in one sentence.
        """
        return self.analyze_all([image])[0]

    def analyze_all(self, images: Sequence) -> list[list[Face]]:
        """The faces of several pictures, all classified together; see `analyze`."""
        boxes, crops = [], []
        for image in images:
            pixels = faces_.as_rgb(image)
            found = faces_.find(pixels, self._detect)
            boxes.append(found)
            crops.append(faces_.crop(pixels, found, self.image_size, self.channels, self.margin, self.align))
        answers = iter(self.predict(np.concatenate(crops)) if crops else ())
        return [[self._face(row, next(answers)) for row in found] for found in boxes]

    def _face(self, row: np.ndarray, answer: np.ndarray) -> Face:
        shares = {name: float(value) for name, value in zip(self.class_names, answer, strict=True)}
        box = tuple(round(float(value)) for value in row[:4])
        return Face(box, float(row[4]), self.class_names[int(answer.argmax())], shares)

    def describe(self) -> str:
        """A sentence: which model answers, and what it is worth."""
        about = self.about
        name = "/".join(str(about[part]) for part in ("suite", "experiment") if part in about) or "without a source"
        if "seed" in about:
            name += f"/seed-{about['seed']}"
        sentence = f"Model {name}"
        if test := about.get("test"):
            low, high = test["top1_interval"]
            labels = f" with the labels of {about['labels']}" if "labels" in about else ""
            sentence += (
                f": top-1 {100 * test['top1']:.2f} ({100 * low:.1f}–{100 * high:.1f}) % of {test['n']:,} test faces of "
                f"{about.get('data', 'unknown data')}{labels} under {about.get('protocol', 'an unknown protocol')}"
            )
            if about.get("tta") == "ten_crop":
                sentence += ", over ten crops, of which the central one is used here"
        return sentence + "."

    # --- Loading ----------------------------------------------------------------------------------------------------

    def _say(self, sentence: str) -> None:
        self.notes.append(sentence)
        print(sentence, file=sys.stderr)

    def _load(self, model, threads, outputs):
        name = str(model)
        if zoo.is_shipped(name) or (name != "compact" and name in zoo.names() and not Path(name).exists()):
            return _from_zoo(name, threads)
        if name in ("", "compact"):
            model = best_run(outputs)
            without = "The weights of compact are not here: using" if name else "Using"
            self._say(f"{without} what was trained here, {model}.")
        path = Path(os.path.expanduser(model))
        if not path.exists():
            raise ModelError(no_model(str(model)))
        if path.name == "model.keras":
            path = path.parent
        if path.is_file():
            return _onnx(path, threads)
        return self._load_run(path, threads)

    def _load_run(self, folder, threads):
        from fer_keras.export import ExportError, describe, to_onnx

        file = folder / "model.onnx"
        about = None
        if (folder / "environment.json").exists() or not file.exists():
            try:
                about = describe(folder)
            except ExportError as error:
                raise ModelError(str(error)) from None
        if not _has_onnxruntime():
            self._say("ONNX Runtime is not installed (pip install -e '.[predict]'): Keras runs the model.")
            return _keras(folder, about)
        if file.exists():
            loaded = _onnx(file, threads)
            made_of = {"tta": "none"} | loaded[1]  # a file that says nothing was written before there were two kinds
            if about is None or all(made_of.get(part) == about[part] for part in ("model_sha256", "tta")):
                return loaded
        from fer_keras.run import RunError

        try:
            self._say(f"Exporting {folder / 'model.keras'} to ONNX, once.")
            return _onnx(to_onnx(folder), threads)
        except RunError as error:
            raise ModelError(str(error)) from None
        except (ExportError, OSError) as error:
            self._say(f"{error} Until then Keras runs the model, which starts more slowly.")
            return _keras(folder, about)


def no_model(name: str) -> str:
    """What to say of a model that is neither a file, nor a folder, nor in the zoo."""
    near = difflib.get_close_matches(name, zoo.names(), n=1)
    return f"There is no model {name!r}. {f'Did you mean {near[0]!r}?' if near else HOW_TO_TRAIN}"


def finished_runs(outputs: str | Path = "outputs") -> list[Path]:
    """The folders of all finished runs, the best first.

    Runs on real faces come before runs on drawn ones, and honest protocols before `study`, whose scores leak; of those
    the one with the highest top-1 on its validation faces: the test faces choose nothing.
    """
    top, found = root() / Path(outputs).expanduser(), []
    for path in sorted([*top.glob("*/*/seed-*/metrics.json"), *top.glob("*/*/*/seed-*/metrics.json")]):
        folder = path.parent
        if folder.parents[2].name == "published" or not (folder / "environment.json").exists():
            continue
        if not (folder / "model.keras").exists():
            continue
        try:
            metrics = json.loads(path.read_text())
            chosen = metrics["sets"].get("validation", {}).get("top1", 0.0)
            found.append((metrics["data"] != "drawn", metrics["protocol"] != "study", chosen, folder))
        except (OSError, ValueError, KeyError):
            continue
    return [each[3] for each in sorted(found, key=lambda each: each[:3], reverse=True)]


def best_run(outputs: str | Path = "outputs") -> Path:
    """The folder of the best finished run, see `finished_runs`.

    Raises:
        ModelError: if there is none; says how to make one.
    """
    found = finished_runs(outputs)
    if not found:
        top = root() / Path(outputs).expanduser()
        raise ModelError(f"There is no trained model yet: no run is finished below {top}. {HOW_TO_TRAIN}")
    return found[0]


def _has_onnxruntime() -> bool:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the first import; it would report its use
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


def _onnx(path: Path, threads: int):
    """A function from uint8 faces to probabilities, what the file says about itself, and the backend's name."""
    if not _has_onnxruntime():
        raise ModelError(f"{path} needs ONNX Runtime: pip install -e '.[predict]' in the project's folder.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Threads that wait for the next call would take the cores from the detector and from reading pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime raises many kinds
        raise ModelError(f"{path} cannot be read as an ONNX file: it is damaged or something else.") from None
    properties = session.get_modelmeta().custom_metadata_map
    about = {name: _value(text) for name, text in properties.items()}
    missing = [name for name in ("class_names", "image_size", "channels") if name not in about]
    if missing:
        raise ModelError(
            f"{path} is no model of fer-keras: its metadata lack {', '.join(missing)}. Export one with "
            "`fer-keras export RUN`."
        )
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = [*about["image_size"], about["channels"]]
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or inputs[0].shape[1:] != shape or len(outputs) != 1:
        raise ModelError(f"{path} is no model of fer-keras: it must take uint8 faces of {shape} and give one output.")
    given = inputs[0].name
    return lambda faces: session.run(None, {given: faces})[0], about, "onnxruntime"


def _from_zoo(name: str, threads: int):
    try:
        card = zoo.load(name)
    except zoo.ZooError as error:
        raise ModelError(str(error)) from None
    loaded = _onnx(card["path"], threads)
    for part in ("class_names", "image_size", "channels"):
        if loaded[1][part] != card[part]:
            raise ModelError(
                f"{card['path']} has {part} {loaded[1][part]}, but the card of {name!r} says {card[part]}: the two do "
                f"not belong together. Make the entry anew: fer-keras zoo add RUN --name {name}"
            )
    run, about, backend = loaded
    return run, about | {part: card[part] for part in ("audit", "limits", "licence")}, backend


def _value(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _keras(folder: Path, about: dict | None):
    if about is None:
        raise ModelError(f"{folder} holds no finished run.")
    try:
        from fer_keras.export import load_scored
        from fer_keras.run import RunError

        model = load_scored(folder)
    except RunError as error:
        raise ModelError(str(error)) from None
    except ImportError as error:
        raise ModelError(f"{folder} needs Keras with a backend: pip install -e '.[cpu]' ({error}).") from None
    *size, channels = model.inputs[0].shape[1:]
    lock = threading.Lock()

    def run(faces):
        # Always a full batch: one compiled call serves all.
        padded = np.zeros((BATCH, *faces.shape[1:]), "uint8")
        padded[: len(faces)] = faces
        with lock:
            return model.predict_on_batch(padded)[: len(faces)]

    return run, about | {"image_size": size, "channels": channels}, "keras"
