"""Random changes of the faces that train, made anew at every step inside the compiled graph by Keras layers."""

import keras
from keras import layers


def online(
    flip: bool = False,
    rotation: float = 0.0,
    translation: float = 0.0,
    zoom: float = 0.0,
    shift: int = 0,
    image_size: tuple[int, int] = (48, 48),
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
    return keras.Sequential(steps, name="augmentation") if steps else None
