import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fer_keras import plots
from fer_keras.data import CLASS_NAMES


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(labels):
    return [label.get_text() for label in labels]


def test_class_counts_label_every_bar(faces):
    few = faces.take(faces.labels != 1)
    ax = plots.class_counts({"all faces": faces, "without disgust": few})
    assert texts(ax.get_xticklabels()) == list(CLASS_NAMES) and ax.get_ylabel() == "faces"
    assert texts(ax.get_legend().get_texts()) == ["all faces: 280", f"without disgust: {len(few)}"]
    heights = [[bar.get_height() for bar in container] for container in ax.containers if hasattr(container, "patches")]
    assert heights == [list(faces.class_counts().values()), list(few.class_counts().values())]
    assert texts(ax.texts) == [str(count) for counts in heights for count in counts]
    centres = np.array([[bar.get_x() + bar.get_width() / 2 for bar in container] for container in ax.containers[:2]])
    np.testing.assert_allclose(centres.mean(axis=0), range(7), atol=1e-12)


def test_many_groups_of_bars_go_without_numbers(faces):
    assert not plots.class_counts({name: faces for name in "abc"}).texts


@pytest.mark.parametrize("count", [1, 7, 10])
def test_a_grid_has_a_place_for_every_face(faces, count):
    figure = plots.faces_grid(faces.images[:count], [f"face {i}" for i in range(count)])
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == [f"face {i}" for i in range(count)]
    np.testing.assert_array_equal(shown[-1].images[0].get_array(), faces.images[count - 1, ..., 0])
    assert {image.get_clim() for ax in shown for image in ax.images} == {(0, 255)} and len(figure.axes) % 7 == 0


def test_samples_have_a_row_for_each_class_and_only_faces_of_it(faces):
    some = faces.take((faces.labels != 1) | (faces.rows == faces.rows[faces.labels == 1][0]))
    figure = plots.samples(some.take(some.labels != 2), per_class=4)
    assert [ax.get_ylabel() for ax in figure.axes] == list(CLASS_NAMES)
    rows = [np.asarray(ax.images[0].get_array()).reshape(48, 4, 50)[..., :48].swapaxes(0, 1) for ax in figure.axes]
    assert [sum((face < 255).any() for face in row) for row in rows] == [4, 1, 0, 4, 4, 4, 4]
    happy = {image.tobytes() for image in faces.images[faces.labels == 3]}
    assert all(face.tobytes() in happy for face in rows[3])


def test_mistakes_come_with_the_most_confident_first(faces):
    few = faces.take(slice(0, 5))
    probabilities = np.eye(7)[few.labels] * 0.9
    for row, confidence in ((1, 0.6), (3, 0.8), (4, 0.7)):
        probabilities[row] = 0
        probabilities[row, (few.labels[row] + 1) % 7] = confidence
    figure = plots.mistakes(few, probabilities, count=2)
    names = [(CLASS_NAMES[few.labels[i]], CLASS_NAMES[(few.labels[i] + 1) % 7]) for i in (3, 4)]
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles == [f"{names[0][0]} →\n{names[0][1]} 80%", f"{names[1][0]} →\n{names[1][1]} 70%"]


def test_no_mistakes_are_an_empty_picture(faces):
    assert not any(ax.images for ax in plots.mistakes(faces, np.eye(7)[faces.labels]).axes)


def test_training_curves_mark_the_best_epochs():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "loss": [3.0, 2.0, 1.0],
            "accuracy": [0.1, 0.2, 0.3],
            "val_loss": [2.0, 1.5, 1.7],
            "val_accuracy": [0.2, 0.3, 0.4],
        }
    )
    axes = plots.training_curves(history)
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in axes] == [("epoch", "loss"), ("epoch", "accuracy")]
    for ax, best in zip(axes, (2, 3), strict=True):
        assert texts(ax.get_legend().get_texts()) == ["train", "validation"]
        assert list(ax.lines[1].get_ydata()) == list(history[f"val_{ax.get_ylabel()}"])
        assert list(ax.lines[2].get_xdata()) == [best, best]


