"""The app without a browser: what its tabs answer, and what its server refuses. With one: tests/browser."""

import base64
import http.client
import io
import json
import os
import re
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_classifier import finish, network
from test_predict import write_video

pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[app]'")

from fer_keras import app, export, zoo
from fer_keras.classifier import ModelError
from fer_keras.cli import main
from fer_keras.data import CLASS_NAMES

WHOLE = "the picture is one face"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, faces):
    """Two finished runs, exported; the second has the better score on its validation faces."""
    top = tmp_path_factory.mktemp("runs")
    for number, experiment in enumerate(("tuned", "baseline"), 1):
        folder = finish(top / f"demo/{experiment}/seed-0", network(number), faces, experiment=experiment)
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["sets"]["validation"]["top1"] = number / 10
        (folder / "metrics.json").write_text(json.dumps(metrics))
        export.to_onnx(folder)
    return top


@pytest.fixture(scope="module")
def offered(outputs):
    return app.models(outputs=outputs)


def encoded(image, kind="JPEG"):
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    return content.getvalue()


def frame(content, kind="jpeg"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def grey(faces):
    return np.repeat(faces.images[0], 3, axis=2)


def inside(page, kind):
    """The content of the data URL of this kind in a page."""
    return base64.b64decode(re.search(f'data:{kind};base64,([^"]+)', page)[1])


# --- Models ---------------------------------------------------------------------------------------------------------


def test_what_comes_with_the_package_is_first_then_the_best_run_and_a_given_model_before_them(outputs):
    assert list(app.models(outputs=outputs).paths) == ["compact", "demo/baseline/seed-0", "demo/tuned/seed-0"]
    given, names = outputs / "demo/tuned/seed-0", ["demo/tuned/seed-0", "compact", "demo/baseline/seed-0"]
    assert list(app.models(given, outputs).paths) == names
    assert list(app.models(os.path.relpath(given), outputs).paths) == names
    assert list(app.models(given, os.path.relpath(outputs)).paths) == names
    file = given / "model.onnx"
    assert next(iter(app.models(file, outputs).paths)) == "demo/tuned/seed-0/model.onnx"


def test_without_a_name_the_best_run_is_first_as_in_predict(outputs):
    assert list(app.models("", outputs).paths) == ["demo/baseline/seed-0", "demo/tuned/seed-0", "compact"]


def test_without_a_model_the_app_says_how_to_make_one(tmp_path, capsys, monkeypatch):
    assert list(app.models(outputs=tmp_path).paths) == ["compact"]
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(ModelError, match="no run is finished below"):
        app.models(outputs=tmp_path)
    with pytest.raises(ModelError, match="no model 'nowhere'"):
        app.models("nowhere", tmp_path)
    assert main(["app", "--outputs", str(tmp_path)]) == 2
    assert "There is no trained model yet" in capsys.readouterr().err


def test_a_client_names_a_model_and_cannot_give_a_path(offered, outputs):
    classifier = offered.get(str(outputs / "demo/tuned/seed-0"), WHOLE)
    first = next(iter(offered.paths))
    assert classifier is offered.get(first, WHOLE)
    assert classifier.about["experiment"] == first == "compact"


def test_who_uses_one_model_does_not_wait_while_another_is_loaded(offered):
    loaded = offered.get("demo/tuned/seed-0", WHOLE)
    with ThreadPoolExecutor(1) as pool, offered._lock:  # as held while a model is loaded
        assert pool.submit(offered.get, "demo/tuned/seed-0", WHOLE).result(10) is loaded


def test_the_detector_that_was_found_is_not_loaded_twice(offered):
    found = offered.get("compact", "")
    name = next(name for name, kind in app.DETECTORS.items() if kind == found.detector)
    assert offered.get("compact", name) is found


def test_the_card_shows_scores_of_each_class_and_limits(offered):
    text = app.card(offered.get("demo/tuned/seed-0", WHOLE))
    assert "Model demo/tuned/seed-0: top-1" in text and "drawn faces" in text and "AI Act" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == list(CLASS_NAMES)
    assert sum(int(row.split("|")[4]) for row in rows) == 40


# --- Camera ---------------------------------------------------------------------------------------------------------


def test_the_card_of_the_network_that_comes_along_says_what_leaked_and_what_it_is_not_for(offered):
    text = app.card(offered.get("compact", WHOLE))
    assert "faces are touched by what trained" in text and "Not for decisions about people" in text


def test_a_frame_is_answered_as_the_classifier_answers_it(offered, grey):
    content = encoded(grey)
    answer = app.look(offered, {"image": frame(content), "model": "demo/tuned/seed-0", "detector": WHOLE})
    expected = offered.get("demo/tuned/seed-0", WHOLE).analyze(Image.open(io.BytesIO(content)))
    assert answer["milliseconds"] > 0
    (face,) = answer["faces"]
    assert face == {"box": (0, 0, 48, 48), "label": expected[0].label, "probabilities": expected[0].probabilities}
    assert json.loads(json.dumps(answer))["faces"][0]["label"] in CLASS_NAMES


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "no JPEG"),
        ({"image": None}, "no JPEG"),
        ({"image": frame(b"", "png")}, "no JPEG"),
        ({"image": "data:image/jpeg;base64," + "A" * (app.FRAME_BYTES + 1)}, "too large"),
        ({"image": "data:image/jpeg;base64,§"}, "cannot be read"),
        ({"image": frame(b"<html>")}, "cannot be read"),
        ({"image": frame(encoded(np.zeros((48, 48, 3), "uint8"))[:300])}, "cannot be read: it is damaged"),
    ],
)
def test_a_bad_frame_gets_one_sentence(offered, request_, sentence):
    answer = app.look(offered, request_)
    assert list(answer) == ["error"] and re.search(sentence, answer["error"])


