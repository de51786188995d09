import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from fer_keras import evaluate, model
from fer_keras.data import CLASS_NAMES
from fer_keras.train import seed_everything

THREE = ("a", "b", "c")


def random_scores(n=300, classes=7, present=None, seed=0):
    """Labels of the `present` classes, and probabilities that favour them a little."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(present or classes, n)
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels]
    probabilities = np.exp(logits)
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


# --- Predictions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cropped():
    """A small network that sees the central 40×40, with outputs that differ from crop to crop; and one for crops."""
    seed_everything(0)
    whole = model.vggnet(width=1 / 32, crop=40)
    explicit = model.vggnet(width=1 / 32, image_size=(40, 40))
    explicit.set_weights([3 * weight for weight in whole.get_weights()])
    whole.set_weights(explicit.get_weights())
    return whole, explicit


def mean_of_crops(network, images, corners, flip):
    crops = [images[:, y : y + 40, x : x + 40] for y, x in corners]
    crops += [crop[:, :, ::-1] for crop in crops] if flip else []
    outputs = [keras.ops.convert_to_numpy(network(np.ascontiguousarray(crop), training=False)) for crop in crops]
    assert len(outputs) == 1 or np.ptp(outputs, axis=0).max() > 0.02, "the views differ"
    return np.mean(outputs, axis=0)


@pytest.mark.parametrize(
    ("tta", "corners", "flip"),
    [
        ("none", [(4, 4)], False),
        ("flip", [(4, 4)], True),
        ("ten_crop", [(4, 4), (0, 0), (0, 8), (8, 0), (8, 8)], True),
    ],
)
def test_test_time_augmentation_is_the_mean_over_explicit_crops(faces, cropped, tta, corners, flip):
    whole, explicit = cropped
    images = faces.images[:40]
    # Batches of 2 make `predict` work in two parts, of 32 and of 8 faces.
    found = evaluate.predict(whole, images, tta, crop=40, batch_size=2)
    assert found.shape == (40, 7) and found.dtype == "float32"
    # Another batch size adds up float32 in another order, and enlarged weights make large logits of it; a wrong crop
    # is further away, since the views differ by more than ten times as much.
    np.testing.assert_allclose(found, mean_of_crops(explicit, images, corners, flip), rtol=0, atol=2e-3)


def test_ten_crops_go_with_a_pooling_head_and_a_narrow_border(faces):
    seed_everything(1)
    whole, explicit = (
        model.vggnet(width=1 / 32, head="pooling", **one) for one in ({"crop": 44}, {"image_size": (44, 44)})
    )
    explicit.set_weights(whole.get_weights())
    images = faces.images[:8]
    crops = [images[:, y : y + 44, x : x + 44] for y, x in [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]]
    outputs = [explicit.predict(view, verbose=0) for crop in crops for view in (crop, crop[:, :, ::-1])]
    found = evaluate.predict(whole, images, "ten_crop", crop=44)
    np.testing.assert_allclose(found, np.mean(outputs, axis=0), atol=1e-6)
    assert np.ptp(outputs, axis=0).max() > 1e-4, "the views differ"


@pytest.mark.parametrize(
    ("tta", "crop", "message"),
    [
        ("ten_crop", 0, "needs a model trained with `crop`.*Use `tta: flip`"),
        ("tencrop", 40, "`tta` must be one of none, flip, ten_crop. Received: 'tencrop'"),
    ],
)
def test_an_impossible_test_time_augmentation_is_refused_before_predicting(faces, tta, crop, message):
    with pytest.raises(ValueError, match=message):
        evaluate.predict(None, faces.images, tta, crop)


# --- Scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [None, [0, 2, 3], [4]], ids=["all classes", "three classes", "one class"])
def test_scores_are_scikit_learns(present):
    labels, probabilities = random_scores(present=present)
    predicted, there = probabilities.argmax(axis=1), np.unique(labels)
    found = evaluate.score(labels, probabilities)
    expected = {
        "n": 300,
        "top1": metrics.accuracy_score(labels, predicted),
        "top2": metrics.top_k_accuracy_score(labels, probabilities, k=2, labels=range(7)),
        "top3": metrics.top_k_accuracy_score(labels, probabilities, k=3, labels=range(7)),
        "balanced_accuracy": metrics.recall_score(labels, predicted, labels=there, average="macro", zero_division=0),
        "f1_macro": metrics.f1_score(labels, predicted, labels=there, average="macro", zero_division=0),
        "log_loss": -np.mean(np.log(probabilities[np.arange(300), labels])),
    }
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-12)
    np.testing.assert_array_equal(
        found["confusion_matrix"], metrics.confusion_matrix(labels, predicted, labels=range(7))
    )
    report = metrics.classification_report(
        labels, predicted, labels=range(7), target_names=CLASS_NAMES, output_dict=True, zero_division=0
    )
    for name, values in found["per_class"].items():
        np.testing.assert_allclose(
            list(values.values()), [report[name][m] for m in ("precision", "recall", "f1-score", "support")]
        )
    for name, (low, high) in found["intervals"].items():
        assert 0 <= low <= found[name] <= high <= 1


def test_scores_checked_by_hand():
    labels = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.2, 0.6, 0.2], [0.5, 0.3, 0.2]])
    found = evaluate.score(labels, probabilities, THREE)
    assert found["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert (found["top1"], found["top2"]) == (0.5, 0.5) and "top3" not in found
    assert found["balanced_accuracy"] == (0.5 + 1 + 0) / 3
    assert found["f1_macro"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.6, 0.2, 0.6, 0.2]).mean())
    assert found["per_class"]["b"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}


@pytest.mark.parametrize("shift", [0, 1], ids=["perfect", "worst"])
def test_perfect_and_worst_predictions(shift):
    labels = np.arange(70) % 7
    found = evaluate.score(labels, np.eye(7)[(labels + shift) % 7])
    value = 1.0 - shift
    assert [found[name] for name in ("top1", "balanced_accuracy", "f1_macro")] == [value] * 3
    assert found["calibration_error"] == shift and np.isfinite(found["log_loss"])
    assert found["intervals"]["balanced_accuracy"] == [value, value]
    low, high = found["intervals"]["top1"]
    assert (low > 0.9 and high == pytest.approx(1)) if value else (low == pytest.approx(0) and high < 0.1)


def test_a_tie_goes_to_the_lower_class_in_every_metric():
    labels = np.repeat(np.arange(7), [4, 1, 1, 1, 1, 1, 1])
    found = evaluate.score(labels, np.full((10, 7), 1 / 7))
    assert [found[f"top{k}"] for k in (1, 2, 3)] == [0.4, 0.5, 0.6]
    assert found["top1"] == np.trace(found["confusion_matrix"]) / 10


def test_rows_of_float32_that_do_not_quite_sum_to_one_are_taken():
    labels, probabilities = random_scores()
    found, exact = (
        evaluate.score(labels, probabilities.astype("float32") * 1.001),
        evaluate.score(labels, probabilities),
    )
    assert found["log_loss"] == pytest.approx(exact["log_loss"], rel=1e-6) and found["top1"] == exact["top1"]


def test_two_classes_are_scored():
    labels, probabilities = random_scores(classes=2)
    found = evaluate.score(labels, probabilities, ("calm", "not"))
    assert found["top1"] == np.mean(probabilities.argmax(axis=1) == labels) and "top2" not in found


@pytest.mark.parametrize("shape", [(0, 7), (3, 7), (4, 6), (4,)])
def test_probabilities_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=rf"`probabilities` must be .*Received: \({shape[0]},"):
        evaluate.score(np.zeros(4 if shape[0] else 0, int), np.ones(shape))


# --- Intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (7, 10), (2360, 3589)])
def test_wilsons_interval_is_his_formula(successes, n):
    z, p = 1.959963984540054, successes / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = np.array([centre - half, centre + half]) / (1 + z**2 / n)
    np.testing.assert_allclose(evaluate.wilson(successes, n), expected, rtol=1e-6, atol=1e-12)


def test_the_bootstrap_agrees_with_drawing_faces():
    labels, probabilities = random_scores(400, classes=4, present=[0, 0, 0, 1, 1, 2])
    predicted = probabilities.argmax(axis=1)
    rng = np.random.default_rng(1)
    drawn = {"balanced_accuracy": [], "f1_macro": []}
    for at in rng.integers(0, 400, (1000, 400)):
        true, guess = labels[at], predicted[at]
        hits, there, called = (np.bincount(which, minlength=4) for which in (true[true == guess], true, guess))
        present = there > 0
        drawn["balanced_accuracy"].append((hits / np.maximum(there, 1))[present].mean())
        drawn["f1_macro"].append((2 * hits / np.maximum(there + called, 1))[present].mean())
    found = evaluate.bootstrap(metrics.confusion_matrix(labels, predicted, labels=range(4)))
    for name, values in drawn.items():
        # The 2.5 % quantile of 1,000 draws varies by 0.09 standard deviations, that of 2,000 by 0.06.
        tolerance = 4 * 0.11 * np.std(values)
        np.testing.assert_allclose(found[name], np.quantile(values, [0.025, 0.975]), atol=tolerance)


def test_the_bootstrap_is_seeded():
    matrix = np.array([[8, 2], [5, 5]])
    assert evaluate.bootstrap(matrix) == evaluate.bootstrap(matrix) != evaluate.bootstrap(matrix, random_state=1)


# --- Two runs on the same faces -------------------------------------------------------------------------------------


def run_of(hits, labels=None, rows=None):
    """Predictions of a run that is right where `hits` says so."""
    hits = np.asarray(hits, bool)
    labels = np.zeros(len(hits), int) if labels is None else np.asarray(labels)
    wrong = (labels + 1) % 3
    rows = np.arange(len(hits)) if rows is None else rows
    return SimpleNamespace(rows=rows, labels=labels, probabilities=np.eye(3)[np.where(hits, labels, wrong)])


def test_mcnemars_exact_test_on_a_table_from_the_literature():
    # Both right 59, only the first 6, only the second 16, none 80 (a worked example of the exact test): p = 0.0525.
    first = run_of([1] * 59 + [1] * 6 + [0] * 16 + [0] * 80)
    second = run_of([1] * 59 + [0] * 6 + [1] * 16 + [0] * 80)
    found = evaluate.compare(first, second)
    tail = sum(math.comb(22, k) for k in range(7)) / 2**22
    assert found["p_value"] == pytest.approx(2 * tail) and (found["only_first"], found["only_second"]) == (6, 16)
    assert found["within_noise"], "as the test says, whatever the interval"
    assert found["n"] == 161 and found["top1"]["difference"] == pytest.approx(10 / 161)


def test_the_interval_of_the_difference_is_scipys_paired_bootstrap():
    rng = np.random.default_rng(0)
    first, second = rng.random(800) < 0.6, rng.random(800) < 0.65
    found = evaluate.compare(run_of(first), run_of(second))["top1"]
    expected = stats.bootstrap(
        (first.astype(float), second.astype(float)),
        lambda a, b, axis: (b - a).mean(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    # 2,000 draws place a 2.5 % quantile to about 0.06 standard deviations; the interval is 3.9 of them wide.
    np.testing.assert_allclose(found["interval"], expected, atol=0.25 * (expected.high - expected.low) / 3.9)


def test_the_difference_of_balanced_accuracy_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 400, p=[0.8, 0.15, 0.05])
    first, second = run_of(rng.random(400) < 0.6, labels), run_of(rng.random(400) < 0.7, labels)
    found = evaluate.compare(first, second)["balanced_accuracy"]
    expected = [metrics.balanced_accuracy_score(labels, part.probabilities.argmax(axis=1)) for part in (first, second)]
    assert found["difference"] == pytest.approx(expected[1] - expected[0])
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    top1 = evaluate.compare(first, second)["top1"]["interval"]
    assert np.ptp(found["interval"]) > np.ptp(top1), "rare classes make it wider"


def test_equal_runs_do_not_differ_and_very_different_ones_do():
    half = np.arange(400) % 2 == 0
    same = evaluate.compare(run_of(half), run_of(half))
    assert same["p_value"] == 1 and same["within_noise"] and same["top1"] == {"difference": 0, "interval": [0, 0]}
    other = evaluate.compare(run_of(half), run_of(np.arange(400) % 4 != 1))
    assert other["p_value"] < 1e-20 and not other["within_noise"] and other["top1"]["interval"][0] > 0.15
    assert evaluate.compare(run_of(half), run_of(half))["balanced_accuracy"]["difference"] == 0


def test_faces_of_fewer_classes_than_the_network_has_are_compared_alike():
    hits = np.arange(90) % 3 > 0, np.arange(90) % 2 > 0
    narrow = [run_of(one, labels=np.arange(90) % 2) for one in hits]
    wide = [
        SimpleNamespace(**(vars(one) | {"probabilities": np.pad(one.probabilities, ((0, 0), (0, 5)))}))
        for one in narrow
    ]
    found, expected = evaluate.compare(*wide), evaluate.compare(*narrow)
    for name in ("top1", "balanced_accuracy"):
        assert found[name]["difference"] == pytest.approx(expected[name]["difference"])
        assert np.isfinite(found[name]["interval"]).all()
    assert found["p_value"] == expected["p_value"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (run_of([1, 1]), "3 and 2 faces, of which 2 are shared"),
        (run_of([1, 1, 1], rows=np.array([0, 1, 7])), "3 and 3 faces, of which 2 are shared"),
        (run_of([1, 1, 1], labels=[0, 0, 1]), "3 and 3 faces, of which 3 are shared"),
    ],
)
def test_runs_on_other_faces_are_not_compared(second, message):
    with pytest.raises(ValueError, match=f"Only runs that were scored on the same faces.*{message}"):
        evaluate.compare(run_of([1, 0, 1]), second)


# --- Calibration ----------------------------------------------------------------------------------------------------


def test_calibration_error_checked_by_hand():
    labels = np.array([0, 0, 1, 1])
    # Confidence 0.9: one of two is right, a gap of 0.4. Confidence 0.6: both are right, a gap of 0.4.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.4, 0.6]])
    assert evaluate.calibration_error(labels, probabilities) == pytest.approx(0.4)
    # In one bin, confidence 0.75 meets accuracy 0.75.
    assert evaluate.calibration_error(labels, probabilities, bins=1) == pytest.approx(0)


def test_calibration_error_is_the_mean_gap_over_bins():
    labels, probabilities = random_scores(500)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert evaluate.calibration_error(labels, probabilities) == pytest.approx(expected)


# --- For readers ----------------------------------------------------------------------------------------------------


def test_groups_are_scored_apart_in_the_order_asked_for():
    labels = np.zeros(6, int)
    probabilities = np.eye(2)[[0, 1, 0, 0, 1, 1]]
    groups = np.array(["original", "original", "original", "original", "synthetic", "synthetic"])
    found = evaluate.score_by(labels, probabilities, groups, ["synthetic", "copy", "original"])
    assert found == {
        "original": {"n": 4, "top1": 0.75, "interval": evaluate.wilson(3, 4)},
        "synthetic": {"n": 2, "top1": 0.0, "interval": evaluate.wilson(0, 2)},
    }
    assert list(found) == ["synthetic", "original"]


def test_the_most_frequent_confusions_come_first():
    matrix = [[5, 3, 2], [0, 9, 4], [0, 0, 0]]
    assert evaluate.top_confusions(matrix, THREE) == [("b", "c", 4, 4 / 13), ("a", "b", 3, 0.3), ("a", "c", 2, 0.2)]
    assert evaluate.top_confusions(matrix, THREE, k=1) == [("b", "c", 4, 4 / 13)]
    assert evaluate.top_confusions(np.eye(3, dtype=int), THREE) == []


def test_percent_rounds_for_readers():
    assert evaluate.percent(0.65764) == "65.76"
    assert evaluate.percent(0.65764, [0.6419, 0.673]) == "65.76 (64.2–67.3)"


def test_a_table_has_a_line_for_each_set_and_intervals_for_the_main_metrics():
    table = evaluate.table({name: evaluate.score(*random_scores(n)) for name, n in (("train", 3000), ("test", 300))})
    assert list(table.index) == ["train", "test"] and table.loc["train", "n"] == "3,000"
    assert list(table.columns) == ["n", *evaluate.LABELS.values(), "log loss", "calibration error"]
    assert {column for column in table if "–" in table.loc["test", column]} == {"top-1 %", "balanced accuracy %"}


def run_metrics(protocol="official", train=True, present=None):
    sets = {"train": evaluate.score(*random_scores(400)), "test": evaluate.score(*random_scores(present=present))}
    return {
        "experiment": "tuned",
        "seed": 0,
        "protocol": protocol,
        "chosen_by": {"role": "validation", "n": 3589},
        "sets": sets if train else {"test": sets["test"]},
    }


def test_the_summary_says_what_the_metrics_say():
    metrics_ = run_metrics()
    test, text = metrics_["sets"]["test"], evaluate.summary(metrics_)
    recalls = {name: values["recall"] for name, values in test["per_class"].items()}
    gap = (metrics_["sets"]["train"]["top1"] - test["top1"]) * 100
    assert f"top-1 on 300 test faces is {test['top1'] * 100:.2f} (" in text and f"{gap:+.1f} points" in text
    assert (
        f"Hardest class: {min(recalls, key=recalls.get)} " in text
        and f"easiest: {max(recalls, key=recalls.get)} " in text
    )
    assert "Rows that chose the model: 3,589 of role validation." in text and "leaks" not in text


def test_the_summary_of_the_studys_protocol_says_that_it_leaks():
    text = evaluate.summary(run_metrics("study", train=False))
    assert "protocol study" in text and text.endswith("the score leaks.") and "points" not in text


def test_the_hardest_class_is_one_that_was_tested():
    text = evaluate.summary(run_metrics(present=[3, 4]))
    assert "Hardest class: happy" in text or "Hardest class: sad" in text
