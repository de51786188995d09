import json
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest

from fer_keras import augment, model, split, train

COMMON = {"epochs": 4, "batch_size": 32, "patience": 0}


@pytest.fixture(scope="module")
def parts(faces):
    return split.split_official(faces)


def small(seed=0, dropout=0.2):
    train.seed_everything(seed)
    return model.vggnet(width=1 / 32, dropout=dropout)


def fit(parts, network=None, **given):
    network = network or small()
    history = train.fit(network, parts["train"], parts["validation"], **{**COMMON, **given})
    return network, history


def weights_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


class Killed(Exception):
    pass


class KillAfter(keras.callbacks.Callback):
    """Stands for a kill: the process would end here, in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2 and self.model.optimizer.iterations > self.epoch * 7:
            raise Killed


@pytest.mark.parametrize(
    "given",
    [
        {"learning_rate": 1e-3},
        {"learning_rate": 1e-2, "optimizer": "sgd", "schedule": "plateau", "patience": 2, "monitor": "val_loss"},
        {
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_epochs": 1,
            "label_smoothing": 0.1,
            "class_weight": "balanced",
        },
        {"learning_rate": 1e-2, "optimizer": "sgd", "schedule": "cosine", "weight_decay": 5e-3, "ema": 0.8},
    ],
    ids=["adam", "plateau", "cosine", "averaged"],
)
def test_a_resumed_training_ends_like_one_that_was_not_interrupted(parts, tmp_path, monkeypatch, given):
    def augmentation():
        return augment.online(flip=True, rotation=10, translation=0.1)

    network = small()
    whole, history = fit(parts, network, augmentation=augmentation(), **given)
    network = small()
    keep = {"checkpoint": tmp_path / "checkpoint.npz", "checkpoint_seconds": 0, "key": "a"}
    real = keras.Model.fit
    steps = -(-len(parts["train"]) // COMMON["batch_size"])
    assert steps == 7  # what KillAfter counts on

    def killed_fit(self, *args, callbacks, **kwargs):
        return real(self, *args, callbacks=[*callbacks, KillAfter(2)], **kwargs)

    monkeypatch.setattr(keras.Model, "fit", killed_fit)
    with pytest.raises(Killed):
        fit(parts, network, augmentation=augmentation(), **given, **keep)
    monkeypatch.setattr(keras.Model, "fit", real)
    # Another seed for what a fresh process would build: everything that counts must come from the checkpoint.
    network = small(seed=99)
    resumed, resumed_history = fit(parts, network, augmentation=augmentation(), **given, **keep)
    pd.testing.assert_frame_equal(history, resumed_history, check_exact=True)
    assert weights_equal(whole, resumed)


def test_an_extra_callback_comes_after_the_checkpoint_and_for_each_epoch_that_is_trained(parts, tmp_path):
    keep = {"checkpoint": tmp_path / "checkpoint.npz", "checkpoint_seconds": 0}
    seen = []

    def watch(epoch, logs):
        with np.load(keep["checkpoint"]) as file:
            seen.append((epoch, len(json.loads(str(file["note"]))["history"]), logs["val_accuracy"]))
        if len(seen) == 2:
            raise Killed

    extra = {"extra_callbacks": [keras.callbacks.LambdaCallback(on_epoch_end=watch)]}
    with pytest.raises(Killed):
        fit(parts, **keep, **extra, epochs=3)
    _, history = fit(parts, small(seed=9), **keep, **extra, epochs=3)
    assert [(epoch, saved) for epoch, saved, _ in seen] == [(0, 1), (1, 2), (2, 3)]
    assert [value for *_, value in seen] == history["val_accuracy"].tolist()


def test_a_finished_training_is_not_trained_again(parts, tmp_path, monkeypatch):
    keep = {"checkpoint": tmp_path / "checkpoint.npz", "checkpoint_seconds": 0}
    done, history = fit(parts, **keep)
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    again, again_history = fit(parts, small(seed=5), **keep)
    pd.testing.assert_frame_equal(history, again_history)
    assert weights_equal(done, again)


def test_a_checkpoint_of_another_run_is_not_resumed(parts, tmp_path):
    keep = {"checkpoint": tmp_path / "checkpoint.npz", "checkpoint_seconds": 0}
    fit(parts, key="a", **keep, epochs=1)
    _, history = fit(parts, key="b", **keep, epochs=2)
    assert history["epoch"].tolist() == [1, 2]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(parts):
    first, _ = fit(parts, epochs=1)
    second, _ = fit(parts, epochs=1)
    other, _ = fit(parts, small(seed=1), epochs=1, seed=1)
    assert weights_equal(first, second)
    assert not weights_equal(first, other)


def test_streaming_gives_what_the_device_gives(parts):
    resident, history = fit(parts, epochs=2)
    streamed, streamed_history = fit(parts, epochs=2, device_bytes=0)
    pd.testing.assert_frame_equal(history, streamed_history)
    assert weights_equal(resident, streamed)


def test_faces_stream_from_a_memory_map_without_being_read_whole(parts, tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", parts["train"].images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    read = []
    real = train.Rows.__getitem__

    def watched(self, index):
        batch = real(self, index)
        read.append(len(batch[0]))
        return batch

    with monkeypatch.context() as patched:
        patched.setattr(train, "read_all", lambda arrays: pytest.fail("the faces were joined in memory"))
        patched.setattr(train.Rows, "__getitem__", watched)
        streamed, history = fit({**parts, "train": replace(parts["train"], images=mapped)}, epochs=2, device_bytes=0)
    assert len(read) >= 2 * 7 and max(read) <= COMMON["batch_size"]
    resident, resident_history = fit(parts, epochs=2)
    pd.testing.assert_frame_equal(history, resident_history)
    assert weights_equal(resident, streamed)


def test_the_best_epoch_on_validation_is_kept(parts):
    network, history = fit(parts, learning_rate=3e-3, epochs=6)
    best = train.best_epoch(history, "val_accuracy")
    predicted = network.predict(parts["validation"].images, verbose=0).argmax(axis=1)
    assert np.mean(predicted == parts["validation"].labels) == pytest.approx(history["val_accuracy"][best])


def test_early_stopping_counts_from_the_best_epoch(parts):
    _, history = fit(parts, optimizer="sgd", learning_rate=1e-9, epochs=9, patience=2, monitor="val_accuracy")
    best = train.best_epoch(history, "val_accuracy")
    assert len(history) - 1 - best == 2 and len(history) < 9


def test_each_epoch_sees_every_row_once_in_its_own_order(parts, monkeypatch):
    seen = []

    real = train.Rows.shuffle
    monkeypatch.setattr(train.Rows, "shuffle", lambda self, *of: real(self, *of) or seen.append((of, self.order)))
    fit(parts, epochs=3, seed=7)
    assert [of for of, _ in seen] == [(7, 0), (7, 1), (7, 2)]
    orders = [order.tolist() for _, order in seen]
    assert all(sorted(order) == list(range(len(parts["train"]))) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_balanced_class_weight_is_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(train.balanced_class_weight(labels, 3), expected, rtol=1e-6)
    assert train.balanced_class_weight(labels, 4)[3] == 0


def test_cosine_reaches_its_peak_after_the_warm_up_and_zero_at_the_end():
    schedule = train.build_optimizer("sgd", 0.1, "cosine", epochs=10, steps_per_epoch=5, warmup_epochs=2)._learning_rate
    values = [float(keras.ops.convert_to_numpy(schedule(step))) for step in (0, 5, 10, 50)]
    np.testing.assert_allclose(values, [0, 0.05, 0.1, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adan"}, "`optimizer` must be one of adadelta, adam"),
        ({"schedule": "linear"}, "`schedule` must be one of"),
        ({"monitor": "loss"}, "`monitor` must be one of val_loss, val_accuracy"),
        ({"class_weight": "yes"}, "`class_weight` must be one of none, balanced"),
        ({"epochs": 0}, "`epochs` and `batch_size` must be at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0"),
        ({"warmup_epochs": 1}, "goes with `schedule: cosine` only"),
        ({"label_smoothing": 1.0}, "`label_smoothing` in"),
        ({"weight_decay": -1e-4}, "`weight_decay` must be ≥ 0"),
        ({"ema": 1.0}, "`ema` in"),
    ],
)
def test_wrong_values_are_refused_before_training(parts, given, message):
    with pytest.raises(ValueError, match=message):
        fit(parts, **given)


def test_an_empty_set_is_refused(parts):
    with pytest.raises(ValueError, match="0 to validate"):
        train.fit(small(), parts["train"], parts["validation"].take(slice(0, 0)))


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`precision` must be one of float32"):
        train.seed_everything(0, "float8")


def test_mixed_precision_is_saved_as_float32(parts, tmp_path):
    train.seed_everything(0, "mixed_bfloat16")
    try:
        network = model.vggnet(width=1 / 32)
        train.fit(network, parts["train"], parts["validation"], epochs=1, batch_size=64)
        plain = model.float32(network)
    finally:
        keras.config.set_dtype_policy("float32")
    images = parts["test"].images
    assert {layer.compute_dtype for layer in plain.layers[1:]} == {"float32"}
    # bfloat16 keeps 8 bits of mantissa, so probabilities agree to about two decimals.
    np.testing.assert_allclose(plain.predict(images, verbose=0), network.predict(images, verbose=0), atol=0.05)


# --- Averages and decay -----------------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_moving_average_of_all_weights_and_the_network_is_left_with_it(parts):
    """Epochs of one step each, so that an epoch's end is a step's."""
    network, weights, averages = small(), [], []
    start = network.get_weights()
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: (
            weights.append(network.get_weights()),
            averages.append(watch.model.get_weights()),
        )
    )
    given = {"optimizer": "sgd", "learning_rate": 1e-2, "batch_size": 224, "epochs": 4, "ema": 0.7}
    _, history = fit(parts, network, **given, extra_callbacks=[watch])
    expected = weights[0]  # the random start does not count
    for step, found in zip(weights, averages, strict=True):
        expected = [0.7 * average + 0.3 * weight for average, weight in zip(expected, step, strict=True)]
        for one, average in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, average, rtol=1e-5, atol=1e-7)
    assert sum(np.abs(a - b).max() > 1e-3 for a, b in zip(weights[-1], expected, strict=True)) > 20
    assert sum(np.abs(a - b).max() > 1e-3 for a, b in zip(start, weights[0], strict=True)) > 20
    best = averages[train.best_epoch(history, "val_accuracy")]
    assert all(np.array_equal(a, b) for a, b in zip(best, network.get_weights(), strict=True))


SLOW = pytest.mark.skipif(keras.backend.backend() == "jax", reason="XLA compiles float16 for minutes on a processor")


@pytest.mark.parametrize("precision", ["float32", pytest.param("mixed_float16", marks=SLOW)])
def test_the_averages_are_scored_and_change_nothing_in_the_training(parts, precision):
    def trained(**given):
        train.seed_everything(0, precision)
        return fit(parts, model.vggnet(width=1 / 32), optimizer="sgd", learning_rate=1e-2, epochs=3, **given)

    try:
        _, plain = trained()
        network, history = trained(ema=0.9)
    finally:
        keras.config.set_dtype_policy("float32")
    pd.testing.assert_frame_equal(history[["loss", "accuracy"]], plain[["loss", "accuracy"]], check_exact=True)
    assert not np.allclose(history["val_loss"], plain["val_loss"])
    if precision == "float32":
        best = train.best_epoch(history, "val_accuracy")
        answers = network.predict(parts["validation"].images, verbose=0)
        right = answers[np.arange(len(answers)), parts["validation"].labels]
        assert -np.log(right).mean() == pytest.approx(history["val_loss"][best], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_kernels_by_its_share_of_the_step_and_nothing_else(parts, optimizer):
    """One step over all faces: the gradient is the same, so that only the decay differs."""
    start = small().get_weights()
    given = {"optimizer": optimizer, "learning_rate": 0.01, "epochs": 1, "batch_size": 224}
    low, _ = fit(parts, weight_decay=0.01, **given)
    high, _ = fit(parts, weight_decay=0.51, **given)
    names = [variable.path.rsplit("/", 1)[1] for variable in low.weights]
    assert names.count("kernel") == 11
    for name, before, a, b in zip(names, start, low.get_weights(), high.get_weights(), strict=True):
        if name == "kernel":
            np.testing.assert_allclose(a - b, 0.5 * 0.01 * before, atol=1e-6)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


# --- Mixed faces and soft labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_mixed_faces_train_and_a_resumed_training_mixes_alike(parts, mixing, tmp_path):
    def trained(**given):
        network = small()  # seeds what follows
        return fit(parts, network, learning_rate=1e-3, mixing=augment.mixing(**mixing), **given)

    whole, history = trained()
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    plain, _ = fit(parts, learning_rate=1e-3)
    assert not weights_equal(whole, plain)
    kept = {"checkpoint": tmp_path / "checkpoint.npz", "checkpoint_seconds": 0}
    trained(**kept, extra_callbacks=[StopAfter(2)])
    resumed, again = trained(**kept)
    assert len(again) == 4 and weights_equal(resumed, whole)
    pd.testing.assert_frame_equal(again, history)


class StopAfter(keras.callbacks.Callback):
    """Ends a training after some epochs, as if it had been killed between two."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 >= self.epochs


