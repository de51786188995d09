"""One training on several devices: two virtual ones of a processor, each test's in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from fer_keras import augment, devices, run, split, train

# A network without ties and jumps, so that rounding stays rounding; faces of noise, so that none are alike.
START = """
import json, sys
from dataclasses import replace
import fer_keras, keras, numpy as np
from fer_keras import augment, devices, drawn, split, train
from keras import layers
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    one = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [one, one])

faces = drawn.draw(280)
noise = np.random.default_rng(0).integers(0, 256, (len(faces), 16, 16, 1)).astype("uint8")
parts = split.split_official(replace(faces, images=noise + 8 * faces.labels[:, None, None, None].astype("uint8")))

def trained(distribution, n, dropout=0.0, seed=0, augmentation=None, **given):
    train.seed_everything(seed)
    network = keras.Sequential([
        layers.Input((16, 16, 1), dtype="uint8"), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, activation="gelu"),
        layers.BatchNormalization(momentum=0.5), layers.GlobalAveragePooling2D(), layers.Dropout(dropout),
        layers.Dense(7), layers.Softmax(dtype="float32"),
    ])
    changed = augment.online(**augmentation) if augmentation else None
    options = {"epochs": 2, "batch_size": 32, "patience": 0, "distribution": distribution, "learning_rate": 0.05}
    kept = parts["train"].take(slice(0, n))
    history = train.fit(network, kept, parts["validation"], augmentation=changed, **options | given)
    return history.to_dict("list"), [weight.tolist() for weight in network.get_weights()]
"""

SAME = """
# 29 validation faces and, in the second, 97 training faces are not to be halved.
found = {n: [trained(name, n, optimizer="sgd", ema=0.5) for name in ("none", "auto")] for n in (96, 97)}
print(json.dumps([keras.distribution.list_devices(), found]))
"""

RESUMED = """
class Killed(Exception):
    pass

def kill(epoch, logs):
    raise Killed

def states(logs):
    values = [v.value for v in watch.model.variables if v.path.endswith("seed_generator_state")]
    if keras.backend.backend() == "tensorflow":
        local = watch.model.distribute_strategy.experimental_local_results
        apart.append([[int(part.numpy()[0]) for part in local(value)] for value in values])

apart = []
given = {"dropout": 0.5, "augmentation": {"flip": True, "noise": 8.0}, "ema": 0.5}
kept = {"checkpoint": sys.argv[1], "checkpoint_seconds": 0, "key": "k"}
whole = trained("auto", 96, **given)
try:
    trained("auto", 96, extra_callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=kill)], **given, **kept)
except Killed:
    pass
watch = keras.callbacks.LambdaCallback(on_train_begin=states)
resumed = trained("auto", 96, seed=9, extra_callbacks=[watch], **given, **kept)
print(json.dumps([whole, resumed, apart]))
"""

BACKENDS = ["tensorflow", pytest.param("jax", marks=pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed: make test-jax"))]  # fmt: skip


@pytest.fixture(params=BACKENDS)
def on_two(request):
    """Runs a program on two virtual devices, and returns what it prints."""

    def call(program, *words):
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "KERAS_BACKEND": request.param}
        command = [sys.executable, "-c", START + program, *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return call


def test_two_devices_train_what_one_trains_but_for_rounding(on_two):
    names, found = on_two(SAME)
    assert names == ["cpu:0", "cpu:1"]
    (one, weights), (two, shared) = found["96"]
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, err_msg=name)
    for a, b in zip(weights, shared, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)
    # One face of 97 counts twice in an epoch's last step. Every validation face counts once.
    (one, weights), (two, shared) = found["97"]
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(two[name], one[name], atol=0.02, err_msg=name)
    for accuracy in two["val_accuracy"]:
        assert accuracy * 29 == pytest.approx(round(accuracy * 29), abs=1e-4)


def test_a_training_on_two_devices_goes_on_like_one_that_was_not_killed(on_two, tmp_path):
    whole, resumed, apart = on_two(RESUMED, tmp_path / "checkpoint.npz")
    assert resumed == whole and resumed[0]["epoch"] == [1, 2]
    for per_variable in apart:  # on TensorFlow, where each device draws its own random numbers
        assert len(per_variable) >= 3 and all(second == first + 1 for first, second in per_variable)


# --- One device -------------------------------------------------------------------------------------------------------


def test_a_copy_of_an_augmentation_draws_the_same_random_numbers(faces):
    layer = augment.online(flip=True, rotation=10.0, shift=2, noise=8.0, erasing=0.5, randaugment=0.2)
    other, images = devices.copy(layer), faces.images[:8].astype("float32")
    found, expected = (keras.ops.convert_to_numpy(each(images, training=True)) for each in (other, layer))
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, images)


def test_on_one_device_auto_changes_nothing(faces):
    from fer_keras import model

    parts, found = split.split_official(faces), {}
    for distribution in ("none", "auto"):
        train.seed_everything(0)
        network = model.vggnet(width=1 / 32)
        options = {"epochs": 1, "batch_size": 32, "distribution": distribution}
        history = train.fit(network, parts["train"], parts["validation"], **options)
        found[distribution] = history, network.get_weights()
    pd.testing.assert_frame_equal(found["auto"][0], found["none"][0], check_exact=True)
    for a, b in zip(found["auto"][1], found["none"][1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_number_of_devices_is_no_part_of_a_runs_key():
    given = {"experiment": "tuned", "protocol": "official", "seed": 0, "epochs": 3}
    keys = {run.key_of(given | more, "f", {}) for more in ({}, {"distribution": "none"}, {"distribution": "auto"})}
    assert len(keys) == 1


def test_a_batch_that_cannot_be_shared_out_equally_is_refused(faces, monkeypatch):
    parts = split.split_official(faces)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda kind=None: ["gpu:0", "gpu:1", "gpu:2"])
    with pytest.raises(ValueError, match=r"`batch_size: 32` cannot be shared out .* 3 devices\. Use 30 or 33"):
        train.fit(None, parts["train"], parts["validation"], batch_size=32, distribution="auto")
    with pytest.raises(ValueError, match=r"Use 3, or"):
        devices.check(["gpu:0", "gpu:1", "gpu:2"], 2)


def test_an_unknown_distribution_is_refused(faces):
    parts = split.split_official(faces)
    with pytest.raises(ValueError, match="`distribution` must be one of none, auto"):
        train.fit(None, parts["train"], parts["validation"], distribution="mirrored")
