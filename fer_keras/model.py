"""The networks: VGGNet and the averaging ensemble, as plain Keras models."""

from collections.abc import Sequence

import keras
from keras import layers, ops, regularizers

# Filters of the four stages, and units of the two dense layers, at width 1.
FILTERS = (64, 128, 256, 512)
UNITS = 4096


def vggnet(
    num_classes: int = 7,
    image_size: tuple[int, int] = (48, 48),
    channels: int = 1,
    width: float = 1.0,
    dropout: float = 0.2,
    l1: float = 0.0,
    l2: float = 0.0,
    crop: int = 0,
) -> keras.Model:
    """Build the VGGNet of Khaireddin and Chen, from raw faces to class probabilities.

    Four stages of two blocks (3×3 convolution, batch normalisation, ReLU) with 64, 128, 256 and 512 filters, each stage
    closed by a 2×2 max-pool; then twice dense 4096, ReLU, dropout; then dense softmax. Rescaling to 0–1 is the first
    layer, so preprocessing exists once, inside the saved model.

    Args:
        num_classes: number of expressions, at least 2.
        image_size: height and width of the faces, each at least 16 (four pools halve it four times).
        channels: 1 for grey, 3 for RGB.
        width: factor on all filters and dense units; 0.25 has 1/16 of the weights.
        dropout: share of dense units dropped in training, 0 ≤ dropout < 1. The paper's code uses 0.2.
        l1, l2: factors of the L1 and the L2 penalty on all kernels, 0 for none.
        crop: side of the central square that the network sees, 0 for the whole face. With 40 at 48×48 the shapes are
            the paper's, and training may shift the face by ±4 pixels.

    Returns:
        A `keras.Model` from uint8 (batch, height, width, channels), 0–255, to float32 (batch, num_classes).

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Khaireddin and Chen, "Facial Emotion Recognition: State of the Art Performance on FER2013", arXiv 2105.03588.
    """
    side = crop if crop else min(image_size)
    if side < 16 or crop > min(image_size) or (crop and any((size - crop) % 2 for size in image_size)):
        raise ValueError(
            "`image_size` (or `crop`, which must fit into it with equal borders) must be at least 16 for four pools. "
            f"Received: image_size={image_size}, crop={crop}"
        )
    if num_classes < 2 or channels not in (1, 3) or width <= 0 or not 0 <= dropout < 1 or min(l1, l2) < 0:
        raise ValueError(
            "`num_classes` must be at least 2, `channels` 1 or 3, `width` above 0, `dropout` in [0, 1), `l1` and "
            f"`l2` ≥ 0. Received: num_classes={num_classes}, channels={channels}, width={width}, dropout={dropout}, "
            f"l1={l1}, l2={l2}"
        )
    penalty = regularizers.L1L2(l1, l2) if l1 else regularizers.L2(l2) if l2 else None

    def block(x, filters, name):
        x = layers.Conv2D(filters, 3, padding="same", kernel_regularizer=penalty, name=f"{name}_conv")(x)
        # PyTorch's defaults, which the paper's code uses: Keras's own momentum of 0.99 lags behind in short trainings.
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    inputs = layers.Input((*image_size, channels), dtype="uint8", name="faces")
    x = layers.Rescaling(1 / 255, name="rescaling")(inputs)
    if crop:
        x = layers.CenterCrop(crop, crop, name="crop")(x)
    for stage, filters in enumerate(FILTERS, start=1):
        filters = max(1, round(filters * width))
        x = block(x, filters, f"block{stage}a")
        x = block(x, filters, f"block{stage}b")
        x = layers.MaxPooling2D(2, name=f"block{stage}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for number in (1, 2):
        units = max(1, round(UNITS * width))
        x = layers.Dense(units, activation="relu", kernel_regularizer=penalty, name=f"dense{number}")(x)
        x = layers.Dropout(dropout, name=f"dropout{number}")(x)
    x = layers.Dense(num_classes, kernel_regularizer=penalty, name="logits")(x)
    # float32 also under mixed precision: a softmax in 16 bits loses the small probabilities that log loss needs.
    outputs = layers.Softmax(dtype="float32", name="probabilities")(x)
    return keras.Model(inputs, outputs, name="vggnet")


def ensemble(models: Sequence[keras.Model]) -> keras.Model:
    """Average the softmax outputs of several models, as one Keras model.

    Args:
        models: at least two models of equal input and output shape; the class order must be the same, which a model
            does not know: `fer_keras.run.check_members` compares it from the runs' folders.

    Returns:
        A `keras.Model` whose output is the mean of the members' probabilities.

    Raises:
        ValueError: if there are fewer than two models, or if their shapes differ.
    """
    if len(models) < 2:
        raise ValueError(f"An ensemble needs at least two models. Received: {len(models)}")
    shapes = [(model.input_shape, model.output_shape) for model in models]
    if len(set(shapes)) > 1:
        raise ValueError(f"The members of an ensemble must have equal input and output shapes. Received: {shapes}")
    inputs = layers.Input(models[0].input_shape[1:], dtype="uint8", name="faces")
    members = []
    for number, model in enumerate(models, start=1):
        member = keras.models.clone_model(model)  # so that the caller's models keep their own names
        member.set_weights(model.get_weights())
        member.name = f"member{number}"
        members.append(member(inputs))
    return keras.Model(inputs, layers.Average(dtype="float32", name="probabilities")(members), name="ensemble")


def copy_weights(source: keras.Model, target: keras.Model, name: str) -> None:
    """Give `target` the weights of `source`, for a run that starts from another one.

    Args:
        name: what to call `source` in the error.

    Raises:
        ValueError: if the two differ in a shape; the first layer that differs is named.
    """
    for a, b in zip(source.layers, target.layers, strict=False):
        shapes = [tuple(w.shape) for w in a.weights], [tuple(w.shape) for w in b.weights]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"The run starts from {name}, whose layer {a.name!r} has other shapes: {shapes[0]}, here {shapes[1]}. "
                "Use the same `image_size`, `crop`, `width` and number of classes, or start from another run."
            )
    if source.input_shape != target.input_shape:
        raise ValueError(
            f"The run starts from {name}, which takes faces of {source.input_shape[1:]}, but here they are "
            f"{target.input_shape[1:]}. Use the same `image_size` and channels, or start from another run."
        )
    target.set_weights(source.get_weights())


def float32(model: keras.Model) -> keras.Model:
    """Rebuild `model` with all layers in float32 and no optimizer state, which is what a run saves."""

    def rebuild(layer):
        config = layer.get_config()
        config["dtype"] = "uint8" if isinstance(layer, layers.InputLayer) else "float32"
        return layer.__class__.from_config(config)

    plain = keras.models.clone_model(model, clone_function=rebuild)
    plain.set_weights([ops.convert_to_numpy(w) for w in model.weights])
    return plain
