import keras
import numpy as np
import pytest

from fer_keras import model
from fer_keras.data import CLASS_NAMES

SMALL = {"width": 1 / 32}


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def images_for(network, n=3):
    return np.random.default_rng(0).integers(0, 256, (n, *network.input_shape[1:]), "uint8")


def outputs_of(network, images):
    return keras.ops.convert_to_numpy(network(images, training=False))


def reloaded(network, path):
    network.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras", compile=False, safe_mode=True)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"crop": 40},
        {"channels": 3},
        {"num_classes": 8},
        {"image_size": (64, 48)},
        {"image_size": (18, 30), "num_classes": 2, "channels": 3, "crop": 16},
        {"head": "pooling", "crop": 44},
    ],
    ids=str,
)
def test_faces_become_probabilities(given):
    network = model.vggnet(**SMALL, **given)
    assert network.input_shape == (None, *given.get("image_size", (48, 48)), given.get("channels", 1))
    assert network.input.dtype == "uint8" and network.output.dtype == "float32"
    probabilities = network.predict(images_for(network), verbose=0)
    assert probabilities.shape == (3, given.get("num_classes", 7))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def expected_count(side, width=1.0, channels=1, num_classes=7):
    """Weights by hand: a 3×3 kernel, a bias and four numbers of normalisation per filter, then three dense layers."""
    count, before = 0, channels
    for filters in (64, 64, 128, 128, 256, 256, 512, 512):
        filters = int(filters * width)
        count += 9 * before * filters + filters + 4 * filters
        before = filters
    units = int(4096 * width)
    inputs = (side // 2 // 2 // 2 // 2) ** 2 * before
    return count + (inputs + 1) * units + (units + 1) * units + (units + 1) * num_classes


def test_full_width_on_whole_faces_is_the_studys_network():
    assert model.vggnet().count_params() == expected_count(48) == 40_380_359


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"width": 0.25}, expected_count(48, 0.25)),
        ({"width": 0.25, "crop": 40}, expected_count(40, 0.25)),
        ({"width": 0.125, "channels": 3, "num_classes": 8}, expected_count(48, 0.125, 3, 8)),
    ],
)
def test_the_count_of_weights_follows_the_arguments(given, expected):
    assert model.vggnet(**given).count_params() == expected


