"""How fast faces are found and classified, beside PyPI's `fer`: `python benchmarks/app.py --fer-python PATH`.

One 640×480 frame with three faces, two cores, no GPU. Each contestant runs in a process of its own, `fer` in its own
environment (see `--help`), and all read the same frame; they take turns, so that a busy moment hits all. Printed: p50,
p95 and frames a second of detection and classification together, the time from a new process to its first answer
(median of several; the files are in the page cache), peak memory, where our time goes, how many cropped faces a second
the classifiers alone do, and our memory over many frames. With `--data fer2013.csv` also the top-1 of all on the 3,589
faces of PrivateTest as they are, with paired intervals; `fer`'s network looks like the mini-XCEPTION of
oarriaga/face_classification, whose training script keeps an epoch by PublicTest and PrivateTest together: then its
top-1 here is no estimate for new faces. Linux; about four minutes on idle cores.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np  # the only import that the environment of `fer` must have, too

THREADS = 2
TURN, COLD, FACES = 10, 5, 3  # frames in a turn; cold starts; faces in the frame
MAKE_FER = (
    "python3.11 -m venv ferenv && ferenv/bin/pip install fer==25.10.3 'opencv-contrib-python<5' 'setuptools<81'\n"
    "(OpenCV 5 lacks the cascade that it reads, and newer setuptools the pkg_resources that it imports), then\n"
    "--fer-python ferenv/bin/python"
)


# --- The frame ------------------------------------------------------------------------------------------------------


def drawn_frame():
    """Three drawn faces, which both detectors see, before a background with detail of all sizes."""
    from PIL import Image

    from fer_keras import faces
    from fer_keras.drawn import draw

    rng = np.random.default_rng(0)
    frame = np.full((480, 640, 3), 110.0)
    for cells in (4, 16, 64, 256):
        layer = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3)).astype("uint8"))
        frame += (np.asarray(layer.resize((640, 480), Image.BICUBIC), "float64") - 128) * 1.2 / np.sqrt(cells)
    frame = np.clip(frame, 0, 255).astype("uint8")
    detectors = [faces.detector(name)[1] for name in ("yunet", "haar")]
    at = iter(draw(280).images[..., 0])
    for column in range(FACES):
        left, side = 40 + 200 * column, (110, 130, 150)[column]
        for face in at:
            trial = frame.copy()
            trial[160 : 160 + side, left : left + side] = np.asarray(Image.fromarray(face).resize((side, side)))[
                ..., None
            ]
            if all(len(faces.find(trial, detect)) == column + 1 for detect in detectors):
                frame = trial
                break
    return frame


def photographed_frame(path):
    """The surest face of a photograph, about 110 pixels wide, three times side by side with what is around it."""
    from PIL import Image

    from fer_keras import faces

    image = faces.read_picture(path).image
    found = faces.find(image, faces.detector("auto")[1])
    if not len(found):
        sys.exit(f"There is no face in {path}.")
    left, top, width, height = found[found[:, 4].argmax(), :4]
    scale = 110 / width
    whole = Image.fromarray(image).resize([round(side * scale) for side in image.shape[1::-1]])
    x, y = round((left + width / 2) * scale) - 106, round((top + height / 2) * scale) - 240
    rows = np.clip(np.arange(y, y + 480), 0, whole.height - 1)  # beyond the picture its edge is repeated
    strip = np.asarray(whole)[rows[:, None], np.clip(np.arange(x, x + 213), 0, whole.width - 1)]
    return np.concatenate([strip, strip, strip, strip[:, :1]], axis=1)


# --- Contestants, each in a process of its own ----------------------------------------------------------------------


def ours(model, detector):
    from fer_keras import ExpressionClassifier, faces

    classifier = ExpressionClassifier(model, detector, threads=THREADS)

    def parts(frame, n):
        """Milliseconds of finding, cropping and classifying, medians."""
        taken = []
        for _ in range(n):
            at = [time.perf_counter()]
            found = faces.find(frame, classifier._detect)
            at.append(time.perf_counter())
            crops = faces.crop(frame, found, classifier.image_size, classifier.channels, classifier.margin)
            at.append(time.perf_counter())
            classifier.predict(crops)
            taken.append(np.diff([*at, time.perf_counter()]) * 1000)
        return np.median(taken, axis=0).tolist()

    about = {"says": classifier.describe(), "names": classifier.class_names}
    return classifier.analyze, classifier.predict, parts, about


def fer(use_tflite):
    from fer.fer import FER  # `from fer import FER` fails in 25.10.3

    detector = FER(mtcnn=False, use_tflite=use_tflite)

    def classify(faces):
        """Cropped faces as they are: as rectangles of one picture, without the margin that it adds."""
        exact = FER(mtcnn=False, use_tflite=use_tflite, offsets=(0, 0))
        score, shares = exact._classify_emotions, []
        # Its answers have two decimals, and ties would count against it.
        exact._classify_emotions = lambda given: shares.append(np.asarray(score(given))) or shares[-1]
        height, width = faces.shape[1:3]
        for start in range(0, len(faces), 64):
            some = faces[start : start + 64].reshape(-1, width, 1)
            places = [(0, top, width, height) for top in range(0, len(some), height)]
            exact.detect_emotions(np.repeat(some, 3, axis=2), places)
        return np.concatenate(shares)

    return detector.detect_emotions, classify, None, {"says": "", "names": list(FER._get_labels().values())}


def memory(name):
    """A line of /proc/self/status in MB: VmHWM, the peak, or VmRSS, now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def work(kind, options, file):
    """Answer once, then do what each line of standard input asks for."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    analyze, classify, parts, about = {"ours": ours, "fer": fer}[kind](**options)
    frame = np.load(file)
    if kind == "fer":
        frame = frame[..., ::-1].copy()  # it takes BGR
    about |= {"faces": len(analyze(frame)), "tensorflow": "tensorflow" in sys.modules}
    print(json.dumps(about), file=answers)
    for line in sys.stdin:
        task = json.loads(line)
        n, answer = task.get("n", 0), None
        if task["do"] == "frames":
            answer = []
            for _ in range(n):
                began = time.perf_counter()
                analyze(frame)
                answer.append(1000 * (time.perf_counter() - began))
        elif task["do"] == "parts":
            answer = parts(frame, n)
        elif task["do"] == "crops":
            faces = np.load(task["faces"])
            classify(faces[:64])
            began = time.perf_counter()
            shares = classify(faces)
            answer = time.perf_counter() - began
            np.save(task["shares"], shares)
        elif task["do"] == "peak":
            answer = memory("VmHWM")
        elif task["do"] == "memory":
            # Frames that differ, with one to four whole or cut faces.
            answer = [memory("VmRSS")]
            for number in range(n):
                analyze(np.roll(frame, 7 * number, axis=1))
                if (number + 1) % max(1, n // 10) == 0:
                    answer.append(memory("VmRSS"))
        print(json.dumps(answer), file=answers)


# --- The run --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(python, kind, options, file):
    """A contestant's process, what it says about itself, and the seconds to its first answer."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(THREADS),
        "TF_NUM_INTRAOP_THREADS": str(THREADS),
        "TF_NUM_INTEROP_THREADS": str(THREADS),
    }
    if kind != "ours":
        environment.pop("PYTHONPATH", None)
    command = [python, __file__, "--work", kind, json.dumps(options), file]
    with tempfile.TemporaryFile("w+") as complaints:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment
        )
        try:
            answer = process.stdout.readline()
            taken = time.perf_counter() - began
            if not answer:
                complaints.seek(0)
                sys.exit(f"{kind} {options} did not start:\n{complaints.read()[-2000:]}")
            yield process, json.loads(answer), taken
        finally:
            process.stdin.close()
            process.wait()


