"""How fast a data set is converted: `python benchmarks/convert.py [IMAGES]`, 20,000 by default, drawn.

Side by side in one run, on AffectNet's Kaggle layout (96×96 JPEG in colour): Pillow opening and decoding the same files
and nothing else, and the converter, to 48×48 grey, with its listing, splitting, writing and hashing, both in as many
processes as there are cores (at most eight), and in one. Prints images a second, the ratios, and the peak of anonymous
memory. The limit is the decoder. Then the same for pictures of 1,000×800 with three faces each, as ExpW has them, where
a JPEG may be decoded at a half of its size.
"""

import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from joblib import Parallel, cpu_count, delayed
from PIL import Image

from fer_keras import convert, layouts


class Memory(threading.Thread):
    """Watches the peak of anonymous memory of this process and its children, in MB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.going = 0.0, True

    def run(self):
        this = psutil.Process()
        while self.going:
            self.peak = max(self.peak, sum(map(anonymous, [this, *this.children(recursive=True)])))
            time.sleep(0.05)


def anonymous(process):
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon")), 0)
    except OSError:  # has just ended
        return 0


def decode(files):
    for file in files:
        with Image.open(file) as image:
            image.load()


def decode_all(files, workers):
    parts = [files[at : at + 512] for at in range(0, len(files), 512)]
    with Parallel(workers, batch_size=1) as parallel:
        parallel(delayed(decode)(part) for part in parts)


def write_small(root, n):
    """AffectNet's Kaggle layout, of 400 different faces with noise of their own."""
    rng = np.random.default_rng(0)
    faces = [np.asarray(layouts.draw_color(name, rng), float) for name in layouts.AFFECTNET_FOLDERS for _ in range(50)]
    lines = [",pth,label,relFCs"]
    for i in range(n):
        at = i % len(faces)
        emotion = layouts.AFFECTNET_FOLDERS[at // 50]
        path = root / emotion / f"image{i:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(faces[at] + rng.normal(0, 5, faces[at].shape), 0, 255).astype("uint8")
        Image.fromarray(pixels).save(path, quality=92)
        lines.append(f"{i},{emotion}/{path.name},{emotion},0.8")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def write_large(root, n):
    """ExpW's layout: 40 different pictures of 1,000×800, each with three faces of 330 pixels."""
    rng = np.random.default_rng(0)
    (root / "origin").mkdir(parents=True)
    contents, lines = [], []
    for i in range(n):
        path = root / "origin" / f"{i}.jpg"
        if i < 40:
            picture = layouts._background(rng, 1000, 800)
            for face in range(3):
                picture.paste(layouts.draw_color("happy", rng, 330), (5 + 330 * face, 100))
            picture.save(path, quality=92)
            contents.append(path.read_bytes())
        path.write_bytes(contents[i % len(contents)])
        lines += [
            f"{path.name} {face} 100 {5 + 330 * face} {335 + 330 * face} 430 80.0 {(i + face) % 7}" for face in range(3)
        ]
    (root / "label.lst").write_text("\n".join(lines) + "\n")


def compare(kind, source, folder, files, workers):
    """Print the best of three of each, in turn, so that what else runs on the machine meets all alike."""
    best = {}

    def measure(name, call):
        wall, processor = time.perf_counter(), time.process_time()
        result = call()
        spent = time.perf_counter() - wall, time.process_time() - processor
        best[name] = tuple(map(min, zip(best.get(name, spent), spent, strict=True)))
        return result

    def converted(workers):
        shutil.rmtree(folder / "out", ignore_errors=True)
        return convert.convert(kind, source, folder / "out", progress=False, workers=workers)

    memory = Memory()
    for _ in range(3):
        measure("Pillow, all processes", lambda: decode_all(files, workers))
        if not memory.is_alive():
            memory.start()
        measure("converter, all processes", lambda: converted(workers))
        measure("Pillow, one process", lambda: decode(files))
        faces = measure("converter, one process", lambda: converted(1))
    memory.going = False
    with Image.open(files[0]) as image:
        width, height = image.size
    print(f"{kind}: {len(files):,} images of {width}×{height}, {len(faces):,} faces; {workers} processes")
    for processes in ("all processes", "one process"):
        for name in ("Pillow", "converter"):
            wall, processor = best[f"{name}, {processes}"]
            line = f"  {name + ', ' + processes:25} {wall:6.2f} s   {len(files) / wall:8,.0f} images a second"
            if processes == "one process":
                line += f"   {processor / len(files) * 1e6:7,.0f} µs of processor an image"
            print(line)
    ratios = [best[f"Pillow, {name}"][0] / best[f"converter, {name}"][0] for name in ("all processes", "one process")]
    share = best["Pillow, one process"][1] / best["converter, one process"][1]
    print(
        f"  the converter's speed over the decoder's: {ratios[0]:.0%} with all processes, {ratios[1]:.0%} with one, "
        f"{share:.0%} by processor time"
    )
    print(f"  peak of anonymous memory of all processes: {memory.peak:.0f} MB", flush=True)


def main(n):
    workers = min(cpu_count(), convert.MOST_WORKERS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small(folder / "small", n)
        compare("affectnet", folder / "small", folder, sorted((folder / "small").rglob("*.jpg")), workers)
        write_large(folder / "large", n // 20)
        compare("expw", folder / "large", folder, sorted((folder / "large").rglob("*.jpg")), workers)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
