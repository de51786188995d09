"""Training on a set that is larger than memory: `python benchmarks/big_data.py [--gb 20] [--side 48] [--steps 100]`.

Writes a set of so many gigabytes of drawn faces with noise, chunk by chunk, in the form that `fer-keras data convert`
leaves, its training, validation and test faces in no order; the folder needs the disk space, and is deleted at the end.
(The chunks repeat one another, which makes nothing faster: to the system all pages are different ones.) Then, each
in a process of its own, a VGGNet trains for some steps: on a small set held in the device's memory, which on a CPU is
the host's; on the same set streamed from its file; on the large set, memory-mapped, once as it is and once balanced by
random over-sampling. Prints the peak of anonymous memory, what of it there was before any faces, the seconds up to the
first step, and faces per second, also as a share of the first. Mapped pages, which the system takes back when it needs
them, do not count as anonymous memory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from growth import Enough, Memory

from fer_keras import convert, drawn
from fer_keras.data import USAGES

CHUNK = 64 << 20
SMALL = 20_000  # faces, or a tenth of the set if that is less


def write(folder, n, side, channels):
    """A converted set of n faces in `folder`: chunks of drawn faces with noise, each chunk in another order."""
    folder.mkdir()
    rng = np.random.default_rng(n)
    own, at = drawn.draw(1400), np.arange(side) * 48 // side
    pictures = np.repeat(own.images[:, at][:, :, at], channels, axis=-1) // 2
    chosen = rng.integers(0, len(pictures), max(1, CHUNK // pictures[0].nbytes))
    images, labels = pictures[chosen], own.labels[chosen]
    images += rng.integers(0, 128, images.shape, dtype="uint8")
    begins = rng.integers(0, len(chosen), -(-n // len(chosen)))
    with open(folder / "images.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *images.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for number, begin in enumerate(begins):
            left = n - number * len(chosen)
            for part in (images[begin:], images[:begin]):
                file.write(part[:left].data)
                left = max(0, left - len(part))
    labels = np.concatenate([np.roll(labels, -begin) for begin in begins])[:n]
    np.save(folder / "labels.npy", labels)
    np.save(folder / "usage.npy", rng.choice(np.array(USAGES, "U11"), n, p=[0.8, 0.1, 0.1]))
    info = {
        "format": convert.FORMAT,
        "kind": "folder",
        "faces": n,
        "image_size": [side, side],
        "options": {"color": "grey" if channels == 1 else "rgb"},
        "class_names": list(own.class_names),
        "fingerprint": f"big {n} {side} {channels}",
        "notes": [],
    }
    (folder / "dataset.json").write_text(json.dumps(info))


def measure(given):
    """Peak and start of anonymous memory, seconds up to the first step, and faces a second after it."""
    import keras

    from fer_keras import model, roles, source, train

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for it
            times.append(time.perf_counter())
            if batch == given.steps:
                raise Enough

    memory = Memory()
    memory.start()
    time.sleep(0.1)
    times, before = [time.perf_counter()], memory.peak
    faces = source.load(given.folder)
    parts = roles.assign_roles(faces, "official", given.resampling, 0)
    train.seed_everything(0)
    side, _, channels = faces.images.shape[1:]
    network = model.vggnet(image_size=(side, side), channels=channels, width=given.width, head="pooling")
    try:
        options = {"epochs": 1, "patience": 0, "batch_size": given.batch, "extra_callbacks": [Clock()]}
        train.fit(network, parts["train"], parts["validation"], device_bytes=given.device_bytes, **options)
    except Enough:
        pass
    rate = given.batch * given.steps / (times[-1] - times[1])
    print(json.dumps([len(parts["train"]), memory.peak, before, times[1] - times[0], rate]), flush=True)
    os._exit(0)  # TensorFlow's threads still read batches ahead, and Python's own end may wait for them for ever


def measured(given, folder, resampling="none", device_bytes=None):
    words = ["--measure", "--folder", folder, "--resampling", resampling]
    words += ["--steps", given.steps, "--width", given.width, "--batch", given.batch]
    words += [] if device_bytes is None else ["--device-bytes", device_bytes]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main(given):
    face = given.side**2 * given.channels
    n = int(given.gb * 1e9 / face)
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        if (free := shutil.disk_usage(temporary).free) < 1.2 * n * face:
            sys.exit(
                f"{n * face / 1e9:.1f} GB do not fit: {temporary} has {free / 1e9:.1f} GB free. Give --folder or --gb."
            )
        small, large = Path(temporary, "small"), Path(temporary, "large")
        write(small, min(SMALL, n // 10), given.side, given.channels)
        began = time.perf_counter()
        write(large, n, given.side, given.channels)
        took = time.perf_counter() - began
        print(f"{n:,} faces of {given.side}×{given.side}×{given.channels}, {n * face / 1e9:.1f} GB, in {took:.0f} s")
        print("set      what          faces that train   anonymous: peak (at start)   to 1st step   faces a second")
        first = None
        for name, where, *more in (
            ("small", "in memory", small, "none", 2**40),
            ("small", "from the file", small, "none", 0),
            ("large", "from the file", large),
            ("large", "ros", large, "ros"),
        ):
            faces, peak, before, seconds, rate = measured(given, *more)
            first = first or rate
            print(
                f"{name:8} {where:13} {faces:16,} {peak / 1e6:12,.0f} MB ({before / 1e6:3,.0f} MB) {seconds:15.1f} s "
                f"{rate:12.0f} ({rate / first:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=20, help="size of the large set, 10⁹ bytes (default 20)")
    parser.add_argument("--side", type=int, default=48, help="height and width of a face (default 48)")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3))
    parser.add_argument("--steps", type=int, default=100, help="steps after the first (default 100)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.125, help="of the VGGNet (default 0.125)")
    parser.add_argument("--folder", help="where to write, by default the system's temporary folder")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resampling", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--device-bytes", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    measure(words) if words.measure else main(words)
