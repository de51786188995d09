"""Time and peak memory of balancing: `python benchmarks/resample.py /path/to/fer2013.csv [METHOD ...]`.

Each method runs in its own process on the Training faces, so that peaks do not mix. The limit of the two methods that
clean up after SMOTE is the search for nearest neighbours among 50,505 rows of 2,304 pixels, 12 TFLOP.
"""

import multiprocessing
import resource
import sys
import time

from fer_keras.data import load_fer2013
from fer_keras.resample import RESAMPLERS
from fer_keras.roles import assign_roles


def measure(path, method):
    faces = load_fer2013(path)
    began = time.perf_counter()
    balanced = assign_roles(faces, "official", method, seed=0)["train"]
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{method:12} {seconds:7.1f} s   {peak:5.2f} GB   {len(balanced):,} faces", flush=True)


def main(path, methods):
    context = multiprocessing.get_context("spawn")
    for method in methods or RESAMPLERS:
        process = context.Process(target=measure, args=(path, method))
        process.start()
        process.join()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
