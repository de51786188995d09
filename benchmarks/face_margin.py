"""Which margin around a detector's box gives FER2013's crop: `python benchmarks/face_margin.py /path/to/fer2013.csv`.

Faces of PublicTest are pasted, 96 to 240 pixels large, into a grey 640×480 frame and looked for there. Printed
per detector: how many were found, how much longer the crop's side is than the geometric mean of the box's sides (median
and quartiles), how far apart their middles are, and the top-1 of a model (`--model`, default the best run) on the faces
as they are and as they are found and cropped again, at several margins. A face that was not found counts as wrong.
"""

import argparse

import numpy as np
from PIL import Image

from fer_keras import faces as faces_
from fer_keras.classifier import ExpressionClassifier
from fer_keras.data import load_fer2013


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--n", type=int, default=600)
    given = parser.parse_args()
    known = load_fer2013(given.data)
    known = known.take(known.usage == "PublicTest")
    rng = np.random.default_rng(0)
    known = known.take(rng.choice(len(known), given.n, replace=False))
    frames, places = [], []
    for face in known.images[..., 0]:
        side = int(rng.integers(96, 241))
        x, y = int(rng.integers(0, 640 - side)), int(rng.integers(0, 480 - side))
        frame = np.full((480, 640, 3), 128, "uint8")
        frame[y : y + side, x : x + side] = np.asarray(Image.fromarray(face).resize((side, side)))[..., None]
        frames.append(frame)
        places.append((x, y, side))
    classifier = ExpressionClassifier(given.model, detector="whole")
    print(classifier.describe())
    print(f"as they are: top-1 {100 * np.mean(classifier.predict(known.images).argmax(1) == known.labels):.1f} %")
    for name in ("yunet", "haar"):
        _, detect = faces_.detector(name)
        found = [faces_.find(frame, detect) for frame in frames]
        found = [boxes[np.argmax(boxes[:, 4])][None] if len(boxes) else boxes for boxes in found]
        ratio, away = [], []
        for boxes, (x, y, side) in zip(found, places, strict=True):
            for left, top, width, height in boxes[:, :4]:
                ratio.append(side / (width * height) ** 0.5)
                away.append([x + side / 2 - left - width / 2, y + side / 2 - top - height / 2] / np.float32(side))
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        right, down = np.median(away, axis=0)
        print(
            f"{name}: found {len(ratio)} of {given.n}; side {middle:.3f} ({low:.3f} to {high:.3f}) of the box's mean; "
            f"middle {right:+.3f}, {down:+.3f} of the side away"
        )
        for margin in (-0.05, 0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2):
            for align in (False, True)[: 1 + (name == "yunet" and margin == faces_.MARGINS["yunet"])]:
                right = 0
                for frame, boxes, label in zip(frames, found, known.labels, strict=True):
                    crops = faces_.crop(frame, boxes, margin=margin, align=align)
                    right += bool(len(crops)) and classifier.predict(crops).argmax(1)[0] == label
                print(f"  margin {margin:+.3f}{' aligned' if align else ''}: top-1 {100 * right / given.n:.1f} %")


if __name__ == "__main__":
    main()