MATRIX = [[3, 1, 0], [2, 2, 4], [0, 0, 0]]


@pytest.mark.parametrize(
    ("normalize", "numbers", "title"),
    [
        (False, ["3", "1", "0", "2", "2", "4", "0", "0", "0"], "faces"),
        (True, ["75", "25", "0", "25", "25", "50"], "per cent of the true class"),  # nothing where no face is true
    ],
)
def test_a_confusion_matrix_shows_its_numbers(normalize, numbers, title):
    ax = plots.confusion_matrix(MATRIX, ("a", "b", "c"), normalize)
    assert texts(ax.get_xticklabels()) == texts(ax.get_yticklabels()) == ["a", "b", "c"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("predicted", "true", title)
    assert texts(ax.texts) == numbers


def test_both_confusion_matrices_stand_side_by_side():
    titles = [ax.get_title() for ax in plots.confusion_matrices(MATRIX, ("a", "b", "c")).axes]
    assert titles == ["faces", "per cent of the true class"]


def test_intervals_stand_in_the_order_given_from_the_top():
    ax = plots.intervals(["first", "second"], [0.5, 0.7], [[0.4, 0.6], [0.69, 0.75]])
    by_height = sorted(zip(ax.get_yticks(), texts(ax.get_yticklabels()), strict=True), reverse=True)
    assert [name for _, name in by_height] == ["first", "second"]
    assert "95 % interval" in ax.get_xlabel()
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 0] for bar in bars], [[40, 60], [69, 75]])
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xdata(), [50, 70])


def test_reliability_shows_accuracy_against_confidence():
    table = pd.DataFrame({"n": [30, 10], "confidence": [0.4, 0.9], "accuracy": [0.5, 0.7]})
    ax = plots.reliability(table, label="name")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("confidence", "accuracy", "name")
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[0.4, 0.5], [0.9, 0.7]])
    sizes = ax.collections[0].get_sizes()
    assert sizes[0] > sizes[1]


def test_protocols_have_their_own_colours_and_places():
    table = pd.DataFrame(
        [
            {"experiment": "tuned", "protocol": "published", "top1": 66.0, "low": None, "high": None},
            {"experiment": "tuned", "protocol": "clean", "top1": 60.0, "low": 58.0, "high": 61.0},
            {"experiment": "ensemble", "protocol": "study", "top1": 90.0, "low": 89.0, "high": 92.0},
        ]
    )
    ax = plots.protocols(table)
    assert texts(ax.get_yticklabels()) == ["ensemble", "tuned"]
    assert texts(ax.get_legend().get_texts()) == ["published", "study", "clean"]
    bars = {bar.get_label(): bar.lines[2][0].get_segments()[0] for bar in ax.containers}
    np.testing.assert_allclose(bars["clean"][:, 0], [58, 61])
    np.testing.assert_allclose(bars["published"][:, 0], [66, 66])
    assert bars["published"][0, 1] > bars["clean"][0, 1] > 0.5 > bars["study"][0, 1]
    alone = plots.protocols(table[table["protocol"] == "clean"])
    colour = [c.lines[0].get_color() for c in (ax.containers[2], alone.containers[0])]
    assert colour[0] == colour[1]


def test_the_parts_of_a_score_are_as_wide_as_their_faces():
    rows = {"one": {"seen": (30, 0.9), "new": (10, 0.5)}, "two": {"seen": (0, 0.0), "new": (10, 0.25)}}
    ax = plots.touched(rows)
    assert texts(ax.get_yticklabels()) == ["two", "one"] and texts(ax.get_legend().get_texts()) == ["seen", "new"]
    widths = [patch.get_width() for patch in ax.patches]
    np.testing.assert_allclose(widths, [0, 100, 75, 25])
    assert texts(ax.texts) == ["25", "90", "50"]