def test_a_detector_that_cannot_be_had_is_said_in_every_tab(outputs, grey, tmp_path, monkeypatch):
    offered, sentence = (
        app.models(outputs=outputs),
        "There is no file &#x27;.*none.onnx&#x27; of the face detector YuNet",
    )
    monkeypatch.setenv("FER_KERAS_YUNET", str(tmp_path / "none.onnx"))
    answer = app.look(offered, {"image": frame(encoded(grey)), "model": "", "detector": "YuNet"})
    assert re.fullmatch(sentence.replace("&#x27;", "'") + r"\.", answer["error"])
    page, rows = app.picture(offered, "a.png", encoded(grey, "PNG"), "", "YuNet")
    assert rows == [] and re.search(sentence, page) and "a.png cannot be read" not in page
    (last,) = app.film(offered, write_video(tmp_path / "film.avi", 3), "film.avi", "", "YuNet", 1)
    assert re.search(sentence, last["page"]) and last["points"] == []
    (tmp_path / "none.onnx").write_bytes(b"no detector")
    assert (
        "none.onnx is no face detector YuNet"
        in app.look(offered, {"image": frame(encoded(grey)), "detector": "YuNet"})["error"]
    )


def test_a_frame_with_huge_dimensions_is_refused_before_it_is_decoded(offered, grey):
    content = bytearray(encoded(grey))
    at = content.index(b"\xff\xc0")  # start of frame: height and width follow
    content[at + 5 : at + 9] = (60_000).to_bytes(2, "big") * 2
    assert re.search("60,000×60,000|cannot be read", app.look(offered, {"image": frame(bytes(content))})["error"])


# --- Pictures -------------------------------------------------------------------------------------------------------


def test_a_picture_comes_back_annotated_with_its_table(offered, grey):
    page, rows = app.picture(offered, "a & <b>.png", encoded(grey, "PNG"), "demo/tuned/seed-0", WHOLE)
    expected = offered.get("demo/tuned/seed-0", WHOLE).analyze(grey)[0]
    assert rows[0][:2] == [1, expected.label] and rows[0][4] == "48×48 at 0, 0"
    assert "a &amp; &lt;b&gt;.png: 1 face." in page and "<b>" not in page
    drawn = np.asarray(Image.open(io.BytesIO(inside(page, "image/jpeg"))))
    assert drawn.shape == (48, 48, 3) and not np.allclose(drawn, grey, atol=30)
    table = inside(page, "text/csv").decode().splitlines()
    assert table[0].startswith("file,frame,time,face,left") and expected.label in table[1]


def test_a_large_picture_is_shown_reduced_and_its_table_is_not(offered, grey):
    large = np.asarray(Image.fromarray(grey).resize((3000, 1500)))
    page, rows = app.picture(offered, "large.jpg", encoded(large), "", WHOLE)
    assert Image.open(io.BytesIO(inside(page, "image/jpeg"))).size == (2000, 1000)
    assert rows[0][4] == "3000×1500 at 0, 0" and "in pixels of the original" in page


def test_a_picture_without_a_face_says_so(offered):
    page, rows = app.picture(offered, "flat.png", encoded(np.full((200, 200, 3), 9, "uint8")), "", app_haar())
    assert "flat.png: no face." in page and rows == []


