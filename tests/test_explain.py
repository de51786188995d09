"""Maps of what decides: against differences of scores, and against networks whose answer hangs on known pixels."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from fer_keras import explain, model


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return model.vggnet(width=1 / 16, head="pooling", crop=40)


@pytest.fixture(scope="module")
def images(faces):
    return faces.images[:4]


CLASSES = np.array([0, 3, 3, 6])


def one_side(side):
    """A network whose score for class 1 is the light of the left or of the right half, times ten."""
    inputs = keras.Input((48, 48, 1), dtype="uint8", name="faces")
    x = layers.Rescaling(1 / 255, name="rescaling")(inputs)
    x = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="block4b_conv")(x)
    x = layers.ReLU(name="block4b_relu")(x)
    half = x[:, :, :24] if side == "left" else x[:, :, 24:]
    light = ops.mean(half, axis=(1, 2))
    x = layers.Dense(2, use_bias=False, name="logits")(light)
    made = keras.Model(inputs, layers.Softmax()(x))
    made.get_layer("logits").set_weights([np.array([[0.0, 10.0]])])
    return made


def test_a_gradient_is_what_the_score_changes_by(network, images):
    before, after = explain._between(network, "rescaling")
    values = before.predict(images, verbose=0)
    kept = network.get_weights()
    found = explain.gradient(after, values, CLASSES)
    assert found.shape == values.shape and np.abs(found).max() > 0
    assert not found[:, :4].any() and not found[:, :, 44:].any(), "what the crop leaves out changes nothing"
    rng = np.random.default_rng(0)
    scores = [
        after.predict(values + sign * 1e-3 * rng.permuted(np.sign(found), axis=1) * 0, verbose=0) for sign in (1,)
    ]
    assert len(scores) == 1
    for direction in (np.sign(found), rng.choice([-1.0, 1.0], values.shape)):
        step = (1e-4 * direction).astype("float32")
        high, low = (after.predict(values + sign * step, verbose=0)[np.arange(4), CLASSES] for sign in (1, -1))
        expected = (high - low) / 2e-4
        # Where a ReLU or a pool changes sides within the step, and in float32's last digits, the two differ a little.
        np.testing.assert_allclose((found * direction).sum(axis=(1, 2, 3)), expected, rtol=0.03, atol=2e-3)
    assert all(np.array_equal(a, b) for a, b in zip(kept, network.get_weights(), strict=True)) and network.trainable


def test_each_face_has_the_gradient_that_it_has_alone(network, images):
    together = explain.saliency(network, images, CLASSES)
    alone = explain.saliency(network, images[1:2], CLASSES[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["saliency", "occlusion"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_map_shows_the_half_that_decides(images, name, side):
    made, light = one_side(side), np.maximum(images, 40)
    maps = explain.METHODS[name](made, light, np.ones(4, int))
    assert maps.shape == (4, 48, 48)
    decides, other = (maps[:, :, :24], maps[:, :, 24:]) if side == "left" else (maps[:, :, 24:], maps[:, :, :24])
    if name == "saliency":
        np.testing.assert_allclose(decides, 10 / (48 * 24), rtol=1e-4)
        assert not other.any()
    else:
        assert np.abs(decides).mean() > 3 * np.abs(other).mean()


def test_grad_cam_before_the_mean_is_the_features_weighted_by_the_last_kernel(network, images):
    """There, the gradient of a score is the class's kernel, shared by all places."""
    values = keras.Model(network.input, network.get_layer("block4_pool").output).predict(images, verbose=0)
    kernel = network.get_layer("logits").get_weights()[0][:, CLASSES].T
    found = explain.grad_cam(network, images, CLASSES, layer="block4_pool")
    assert found.shape == (4, 48, 48) and found.max() > 0
    assert not found[:, :4].any() and not found[:, :, 44:].any(), "outside of the crop"
    maps = np.maximum((values * kernel[:, None, None]).sum(axis=-1, keepdims=True) / 4, 0)
    expected = ops.convert_to_numpy(ops.image.resize(maps, (40, 40), interpolation="bilinear"))[..., 0]
    np.testing.assert_allclose(found[:, 4:44, 4:44], expected, rtol=1e-3, atol=1e-7)


def test_the_shares_of_bands_sum_to_one():
    maps = np.zeros((2, 6, 4))
    maps[0, 0], maps[0, 5], maps[0, 2] = 3, 1, -5
    np.testing.assert_allclose(explain.shares(maps)[0], [0.75, 0, 0.25])
    assert np.isnan(explain.shares(maps)[1]).all()


def test_an_ensemble_has_no_maps(network, images):
    with pytest.raises(
        ValueError, match=r"'ensemble' has no layers 'rescaling' and 'logits'. Of an ensemble, give one of"
    ):
        explain.saliency(model.ensemble([network, network]), images, CLASSES)


def test_the_mirror_image_of_a_face_has_the_mirrored_map_only_in_a_network_without_a_side(images):
    agreement = explain.mirror_agreement(explain.occlusion, one_side("left"), images, np.ones(4, int))
    assert agreement.shape == (4,) and np.all(agreement < 0.5)
    keras.utils.set_random_seed(0)
    even = model.vggnet(width=1 / 32, head="pooling")
    for layer in even.layers:
        if layer.name.endswith("_conv"):
            kernel, bias = layer.get_weights()
            layer.set_weights([(kernel + kernel[:, ::-1]) / 2, bias])
    for method in (explain.saliency, explain.grad_cam):
        found = explain.mirror_agreement(method, even, images, CLASSES)
        np.testing.assert_allclose(found[np.isfinite(found)], 1, atol=1e-3)
        assert np.isfinite(found).any()


def test_correlation_is_numpys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5, 6)), rng.normal(size=(3, 5, 6))
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(explain.correlation(a, b), expected)
    assert np.isnan(explain.correlation(np.ones((1, 2, 2)), np.ones((1, 2, 2))))


def test_the_surest_right_answers_are_chosen_class_by_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    sure = np.array(
        [[0.6, 0.3, 0.1], [0.9, 0.1, 0], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.4, 0.3, 0.3]]
    )
    assert explain.surest(labels, sure, 2).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="None of the 1 faces is named rightly"):
        explain.surest(labels[4:5], sure[4:5], 2)


@pytest.mark.parametrize("given", [{"size": 49}, {"size": 4, "stride": 5}, {"stride": 0}])
def test_squares_that_do_not_cover_the_face_are_refused(network, images, given):
    with pytest.raises(ValueError, match=r"`size` must be at most the face's 48 pixels.*Received: "):
        explain.occlusion(network, images, CLASSES, **given)


def test_pictures_have_a_row_for_each_map(images):
    maps = {"a": np.zeros((4, 48, 48)), "b": np.random.default_rng(0).random((4, 48, 48))}
    figure = explain.pictures(images, maps, list("wxyz"))
    assert len(figure.axes) == 12
    assert [ax.get_title() for ax in figure.axes[:4]] == list("wxyz")
    assert [figure.axes[row * 4].get_ylabel() for row in range(3)] == ["face", "a", "b"]