def test_a_distribution_is_trained_with_and_certain_ones_are_labels(parts):
    certain = replace(parts["train"], targets=np.eye(7, dtype="float32")[parts["train"].labels])
    plain, _ = fit(parts, learning_rate=1e-3)
    for draw in (False, True):
        soft, _ = fit(parts | {"train": certain}, learning_rate=1e-3, draw_labels=draw)
        assert weights_equal(soft, plain)
    even = replace(parts["train"], targets=np.full((len(parts["train"]), 7), 1 / 7, "float32"))
    _, history = fit(parts | {"train": even}, learning_rate=1e-3)
    assert history["loss"].iloc[-1] > np.log(7) - 1e-3, "nothing is better than to answer evenly"


def test_labels_are_drawn_anew_in_every_epoch_in_their_shares(parts):
    shares = np.tile(np.array([0.5, 0.3, 0.2, 0, 0, 0, 0], "float32"), (len(parts["train"]), 1))
    rows = train.Rows(replace(parts["train"], targets=shares), 7, 32, drawn=True)
    counts = np.zeros(7)
    before = None
    for epoch in range(20):
        rows.shuffle(0, epoch)
        assert before is None or not np.array_equal(rows.labels, before)
        before = rows.labels
        counts += np.bincount(rows.labels, minlength=7)
    # 4,480 draws: the deviation of a share is below 0.0075.
    np.testing.assert_allclose(counts / counts.sum(), shares[0], atol=0.03)


def test_mixed_faces_have_no_class_to_weigh(parts):
    with pytest.raises(ValueError, match="`class_weight: balanced` goes without mixing"):
        fit(parts, class_weight="balanced", mixing=augment.mixing(mixup=0.2))
