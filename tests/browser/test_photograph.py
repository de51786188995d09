"""A real photograph with one face: scikit-image's astronaut (NASA, public domain)."""

import pytest

from fer_keras import ExpressionClassifier, faces

skimage = pytest.importorskip("skimage.data", reason="scikit-image is not installed: pip install -e '.[browser]'")
WHERE = (177, 66, 95, 95)  # as OpenCV's Haar cascade sees it


def overlap(box, other):
    """Intersection over union of two boxes."""
    left, top = max(box[0], other[0]), max(box[1], other[1])
    right, bottom = min(box[0] + box[2], other[0] + other[2]), min(box[1] + box[3], other[1] + other[3])
    both = max(0, right - left) * max(0, bottom - top)
    return both / (box[2] * box[3] + other[2] * other[3] - both)


@pytest.mark.parametrize("detector", ["auto", "haar"])
def test_the_astronauts_one_face_is_found_where_it_is(outputs, detector):
    (face,) = ExpressionClassifier(outputs / "demo/tuned/seed-0", detector).analyze(skimage.astronaut())
    assert overlap(face.box, WHERE) > 0.5
    assert sum(face.probabilities.values()) == pytest.approx(1, abs=1e-4)


def test_the_crop_is_the_face_and_the_same_from_all_detectors():
    photograph = skimage.astronaut()
    crops = []
    for name in ("auto", "haar"):
        kind, find = faces.detector(name, say=lambda sentence: None)
        crops.append(faces.crop(photograph, faces.find(photograph, find), margin=faces.MARGINS[kind])[0].astype(float))
    same = [(crop - crop.mean()).ravel() / crop.std() for crop in crops]
    assert same[0] @ same[1] / len(same[0]) > 0.5
