"""Several devices for one training: each step's faces are shared out, and every device has all the weights.

On JAX by `keras.distribution`: the compiled step stays the one of a single device, and the compiler shares its faces
out, so means over the batch are means over all of it. On TensorFlow by `MirroredStrategy`: every device takes the step
on its part, gradients are added up, and normalisation takes its means over all parts. Either way a training is the one
of a single device but for rounding and, on TensorFlow, for the random numbers of dropout and augmentation.
"""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
from keras import layers

DISTRIBUTIONS = ("none", "auto")


def chosen(distribution: str) -> list[str]:
    """The devices that a training is shared out among, empty where it stays on one.

    Args:
        distribution: "none", or "auto" for all GPUs (on JAX also TPUs), or without any all virtual processors.
    """
    found = keras.distribution.list_devices() if distribution == "auto" else []
    return found if len(found) > 1 else []


def check(names: list[str], batch_size: int) -> None:
    """Check that a step can be shared out equally.

    Raises:
        ValueError: if the number of devices does not divide the batch.
    """
    n = len(names)
    if names and batch_size % n:
        near = " or ".join(str(size * n) for size in (batch_size // n, batch_size // n + 1) if size)
        raise ValueError(
            f"`batch_size: {batch_size}` cannot be shared out equally among {n} devices. Use {near}, or "
            "`distribution: none`."
        )


@contextlib.contextmanager
def scope(names: list[str]) -> Iterator[None]:
    """Variables that are made here are on all these devices; without names, it changes nothing."""
    if not names:
        yield
    elif keras.backend.backend() == "jax":
        with keras.distribution.DataParallel(devices=names).scope():
            yield
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # the one place: Keras has no distribution of its own on TensorFlow

        with tf.distribute.MirroredStrategy([name.upper() for name in names]).scope():
            yield
    else:
        raise ValueError("`distribution: auto` works on JAX and TensorFlow. Use `distribution: none`.")


def copy(layer: keras.Layer | None) -> keras.Layer | None:
    """The same layer or model, with equal variables, on the devices of the `scope` in which this is called."""
    if layer is None:
        return None
    whole = isinstance(layer, keras.Model)
    other = keras.models.clone_model(layer, clone_function=_copy) if whole else _copy(layer)
    for variable, value in zip(other.variables, layer.variables, strict=True):
        variable.assign(keras.ops.convert_to_numpy(value))
    return other


def _copy(layer):
    config = layer.get_config()
    if isinstance(layer, layers.BatchNormalization):
        config["synchronized"] = keras.backend.backend() == "tensorflow"  # JAX knows only the whole batch
    return layer.__class__.from_config(config)


class OwnRandomNumbers(keras.callbacks.Callback):
    """Gives each of TensorFlow's devices random numbers of its own when a training begins or goes on.

    All start from the same state, and would drop the same units and turn the n-th face of their part by the same angle.
    A checkpoint holds the state of the first device, from which those of the others follow.
    """

    def on_train_begin(self, logs=None):
        strategy = self.model.distribute_strategy
        states = [v for v in self.model.variables if v.path.endswith("seed_generator_state")]

        def set_apart():
            import tensorflow as tf

            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in states:
                state.assign(state + np.array([1, 0]) * number)

        strategy.run(set_apart)
