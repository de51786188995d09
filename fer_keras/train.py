"""Training: faces stay on the device as uint8, the validation role stops and selects, a killed run goes on.

`fit` wraps the model so that each compiled step gathers its faces by row index from the device's memory and augments
them there; only the inner model is kept. Each epoch's order is derived from seed and epoch, and a checkpoint holds all
that the next epoch depends on, so that a training that was killed and resumed ends with the metrics of one that was
not.
"""

import json
import os
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
from keras import callbacks, ops, optimizers
from tqdm import tqdm

from fer_keras import devices
from fer_keras import precision as precisions
from fer_keras.data import free_memory, read_all

with warnings.catch_warnings():  # about Jupyter widgets, which a bar of text does not need
    warnings.simplefilter("ignore")
    from tqdm.keras import TqdmCallback

OPTIMIZERS = {
    "adadelta": optimizers.Adadelta,
    "adam": optimizers.Adam,
    "adamw": optimizers.AdamW,
    "nadam": optimizers.Nadam,
    "rmsprop": optimizers.RMSprop,
    "sgd": partial(optimizers.SGD, momentum=0.9, nesterov=True),
}
SCHEDULES = ("constant", "cosine", "plateau")
MONITORS = {"val_loss": "min", "val_accuracy": "max"}
CLASS_WEIGHTS = ("none", "balanced")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "auto")
# The largest set of faces that is held in the device's memory: every GPU has so much. And at most this share of the
# host's free memory, which holds the set twice while it is handed over, and for good where it is itself the device.
DEVICE_BYTES, DEVICE_SHARE = 2**31, 1 / 8


def choose(name, value, choices):
    """Return `value` if it is one of `choices`; otherwise say which there are."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}. Received: {value!r}")
    return value


def seed_everything(seed: int, precision: str = "float32", deterministic: bool = False) -> None:
    """Set Python's, NumPy's and the backend's seeds, and the dtype policy of the layers built from here on.

    Args:
        seed: 0 ≤ seed < 2³².
        precision: "float32", "mixed_bfloat16", "mixed_float16", or "auto", see `fer_keras.precision`.
        deterministic: ask a GPU for kernels that give the same result every time; must come before the first
            computation. A CPU gives the same result anyway.
    """
    if deterministic:
        os.environ["TF_DETERMINISTIC_OPS"] = "1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    keras.config.set_dtype_policy(precisions.resolve(choose("precision", precision, PRECISIONS)))
    keras.utils.set_random_seed(seed)


def build_optimizer(
    name: str,
    learning_rate: float,
    schedule: str,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    weight_decay: float = 0.0,
    ema: float = 0.0,
) -> keras.optimizers.Optimizer:
    """Build the optimizer with its learning-rate schedule.

    Args:
        name: a key of `OPTIMIZERS`; "sgd" has Nesterov momentum 0.9.
        learning_rate: the constant, or the peak of the schedule.
        schedule: "constant"; "cosine", down to 0 over all epochs; "plateau", a factor 0.1 when the monitored value has
            not improved for half of the early stopping's patience (see `fit`).
        epochs: length of the training.
        steps_per_epoch: optimizer steps in one epoch.
        warmup_epochs: epochs of linear increase from 0, with "cosine" only.
        weight_decay: each step first shrinks what it trains by this share times the learning rate, decoupled from the
            gradient (Loshchilov and Hutter 2019); 0 leaves the optimizer as Keras has it, where AdamW has 0.004. With
            Nesterov momentum 0.9, PyTorch's coupled decay of 5e-4 acts about like 5e-3 here, and just like `l2` 2.5e-4.
        ema: momentum of the moving average of the weights that the optimizer keeps, 0 for none.

    Raises:
        ValueError: on an unknown name, or a value out of range.
    """
    choose("optimizer", name, OPTIMIZERS)
    choose("schedule", schedule, SCHEDULES)
    if learning_rate <= 0 or not 0 <= warmup_epochs < max(epochs, 1):
        raise ValueError(
            "`learning_rate` must be above 0 and `warmup_epochs` in [0, epochs). "
            f"Received: learning_rate={learning_rate}, warmup_epochs={warmup_epochs}, epochs={epochs}"
        )
    if weight_decay < 0 or not 0 <= ema < 1:
        raise ValueError(f"`weight_decay` must be ≥ 0 and `ema` in [0, 1). Received: {weight_decay}, {ema}")
    if warmup_epochs and schedule != "cosine":
        raise ValueError(f'`warmup_epochs` goes with `schedule: cosine` only. Received: schedule="{schedule}"')
    if schedule == "cosine":
        warmup = warmup_epochs * steps_per_epoch
        learning_rate = optimizers.schedules.CosineDecay(
            0.0 if warmup else learning_rate,
            decay_steps=epochs * steps_per_epoch - warmup,
            warmup_target=learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    more = {"weight_decay": weight_decay} if weight_decay else {}
    more |= {"use_ema": True, "ema_momentum": ema} if ema else {}
    return OPTIMIZERS[name](learning_rate=learning_rate, **more)


def balanced_class_weight(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weights n / (num_classes · count) by which each class counts the same in the loss; 0 for an empty one.

    Args:
        labels: int (n,), or distributions over the classes, float (n, num_classes), whose sums are then the counts.
    """
    counts = np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else labels.sum(axis=0)
    weights = len(labels) / (num_classes * np.where(counts, counts, 1))
    return np.where(counts, weights, 0.0).astype("float32")