@pytest.mark.parametrize(("side", "width"), [(48, 1.0), (40, 0.5)])
def test_the_pooling_head_has_one_dense_layer_on_one_mean_a_filter(side, width):
    network = model.vggnet(width=width, crop=side % 48, head="pooling")
    dense = expected_count(side, width) - ((int(512 * width) * (side // 16) ** 2 + 1) * int(4096 * width))
    dense -= (int(4096 * width) + 1) * (int(4096 * width) + 7)
    assert network.count_params() == dense + (int(512 * width) + 1) * 7
    last = keras.Model(network.input, network.get_layer("block4_pool").output)
    images = images_for(network)
    features = last.predict(images, verbose=0).mean(axis=(1, 2))
    kernel, bias = (keras.ops.convert_to_numpy(w) for w in network.get_layer("logits").weights)
    scores = np.exp(features @ kernel + bias)
    expected = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(network.predict(images, verbose=0), expected, rtol=1e-4)


def test_the_compact_network_fits_into_six_megabytes():
    network = model.vggnet(width=0.5, head="pooling")
    assert network.count_params() * 4 < 6e6, "in float32 already"


def test_layer_names_are_systematic():
    blocks = [
        name
        for stage in "1234"
        for name in (
            *(f"block{stage}{letter}_{part}" for letter in "ab" for part in ("conv", "bn", "relu")),
            f"block{stage}_pool",
        )
    ]
    dense = ["dense1", "dropout1", "dense2", "dropout2", "logits", "probabilities"]
    names = [layer.name for layer in model.vggnet(**SMALL, crop=40).layers]
    assert names == ["faces", "rescaling", "crop", *blocks, "flatten", *dense]


def test_the_arguments_reach_the_layers():
    network = model.vggnet(**SMALL, dropout=0.4, l2=1e-3)
    assert {network.get_layer(f"dropout{n}").rate for n in (1, 2)} == {0.4}
    kernels = [v for v in network.trainable_variables if v.name == "kernel"]
    assert len(kernels) == 11
    penalty = sum(1e-3 * np.square(keras.ops.convert_to_numpy(kernel)).sum() for kernel in kernels)
    np.testing.assert_allclose(float(sum(network.losses)), penalty, rtol=1e-5)
    assert model.vggnet(**SMALL).losses == []


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_the_l1_penalty_is_on_all_kernels_and_adds_to_l2(l2):
    network = model.vggnet(**SMALL, l1=1e-4, l2=l2)
    kernels = [keras.ops.convert_to_numpy(v) for v in network.trainable_variables if v.name == "kernel"]
    penalty = sum(1e-4 * np.abs(kernel).sum() + l2 * np.square(kernel).sum() for kernel in kernels)
    np.testing.assert_allclose(float(sum(network.losses)), penalty, rtol=1e-5)
    assert type(model.vggnet(**SMALL, l2=1e-3).get_layer("dense1").kernel_regularizer) is keras.regularizers.L2


def test_the_model_rescales_by_itself():
    network = model.vggnet(**SMALL)
    images = images_for(network)
    scaled = keras.Model(network.input, network.get_layer("rescaling").output).predict(images, verbose=0)
    np.testing.assert_allclose(scaled, images / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": (48, 15)}, "must be at least 16"),
        ({"crop": 12}, "must be at least 16"),
        ({"crop": 49}, "must fit into it"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"channels": 2}, "`channels` 1 or 3"),
        ({"width": 0}, "`width` above 0"),
        ({"dropout": 1.0}, "`dropout` in"),
        ({"l2": -1e-4}, "`l2` ≥ 0"),
        ({"l1": -1e-4}, "`l1` and `l2` ≥ 0"),
        ({"head": "flat"}, "`head` must be one of dense, pooling"),
    ],
)
def test_a_value_out_of_range_is_refused(given, message):
    with pytest.raises(ValueError, match=f"{message}.*Received: "):
        model.vggnet(**given)


ODD = {"num_classes": 8, "image_size": (56, 48), "channels": 3, "width": 1 / 32, "dropout": 0.5, "l2": 1e-4, "crop": 40}


def test_a_model_with_odd_arguments_survives_its_file(tmp_path):
    network = model.vggnet(**ODD)
    images = images_for(network)
    again = reloaded(network, tmp_path)
    np.testing.assert_array_equal(outputs_of(again, images), outputs_of(network, images))
    assert again.get_layer("dropout1").rate == 0.5 and len(again.losses) == 11


# --- Ensemble -------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_mean_of_its_members_and_survives_its_file(tmp_path):
    members = [model.vggnet(**ODD) for _ in range(3)]
    images = images_for(members[0])
    whole = model.ensemble(members)
    expected = np.mean([outputs_of(member, images) for member in members], axis=0)
    assert np.ptp([outputs_of(m, images) for m in members], axis=0).max() > 1e-3, "the members differ"
    # The mean is added up in another order: one or two steps of float32.
    np.testing.assert_allclose(outputs_of(whole, images), expected, rtol=1e-6)
    again = reloaded(whole, tmp_path)
    np.testing.assert_array_equal(outputs_of(again, images), outputs_of(whole, images))


def test_an_ensemble_leaves_its_members_alone():
    members = [model.vggnet(**SMALL) for _ in range(2)]
    images = images_for(members[0])
    whole = model.ensemble(members)
    before = outputs_of(whole, images)
    assert [member.name for member in members] == ["vggnet", "vggnet"]
    members[0].set_weights([w + 1 for w in members[0].get_weights()])
    np.testing.assert_array_equal(outputs_of(whole, images), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{}], "at least two models. Received: 1"),
        ([], "at least two models. Received: 0"),
        ([{}, {"num_classes": 8}], r"equal input and output shapes. Received: .*\(None, 8\)"),
        ([{}, {"channels": 3}], r"equal input and output shapes. Received: .*\(None, 48, 48, 3\)"),
    ],
)
def test_members_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        model.ensemble([model.vggnet(**SMALL, **one) for one in given])


# --- Weights --------------------------------------------------------------------------------------------------------


def test_a_run_starts_with_the_weights_of_another():
    source, target = model.vggnet(**SMALL), model.vggnet(**SMALL, dropout=0.5, l2=1e-4)
    images = images_for(source)
    model.copy_weights(source, target, "tuned")
    np.testing.assert_array_equal(outputs_of(target, images), outputs_of(source, images))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"width": 1 / 16}, "starts from tuned, whose layer 'block1a_conv' has other shapes"),
        ({"image_size": (64, 64)}, "layer 'dense1'"),
        ({"num_classes": 8}, "layer 'logits'"),
        ({"crop": 40}, "layer 'crop'"),
        ({"image_size": (50, 50)}, r"takes faces of \(50, 50, 1\), but here they are \(48, 48, 1\)"),
    ],
    ids=str,
)
def test_weights_of_another_shape_are_refused_and_nothing_is_copied(source, message):
    target = model.vggnet(**SMALL)
    before = target.get_weights()
    with pytest.raises(ValueError, match=message):
        model.copy_weights(model.vggnet(**(SMALL | source)), target, "tuned")
    assert all(np.array_equal(a, b) for a, b in zip(before, target.get_weights(), strict=True))


