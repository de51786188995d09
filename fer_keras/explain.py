"""Which pixels decide: saliency, Grad-CAM and occlusion maps of a network, for any class.

Keras has no function for gradients that all its backends share; training is what they share. So a gradient is taken as
what one step of plain gradient descent does: what the score shall be differentiated by is made the only thing that
trains, and the step, at a learning rate of 1, is its gradient. Occlusion needs no gradient, and checks the other two.
"""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import layers, ops

BATCH = 64  # faces in a step; bounds the memory


class _Changed(layers.Layer):
    """A network's scores of constant values plus a weight that begins at zero, so that a small step is not rounded."""

    def __init__(self, network, values):
        super().__init__(dtype="float32")
        self.network, self.values = network, values

    def build(self, input_shape):
        self.change = self.add_weight(shape=self.values.shape, initializer="zeros", name="change")

    def call(self, unused):
        # In training as in prediction: no dropout.
        return self.network(ops.convert_to_tensor(self.values) + self.change, training=False)


def gradient(network: keras.Model, values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Gradient of one output for each input, by what goes in.

    Args:
        network: from float (batch, …) to scores (batch, num_classes); its layers act as in prediction.
        values: float32 (n, …), what goes in, an array or a tensor.
        classes: int (n,), which output of each.

    Returns:
        float32, as `values`.
    """
    trainable = network.trainable
    network.trainable = False
    try:
        changed = _Changed(network, ops.convert_to_numpy(values).astype("float32"))
        inner = keras.Sequential([keras.Input((1,)), changed])
        inner.compile(
            keras.optimizers.SGD(1.0),
            # Keras takes the mean of what the faces have; each shall have its own gradient.
            loss=lambda wanted, scores: -ops.sum(wanted * scores, axis=-1) * len(values),
            # It is made for one step: to trace it would take longer, and TensorFlow warns of so many traces.
            run_eagerly=keras.backend.backend() == "tensorflow",
            jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
        )
        inner.train_on_batch(np.zeros((len(values), 1), "float32"), np.eye(network.output_shape[-1])[classes])
        return ops.convert_to_numpy(changed.change)
    finally:
        network.trainable = trainable


def _between(model: keras.Model, first: str) -> tuple[keras.Model, keras.Model]:
    """The network up to a layer's output, and from there to the scores before the softmax."""
    if not all(_has(model, name) for name in (first, "logits")):
        raise ValueError(
            f"Maps need a VGGNet of `fer_keras.model.vggnet`, and {model.name!r} has no layers {first!r} and 'logits'. "
            "Of an ensemble, give one of its members."
        )
    at = model.get_layer(first).output
    return keras.Model(model.input, at), keras.Model(at, model.get_layer("logits").output)


def saliency(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How much a class's score changes with each pixel: the size of its gradient.

    Args:
        model: from `fer_keras.model.vggnet`.
        images: uint8 (n, height, width, channels), 0–255.
        classes: int (n,), whose score, one for each face.

    Returns:
        float32 (n, height, width), ≥ 0; with several channels the largest of them, and 0 outside of the model's crop.

    Reference:
        Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", arXiv 1312.6034.
    """
    before, after = _between(model, "rescaling")
    return _in_parts(
        lambda part, wanted: np.abs(gradient(after, before(part, training=False), wanted)).max(axis=-1),
        images,
        classes,
    )


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray, layer: str = "block4b_relu") -> np.ndarray:
    """Where the last features speak for a class: their sum, each weighted by the mean gradient of the class's score.

    Args:
        model, images, classes: see `saliency`.
        layer: whose outputs are the features, (batch, rows, columns, filters).

    Returns:
        float32 (n, height, width), ≥ 0, the map of the features brought to the size of the face, and 0 outside of the
        model's crop.

    Reference:
        Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv 1610.02391.
    """
    before, after = _between(model, layer)
    seen = model.get_layer("crop").output.shape[1:3] if _has(model, "crop") else images.shape[1:3]
    border = [(side - inside) // 2 for side, inside in zip(images.shape[1:3], seen, strict=True)]

    def one(part, wanted):
        features = ops.convert_to_numpy(before(part, training=False))
        weights = gradient(after, features, wanted).mean(axis=(1, 2), keepdims=True)
        maps = np.maximum((features * weights).sum(axis=-1, keepdims=True), 0)
        maps = ops.convert_to_numpy(ops.image.resize(maps, seen, interpolation="bilinear"))[..., 0]
        return np.pad(maps, [(0, 0), *((each, each) for each in border)])

    return _in_parts(one, images, classes)


def _has(model, name):
    return any(layer.name == name for layer in model.layers)


def occlusion(
    model: keras.Model, images: np.ndarray, classes: np.ndarray, size: int = 10, stride: int = 4
) -> np.ndarray:
    """How much of a class's probability is lost when a square of the face is covered with its mean grey.

    Args:
        model, images, classes: see `saliency`.
        size: side of the square in pixels.
        stride: from one place of the square to the next.

    Returns:
        float32 (n, height, width): of each pixel the mean loss over the squares that cover it; negative where covering
        helps.

    Raises:
        ValueError: if the square does not fit into the face, or leaves pixels between its places.

    Reference:
        Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, arXiv 1311.2901.
    """
    height, width = images.shape[1:3]
    if not 1 <= stride <= size <= min(height, width):
        raise ValueError(
            f"`size` must be at most the face's {min(height, width)} pixels and `stride` at most `size`, both at least "
            f"1. Received: size={size}, stride={stride}"
        )
    rows, columns = ([*range(0, side - size, stride), side - size] for side in (height, width))
    at = np.arange(len(images))
    whole = model.predict(images, verbose=0)[at, classes]
    lost, covered = np.zeros((len(images), height, width), "float32"), np.zeros((height, width), "float32")
    grey = np.rint(images.mean(axis=(1, 2), keepdims=True)).astype("uint8")
    for top in rows:
        places = [(slice(top, top + size), slice(left, left + size)) for left in columns]
        changed = np.repeat(images[None], len(places), axis=0)
        for number, there in enumerate(places):
            changed[number, :, *there] = grey
        answers = model.predict(changed.reshape(-1, *images.shape[1:]), batch_size=256, verbose=0)
        for there, answer in zip(places, answers.reshape(len(places), len(images), -1), strict=True):
            lost[:, *there] += (whole - answer[at, classes])[:, None, None]
            covered[there] += 1
    return lost / covered


METHODS = {"saliency": saliency, "Grad-CAM": grad_cam, "occlusion": occlusion}


def _in_parts(function, images, classes):
    parts = range(0, len(images), BATCH)
    return np.concatenate([function(images[at : at + BATCH], classes[at : at + BATCH]) for at in parts])


# --- What maps say --------------------------------------------------------------------------------------------------


def mirror_agreement(method, model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How alike the maps of a face and of its mirror image are, when one of them is mirrored back.

    Args:
        method: one of `METHODS`, the function.
        model, images, classes: see `saliency`.

    Returns:
        float64 (n,), Pearson's correlation over the pixels; 1 for a network that has no preferred side, NaN where a
        map is the same everywhere.
    """
    maps, mirrored = (method(model, each, classes) for each in (images, np.ascontiguousarray(images[:, :, ::-1])))
    return correlation(maps, mirrored[:, :, ::-1])


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each pair of maps, (n, height, width), over their pixels; NaN of a constant one."""
    a, b = (maps.reshape(len(maps), -1).astype("float64") for maps in (first, second))
    a, b = (maps - maps.mean(axis=1, keepdims=True) for maps in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def surest(labels: np.ndarray, probabilities: np.ndarray, per_class: int) -> np.ndarray:
    """Positions of the faces that a network names rightly and most surely: some of each class, class by class.

    Raises:
        ValueError: if it names none rightly.
    """
    right = probabilities.argmax(axis=1) == labels
    if not right.any():
        raise ValueError(f"None of the {len(labels):,} faces is named rightly, so there is nothing to explain.")
    sure = probabilities[np.arange(len(labels)), labels]
    chosen = []
    for code in range(probabilities.shape[1]):
        those = np.flatnonzero(right & (labels == code))
        chosen.append(those[np.argsort(-sure[those], kind="stable")][:per_class])
    return np.concatenate(chosen)


def shares(maps: np.ndarray, bands: int = 3) -> np.ndarray:
    """How much of each map lies in the upper, the middle and the lower part of the face.

    Args:
        maps: float (n, height, width); what is negative counts as 0.
        bands: equal parts from top to bottom.

    Returns:
        float (n, bands), rows summing to 1; NaN of a map of zeros.
    """
    rows = np.maximum(maps, 0).sum(axis=2)
    sums = np.stack([part.sum(axis=1) for part in np.array_split(rows, bands, axis=1)], axis=1)
    with np.errstate(invalid="ignore"):
        return sums / sums.sum(axis=1, keepdims=True)


def pictures(images: np.ndarray, maps: Mapping[str, np.ndarray], titles: Sequence[str]):
    """Faces in one row, and below each its maps, laid over it; returns the figure.

    Args:
        images: uint8 (n, height, width, channels).
        maps: by name, (n, height, width); each is scaled by its own largest value.
        titles: of the faces.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1 + len(maps),
        len(images),
        figsize=(1.25 * len(images), 1.35 * (1 + len(maps))),
        layout="constrained",
        squeeze=False,
    )
    for column, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes[0, column].set_title(title, fontsize=8)
        for row, ax in enumerate(axes[:, column]):
            ax.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            if row:
                one = np.maximum(list(maps.values())[row - 1][column], 0)
                ax.imshow(one, cmap="inferno", alpha=0.6, vmin=0, vmax=max(float(one.max()), 1e-12))
    for row, name in enumerate(["face", *maps]):
        axes[row, 0].set_ylabel(name, fontsize=8)
    return figure