class Rows(keras.utils.PyDataset):
    """Batches of row indices (or, for a set too large for the device, of faces), in an order derived from the epoch.

    Labels are one-hot, or the distributions of `targets`, or, with `drawn`, classes drawn from these in every epoch.
    Those that are to be mixed with the faces go with them. The last batch is filled up with the first faces, if `parts`
    devices could not share it equally; with `weighs`, those count nothing, otherwise twice.
    """

    def __init__(
        self,
        faces,
        num_classes,
        batch_size,
        first=0,
        resident=True,
        class_weight=None,
        drawn=False,
        mixed=False,
        parts=1,
        weighs=False,
    ):
        super().__init__()
        self.labels, self.targets = faces.labels, faces.targets
        self.num_classes, self.batch_size, self.first = num_classes, batch_size, first
        self.images = None if resident else faces.images
        self.class_weight, self.drawn, self.mixed = class_weight, drawn, mixed
        self.filled = len(self.labels) + -len(self.labels) % parts
        self.order = np.resize(np.arange(len(self.labels)), self.filled)
        self.weights = np.arange(self.filled) < len(self.labels) if weighs else None

    def shuffle(self, seed, epoch):
        """Take the order of this epoch. Called by a callback: Keras calls `on_epoch_end` at other moments, too."""
        rng = np.random.default_rng([seed, epoch])
        self.order = np.resize(rng.permutation(len(self.labels)), self.filled)
        if self.drawn and self.targets is not None:
            shares = np.cumsum(self.targets, axis=1, dtype="float64")
            self.labels = (rng.random((len(shares), 1)) * shares[:, -1:] >= shares).sum(axis=1)

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def __getitem__(self, index):
        places = slice(index * self.batch_size, (index + 1) * self.batch_size)
        at = self.order[places]
        x = (at + self.first).astype("int32") if self.images is None else self.images[at]
        if self.targets is None or self.drawn:
            y = np.eye(self.num_classes, dtype="float32")[self.labels[at]]
        else:
            y = self.targets[at]
        x = {"faces": x, "labels": y} if self.mixed else x
        if self.weights is not None:  # so that their mean over all that are given is the mean over the faces
            return x, y, (self.weights[places] * (self.filled / len(self.labels))).astype("float32")
        return (x, y) if self.class_weight is None else (x, y, self.class_weight[self.labels[at]])