def app_haar():
    return next(name for name, kind in app.DETECTORS.items() if kind == "haar")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"<script>alert(1)</script>", "no image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no image"),
        (b"\xff\xd8\xff\xe0 not a JPEG", "no image|damaged"),
        (b"x" * (app.PICTURE_BYTES + 1), "larger than"),
    ],
)
def test_a_bad_picture_gets_one_sentence(offered, content, sentence):
    page, rows = app.picture(offered, "../../<x>.jpg", content, "", WHOLE)
    assert rows == [] and re.search(sentence, page) and 'role="alert"' in page and "<x>" not in page


# --- Films ----------------------------------------------------------------------------------------------------------


def test_a_film_is_looked_at_frame_by_frame(offered, tmp_path):
    path = write_video(tmp_path / "film.avi", 80)
    *before, last = app.film(offered, path, "film.avi", "demo/tuned/seed-0", WHOLE, 2)
    assert [part["done"] for part in before] == [32] and before[0]["total"] == 80 // 2
    assert "40 frames looked at, 40 with a face" in last["page"]
    table = inside(last["page"], "text/csv").decode().splitlines()
    assert len(table) == 41
    moments = sorted({moment for moment, _, _ in last["points"]})
    assert moments == pytest.approx(np.arange(40) * 2 / 5, abs=0.01)
    assert sum(share for moment, share, _ in last["points"] if moment == moments[3]) == pytest.approx(1, abs=1e-4)


def test_a_film_that_is_stopped_gives_what_was_seen(offered, tmp_path):
    path, looked = write_video(tmp_path / "film.avi", 80), []
    film = app.film(offered, path, "film.avi", "", WHOLE, 1, lambda: looked.append(1) or len(looked) == 40)
    *_, last = film
    assert "40 frames looked at" in last["page"] and "Note: stopped before its end." in last["page"]
    assert len(inside(last["page"], "text/csv").decode().splitlines()) == 41


def test_a_film_without_a_face_interrupts_the_lines(offered, tmp_path):
    path = write_video(tmp_path / "film.avi", 3)
    (last,) = app.film(offered, path, "film.avi", "", app_haar(), 1)
    assert "3 frames looked at, 0 with a face. Largest face: none." in last["page"]
    assert len(last["points"]) == 3 * 7 and all(np.isnan(share) for _, share, _ in last["points"])


def test_long_films_are_averaged_in_the_plot_only(offered, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "POINTS", 4)
    path = write_video(tmp_path / "film.avi", 10)
    *_, last = app.film(offered, path, "film.avi", "", WHOLE, 1)
    assert len({moment for moment, _, _ in last["points"]}) == 4
    assert len(inside(last["page"], "text/csv").decode().splitlines()) == 11


def test_a_film_that_goes_on_for_too_long_is_cut(offered, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "MOST_FRAMES", 5)
    path = write_video(tmp_path / "film.avi", 40)
    *_, last = app.film(offered, path, "film.avi", "", WHOLE, 1)
    assert "5 frames looked at" in last["page"] and "only the first 5 frames" in last["page"]


@pytest.mark.parametrize("content", [b"", b"no film", b"RIFF\x00\x00\x00\x00AVI "])
def test_a_bad_film_gets_one_sentence(offered, tmp_path, content):
    path = tmp_path / "film.avi"
    path.write_bytes(content)
    (last,) = app.film(offered, path, "film.avi", "", WHOLE, 1)
    assert "film.avi cannot be read: " in last["page"] and last["points"] == []


# --- The server -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(outputs):
    with socket.socket() as free:
        free.bind((app.HOST, 0))
        port = free.getsockname()[1]
    blocks = app.launch(outputs=outputs, port=port, block=False)
    yield blocks
    blocks.close()
    blocks.fer_folder.cleanup()


def post(server, path, content, kind="application/json", **headers):
    request = urllib.request.Request(server.local_url + path, content, {"Content-Type": kind, **headers})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def components(server):
    return {part["props"].get("elem_id"): part["id"] for part in server.config["components"]}


def test_the_server_listens_to_this_machine_and_calls_nobody(server):
    page = urllib.request.urlopen(server.local_url, timeout=30).read().decode()
    assert "Facial expressions" in page and server.local_url.startswith("http://127.0.0.1:")
    assert not server.analytics_enabled and server.share_url is None
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(2)
        other.connect((socket.gethostbyname(socket.gethostname()), server.server_port))
        if socket.gethostbyname(socket.gethostname()).startswith("127."):
            raise OSError("this machine has no other address")


def test_the_camera_gets_its_answer_and_leaves_no_file(server, grey):
    call = {
        "data": {"image": frame(encoded(grey)), "model": "", "detector": WHOLE},
        "component_id": components(server)["camera"],
        "fn_name": "look",
        "session_hash": "test",
    }
    answer = post(server, "gradio_api/component_server", json.dumps(call).encode())
    assert answer["faces"][0]["label"] in CLASS_NAMES
    assert not list(Path(server.fer_folder.name).rglob("*"))


