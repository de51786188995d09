"""How long looking for near-duplicates takes: `python benchmarks/duplicates.py /path/to/fer2013.csv`.

First FER2013's PrivateTest against a quarter, a half and all of Training: the time grows with the product of the two
sets. Then a slice of 500,000 × 50,000 rows, memory-mapped from temporary files of FER2013's faces, each moved at random
by up to 8 pixels and at a random contrast, with the peak of anonymous memory (what is mapped does not count), and what
the whole would take by that law. The limit is the matrix product: 4 · 2,304 operations a pair for the face and its
mirror image, printed as measured with NumPy beside it.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from fer_keras import data, duplicates
from fer_keras.split import split_official

ROWS, OTHERS, SLICE = 500_000, 50_000, 8_192


def seconds(call):
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


class Memory(threading.Thread):
    """Watches the peak of anonymous memory of this process, in GB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.going = 0.0, True

    def run(self):
        while self.going:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = max(self.peak, *(int(line.split()[1]) / 1e6 for line in lines if line.startswith("RssAnon")))
            time.sleep(0.05)


def moved(path, n, faces):
    """Memory-mapped faces: those of FER2013 again and again, each time at another place and contrast."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype="uint8", shape=(n, 48, 48, 1))
    rng = np.random.default_rng(n)
    for at in range(n):
        face = np.roll(faces.images[rng.integers(len(faces))], rng.integers(-8, 9, 2), (0, 1))
        images[at] = rng.uniform(0.5, 1) * face + rng.uniform(0, 60)
    images.flush()
    return data.Faces(np.load(path, mmap_mode="r"), np.zeros(n, int), np.arange(n), np.full(n, ""))


def main(path):
    faces = data.load_fer2013(path)
    parts = split_official(faces)
    duplicates.find(parts["test"].take(slice(0, 500)), parts["test"].take(slice(0, 500)))  # warms the backend up
    for share in (4, 2, 1):
        train = parts["train"].take(slice(0, len(parts["train"]) // share))
        taken, found = seconds(lambda train=train: duplicates.find(train, parts["test"]))
        pairs = len(train) * len(parts["test"])
        print(
            f"{len(train):7,} × {len(parts['test']):,}   {taken:6.1f} s   {pairs / taken / 1e6:5.1f} million pairs a "
            f"second   {found['second'].nunique()} test faces found",
            flush=True,
        )
    left = np.ones((4096, 2304), "float32")
    product, _ = seconds(lambda: left @ left.T)
    print(f"NumPy's matrix product alone, twice: {4096**2 / product / 2e6:.1f} million pairs a second")
    with tempfile.TemporaryDirectory() as folder:
        first, second = (moved(Path(folder, f"{n}.npy"), n, faces) for n in (ROWS, OTHERS))
        memory = Memory()
        memory.start()
        taken, _ = seconds(lambda: duplicates.find(first.take(slice(0, SLICE)), second))
        memory.going = False
    print(
        f"{SLICE:,} of {ROWS:,} × {OTHERS:,} from memory maps: {taken:.1f} s, peak {memory.peak:.2f} GB; "
        f"all of them by the same law: {taken * ROWS / SLICE / 3600:.1f} hours"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