def test_pairs_stand_side_by_side_with_their_labels(faces):
    table = pd.DataFrame(
        {"first": [1], "second": [4], "kind": ["near"], "similarity": [0.97], "first_label": [0], "second_label": [3]}
    )
    figure = plots.pairs(faces, faces, table)
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 1 and shown[0].get_title() == "near 0.970\nangry | happy"
    image = shown[0].images[0].get_array()
    np.testing.assert_array_equal(image[:, :48], faces.images[1].squeeze())
    np.testing.assert_array_equal(image[:, 51:], faces.images[4].squeeze())


@pytest.mark.parametrize(
    "draw",
    [
        lambda faces, ax: plots.class_counts({"all": faces}, ax=ax),
        lambda faces, ax: plots.confusion_matrix(MATRIX, ("a", "b", "c"), ax=ax),
        lambda faces, ax: plots.intervals(["a"], [0.5], [[0.4, 0.6]], ax=ax),
    ],
    ids=["class_counts", "confusion_matrix", "intervals"],
)
def test_a_plot_draws_where_it_is_told(faces, draw):
    _, ax = plt.subplots()
    assert draw(faces, ax) is ax and len(plt.get_fignums()) == 1


def curve(*accuracies):
    return pd.DataFrame({"epoch": range(1, len(accuracies) + 1), "val_accuracy": accuracies})


def test_validation_curves_have_a_panel_a_group_and_colour_what_is_highlighted():
    groups = {"adam": {"a": curve(0.1, 0.3), "b": curve(0.2, 0.4)}, "sgd": {"c": curve(0.1)}}
    figure = plots.validation_curves(groups, ["b"])
    first, second = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["adam", "sgd"]
    assert texts(first.get_legend().get_texts()) == ["b"] and second.get_legend() is None
    assert [line.get_ydata().tolist() for line in first.lines] == [[10, 30], [20, 40]], "the coloured one is on top"
    assert first.get_ylim() == second.get_ylim()
    assert len([ax for ax in plots.validation_curves({name: {} for name in "abcd"}).axes if ax.get_title()]) == 4


def test_marginals_show_each_value_and_mark_the_best():
    rows = [("optimizer", "adam", 0.5), ("optimizer", "sgd", 0.6), ("l2", 0.0, 0.6), ("l2", 5e-4, 0.2)]
    figure = plots.marginals(pd.DataFrame(rows, columns=["parameter", "value", "validation"]))
    shown = [ax for ax in figure.axes if ax.get_title()]
    assert [(ax.get_title(), texts(ax.get_xticklabels())) for ax in shown] == [
        ("optimizer", ["adam", "sgd"]),
        ("l2", ["0", "0.0005"]),
    ]
    dots = shown[0].collections[0]
    assert dots.get_offsets()[:, 1].tolist() == [50, 60]
    colours = dots.get_facecolors().tolist()
    assert colours[0] == shown[1].collections[0].get_facecolors().tolist()[1] != colours[1]


def test_points_tried_draws_both_choices():
    table = pd.DataFrame({"chosen by test": [0.5, 0.7], "chosen by validation": [0.5, 0.6]}, index=[1, 2])
    ax = plots.points_tried(table)
    assert {line.get_label(): line.get_ydata().tolist() for line in ax.lines} == {
        "chosen by test": [50, 70],
        "chosen by validation": [50, 60],
    }


def test_trials_tell_pruned_ones_apart_and_the_best_so_far_is_of_complete_ones():
    table = pd.DataFrame(
        {"state": ["complete", "pruned", "failed", "complete"], "validation": [0.3, 0.9, np.nan, 0.2]},
        index=[0, 1, 2, 4],
    )
    ax = plots.trials(table)
    complete, pruned = (dots.get_offsets().tolist() for dots in ax.collections)
    assert complete == [[0, 30], [4, 20]] and pruned == [[1, 90]]
    assert ax.lines[0].get_ydata().tolist() == [30, 30]
