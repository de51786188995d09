"""How fast predictions are: `python benchmarks/predict.py PHOTOGRAPH [MODEL]`, on a photograph with a face.

Prints the time from nothing to the first answer (a new process of `fer-keras predict`), a 640×480 frame's time for
detection and for everything, faces a second, and the memory after 500 frames. Best of several where one is meant.
"""

import resource
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from fer_keras import ExpressionClassifier, faces


def seconds(call, repeat):
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken), float(np.median(taken))


def main(photograph, model="compact"):
    command = [sys.executable, "-m", "fer_keras", "predict", photograph, "--model", model]
    best, median = seconds(lambda: subprocess.run(command, check=True, capture_output=True), 5)
    print(f"from nothing to the first answer   {best:7.2f} s (median {median:.2f})")
    classifier = ExpressionClassifier(model)
    print(classifier.describe(), f"Detector {classifier.detector}.")
    picture = Image.open(photograph).convert("RGB")
    picture.thumbnail((640, 480))
    frame = np.full((480, 640, 3), 128, "uint8")
    frame[: picture.height, : picture.width] = picture
    n = len(classifier.analyze(frame))
    best, median = seconds(lambda: faces.find(frame, classifier._detect), 100)
    print(f"detection, a 640×480 frame         {1000 * best:7.1f} ms (median {1000 * median:.1f})")
    best, median = seconds(lambda: classifier.analyze(frame), 100)
    print(f"everything, {n} face(s)              {1000 * best:7.1f} ms (median {1000 * median:.1f})")
    crops = (
        np.random.default_rng(0).integers(0, 256, (512, *classifier.image_size, classifier.channels)).astype("uint8")
    )
    best, _ = seconds(lambda: classifier.predict(crops), 5)
    print(f"classification alone               {512 / best:7.0f} faces a second")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(500):
        classifier.analyze(frame)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"memory                             {after / 1024:7.0f} MB, {(after - before) / 1024:+.1f} after 500 frames")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
