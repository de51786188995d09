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
# They may leave the range of 0–255, or of the faces given.
NOISY = [{"noise": 10.0}, {"erasing": 1.0}, {"randaugment": 0.3}]


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


@pytest.mark.parametrize("given", NOISY, ids=str)
def test_noise_erasing_and_randaugment_act_in_training_only(images, given):
    layer = augment.online(**given)
    np.testing.assert_array_equal(applied(layer, images, training=False), images)
    changed = applied(layer, images)
    assert changed.shape == images.shape and changed.dtype == "float32" and np.isfinite(changed).all()
    assert np.mean(np.any(changed != images, axis=(1, 2, 3))) > 0.3


def test_noise_has_its_deviation_in_grey_levels():
    grey = np.full((50, 48, 48, 1), 128.0, "float32")
    added = applied(augment.online(noise=12.0), grey) - grey
    # 115,200 draws: the deviation of their deviation is 12 / √230,400 = 0.025.
    assert abs(added.std() - 12) < 0.15 and abs(added.mean()) < 0.2


def test_erasing_leaves_the_rest_of_its_share_of_the_faces(images):
    changed = applied(augment.online(erasing=0.5), images)
    touched = np.any(changed != images, axis=(1, 2, 3))
    # 64 fair coins, as above.
    assert 16 < touched.sum() < 48
    assert all(0.01 < np.mean(changed[i] != images[i]) < 0.5 for i in np.flatnonzero(touched))


def test_randaugment_takes_colour_and_grey_alike(images):
    colour = np.repeat(images[:8], 3, axis=-1)
    assert applied(augment.online(randaugment=0.5), colour).shape == colour.shape


@pytest.mark.parametrize(
    "given", [{"noise": -1.0}, {"noise": 256.0}, {"erasing": 1.1}, {"erasing": -0.1}, {"randaugment": 2.0}], ids=str
)
def test_a_strength_of_noise_out_of_range_is_refused(given):
    with pytest.raises(ValueError, match=r"`noise` must be 0–255 grey levels.*Received: noise="):
        augment.online(**given)


# --- Mixing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_faces_and_labels_are_mixed_in_the_same_shares(given):
    """Each face is of one grey level, its own class: the mean level of a mixed face says how much of each is in it."""
    images = np.repeat(np.arange(8, dtype="float32") * 30, 48 * 48).reshape(8, 48, 48, 1)
    layer = augment.mixing(**given)
    mixed = layer({"images": images, "labels": np.eye(8, dtype="float32")}, training=True)
    labels = ops.convert_to_numpy(mixed["labels"])
    found = ops.convert_to_numpy(mixed["images"]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-5)
    # CutMix's share is that of the rectangle before it is rounded to whole pixels.
    np.testing.assert_allclose(found, labels @ (np.arange(8) * 30), atol=1e-2 if "mixup" in given else 20)
    assert np.count_nonzero((labels > 0.01).sum(axis=1) == 2) >= 3


def test_no_share_is_no_mixing_and_both_at_once_are_refused():
    assert augment.mixing() is None
    for given in ({"mixup": 0.2, "cutmix": 1.0}, {"mixup": -0.1}, {"cutmix": 1.5}):
        with pytest.raises(ValueError, match=r"one of them 0\. Received: mixup="):
            augment.mixing(**given)


# --- The augmented subset ---------------------------------------------------------------------------------------------


def test_a_subset_has_as_many_faces_of_each_class_and_says_how_it_changed_them(faces):
    found = augment.subset(faces, 10, rotation=20.0, noise=15.0)
    assert set(found.class_counts().values()) == {10} and len(set(found.rows)) == 70
    originals = faces.take(found.rows)
    np.testing.assert_array_equal(found.labels, originals.labels)
    flip, rotation, noise, _ = found.changes.T
    assert set(flip) == {0, 1} and np.abs(rotation).max() <= 20 and 0 <= noise.min() <= noise.max() <= 15
    same = ~found.changes.any(axis=1)
    np.testing.assert_array_equal(found.images[same], originals.images[same])
    assert all(np.any(a != b) for a, b in zip(found.images[~same], originals.images[~same], strict=True))
    mirrored = (flip == 1) & (rotation == 0) & (noise == 0)
    np.testing.assert_array_equal(found.images[mirrored], originals.images[mirrored, :, ::-1])
    ways = augment.describe(found)
    assert ways["faces"].sum() == 70 and len(ways) > 5


def test_a_subset_is_the_same_for_the_same_seed_and_another_for_another(faces):
    first, again, other = (augment.subset(faces, 10, rotation=9.0, noise=9.0, random_state=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.images, again.images)
    assert set(first.rows) != set(other.rows)


def test_strength_0_leaves_every_face_as_it_is(faces):
    found = augment.subset(faces, 10, flip=False)
    np.testing.assert_array_equal(found.images, faces.images[found.rows])
    assert not found.changes.any()


def test_a_change_is_the_one_that_is_asked_for(images):
    whole = images.astype("uint8")
    changes = np.zeros((64, 4))
    changes[:, 1] = 90.0
    np.testing.assert_array_equal(augment.change(whole, changes), np.rot90(whole, 1, (1, 2)))
    # An angle as Keras's own layer turns by it, when it draws the same.
    layer = keras.layers.RandomRotation((10 / 360, 10 / 360), fill_mode="nearest", dtype="float32")
    changes[:, 1] = 10.0
    difference = augment.change(whole, changes) - np.rint(applied(layer, images))
    assert np.abs(difference).max() <= 1
    changes = np.zeros((64, 4))
    changes[:, 2:] = 10.0, 7
    noise = augment.change(np.full_like(whole, 128), changes).astype(float) - 128
    assert abs(noise.std() - 10) < 0.5 and np.array_equal(noise[0], noise[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"per_class": 54}, "cannot be drawn from angry 38, .*balance first: `resampling: ros`"),
        ({"per_class": 0}, "`subset_per_class` must be at least 1"),
        ({"per_class": 9, "rotation": 200.0}, "`subset_rotation` 0–180 degrees"),
        ({"per_class": 9, "noise": -1.0}, "`subset_noise` 0–255 grey levels"),
    ],
    ids=str,
)
def test_a_subset_that_cannot_be_drawn_is_refused(faces, given, message):
    with pytest.raises(ValueError, match=message):
        augment.subset(faces, **given)
