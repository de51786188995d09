import keras
import numpy as np
import pytest
from keras import ops

from fer_keras import augment


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def images(faces):
    return faces.images[:64].astype("float32")


def applied(layer, images, training=True):
    return ops.convert_to_numpy(layer(ops.convert_to_tensor(images), training=training))


STRENGTHS = [{"flip": True}, {"rotation": 20.0}, {"translation": 0.1}, {"zoom": 0.1}, {"shift": 4}]


def test_no_strength_is_no_augmentation():
    assert augment.online() is None
    assert augment.online(False, 0.0, 0.0, 0.0, 0) is None


@pytest.mark.parametrize("given", [*STRENGTHS, {k: v for one in STRENGTHS for k, v in one.items()}], ids=str)
def test_faces_change_in_training_only(images, given):
    layer = augment.online(**given)
    np.testing.assert_array_equal(applied(layer, images, training=False), images)
    changed = applied(layer, images)
    assert changed.shape == images.shape and changed.dtype == "float32"
    assert np.mean(np.any(changed != images, axis=(1, 2, 3))) > 0.3
    assert not np.array_equal(changed, applied(layer, images)), "made anew at every step"
    # Interpolation in float32 may pass the end of the range by its rounding.
    assert changed.min() >= images.min() - 1e-2 and changed.max() <= images.max() + 1e-2


def test_faces_are_changed_in_float32_under_mixed_precision_too(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = augment.online(rotation=20.0, zoom=0.1)
    finally:
        keras.config.set_dtype_policy("float32")
    changed = applied(layer, images)
    assert changed.dtype == "float32"
    # bfloat16 has whole numbers only from 128 on; interpolation gives others.
    assert np.mean(changed[changed > 128] % 1 > 0) > 0.5


def test_flip_mirrors_about_half_of_the_faces_exactly(images):
    changed = applied(augment.online(flip=True), images)
    kept = np.all(changed == images, axis=(1, 2, 3))
    mirrored = np.all(changed == images[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(kept ^ mirrored)
    # 64 fair coins: 16 heads or fewer, or 48 or more, happen once in 10,000 times; and the seed is fixed.
    assert 16 < mirrored.sum() < 48


def test_shift_moves_by_whole_pixels_and_what_comes_in_stays_outside_the_crop():
    """Every pixel of a 48×48 face has its own value, so a moved face shows where each pixel came from."""
    source = np.arange(48 * 48, dtype="float32").reshape(1, 48, 48, 1)
    changed = applied(augment.online(shift=4), np.repeat(source, 500, axis=0))
    moves = set()
    for crop in changed[:, 4:44, 4:44, 0]:
        y, x = divmod(int(crop[0, 0]), 48)
        np.testing.assert_array_equal(crop, source[0, y : y + 40, x : x + 40, 0])
        moves.add((y, x))
    assert {y for y, _ in moves} == {x for _, x in moves} == set(range(9))
    assert len(moves) > 60, "both directions move independently"


def test_new_pixels_repeat_the_border():
    source = np.repeat(np.arange(48, dtype="float32")[None, None, :, None], 48, axis=1)
    changed = applied(augment.online(shift=8), np.repeat(source, 50, axis=0))[:, 0, :, 0]
    left, right = changed[:, 0], changed[:, -1]
    for row in changed:
        shift = 47 - row[-1] if row[0] == 0 else -row[0]
        np.testing.assert_array_equal(row, np.clip(np.arange(48) - shift, 0, 47))
    assert left.max() > 0 and right.min() < 47


def test_height_and_width_shift_by_the_same_number_of_pixels():
    source = np.arange(64 * 48, dtype="float32").reshape(1, 64, 48, 1)
    changed = applied(augment.online(shift=3, image_size=(64, 48)), np.repeat(source, 200, axis=0))
    starts = [divmod(int(first), 48) for first in changed[:, 3, 3, 0]]
    assert {y for y, _ in starts} == {x for _, x in starts} == set(range(7))


def test_rotation_is_in_degrees():
    """A bright bar turned by at most 10 degrees stays within them: its tip, 20 pixels out, moves 20 · sin 10° = 3.5."""
    bar = np.zeros((1, 48, 48, 1), "float32")
    bar[:, 4:44, 23:25] = 255
    changed = applied(augment.online(rotation=10.0), np.repeat(bar, 100, axis=0))[:, 5, :, 0]
    tips = (changed * np.arange(48)).sum(axis=1) / changed.sum(axis=1) - 23.5
    assert 2.5 < np.abs(tips).max() < 3.6


@pytest.mark.parametrize(
    "given",
    [
        {"rotation": -1.0},
        {"rotation": 181.0},
        {"translation": 1.0},
        {"translation": -0.1},
        {"zoom": 1.0},
        {"zoom": -0.1},
        {"shift": 48},
        {"shift": -1},
        {"shift": 32, "image_size": (48, 32)},
    ],
    ids=str,
)
def test_a_strength_out_of_range_is_refused(given):
    with pytest.raises(ValueError, match=r"`rotation` must be 0–180 degrees.*Received: rotation="):
        augment.online(**given)