@pytest.mark.parametrize(
    ("path", "length"), [("component_server", 2 * app.FRAME_BYTES + 1), ("upload", 1 << 40), ("upload", "many")]
)
def test_a_request_that_is_too_large_is_refused_before_it_is_read(server, path, length):
    connection = http.client.HTTPConnection(app.HOST, server.server_port, timeout=30)
    connection.putrequest("POST", f"/gradio_api/{path}")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    assert connection.getresponse().status in (413, 400)
    connection.close()


def test_a_request_that_does_not_say_how_large_it_is_is_cut(server):
    connection = http.client.HTTPConnection(app.HOST, server.server_port, timeout=30)
    parts = (b"0" * (1 << 20) for _ in range(64))  # 64 MB in all
    with pytest.raises((OSError, http.client.HTTPException)):
        connection.request("POST", "/gradio_api/component_server", parts, encode_chunked=True)
        if connection.getresponse().status >= 400:
            raise http.client.HTTPException("refused")
    connection.close()


def upload(server, name, content):
    """What the browser does: send the file, join the queue, wait for the answer."""
    edge = "edge"
    form = (
        f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    kind = f"multipart/form-data; boundary={edge}"
    (path,) = post(server, "gradio_api/upload", form + content + f"\r\n--{edge}--\r\n".encode(), kind)
    take = next(each for each in server.config["dependencies"] if each["targets"][0][1] == "upload")
    given = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    call = {"data": [given, "demo/tuned/seed-0", WHOLE], "fn_index": take["id"], "session_hash": "upload"}
    post(server, "gradio_api/queue/join", json.dumps(call).encode())
    with urllib.request.urlopen(f"{server.local_url}gradio_api/queue/data?session_hash=upload", timeout=30) as lines:
        for line in lines:
            event = json.loads(line.decode().removeprefix("data: ")) if line.startswith(b"data: ") else {}
            if event.get("msg") == "process_completed":
                return Path(path), event["output"]
    raise AssertionError("no answer")


@pytest.mark.parametrize("name", ["face.png", "no suffix", "page.html"])
def test_an_upload_is_answered_and_deleted(server, grey, name):
    path, output = upload(server, name, encoded(grey, "PNG"))
    assert f"{name}: 1 face." in output["data"][1]
    assert not path.exists() and not list(Path(server.fer_folder.name).rglob("*"))


def test_a_bad_upload_is_refused_and_deleted(server):
    path, output = upload(server, "face.png", b"no picture")
    assert "face.png cannot be read" in output["data"][1] and not path.exists()


def test_a_path_that_was_not_uploaded_is_neither_read_nor_deleted(server, tmp_path, grey):
    own = tmp_path / "own.png"
    own.write_bytes(encoded(grey, "PNG"))
    take = next(each for each in server.config["dependencies"] if each["targets"][0][1] == "upload")
    given = {"path": str(own), "meta": {"_type": "gradio.FileData"}}
    call = {"data": [given, "demo/tuned/seed-0", WHOLE], "fn_index": take["id"], "session_hash": "path"}
    post(server, "gradio_api/queue/join", json.dumps(call).encode())
    with urllib.request.urlopen(f"{server.local_url}gradio_api/queue/data?session_hash=path", timeout=30) as lines:
        done = next(line for line in lines if b"process_completed" in line)
    assert not json.loads(done.decode().removeprefix("data: "))["success"]
    assert own.exists()


def test_a_port_that_is_taken_is_said(server, outputs):
    sentence = (
        f"cannot start at 127.0.0.1:{server.server_port}: it is taken, or no address of this machine. Give another"
    )
    with pytest.raises(ValueError, match=sentence):
        app.launch(outputs=outputs, port=server.server_port, block=False)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "999.1.1.1", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_said_before_a_model_is_loaded(host, capsys):
    assert main(["app", "--host", host, "--model", "no model is looked for"]) == 2
    error = capsys.readouterr().err
    assert f"cannot start at {host}, ports 7860 to 7959" in error and error.count("\n") == 1


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x"])
def test_a_port_must_be_one(port, capsys):
    with pytest.raises(SystemExit):
        main(["app", f"--port={port}"])
    assert f"expected a port, 1 to 65535, received '{port}'" in capsys.readouterr().err


def test_closing_leaves_nothing(outputs):
    blocks = app.launch(outputs=outputs, block=False)
    folder = Path(blocks.fer_folder.name)
    assert folder.is_dir()
    blocks.close()
    blocks.fer_folder.cleanup()
    assert not folder.exists()
