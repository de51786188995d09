"""Changed faces: at every step inside the compiled graph (`online`, `mixing`), or once before training (`subset`)."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from fer_keras.data import Faces

# Columns of `Faces.changes`: mirrored (0 or 1), angle in degrees, standard deviation of the noise in grey levels, and
# the seed that the noise is drawn from.
CHANGES = ("flip", "rotation", "noise", "noise_seed")


# --- Anew at every step -----------------------------------------------------------------------------------------------


def online(
    flip: bool = False,
    rotation: float = 0.0,
    translation: float = 0.0,
    zoom: float = 0.0,
    shift: int = 0,
    image_size: tuple[int, int] = (48, 48),
    noise: float = 0.0,
    erasing: float = 0.0,
    randaugment: float = 0.0,
) -> keras.Sequential | None:
    """Build the augmentation of a training, or None when every strength is 0.

    Args:
        flip: mirror half of the faces left to right.
        rotation: largest angle in degrees, either way.
        translation: largest move as a share of height and width, either way.
        zoom: largest zoom as a share, in and out.
        shift: largest move in whole pixels; with a model that sees the central 40×40 of 48×48, `shift=4` is the
            paper's random crop, since the border that comes in stays outside the crop.
        image_size: height and width of the faces.
        noise: standard deviation of Gaussian noise, in grey levels.
        erasing: share of the faces of which a random rectangle is replaced by noise (Zhong et al. 2017).
        randaugment: strength, 0–1, of two random changes of Keras's `RandAugment` (Cubuk et al. 2019).

    Returns:
        A `keras.Sequential` that acts only with `training=True`, from and to float (batch, height, width, channels),
        0–255; new pixels at the border repeat the nearest one.

    Raises:
        ValueError: if a strength is out of its range.
    """
    if not (0 <= rotation <= 180 and 0 <= translation < 1 and 0 <= zoom < 1 and 0 <= shift < min(image_size)):
        raise ValueError(
            "`rotation` must be 0–180 degrees, `translation` and `zoom` in [0, 1), `shift` smaller than the face. "
            f"Received: rotation={rotation}, translation={translation}, zoom={zoom}, shift={shift}"
        )
    if not (0 <= noise <= 255 and 0 <= erasing <= 1 and 0 <= randaugment <= 1):
        raise ValueError(
            "`noise` must be 0–255 grey levels, `erasing` and `randaugment` in [0, 1]. "
            f"Received: noise={noise}, erasing={erasing}, randaugment={randaugment}"
        )
    # float32 also under mixed precision: between 128 and 256, bfloat16 has no halves to interpolate with.
    common = {"fill_mode": "nearest", "dtype": "float32"}
    steps = []
    if flip:
        steps.append(layers.RandomFlip("horizontal", dtype="float32"))
    if rotation:
        steps.append(layers.RandomRotation(rotation / 360, **common))
    if translation:
        steps.append(layers.RandomTranslation(translation, translation, **common))
    if zoom:
        steps.append(layers.RandomZoom(zoom, zoom, **common))
    if shift:
        # Half a pixel more on either side, so that rounding makes all whole moves equally likely.
        factors = [(shift + 0.499) / side for side in image_size]
        steps.append(layers.RandomTranslation(*factors, interpolation="nearest", **common))
    if randaugment:
        steps.append(ColorRandAugment(randaugment, dtype="float32"))
    if noise:
        # Keras's layer takes a deviation of at most 1; 256 is a power of two, so that scaling back is exact.
        steps += [layers.Rescaling(1 / 256, dtype="float32"), layers.GaussianNoise(noise / 256, dtype="float32")]
        steps.append(layers.Rescaling(256, dtype="float32"))
    if erasing:
        # Keras draws the chance between its bounds for every face, so both are the same.
        steps.append(layers.RandomErasing(factor=(erasing, erasing), value_range=(0, 255), dtype="float32"))
    return keras.Sequential(steps, name="augmentation") if steps else None


class ColorRandAugment(layers.Layer):
    """Keras's `RandAugment` for faces of any number of channels: some of its changes need three."""

    def __init__(self, strength, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.RandAugment(value_range=(0, 255), factor=strength, dtype="float32")

    def build(self, input_shape):
        self.inner.build((*input_shape[:-1], 3))

    def call(self, faces, training=False):
        if not training:
            return faces
        if faces.shape[-1] == 3:
            return self.inner(faces, training=True)
        return ops.mean(self.inner(ops.repeat(faces, 3, axis=-1), training=True), axis=-1, keepdims=True)


def mixing(mixup: float = 0.0, cutmix: float = 0.0) -> keras.Layer | None:
    """Build the layer that mixes the faces of a batch in pairs, and their labels with them, or None when both are 0.

    Args:
        mixup: parameter of the beta distribution of the share of each face (Zhang et al. 2017).
        cutmix: the same for the area of the rectangle that comes from the other face (Yun et al. 2019), up to 1.

    Returns:
        A Keras layer from and to {"images": float (batch, height, width, channels), "labels": float (batch, classes)}.

    Raises:
        ValueError: if both are set, or one is out of its range.
    """
    if mixup < 0 or not 0 <= cutmix <= 1 or (mixup and cutmix):
        raise ValueError(
            f"`mixup` must be ≥ 0 and `cutmix` in [0, 1], and one of them 0. Received: mixup={mixup}, cutmix={cutmix}"
        )
    if mixup:
        return layers.MixUp(alpha=mixup, dtype="float32")
    return layers.CutMix(factor=(cutmix, cutmix), dtype="float32") if cutmix else None


# --- Once before training ---------------------------------------------------------------------------------------------


def subset(
    faces: Faces, per_class: int, flip: bool = True, rotation: float = 0.0, noise: float = 0.0, random_state: int = 0
) -> Faces:
    """Draw as many faces of each class, and change each in none, one or several ways, once.

    Every way that is on happens to a face with probability one half.

    Args:
        faces: those to draw from, without replacement.
        per_class: how many of each class.
        flip: mirror left to right.
        rotation: largest angle in degrees; drawn evenly from −rotation to rotation.
        noise: largest standard deviation of Gaussian noise, in grey levels; drawn evenly from 0 to `noise`.
        random_state: seed of all draws.

    Returns:
        `Faces` (per_class · classes), in the order of `faces`; `changes` records what was done to each.

    Raises:
        ValueError: if a class has too few faces, or a value is out of its range.
    """
    if per_class < 1 or not 0 <= rotation <= 180 or not 0 <= noise <= 255:
        raise ValueError(
            "`subset_per_class` must be at least 1, `subset_rotation` 0–180 degrees, `subset_noise` 0–255 grey levels. "
            f"Received: {per_class}, {rotation}, {noise}"
        )
    counts = {name: count for name, count in faces.class_counts().items() if count}
    if short := [f"{name} {count:,}" for name, count in counts.items() if count < per_class]:
        raise ValueError(
            f"An augmented subset of {per_class:,} faces of each class cannot be drawn from {', '.join(short)}. "
            "Lower `subset_per_class`, or balance first: `resampling: ros`."
        )
    rng = np.random.default_rng(random_state)
    drawn = [rng.choice(np.flatnonzero(faces.labels == label), per_class, False) for label in np.unique(faces.labels)]
    chosen = faces.take(np.sort(np.concatenate(drawn)))
    n = len(chosen)
    changed = rng.random((n, 3)) < 0.5
    angles, deviations = rng.uniform(-rotation, rotation, n), rng.uniform(0, noise, n)
    seeds = rng.integers(2**31, size=n)
    noisy = changed[:, 2] & (noise > 0)
    columns = [changed[:, 0] * flip, changed[:, 1] * angles, noisy * deviations, noisy * seeds]
    changes = np.stack(columns, axis=1).astype("float64")
    return replace(chosen, images=change(chosen.images, changes), changes=changes)


def describe(faces: Faces) -> pd.DataFrame:
    """How many faces of an augmented subset were changed in which ways."""
    done = pd.DataFrame(faces.changes[:, :3] != 0, columns=CHANGES[:3])
    counts = done.value_counts().rename("faces").reset_index().sort_values(list(CHANGES[:3]), ignore_index=True)
    return counts.replace({name: {True: "yes", False: "–"} for name in CHANGES[:3]})


def change(images: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """Mirror, turn and add noise, to each face as its row of `changes` says; a row of zeros leaves it as it is.

    Args:
        images: uint8 (n, height, width, channels), 0–255.
        changes: float64 (n, 4), columns as in `CHANGES`.

    Returns:
        uint8, as `images`; new pixels at the border repeat the nearest one.
    """
    images = np.array(images)
    mirrored = changes[:, 0] > 0
    images[mirrored] = images[mirrored, :, ::-1]
    for start in range(0, len(images), 1024):  # bounded memory
        part = np.arange(start, min(start + 1024, len(images)))
        turned = part[changes[part, 1] != 0]
        pixels = images[part].astype("float32")
        if len(turned):
            pixels[turned - start] = _turn(pixels[turned - start], changes[turned, 1])
        for at in np.flatnonzero(changes[part, 2] > 0):
            rng = np.random.default_rng(int(changes[start + at, 3]))
            pixels[at] += rng.normal(0, changes[start + at, 2], pixels[at].shape)
        images[part] = np.rint(np.clip(pixels, 0, 255))
    return images


def _turn(images, degrees):
    """Faces turned counter-clockwise by an angle each, as `RandomRotation` does by angles that it draws itself."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    y, x = ((side - 1) / 2 for side in images.shape[1:3])  # the centre stays where it is
    zero = np.zeros_like(angle)
    rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero]
    transform = np.stack(rows, axis=1).astype("float32")
    return ops.convert_to_numpy(ops.image.affine_transform(images, transform, "bilinear", "nearest"))
