"""How time and memory grow with the faces: `python benchmarks/growth.py [FACTOR ...]`, 1, 4 and 16 by default.

For each factor a set of so many times FER2013's 35,887 rows, of drawn faces that differ in place and brightness, is
written block by block to a temporary folder (83 MB times the factor), in the form in which loaded faces are kept. Then,
each time in a process of its own, it is loaded, memory-mapped, gets its official roles and trains a narrow VGGNet for
100 steps: with the faces in the device's memory, which on a CPU is the host's, and streamed from the file. Prints the
seconds of each, and the peak of anonymous memory (what is mapped does not count) above that of the same training with
6,592 faces, streamed; also as a multiple of the set's size in uint8, which should be less than 2 at every factor.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from fer_keras import drawn

ROWS, TESTS, STEPS, BLOCK = 35_887, 3_589, 100, 8_192


def write(folder, faces, n, tests):
    """A set of n faces as `fer_keras.data.write_cache` keeps it, of which the last ones validate and test."""
    rng = np.random.default_rng(n)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype="uint8", shape=(n, 48, 48, 1))
    labels = np.empty(n, "int64")
    for start in range(0, n, BLOCK):
        at = rng.integers(0, len(faces), min(BLOCK, n - start))
        moved = np.roll(faces.images[at], rng.integers(-4, 5, 2), (1, 2))
        images[start : start + len(at)] = moved // 2 + rng.integers(0, 128, (len(at), 1, 1, 1), "uint8")
        labels[start : start + len(at)] = faces.labels[at]
    images.flush()
    np.save(folder / "labels.npy", labels)
    np.save(folder / "usage.npy", np.repeat(["Training", "PublicTest", "PrivateTest"], [n - 2 * tests, tests, tests]))
    (folder / "note.json").write_text(json.dumps({"fingerprint": f"growth {n}", "notes": []}))


class Memory(threading.Thread):
    """Watches the peak of anonymous memory of this process, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0

    def run(self):
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = max(self.peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
            time.sleep(0.01)


class Enough(Exception):
    """So many steps are done."""


def measure(folder, device_bytes):
    """Seconds to load, to give roles, up to the end of the first step, and of the later ones; and the peak."""
    import keras

    from fer_keras import data, model, roles, train

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for it
            times.append(time.perf_counter())
            if batch == STEPS:
                raise Enough

    memory = Memory()
    memory.start()
    times = [time.perf_counter()]
    faces = data.read_cache(Path(folder))
    times.append(time.perf_counter())
    parts = roles.assign_roles(faces, "official", "none", 0)
    times.append(time.perf_counter())
    try:
        network = model.vggnet(width=1 / 16)
        options = {"epochs": 100, "patience": 0, "device_bytes": device_bytes, "extra_callbacks": [Clock()]}
        train.fit(network, parts["train"], parts["validation"], **options)
    except Enough:
        pass
    load, split, first = np.diff(times[:4])
    print(json.dumps([load, split, first, times[-1] - times[3], memory.peak]))


def measured(folder, device_bytes):
    words = [sys.executable, __file__, "--measure", str(folder), str(device_bytes)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main(factors):
    print("rows              set  faces        load   roles  first step  100 steps   peak")
    with tempfile.TemporaryDirectory() as temporary:
        small, faces = Path(temporary), drawn.draw(1400)
        write(small, faces, 64 * (STEPS + 3), 64)
        *_, least = measured(small, 0)
        for factor in factors:
            folder, n = Path(temporary, str(factor)), ROWS * factor
            folder.mkdir()
            write(folder, faces, n, TESTS * factor)
            for name, device_bytes in (("resident", 2**40), ("streamed", 0)):
                load, split, first, steps, peak = measured(folder, device_bytes)
                size, peak = n * 2304, peak - least
                print(
                    f"{n:7,} ({factor:2}×) {size / 1e6:5.0f} MB  {name}  {load:7.3f} s {split:5.2f} s {first:9.1f} s "
                    f"{steps:8.1f} s   {peak / 1e6:5.0f} MB, {peak / size:5.2f} times the set",
                    flush=True,
                )
            (folder / "images.npy").unlink()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        main([int(word) for word in sys.argv[1:]] or [1, 4, 16])