class _Given:
    """Stands for an array: of one itself, TensorFlow makes a copy of its own before it copies it to the device."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Trainer(keras.Model):
    """Trains `inner` on faces that it gathers from the device's memory by row index, and augments there.

    With `ema` there are two sets of weights: those that the next step changes, and their moving averages, which are
    what validation scores (`swap`) and what early stopping keeps.
    """

    def __init__(self, inner, augmentation=None, images=None, mixing=None, ema=0.0):
        super().__init__(name="trainer")
        self.inner = inner
        self.augmentation = augmentation
        self.mixing = mixing
        self.images = None
        if images is not None:
            kept = {"trainable": False, "autocast": False, "dtype": "uint8"}
            self.images = keras.Variable(_Given(images), name="images", **kept)
        self.ema = ema
        if ema:  # Keras's optimizer averages what it trains; the statistics of the normalisations must go with that
            kept = {"trainable": False, "autocast": False, "dtype": "float32"}
            self.averages = [keras.Variable(ops.zeros(v.shape), **kept) for v in inner.non_trainable_weights]
            self.momentum = keras.Variable(0.0, **kept)  # 0 in the first step, as in Keras's optimizer

    def build(self, input_shape):
        if self.augmentation is not None:  # now, so that its random states are in `state` from the start
            self.augmentation.build(self.inner.input_shape)
        self.built = True

    def call(self, x, training=False):
        x, labels = (x["faces"], x["labels"]) if isinstance(x, dict) else (x, None)
        faces = x if self.images is None else ops.take(self.images, x, axis=0)
        if training and self.augmentation is not None:
            faces = self.augmentation(ops.cast(faces, "float32"), training=True)
        if not training or labels is None:
            return self._answer(faces, training)
        mixed = self.mixing({"images": ops.cast(faces, "float32"), "labels": labels}, training=True)
        # With the labels, which are mixed in the same shares: the loss and the metrics take them from here.
        return {"probabilities": self._answer(mixed["images"], training=True), "labels": mixed["labels"]}

    def _answer(self, faces, training):
        answer = self.inner(faces, training=training)
        if training and self.ema:
            for statistic, average in zip(self.inner.non_trainable_weights, self.averages, strict=True):
                average.assign(self.momentum * average + (1 - self.momentum) * statistic)
            self.momentum.assign(self.ema)
        return answer

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        y, y_pred = (y_pred["labels"], y_pred["probabilities"]) if isinstance(y_pred, dict) else (y, y_pred)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y, y_pred = (y_pred["labels"], y_pred["probabilities"]) if isinstance(y_pred, dict) else (y, y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def averaged(self):
        """Pairs of a weight and its moving average."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)  # float16 wraps it, to scale the loss
        trained = zip(self.trainable_variables, optimizer._model_variables_moving_average, strict=True)
        return [*trained, *zip(self.inner.non_trainable_weights, self.averages, strict=True)]

    def swap(self):
        """Exchange weights and moving averages. Keras's `SwapEMAWeights` does so by sums, which rounds the weights."""
        for weight, average in self.averaged():
            value = ops.copy(weight)
            weight.assign(average)
            average.assign(value)

    # Early stopping keeps the best weights by these two: the faces are not among them.
    def get_weights(self):
        if not self.ema:
            return self.inner.get_weights()
        averages = {id(weight): average for weight, average in self.averaged()}
        return [ops.convert_to_numpy(averages[id(weight)]) for weight in self.inner.weights]

    def set_weights(self, weights):
        self.inner.set_weights(weights)

    def state(self):
        """All variables that the next step depends on, but not the faces."""
        return [v for v in [*self.variables, *self.optimizer.variables] if v is not self.images]


