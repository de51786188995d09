"""Balancing against imbalanced-learn as it comes: `python benchmarks/resample.py fer2013.csv [--every N] [METHOD ...]`.

Each method balances the Training faces (or every N-th) twice, by imbalanced-learn's own search for neighbours and by
`fer_keras.resample`, each time in a process of its own, so that peaks of memory do not mix. Prints seconds, their
ratio, the peaks, and how many of the chosen rows differ. Which of equally far faces scikit-learn takes depends on the
number of its threads, and ours are those of two: with another number rows may differ, and how much nearer one of two
parents is tells whether that was a tie. The limit of the plain search is a matrix product of 50,505 × 50,505 × 2,304 in
float64, 12 TFLOP; ours takes one of 50,505 × 50,505 × 259 in float32.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from imblearn.combine import SMOTEENN, SMOTETomek

from fer_keras.data import load_fer2013
from fer_keras.resample import TracedSMOTE, resample
from fer_keras.split import split_official

METHODS = ("smote", "smote_tomek", "smote_enn")


def plain(faces, method):
    """Parents and weight of the chosen rows; imbalanced-learn does all but keep this record of its SMOTE."""
    smote = TracedSMOTE(random_state=0)
    pixels, n = faces.images.reshape(len(faces), -1).astype("float32"), len(faces)
    if method == "smote":
        kept = np.arange(len(smote.fit_resample(pixels, faces.labels)[1]))
    else:
        sampler = {"smote_tomek": SMOTETomek, "smote_enn": SMOTEENN}[method](smote=smote, random_state=0)
        sampler.fit_resample(pixels, faces.labels)
        smote = sampler.smote_
        kept = (sampler.tomek_ if method == "smote_tomek" else sampler.enn_).sample_indices_
    kept = kept[np.argsort(kept >= n, kind="stable")]  # the given faces first, as ours
    both = np.arange(n)[:, None].repeat(2, axis=1)  # a given face is its own parents
    return np.concatenate([both, smote.parents_])[kept], np.concatenate([np.zeros(n), smote.weight_])[kept]


def ours(faces, method):
    faces = resample(faces, method)
    return np.where(faces.parents < 0, faces.rows[:, None], faces.parents), faces.weight


def measure(way, path, every, method, target):
    faces = split_official(load_fer2013(path))["train"]
    faces = faces.take(slice(None, None, every))
    began = time.perf_counter(), time.process_time()
    parents, weight = (plain if way == "plain" else ours)(faces, method)
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if way == "plain":
        parents = faces.rows[parents]
    np.savez(target, parents=parents, weight=weight, measured=[*seconds, peak])


def differences(path, here, there):
    """How many chosen rows differ, and by how much the second parents of those that do are nearer or farther."""
    rows = [set(zip(*kept["parents"].T.tolist(), kept["weight"].tolist(), strict=True)) for kept in (here, there)]
    only = [sorted(some - others) for some, others in (rows, rows[::-1])]
    if not only[0] and not only[1]:
        return "the same rows"
    pixels = load_fer2013(path).images.astype("float64")
    other = {(first, weight): second for first, second, weight in only[1]}
    pairs = [(first, second, other[first, weight]) for first, second, weight in only[0] if (first, weight) in other]
    apart = [np.linalg.norm(pixels[first] - pixels[second]) for first, *seconds in pairs for second in seconds]
    gaps = np.abs(np.diff(np.reshape(apart, (-1, 2)), axis=1))
    return (
        f"{len(only[0])} rows are only plain's and {len(only[1])} only ours; {len(pairs)} of these have another second "
        f"parent, at most {gaps.max(initial=0):.2g} nearer or farther"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("methods", nargs="*", default=METHODS, choices=[*METHODS, METHODS], metavar="METHOD")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th of the Training faces")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for method in given.methods:
            kept = {}
            for way in ("plain", "ours"):
                target = Path(folder, f"{method}-{way}.npz")
                process = context.Process(target=measure, args=(way, given.path, given.every, method, target))
                process.start()
                process.join()
                kept[way] = dict(np.load(target))
                seconds, processor, peak = kept[way]["measured"]
                print(
                    f"{method:12} {way:6} {seconds:7.1f} s   {processor:7.1f} s of processor   peak {peak:5.2f} GB   "
                    f"{len(kept[way]['weight']):,} rows",
                    flush=True,
                )
            ratios = kept["plain"]["measured"] / kept["ours"]["measured"]
            print(
                f"{method:12} ratio  {ratios[0]:7.2f}     {ratios[1]:7.2f}                  {1 / ratios[2]:10.2f}      "
                f"{differences(given.path, kept['plain'], kept['ours'])}",
                flush=True,
            )


if __name__ == "__main__":
    main()