def ask(process, **task):
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def goal(text, reached):
    print(f"  {'reached' if reached else 'MISSED'}: {text}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"For `fer`:\n{MAKE_FER}"
    )
    parser.add_argument("--fer-python", help="the Python of an environment with `fer`; without it `fer` is left out")
    parser.add_argument("--model", default="compact", help="a run's folder or an .onnx file, default the best run")
    parser.add_argument("--photograph", help="a picture with a face, pasted three times, in place of drawn faces")
    parser.add_argument("--data", help="FER2013, for top-1 on PrivateTest")
    parser.add_argument("--frames", type=int, default=300, help="of each contestant")
    parser.add_argument("--memory", type=int, default=10_000, help="frames over which our memory is watched")
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # whatever a library thinks of its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    contestants = {
        f"fer-keras, {name}": (sys.executable, "ours", {"model": given.model, "detector": name})
        for name in ("yunet", "haar")
    }
    if given.fer_python:
        contestants |= {
            "fer, TFLite (its default)": (given.fer_python, "fer", {"use_tflite": True}),
            "fer, Keras": (given.fer_python, "fer", {"use_tflite": False}),
        }
    else:
        print(f"`fer` is left out. To have it beside ours:\n{MAKE_FER}\n")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = os.path.join(folder, "frame.npy")
        np.save(file, photographed_frame(given.photograph) if given.photograph else drawn_frame())
        cold = {name: [] for name in contestants}
        for _ in range(COLD):
            for name, contestant in contestants.items():
                with started(*contestant, file) as (_, _, seconds):
                    cold[name].append(seconds)
        running = {name: stack.enter_context(started(*each, file)) for name, each in contestants.items()}
        race(running, cold, given.frames)
        crops(running, folder, given.data)
        process = running["fer-keras, yunet"][0]
        if given.memory:
            sizes = ask(process, do="memory", n=given.memory)
            shown = ", ".join(f"{size:.0f}" for size in sizes)
            print(f"\nMemory over {given.memory:,} differing frames, MB at each tenth: {shown}")
            print(f"  {sizes[-1] - sizes[1]:+.1f} MB from the first tenth to the last")