class Checkpoint(callbacks.Callback):
    """Saves and restores what the next epoch depends on: weights, optimizer, random states, early stopping, history.

    Written under a temporary name and renamed, at most every `seconds`, since the epochs after it can be run again.
    """

    # What early stopping and the plateau schedule remember between epochs.
    REMEMBERED = ("best", "best_epoch", "wait", "stopped_epoch", "cooldown_counter")

    def __init__(self, path, key, others, seconds):
        super().__init__()
        self.path, self.key, self.others, self.seconds = Path(path), key, others, seconds
        self.history, self.saved_at, self.arrays = [], time.monotonic(), None

    def read(self):
        """Return the number of epochs done, 0 without a checkpoint or with that of another run."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                note = json.loads(str(file["note"]))
                if note["key"] != self.key:
                    return 0
                self.arrays = {name: file[name] for name in file.files if name != "note"}
        except FileNotFoundError:
            return 0
        self.note, self.history = note, note["history"]
        return len(self.history)

    def on_train_begin(self, logs=None):
        if self.arrays is None:
            return
        for index, variable in enumerate(self.model.state()):
            variable.assign(self.arrays[f"state{index}"])
        for callback, remembered in zip(self.others, self.note["callbacks"], strict=True):
            for name, value in remembered.items():
                setattr(callback, name, value)
        best = [self.arrays[f"best{i}"] for i in range(self.note["best_weights"])]
        self.others[0].best_weights = best or None
        self.arrays = None

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}})
        if time.monotonic() - self.saved_at < self.seconds:
            return
        best = self.others[0].best_weights or []
        note = {
            "key": self.key,
            "history": self.history,
            "callbacks": [{n: _plain(getattr(c, n)) for n in self.REMEMBERED if hasattr(c, n)} for c in self.others],
            "best_weights": len(best),
        }
        arrays = {f"state{i}": ops.convert_to_numpy(v) for i, v in enumerate(self.model.state())}
        arrays |= {f"best{i}": w for i, w in enumerate(best)}
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, note=json.dumps(note), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.saved_at = time.monotonic()


def _plain(value):
    return None if value is None else float(value) if isinstance(value, (float, np.floating)) else int(value)


def check(p) -> None:
    """Check a run's training parameters before any face is loaded.

    Raises:
        ValueError: on an unknown choice, or a value out of range.
    """
    choose("monitor", p.monitor, MONITORS)
    choose("class_weight", p.class_weight, CLASS_WEIGHTS)
    choose("distribution", p.distribution, devices.DISTRIBUTIONS)
    if p.class_weight != "none" and any(getattr(p, name, None) for name in ("mixup", "cutmix", "mixing")):
        raise ValueError(
            "Mixed faces have no class of their own to weigh: `class_weight: balanced` goes without mixing."
        )
    if p.epochs < 1 or p.batch_size < 1 or p.patience < 0 or not 0 <= p.label_smoothing < 1:
        raise ValueError(
            "`epochs` and `batch_size` must be at least 1, `patience` ≥ 0, `label_smoothing` in [0, 1). Received: "
            f"{p.epochs}, {p.batch_size}, {p.patience}, {p.label_smoothing}"
        )
    build_optimizer(p.optimizer, p.learning_rate, p.schedule, p.epochs, 1, p.warmup_epochs, p.weight_decay, p.ema)


def best_epoch(history: pd.DataFrame, monitor: str) -> int:
    """The position of the epoch that the validation faces chose, the first of equal ones."""
    return int(history[monitor].idxmin() if MONITORS[monitor] == "min" else history[monitor].idxmax())


def fit(
    model: keras.Model,
    train,
    validation,
    *,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    schedule: str = "constant",
    warmup_epochs: int = 0,
    epochs: int = 30,
    batch_size: int = 64,
    patience: int = 10,
    monitor: str = "val_accuracy",
    label_smoothing: float = 0.0,
    class_weight: str = "none",
    weight_decay: float = 0.0,
    ema: float = 0.0,
    augmentation: keras.Layer | None = None,
    mixing: keras.Layer | None = None,
    draw_labels: bool = False,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60,
    key: str = "",
    distribution: str = "none",
    device_bytes: int | None = None,
    extra_callbacks: Sequence[callbacks.Callback] = (),
) -> pd.DataFrame:
    """Train `model` in place, and leave it with the weights of its best epoch on the validation faces.

    Args:
        model: from uint8 faces to probabilities, e.g. `fer_keras.model.vggnet()`.
        train: `fer_keras.data.Faces` that fit the weights.
        validation: `fer_keras.data.Faces` that stop the training and select the epoch.
        optimizer, learning_rate, schedule, warmup_epochs: see `build_optimizer`.
        epochs: most epochs to train.
        batch_size: faces in a step.
        patience: epochs without improvement after which the training stops; 0 never stops (the best epoch is still
            chosen).
        monitor: "val_loss" or "val_accuracy": what improves.
        label_smoothing: share of the target spread over all classes, 0 ≤ label_smoothing < 1.
        class_weight: "none", or "balanced" (`balanced_class_weight`).
        weight_decay: see `build_optimizer`; of kernels alone, not of biases and normalisations.
        ema: momentum of the moving average of the weights, 0 ≤ ema < 1, 0 for none. The average, with the statistics
            of its normalisations, is then what validation scores and what the model is left with. It forgets its random
            start within some 5 / (1 − ema) steps.
        augmentation: a layer applied to the training faces, e.g. from `fer_keras.augment.online`.
        mixing: a layer that mixes the faces of a batch and their labels, e.g. from `fer_keras.augment.mixing`.
        draw_labels: where faces have a distribution over the classes (`targets`), draw a class from it in every epoch
            instead of training with the distribution.
        seed: derives each epoch's order.
        checkpoint: file that makes the training resumable; removed by the caller when the run is complete.
        checkpoint_seconds: least time between two checkpoints.
        key: identity of the run; a checkpoint with another one is not resumed.
        distribution: "none", or "auto" to share each step out among all devices, if there are several; see
            `fer_keras.devices`. Their number must divide `batch_size`; with `class_weight` the accuracy on the faces
            that train is then weighted, too.
        device_bytes: largest set of faces to hold in the device's memory, by default 2 GiB, or an eighth of the host's
            free memory if that is less; a larger one streams from the host's memory or from a file that is mapped, in
            the same order and with equal results.
        extra_callbacks: Keras callbacks, called after the checkpoint of an epoch is written; a resumed training calls
            them for the epochs that it trains.

    Returns:
        One row an epoch: epoch (from 1), loss, accuracy, val_loss, val_accuracy, and learning_rate with "plateau".

    Raises:
        ValueError: on an unknown choice, a value out of range or an empty set.
    """
    check(SimpleNamespace(**{name: value for name, value in locals().items() if name not in ("train", "validation")}))
    if not len(train) or not len(validation):
        raise ValueError(f"Training needs faces. Received: {len(train)} to train, {len(validation)} to validate")
    several = devices.chosen(distribution)
    devices.check(several, batch_size)

    num_classes = model.output_shape[-1]
    stop = callbacks.EarlyStopping(
        monitor, mode=MONITORS[monitor], patience=patience or epochs, restore_best_weights=True
    )
    remembering = [stop]
    if schedule == "plateau":
        remembering.append(
            callbacks.ReduceLROnPlateau(monitor, mode=MONITORS[monitor], patience=max(1, (patience or 10) // 2))
        )
    saver = Checkpoint(checkpoint, key, remembering, checkpoint_seconds) if checkpoint else None
    done = saver.read() if saver else 0

    if device_bytes is None:
        device_bytes = min(DEVICE_BYTES, int(DEVICE_SHARE * free_memory()))
    resident = train.images.nbytes + validation.images.nbytes <= device_bytes
    shared = {"num_classes": num_classes, "batch_size": batch_size, "resident": resident, "parts": len(several) or 1}
    soft = train.labels if train.targets is None else train.targets
    weights = balanced_class_weight(soft, num_classes) if class_weight == "balanced" else None
    rows = Rows(train, class_weight=weights, drawn=draw_labels, mixed=mixing is not None, **shared)
    order = callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: rows.shuffle(seed, epoch))
    scored = Rows(validation, first=len(train), weighs=bool(several), **shared)

    with devices.scope(several):
        network = model
        if several:
            network, augmentation, mixing = (devices.copy(layer) for layer in (model, augmentation, mixing))
            print(f"Each step is shared out among {len(several)} devices: {', '.join(several)}.")
        # Not kept here: the device has its copy.
        held = read_all([train.images, validation.images]) if resident else None
        trainer = Trainer(network, augmentation, held, mixing, ema)
        del held
        updates = build_optimizer(
            optimizer, learning_rate, schedule, epochs, len(rows), warmup_epochs, weight_decay, ema
        )
        if weight_decay:
            updates.exclude_from_weight_decay([v for v in network.trainable_variables if len(v.shape) == 1])
        trainer.compile(
            optimizer=updates,
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing),
            # Faces that fill a batch up weigh nothing, so they must not be counted.
            **{"weighted_metrics" if several else "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")]},
            # Measured on CPU: XLA makes TensorFlow's step slower and compiles for long. JAX has no other way.
            jit_compile="auto" if keras.backend.backend() == "jax" or keras.distribution.list_devices("gpu") else False,
        )
        trainer.build((None,))
        trainer.optimizer.build(trainer.trainable_variables)

        if several and keras.backend.backend() == "tensorflow":
            trainer.test_on_batch(*scored[0])  # makes the metrics' variables, which a step on several devices cannot
        if done >= epochs or (done and saver.note["callbacks"][0]["stopped_epoch"]):
            saver.set_model(trainer)
            saver.on_train_begin()
            stop.set_model(trainer)
            stop.on_train_end()
        else:
            before = [order]
            if ema:
                swap = {"on_test_begin": lambda logs: trainer.swap(), "on_test_end": lambda logs: trainer.swap()}
                before.append(callbacks.LambdaCallback(**swap))
            after = [saver] if saver else []
            if several and keras.backend.backend() == "tensorflow":
                after.append(devices.OwnRandomNumbers())  # from what the checkpoint holds
            bar = TqdmCallback(epochs=epochs, verbose=0, tqdm_class=_bar())
            trainer.fit(
                rows,
                validation_data=scored,
                initial_epoch=done,
                epochs=epochs,
                shuffle=False,  # of whole batches, by Python's random state, which a resumed process does not have
                verbose=0,
                callbacks=[*before, *remembering, *after, *extra_callbacks, bar],
            )
    if several:
        model.set_weights(network.get_weights())
    if saver:
        return pd.DataFrame(saver.history)
    return pd.DataFrame(trainer.history.history).rename_axis("epoch").rename(index=lambda i: i + 1).reset_index()


def _bar():
    """A progress bar of one text line: nbconvert keeps its last state, papermill's log shows it every 10 seconds."""
    return partial(tqdm, ncols=120, mininterval=10)
