import numpy as np
import pytest

from fer_keras.data import CLASS_NAMES, USAGES
from fer_keras.drawn import FER2013_COUNTS, SHAPES, draw, draw_face, fingerprint

EIGHT = (*CLASS_NAMES, "contempt")


@pytest.fixture(scope="module")
def drawn():
    return draw(160, seed=3)


def test_the_same_seed_draws_the_same_faces(drawn):
    again = draw(160, seed=3)
    for name in ("images", "labels", "rows", "usage"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(again, name))
    assert drawn.fingerprint == again.fingerprint == fingerprint(160, 3)


def test_another_seed_draws_other_faces_in_another_order(drawn):
    other = draw(160, seed=4)
    assert not np.array_equal(drawn.labels, other.labels)
    assert drawn.class_counts() == other.class_counts()
    pixels = {image.tobytes() for faces in (drawn, other) for image in faces.images}
    assert len(pixels) == 320  # no face twice


def test_the_fingerprint_tells_number_and_seed_apart():
    given = [(140, 0), (141, 0), (140, 1), (1400, 0)]
    assert len({fingerprint(*one) for one in given}) == len(given)
    assert fingerprint() == fingerprint(2800, 0)


def test_drawn_faces_have_the_form_of_fer2013(drawn):
    assert drawn.images.shape == (160, 48, 48, 1) and drawn.images.dtype == "uint8"
    assert drawn.labels.dtype == "int64" and drawn.class_names == CLASS_NAMES
    assert drawn.rows.tolist() == list(range(160))
    assert set(drawn.origin) == {"original"}


@pytest.mark.parametrize("n", [140, 280, 1001])
def test_classes_are_as_unbalanced_as_fer2013s_and_all_in_each_usage(n, monkeypatch):
    # Counts do not need the pixels.
    monkeypatch.setattr("fer_keras.drawn.draw_face", lambda expression, rng: np.zeros((48, 48), "uint8"))
    faces = draw(n)
    assert len(faces) == n
    counts = np.array(list(faces.class_counts().values()))
    share = n * np.array(FER2013_COUNTS) / sum(FER2013_COUNTS)
    small = share < 10  # the rarest class is lifted to ten, at the expense of the largest
    large = np.arange(len(counts)) == np.argmax(FER2013_COUNTS)
    np.testing.assert_array_equal(counts[small], 10)
    np.testing.assert_array_equal(counts[~small & ~large], np.floor(share[~small & ~large]))
    assert counts.argmax() == np.argmax(FER2013_COUNTS) and counts.argmin() == np.argmin(FER2013_COUNTS)
    per_usage = [np.bincount(faces.labels[faces.usage == usage], minlength=7) for usage in USAGES]
    assert np.min(per_usage) >= 1
    np.testing.assert_allclose(per_usage[1], counts / 10, atol=0.5)
    np.testing.assert_array_equal(per_usage[1], per_usage[2])


def test_too_few_faces_are_refused():
    with pytest.raises(ValueError, match=r"`n` must be at least 140, .* Received: n=139"):
        draw(139)


@pytest.mark.parametrize("expression", CLASS_NAMES)
@pytest.mark.parametrize("strength", [None, 0.0, 1.0])
def test_a_face_of_each_expression_and_strength_can_be_drawn(expression, strength):
    first, again, other = (draw_face(expression, np.random.default_rng(seed), strength) for seed in (0, 0, 1))
    assert first.shape == (48, 48) and first.dtype == "uint8"
    assert first.std() > 5  # a picture, not an empty square
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_strength_makes_the_expression():
    assert tuple(sorted(SHAPES)) == tuple(sorted(EIGHT))
    weak, strong = (
        [draw_face(expression, np.random.default_rng(0), strength) for expression in EIGHT] for strength in (0, 1)
    )
    for image in weak[1:]:  # without strength every expression is the neutral face
        np.testing.assert_array_equal(image, weak[0])
    assert len({image.tobytes() for image in strong}) == len(EIGHT)


def test_contempt_is_drawn_where_it_is_wanted():
    eight = draw(280, contempt=True)
    assert eight.class_names == EIGHT and eight.class_counts()["contempt"] > 10
    assert eight.fingerprint != draw(280).fingerprint
    assert all((eight.usage[eight.labels == 7] == usage).any() for usage in ("Training", "PublicTest", "PrivateTest"))
