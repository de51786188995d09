"""How fast fer2013.csv is read: `python benchmarks/load_csv.py /path/to/fer2013.csv`.

Side by side in one run: pandas with `np.fromstring` on each row (the usual notebook code), fer-keras without a cache,
and fer-keras from its memory-mapped cache. Prints seconds and ratios. The limit is memory bandwidth: 301 MB of text are
passed over about ten times in blocks of 4 MB.
"""

import sys
import time
import warnings

import numpy as np
import pandas as pd

from fer_keras.data import load_fer2013


def usual(path):
    table = pd.read_csv(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the text mode of fromstring is what people use
        rows = [np.fromstring(row, sep=" ", dtype="uint8") for row in table["pixels"]]
    return np.stack(rows).reshape(-1, 48, 48, 1)


def seconds(call, repeat):
    best = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - began)
    return best, result


def main(path):
    load_fer2013(path)  # fills the page cache and the cache
    slow, expected = seconds(lambda: usual(path), 2)
    fresh, faces = seconds(lambda: load_fer2013(path, cache=False), 3)
    cached, mapped = seconds(lambda: load_fer2013(path), 5)
    assert np.array_equal(expected, faces.images) and np.array_equal(expected, mapped.images)
    print(f"pandas and np.fromstring    {slow:7.2f} s")
    print(f"fer-keras, from the text    {fresh:7.2f} s   {slow / fresh:5.1f}× faster")
    print(f"fer-keras, from the cache   {cached:7.4f} s   {slow / cached:5.0f}× faster")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