def race(running, cold, n):
    """Frames in turns, and the table."""
    taken = {name: [] for name in running}
    for process, _, _ in running.values():
        ask(process, do="frames", n=TURN)
    for _ in range(-(-n // TURN)):
        for name, (process, _, _) in running.items():
            taken[name] += ask(process, do="frames", n=TURN)
    print(next(iter(running.values()))[1]["says"])
    print(f"{'':26} {'p50':>9} {'p95':>9} {'frames/s':>9} {'cold start':>11} {'peak':>8}  faces")
    half = {}
    for name, (process, about, _) in running.items():
        half[name], high = np.percentile(taken[name], [50, 95])
        print(
            f"{name:26} {half[name]:6.1f} ms {high:6.1f} ms {1000 / np.mean(taken[name]):9.1f} "
            f"{np.median(cold[name]):9.2f} s {ask(process, do='peak'):5.0f} MB  {about['faces']}"
        )
    for name in ("fer-keras, yunet", "fer-keras, haar"):
        find, crop, classify = ask(running[name][0], do="parts", n=50)
        print(f"{name}: finding {find:.1f} ms, cropping {crop:.1f} ms, classifying {classify:.1f} ms")
    mine = "fer-keras, yunet"
    if theirs := [value for name, value in half.items() if not name.startswith("fer-keras")]:
        share = half[mine] / min(theirs)
        goal(f"p50 {share:.2f} of the faster `fer`'s (at most 0.5)", share <= 0.5)
    rate = 1000 / np.mean(taken[mine])
    goal(f"{rate:.0f} frames a second (at least 25)", rate >= 25)
    start = np.median(cold[mine])
    goal(
        f"{start:.2f} s to the first answer (at most 3), TensorFlow {'' if running[mine][1]['tensorflow'] else 'not '}"
        "imported",
        start <= 3 and not running[mine][1]["tensorflow"],
    )


def crops(running, folder, data):
    """Cropped faces: how many a second, and with FER2013 how many right."""
    from fer_keras.drawn import draw

    if data:
        from fer_keras.data import CLASS_NAMES, load_fer2013
        from fer_keras.evaluate import compare, percent, wilson

        known = load_fer2013(data)
        known = known.take(known.usage == "PrivateTest")
        images = known.images[..., 0]
    else:
        images = draw(2000).images[..., 0]
    np.save(f"{folder}/faces.npy", images)
    print(f"\n{len(images):,} cropped faces{' of PrivateTest, as they are' if data else ''}, the classifiers alone")
    scored, rates = {}, {}
    for name, (process, about, _) in running.items():
        if name == "fer-keras, haar":  # the same classifier
            continue
        name = name.removesuffix(", yunet")
        seconds = ask(process, do="crops", faces=f"{folder}/faces.npy", shares=f"{folder}/shares.npy")
        print(f"{name:26} {len(images) / seconds:9,.0f} faces a second", end="" if data else "\n")
        rates[name] = len(images) / seconds
        if data:
            shares = np.load(f"{folder}/shares.npy")
            # By name; a class that FER2013 has not stays at the end, and an answer with it is wrong.
            names = [*CLASS_NAMES, *(each for each in about["names"] if each not in CLASS_NAMES)]
            shares = shares[:, [about["names"].index(each) for each in names]]
            right = int((shares.argmax(axis=1) == known.labels).sum())
            print(f"   top-1 {percent(right / len(images), wilson(right, len(images)))} %")
            scored[name] = SimpleNamespace(rows=known.rows, labels=known.labels, probabilities=shares)
    for name in list(scored)[1:]:
        found = compare(scored[name], scored["fer-keras"])
        low, high = found["top1"]["interval"]
        print(
            f"  less {name}: {100 * found['top1']['difference']:+.2f} ({100 * low:+.1f} to {100 * high:+.1f}) "
            f"points on the same faces, McNemar's p {found['p_value']:.2g}"
        )

    goal(f"{rates['fer-keras']:,.0f} faces a second (at least 1,000)", rates["fer-keras"] >= 1000)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
    else:
        main()
