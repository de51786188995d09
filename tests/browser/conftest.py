"""The app as users start it, with a network trained on drawn faces, and Chromium with a film for a camera."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_keras import evaluate, export, model, run, train
from fer_keras.drawn import draw
from fer_keras.roles import assign_roles

sys.path.insert(0, str(Path(__file__).parent.parent))  # what the other tests share

SHOWN = ("happy", "surprise", "neutral")  # in the film, one after the other


def picture(face, side=260):
    """A drawn face in a 640×480 frame, left of its middle."""
    frame = np.full((480, 640, 3), 150, "uint8")
    large = Image.fromarray(face[..., 0]).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    frame[110 : 110 + side, 100 : 100 + side] = large
    return frame


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    """A finished run: a small network, trained for a minute on drawn faces."""
    folder = tmp_path_factory.mktemp("outputs") / "demo/tuned/seed-0"
    parts = assign_roles(draw(2000), "official", "none", seed=0)
    train.seed_everything(0)
    network = model.vggnet(width=0.125)
    history = train.fit(network, parts["train"], parts["validation"], epochs=6, learning_rate=1e-3, batch_size=32)
    params = {"experiment": "tuned", "suite": "demo", "seed": 0, "data": "drawn"}
    run.save_training(folder, params, "key", parts, history, network, 1.0)
    scored = {name: parts[name] for name in ("validation", "test")}
    found = run.predictions(folder, scored, lambda images: evaluate.predict(network, images))
    metrics = run.save_metrics(folder, params, "key", found, "official", {}, {})
    assert metrics["sets"]["test"]["top1"] > 0.5, "the network has learned too little to show anything"
    export.to_onnx(folder)
    return folder.parents[2]


@pytest.fixture(scope="session")
def frames(outputs):
    """For each shown expression a frame whose face is found and told right."""
    from fer_keras import ExpressionClassifier

    classifier, drawn, found = ExpressionClassifier(outputs / "demo/tuned/seed-0"), draw(700, seed=5), {}
    for name in SHOWN:
        for face in drawn.images[drawn.labels == drawn.class_names.index(name)]:
            seen = classifier.analyze(picture(face))
            if len(seen) == 1 and seen[0].label == name and seen[0].probabilities[name] > 0.6:
                found[name] = picture(face)
                break
    assert set(found) == set(SHOWN), f"found and told right were only {', '.join(found)}"
    return found


@pytest.fixture(scope="session")
def film(frames, tmp_path_factory):
    """The film that Chromium takes for a camera: each expression for three seconds, over and over."""
    path = tmp_path_factory.mktemp("film") / "camera.mjpeg"
    with path.open("wb") as file:
        for name in SHOWN:
            content = io.BytesIO()
            Image.fromarray(frames[name]).save(content, "JPEG", quality=90)
            file.write(content.getvalue() * 60)
    return path


class App:
    """The app in a process of its own."""

    def __init__(self, outputs, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder  # all temporary files of the process
        command = [sys.executable, "-m", "fer_keras", "app", "--no-browser"]
        command += ["--model", str(outputs / "demo/tuned/seed-0"), "--outputs", str(outputs), "--port", str(self.port)]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)}
        )
        self.url = self.process.stdout.readline().split()[2]
        self.seconds = time.perf_counter() - began

    def files(self):
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="session")
def app(outputs, tmp_path_factory):
    running = App(outputs, tmp_path_factory.mktemp("temporary"))
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="session")
def chromium(film):
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if program is None:
        pytest.skip("Chromium is not installed: apt install chromium, or say where it is, CHROMIUM=PATH")
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=[*flags, f"--use-file-for-fake-video-capture={film}"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(app, chromium, request):
    """Opens the app in a new window of the browser; nothing that it loads may come from elsewhere."""
    outside, errors, contexts = [], [], []

    def open_page(width=1200, height=1000, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: None if r.url.startswith((app.url, "data:", "blob:")) else outside.append(r.url))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(app.url)
        page.wait_for_selector(".fer-camera .start", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not outside, f"the page asked elsewhere: {outside}"
    assert not errors, f"the browser complained: {errors}"


@pytest.fixture
def shot():
    """Keeps a screenshot where FER_KERAS_SCREENSHOTS names a folder."""

    def shot(page, name):
        if folder := os.environ.get("FER_KERAS_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return shot
