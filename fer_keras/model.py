"""The networks: VGGNet and the averaging ensemble, as plain Keras models."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops, regularizers

from fer_keras.data import CLASS_NAMES

# Filters of the four stages, and units of the two dense layers, at width 1.
FILTERS = (64, 128, 256, 512)
UNITS = 4096
HEADS = ("dense", "pooling")
# The layers of usef-kh's PyTorch network (github.com/usef-kh/fer, models/vgg.py), by its names, and ours.
PYTORCH_LAYERS = {
    f"{theirs}{stage}{letter}": f"block{stage}{letter}_{ours}"
    for stage in range(1, len(FILTERS) + 1)
    for letter in "ab"
    for theirs, ours in (("conv", "conv"), ("bn", "bn"))
} | {"lin1": "dense1", "lin2": "dense2", "lin3": "logits"}


def vggnet(
    num_classes: int = 7,
    image_size: tuple[int, int] = (48, 48),
    channels: int = 1,
    width: float = 1.0,
    dropout: float = 0.2,
    l1: float = 0.0,
    l2: float = 0.0,
    crop: int = 0,
    head: str = "dense",
) -> keras.Model:
    """Build the VGGNet of Khaireddin and Chen, from raw faces to class probabilities.

    Four stages of two blocks (3×3 convolution, batch normalisation, ReLU) with 64, 128, 256 and 512 filters, each stage
    closed by a 2×2 max-pool; then twice dense 4096, ReLU, dropout; then dense softmax. Rescaling to 0–1 is the first
    layer, so preprocessing exists once, inside the saved model. With the head "pooling" the mean over all places takes
    the part of the two dense layers (Lin et al. 2013), which hold 36 of the 40 million weights of a 48×48 face.

    Args:
        num_classes: number of expressions, at least 2.
        image_size: height and width of the faces, each at least 16 (four pools halve it four times).
        channels: 1 for grey, 3 for RGB.
        width: factor on all filters and dense units; 0.25 has 1/16 of the weights.
        dropout: share of dense units dropped in training, 0 ≤ dropout < 1. The paper's code uses 0.2.
        l1, l2: factors of the L1 and the L2 penalty on all kernels, 0 for none.
        crop: side of the central square that the network sees, 0 for the whole face. With 40 at 48×48 the shapes are
            the paper's, and training may shift the face by ±4 pixels.
        head: "dense", three dense layers, or "pooling", global average pooling, dropout and one dense layer.

    Returns:
        A `keras.Model` from uint8 (batch, height, width, channels), 0–255, to float32 (batch, num_classes).

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Khaireddin and Chen, "Facial Emotion Recognition: State of the Art Performance on FER2013", arXiv 2105.03588.
        Lin, Chen and Yan, "Network In Network", arXiv 1312.4400.
    """
    if head not in HEADS:
        raise ValueError(f"`head` must be one of {', '.join(HEADS)}. Received: {head!r}")
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
    if head == "pooling":
        x = layers.GlobalAveragePooling2D(name="pooling")(x)
        x = layers.Dropout(dropout, name="dropout")(x)
    else:
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


def copy_weights(
    source: keras.Model,
    target: keras.Model,
    name: str,
    source_classes: Sequence[str] = CLASS_NAMES,
    target_classes: Sequence[str] = CLASS_NAMES,
) -> list[str]:
    """Give `target` the weights of `source`, for a run that starts from another one.

    Where the two differ in their channels, the kernels of the first convolution are repeated over the three channels
    and divided by three (or added up), so that a face in equal channels gives what it gave in grey. Where they differ
    in their classes, the weights of each class go by its name, and a new class keeps what it was initialised with.
    Where they differ in their heads, the convolutions and normalisations are carried over, and the layers after them
    keep what they were initialised with.

    Args:
        name: what to call `source` in the error.
        source_classes, target_classes: class names in the order of the outputs.

    Returns:
        One sentence for each such change.

    Raises:
        ValueError: if the two differ in another way; the first layer that differs is named.
    """
    said, weights = [], []
    layers_of_both, fresh = list(zip(source.layers, target.layers, strict=False)), []
    if head_of(source) != head_of(target):
        at = [layer.name for layer in target.layers].index(f"block{len(FILTERS)}_pool") + 1
        layers_of_both, fresh = layers_of_both[:at], target.layers[at:]
        said.append(
            f"The convolutions of {name} are carried over; its head is {head_of(source)!r}, and the new one, "
            f"{head_of(target)!r}, starts afresh."
        )
    for a, b in layers_of_both:
        values = [ops.convert_to_numpy(w) for w in a.weights]
        shapes = [w.shape for w in values], [tuple(w.shape) for w in b.weights]
        if a.name == b.name == "block1a_conv" and {w[0][2] for w in shapes} == {1, 3}:
            channels = shapes[1][0][2]
            kernel = values[0].sum(axis=2, keepdims=True)
            values[0] = kernel if channels == 1 else np.repeat(kernel / 3, 3, axis=2)
            said.append(
                f"The first kernels of {name} are "
                + ("repeated over three channels." if channels == 3 else "added up over three channels.")
            )
        elif a.name == b.name == "logits" and tuple(source_classes) != tuple(target_classes):
            values, new = _by_class(values, b, source_classes, target_classes)
            said.append(f"The outputs of {name} go by class name" + (f"; new: {', '.join(new)}." if new else "."))
        elif shapes[0] != shapes[1]:
            raise ValueError(
                f"The run starts from {name}, whose layer {a.name!r} has other shapes: {shapes[0]}, here {shapes[1]}. "
                "Use the same `image_size`, `crop` and `width`, or start from another run."
            )
        weights += values
    if source.input_shape[1:3] != target.input_shape[1:3]:
        raise ValueError(
            f"The run starts from {name}, which takes faces of {source.input_shape[1:]}, but here they are "
            f"{target.input_shape[1:]}. Use the same `image_size`, or start from another run."
        )
    target.set_weights(weights + [ops.convert_to_numpy(w) for layer in fresh for w in layer.weights])
    return said


def head_of(network: keras.Model) -> str:
    """Which of `HEADS` a network has."""
    return "pooling" if any(layer.name == "pooling" for layer in network.layers) else "dense"


def _by_class(values, layer, source_classes, target_classes):
    """Weights of the last layer for other classes, and the names of those that are new."""
    found = [ops.convert_to_numpy(w) for w in layer.weights]
    new = [name for name in target_classes if name not in source_classes]
    for at, class_name in enumerate(target_classes):
        if class_name not in new:
            for here, there in zip(found, values, strict=True):
                here[..., at] = there[..., list(source_classes).index(class_name)]
    return found, new


def float32(model: keras.Model) -> keras.Model:
    """Rebuild `model` with all layers in float32 and no optimizer state, which is what a run saves."""

    def rebuild(layer):
        config = layer.get_config()
        config["dtype"] = "uint8" if isinstance(layer, layers.InputLayer) else "float32"
        return layer.__class__.from_config(config)

    plain = keras.models.clone_model(model, clone_function=rebuild)
    plain.set_weights([ops.convert_to_numpy(w) for w in model.weights])
    return plain


def from_pytorch(path: str | Path, crop: int = 40) -> keras.Model:
    """Import a checkpoint of usef-kh's VGGNet, the code of Khaireddin and Chen, as a Keras model.

    No code in the file is run: it is read with `weights_only=True`, which knows tensors and plain values only. That is
    enough for the files that their code writes: its `logs` are four lists of numbers.

    Args:
        path: what their code saves, `{"params": state_dict, "logs": …}`, or a bare state dict.
        crop: see `from_state_dict`.

    Returns:
        See `from_state_dict`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if PyTorch is not installed, the file is no such checkpoint, or its weights do not fit.

    Reference:
        https://github.com/usef-kh/fer, of arXiv 2105.03588.
    """
    if not (file := Path(path).expanduser()).is_file():
        raise FileNotFoundError(
            f"There is no file {str(path)!r}. Give the path of a PyTorch checkpoint of usef-kh's VGGNet: "
            "-p checkpoint PATH."
        )
    try:
        import torch
    except ImportError:
        raise ValueError(
            "Reading a PyTorch checkpoint needs PyTorch: pip install -e '.[torch]' in the project's folder."
        ) from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # PyTorch raises many kinds, and its text advises to run the file's code
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint: it is damaged or something else, or holds objects beside "
            "tensors and plain values, which are not loaded because they could run code. If you trust it, save its "
            "weights alone: torch.save(net.state_dict(), path)."
        ) from None
    weights = content.get("params", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(
            f"{path} is no checkpoint of usef-kh's VGGNet: it must hold a state dict of tensors, bare or as 'params'. "
            f"Received: {_named(content) if isinstance(content, dict) else type(content).__name__}"
        )
    try:
        return from_state_dict({name: value.detach().float().numpy() for name, value in weights.items()}, crop)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_state_dict(arrays: Mapping[str, np.ndarray], crop: int = 40) -> keras.Model:
    """Build the VGGNet with the weights of usef-kh's PyTorch network.

    The width and the number of classes are told from the shapes. PyTorch flattens (channels, height, width) where Keras
    flattens (height, width, channels), so the first dense layer's inputs are put in order.

    Args:
        arrays: by PyTorch's names, `conv1a.weight` to `lin3.bias`; `num_batches_tracked` is not needed.
        crop: side of the central square that the network sees, as it was trained: 40, in their code.

    Returns:
        A `keras.Model` from uint8 (batch, 48, 48, 1), 0–255, to probabilities, as from `vggnet`. Their code, too,
        divides pixels by 255 once, and orders the classes by FER2013's codes.

    Raises:
        ValueError: if a name is missing or unknown, a shape does not fit, or a value is not finite.
    """
    norms = [name for name in PYTORCH_LAYERS if name.startswith("bn")]
    parts = {name: ["weight", "bias"] for name in PYTORCH_LAYERS}
    parts |= {name: ["weight", "bias", "running_mean", "running_var"] for name in norms}  # in Keras's order
    wanted = [f"{name}.{part}" for name, each in parts.items() for part in each]
    known = {*wanted, *(f"{name}.num_batches_tracked" for name in norms)}
    missing, unknown = [n for n in wanted if n not in arrays], [n for n in arrays if n not in known]
    if missing or unknown:
        raise ValueError(
            "The weights are not those of usef-kh's VGGNet, conv1a to conv4b, bn1a to bn4b, lin1 to lin3. "
            f"Missing: {_named(missing)}; unknown: {_named(unknown)}."
        )
    width, num_classes = arrays["conv1a.bias"].size / FILTERS[0], arrays["lin3.bias"].size
    network = vggnet(num_classes, width=width, crop=crop)
    height, breadth, channels = network.get_layer("flatten").input.shape[1:]
    for name, layer in PYTORCH_LAYERS.items():
        values = []
        for part, weight in zip(parts[name], network.get_layer(layer).weights, strict=True):
            value = np.asarray(arrays[f"{name}.{part}"], "float32")
            shape = tuple(weight.shape)  # Keras has (height, width, in, out) or (in, out)
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
            if value.shape != shape:
                raise ValueError(
                    f"{name}.{part} must be {shape} in a network of width {width:g} that sees {crop}×{crop} pixels. "
                    f"Received: {value.shape}"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"{name}.{part} holds values that are not finite numbers: the training had failed.")
            if name == "lin1" and part == "weight":
                value = value.reshape(-1, channels, height, breadth).transpose(0, 2, 3, 1).reshape(shape)
            values.append(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T)
        network.get_layer(layer).set_weights(values)
    return network


def _named(names: Sequence[str] | Mapping) -> str:
    """The first names of many, for an error."""
    names = [str(name) for name in names]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"
