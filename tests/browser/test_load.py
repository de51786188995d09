"""Many clients and hostile uploads against the running app; FER_KERAS_SHORT=1 makes fewer of them."""

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hostile import files
from PIL import Image

SHORT = bool(os.environ.get("FER_KERAS_SHORT"))
CLIENTS, FRAMES, UPLOADS = (4, 200, 60) if SHORT else (20, 10_000, 1000)
MODEL, DETECTOR = "demo/tuned/seed-0", "Haar cascade (no download)"


class Client:
    """What a browser sends, without one."""

    def __init__(self, url):
        self.url, self.session = url, uuid.uuid4().hex
        self.config = json.loads(self._open("config"))
        self.camera = next(c["id"] for c in self.config["components"] if c["props"].get("elem_id") == "camera")
        self.take = next(d["id"] for d in self.config["dependencies"] if d["targets"][0][1] == "upload")

    def _open(self, path, content=None, kind="application/json"):
        request = urllib.request.Request(self.url + path, content, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read()

    def look(self, jpeg):
        """One frame of the camera."""
        image = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        data = {"image": image, "model": MODEL, "detector": DETECTOR}
        call = {"data": data, "component_id": self.camera, "fn_name": "look", "session_hash": self.session}
        return json.loads(self._open("gradio_api/component_server", json.dumps(call).encode()))

    def upload(self, name, content):
        """A picture: what the page shows, or the status that refused it."""
        edge = uuid.uuid4().hex
        name = name.encode("utf-8", "replace").replace(b'"', b"%22").replace(b"\n", b"%0A").replace(b"\r", b"%0D")
        head = b'--%s\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n' % (edge.encode(), name)
        form = head + content + f"\r\n--{edge}--\r\n".encode()
        try:
            sent = self._open("gradio_api/upload", form, f"multipart/form-data; boundary={edge}")
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:  # refused while it was still being sent
            return 413
        given = {"path": json.loads(sent)[0], "orig_name": name.decode(), "meta": {"_type": "gradio.FileData"}}
        session = uuid.uuid4().hex
        call = {"data": [given, MODEL, DETECTOR], "fn_index": self.take, "session_hash": session}
        self._open("gradio_api/queue/join", json.dumps(call).encode())
        url = f"{self.url}gradio_api/queue/data?session_hash={session}"
        with urllib.request.urlopen(url, timeout=120) as lines:
            for line in lines:
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if event.get("msg") == "process_completed":
                    assert event["success"], event
                    return event["output"]["data"][1]
        raise AssertionError("no answer")


def megabytes(app):
    return psutil.Process(app.process.pid).memory_info().rss / 1e6


@pytest.mark.timeout(3600)
def test_twenty_clients_at_once_are_answered_and_memory_stays_flat(app, frames):
    contents = []
    for frame in frames.values():
        content = io.BytesIO()
        Image.fromarray(frame).save(content, "JPEG")
        contents.append(content.getvalue())
    clients = [Client(app.url) for _ in range(CLIENTS)]
    expected = [clients[0].look(content)["faces"] for content in contents]

    def film(client, n):
        slowest = 0.0
        for number in range(n):
            began = time.perf_counter()
            answer = client.look(contents[number % len(contents)])
            slowest = max(slowest, time.perf_counter() - began)
            assert answer["faces"] == expected[number % len(contents)]  # never another client's
        return slowest

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(film, clients, [FRAMES // CLIENTS // 5] * CLIENTS))  # threads and buffers have come
        before, began = megabytes(app), time.perf_counter()
        slowest = max(pool.map(film, clients, [FRAMES // CLIENTS] * CLIENTS))
    seconds, grown = time.perf_counter() - began, megabytes(app) - before
    print(
        f"{FRAMES:,} frames of {CLIENTS} clients: {FRAMES / seconds:.0f} a second, slowest answer {slowest:.2f} s; "
        f"memory {before:.0f} MB, {grown:+.0f}"
    )
    assert grown < 50
    assert not app.files()


@pytest.mark.timeout(3600)
def test_hostile_uploads_get_an_answer_and_leave_nothing(app, tmp_path):
    client = Client(app.url)
    outside = {path for path in Path(app.folder).parent.rglob("*") if app.folder not in path.parents}
    made = files(tmp_path / "hostile", UPLOADS, seed=0)
    outside |= {path for path in (tmp_path / "hostile").rglob("*")} | {tmp_path, tmp_path / "hostile"}
    kinds, used = {}, []
    for _ in range(4 if SHORT else 2):  # what a first round needs at most, no later one must exceed
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda file: client.upload(file.path.name, file.path.read_bytes()), made))
        used.append(megabytes(app))
        for file, answer in zip(made, answers, strict=True):
            if isinstance(answer, int):
                kind = "refused"
                assert answer in (400, 413) and file.expected != "picture", (file.kind, answer)
            elif 'role="alert"' in answer:
                kind = "sentence"
                assert file.expected != "picture", (file.kind, answer)
                assert "Traceback" not in answer and len(answer) < 1000
            else:
                kind = "picture"
                assert "<img alt=" in answer and file.expected != "error", file.kind
            kinds[kind] = kinds.get(kind, 0) + 1
    print(
        f"{len(used) * len(made):,} uploads: {kinds}; memory {used[0]:.0f} MB after a first round, then "
        + ", ".join(f"{each:.0f}" for each in used[1:])
    )
    assert app.process.poll() is None and client.look(b"")["error"]
    assert max(used) - used[0] < 100
    assert not app.files()
    left = {path for path in Path(app.folder).parent.rglob("*") if app.folder not in path.parents}
    assert left <= outside, "a file was written outside the temporary folder"


def test_the_app_ends_when_told_and_takes_its_folder_with_it(app):
    assert app.stop() == 0
    assert not list(app.folder.glob("fer-keras-*"))