def test_a_run_in_colour_starts_from_grey_and_sees_the_same_in_equal_channels():
    grey, colour = model.vggnet(**SMALL), model.vggnet(**SMALL, channels=3)
    images = images_for(grey)
    assert model.copy_weights(grey, colour, "tuned") == ["The first kernels of tuned are repeated over three channels."]
    expected = outputs_of(grey, images)
    # The same sums in another order.
    np.testing.assert_allclose(outputs_of(colour, np.repeat(images, 3, axis=-1)), expected, atol=1e-5)
    again = model.vggnet(**SMALL)
    assert model.copy_weights(colour, again, "rgb") == ["The first kernels of rgb are added up over three channels."]
    np.testing.assert_allclose(outputs_of(again, images), expected, atol=1e-5)


def test_a_run_with_other_classes_starts_by_class_name():
    names = (*CLASS_NAMES, "contempt")
    seven, eight = model.vggnet(**SMALL), model.vggnet(**(SMALL | {"num_classes": 8}))
    images, new = images_for(seven), [w[..., 7].copy() for w in eight.get_layer("logits").get_weights()]
    said = model.copy_weights(seven, eight, "tuned", CLASS_NAMES, names)
    assert said == ["The outputs of tuned go by class name; new: contempt."]
    found, expected = outputs_of(eight, images), outputs_of(seven, images)
    # Without the new class, the others share the probability as before.
    np.testing.assert_allclose(found[:, :7] / found[:, :7].sum(axis=1, keepdims=True), expected, atol=1e-6)
    for kept, initial in zip(eight.get_layer("logits").get_weights(), new, strict=True):
        np.testing.assert_array_equal(kept[..., 7], initial)
    order = tuple(reversed(names))
    other = model.vggnet(**(SMALL | {"num_classes": 8}))
    model.copy_weights(eight, other, "contempt", names, order)
    np.testing.assert_allclose(outputs_of(other, images), found[:, ::-1], atol=1e-6)


@pytest.mark.parametrize("heads", [("dense", "pooling"), ("pooling", "dense")], ids=str)
def test_between_heads_the_convolutions_are_carried_over(heads):
    source, target = (model.vggnet(**SMALL, head=head, num_classes=n) for head, n in zip(heads, (7, 8), strict=True))
    fresh = target.get_layer("logits").get_weights()
    source.get_layer("block4b_bn").set_weights([w + 1 for w in source.get_layer("block4b_bn").get_weights()])
    said = model.copy_weights(source, target, "tuned", CLASS_NAMES, (*CLASS_NAMES, "contempt"))
    assert said == [
        f"The convolutions of tuned are carried over; its head is {heads[0]!r}, and the new one, {heads[1]!r}, starts "
        "afresh."
    ]
    images = images_for(source)
    features = [
        keras.Model(network.input, network.get_layer("block4_pool").output).predict(images, verbose=0)
        for network in (source, target)
    ]
    np.testing.assert_array_equal(*features)
    assert all(np.array_equal(a, b) for a, b in zip(fresh, target.get_layer("logits").get_weights(), strict=True))
    with pytest.raises(ValueError, match="layer 'crop'"):
        model.copy_weights(model.vggnet(**SMALL, head=heads[0], crop=40), target, "tuned")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_float32_computes_in_float32_with_the_same_weights(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        network = model.vggnet(**ODD)
        assert network.output.dtype == "float32"
        plain = model.float32(network)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.dtype_policy.name for layer in plain.layers[1:]} == {"float32"} and plain.input.dtype == "uint8"
    assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), network.get_weights(), strict=True))
    images = images_for(network)
    # bfloat16 keeps 8 bits of mantissa, so probabilities agree to about two decimals.
    tolerance = 0 if policy == "float32" else 0.02
    np.testing.assert_allclose(outputs_of(plain, images), outputs_of(network, images), atol=tolerance)
    assert plain.get_layer("dropout1").rate == 0.5 and plain.losses
    np.testing.assert_array_equal(outputs_of(reloaded(plain, tmp_path), images), outputs_of(plain, images))
