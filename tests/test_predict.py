"""`fer-keras predict`: images, folders, videos and what cannot be read."""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_classifier import finish, network

from fer_keras import export, predict, storage
from fer_keras import faces as faces_
from fer_keras.classifier import ExpressionClassifier, Face
from fer_keras.cli import main
from fer_keras.data import CLASS_NAMES

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install -e '.[predict]'")


@pytest.fixture(scope="module")
def file(tmp_path_factory, faces):
    """An exported model."""
    return export.to_onnx(finish(tmp_path_factory.mktemp("run") / "seed-0", network(1), faces))


@pytest.fixture
def call(file, capsys):
    """Calls the command; gives its exit code, what it printed and what it complained of."""

    def call(*arguments, detector="whole"):
        code = main(["predict", "--model", str(file), "--detector", detector, *map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def folder(tmp_path, faces):
    """A folder with faces, folders below it, and files of other kinds."""
    top = tmp_path / "pictures"
    (top / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.bmp", "below/a.png", ".hidden.png")):
        Image.fromarray(faces.images[number, :, :, 0]).save(top / name)
    (top / "notes.txt").write_text("no picture")
    return top


def write_video(path, frames, rate=5):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 20 * number % 256, "uint8"))
    writer.release()
    return path


def read(path):
    with open(path, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_a_folder_is_read_with_all_below_it(call, folder, file, faces, tmp_path):
    code, shown, complaints = call(folder, "--csv", tmp_path / "x.csv", "--json", tmp_path / "new/x.json")
    assert code == 0 and "3 faces in 3 pictures." in shown and "could not" not in complaints
    rows = read(tmp_path / "x.csv")
    assert [row["file"] for row in rows] == ["a.png", "b.bmp", "below/a.png"]
    expected = ExpressionClassifier(file, detector="whole").predict(faces.images[:3])
    for row, shares in zip(rows, expected, strict=True):
        assert [float(row[f"p_{name}"]) for name in CLASS_NAMES] == pytest.approx(shares.tolist(), abs=1e-5)
        assert row["label"] == CLASS_NAMES[shares.argmax()] and row["label"] in shown
        assert [row[name] for name in ("face", "left", "top", "width", "height")] == ["1", "0", "0", "48", "48"]
    found = json.loads((tmp_path / "new/x.json").read_text())
    assert found["model"]["experiment"] == "tuned" and found["failures"] == []
    assert [each["faces"][0]["label"] for each in found["pictures"]] == [row["label"] for row in rows]


def test_what_cannot_be_read_is_listed_and_the_others_go_on(call, folder, tmp_path):
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "broken.avi").write_bytes(b"\0" * 999)
    (tmp_path / "nothing").mkdir()
    code, shown, complaints = call(folder, "missing.png", tmp_path / "nothing", "97", "--json", tmp_path / "x.json")
    assert code == 0 and "3 faces in 3 pictures." in shown
    reasons = {each["file"]: each["reason"] for each in json.loads((tmp_path / "x.json").read_text())["failures"]}
    assert reasons.pop(f"{folder}/cut.png").startswith("it is damaged: ")
    assert reasons == {
        f"{folder}/empty.jpg": "the file is empty",
        f"{folder}/empty.mp4": "the file is empty",
        f"{folder}/broken.avi": "it cannot be opened as a video",
        "missing.png": "there is no such file",
        str(tmp_path / "nothing"): "the folder holds no images or videos",
        "camera 97": "there is no such camera, or another program uses it",
    }
    assert "7 could not be read or written:\n" in complaints
    assert all(f"  {name}: {reason}\n" in complaints for name, reason in reasons.items())


def test_a_path_that_cannot_even_be_looked_up_is_a_failure_like_others(call, folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    long = "x" * 300
    given = (f"{long}.png", f"{long}.mp4", "~no-such-user/x.png", tmp_path / "pipe.mp4", tmp_path / "pipe.png")
    code, shown, complaints = call(*given, folder / "a.png")
    assert code == 0 and "1 face in 1 picture." in shown and "5 could not be read" in complaints
    reasons = [line.rpartition(": ")[2] for line in complaints.splitlines()[-5:]]
    assert reasons[0] == "it cannot be read (File name too long)" and "File name too long" in reasons[1]
    assert reasons[2:] == ["there is no such file", "it is no file", "it is no file"]


def test_what_is_written_never_replaces_what_is_read(call, folder, tmp_path):
    os.symlink(folder / "a.png", tmp_path / "link")
    before = (folder / "a.png").read_bytes()
    for option in ("--csv", "--json"):
        code, _, complaints = call(folder, option, tmp_path / "link")
        assert code == 2 and "link is one of the files to be read: give another name" in complaints
    assert (folder / "a.png").read_bytes() == before
    code, _, complaints = call(folder, "--csv", tmp_path / "x", "--json", tmp_path / "x")
    assert code == 2 and "--csv and --json both name " in complaints and not (tmp_path / "x").exists()


def test_files_of_two_folders_with_one_name_are_told_apart(call, folder, faces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    Image.fromarray(faces.images[0, :, :, 0]).save("other/a.png")
    assert call("pictures", "other", "--csv", "x.csv", "--annotate", "drawn")[0] == 0
    names = ["pictures/a.png", "pictures/b.bmp", "pictures/below/a.png", "other/a.png"]
    assert [row["file"] for row in read("x.csv")] == names
    drawn = {str(path.relative_to("drawn")) for path in Path("drawn").rglob("*.jpg")}
    assert drawn == {str(Path(name).with_suffix(".jpg")) for name in names}


def test_pipes_are_written_to_and_of_a_link_what_it_leads_to(call, folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "there").write_text("old")
    os.symlink(tmp_path / "there", tmp_path / "link")
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit((tmp_path / "pipe").read_text)
        assert call(folder, "--json", tmp_path / "pipe", "--csv", tmp_path / "link")[0] == 0
        assert len(json.loads(received.result(timeout=30))["pictures"]) == 3
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert len(read(tmp_path / "there")) == 3
    with pytest.raises(FileExistsError, match="is no file but a device or a pipe"):
        storage.write_text(tmp_path / "pipe", "lost")


def test_what_is_said_is_said_once(folder, file, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(faces_, "YUNET_URL", (tmp_path / "nowhere.onnx").as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FER_KERAS_YUNET", raising=False)
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("OpenCV 5 has no Haar cascade")
    assert main(["predict", "--model", str(file), str(folder)]) == 0
    assert capsys.readouterr().err.count("Until then the Haar cascade") == 1


def test_nothing_readable_is_exit_code_1(call, tmp_path):
    code, shown, complaints = call(tmp_path / "missing.png", "--csv", tmp_path / "x.csv")
    assert code == 1 and "0 faces in 0 pictures." in shown and "missing.png: there is no such file" in complaints
    assert read(tmp_path / "x.csv") == []


@pytest.mark.skipif(not hasattr(cv2, "CascadeClassifier"), reason="OpenCV 5 has no Haar cascade")
def test_no_face_is_a_row_with_an_empty_label(call, tmp_path):
    Image.new("RGB", (200, 100), "grey").save(tmp_path / "wall.png")
    code, shown, _ = call(tmp_path / "wall.png", "--csv", tmp_path / "x.csv", detector="haar")
    assert code == 0 and "no face" in shown and "0 faces in 1 picture." in shown
    (row,) = read(tmp_path / "x.csv")
    assert row.pop("file") == str(tmp_path / "wall.png") and set(row.values()) == {""}


def test_of_a_video_each_nth_frame_is_taken_with_its_time(call, tmp_path):
    path = write_video(tmp_path / "short.avi", 10)
    code, shown, _ = call(path, "--every", 3, "--csv", tmp_path / "x.csv", "--annotate", tmp_path / "drawn")
    assert code == 0 and "4 faces in 4 pictures." in shown and "1.80 s" in shown
    rows = read(tmp_path / "x.csv")
    assert [int(row["frame"]) for row in rows] == [0, 3, 6, 9]
    assert [float(row["time"]) for row in rows] == pytest.approx([0, 0.6, 1.2, 1.8])
    names = [f"short-{number:06d}.jpg" for number in (0, 3, 6, 9)]
    assert sorted(each.name for each in (tmp_path / "drawn").rglob("*.jpg")) == names


def test_a_video_that_breaks_off_gives_its_frames_and_says_so(call, tmp_path):
    whole = write_video(tmp_path / "whole.avi", 30).read_bytes()
    (tmp_path / "part.avi").write_bytes(whole[: len(whole) // 2])
    code, shown, complaints = call(tmp_path / "part.avi")
    assert code == 0 and "of 30 frames: those were analysed" in complaints
    assert 1 <= int(shown.split("\n")[-2].split()[0]) < 25


def test_a_video_without_frames_is_a_failure(call, tmp_path):
    code, _, complaints = call(write_video(tmp_path / "none.avi", 0))
    assert code == 1 and "none.avi: " in complaints


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--csv", "{folder}"], "{folder} cannot be written: it is a folder."),
        (["--json", "{folder}/a.png/x.json"], "a.png/x.json cannot be written: "),
        (["--annotate", "{folder}/a.png"], "{folder}/a.png cannot be written to: it is no folder."),
        (["--annotate", "{folder}/a.png/x"], "{folder}/a.png/x cannot be written: Not a directory."),
        (["--model", "{folder}/a.png"], "a.png cannot be read as an ONNX file: it is damaged or something else."),
        (["--model", "{folder}"], "holds no finished run"),
        (["--model", "nowhere"], "There is no model 'nowhere'. Train one, "),
        (["--model", "compct"], "There is no model 'compct'. Did you mean 'compact'?"),
        (["--csv", "-"], "'-' names no file. Give a name, or /dev/stdout."),
    ],
)
def test_a_wrong_input_is_one_sentence_and_exit_code_2(call, folder, arguments, message):
    code, shown, complaints = call(folder, *(each.format(folder=folder) for each in arguments))
    assert code == 2 and shown == "" and message.format(folder=folder) in complaints
    assert complaints.startswith("fer-keras: ") and complaints.count("\n") == 1


@pytest.mark.parametrize("every", ["0", "-1", "x"])
def test_every_must_be_a_number_from_1(every, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "x.png", f"--every={every}"])
    assert "expected a whole number from 1" in capsys.readouterr().err


def test_annotated_pictures_never_hit_the_given_ones(call, folder):
    Image.fromarray(np.full((48, 48), 77, "uint8")).save(folder / "a.jpg")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    code, _, _ = call(folder, "--annotate", folder)
    assert code == 0 and all(path.read_bytes() == content for path, content in before.items())
    new = {str(path.relative_to(folder)) for path in folder.rglob("*.*")} - {str(p.relative_to(folder)) for p in before}
    assert new == {"a-2.jpg", "a-3.jpg", "b.jpg", "below/a.jpg"}


@pytest.mark.parametrize("box", [(30, 40, 50, 50), (-20, -10, 60, 60), (150, 90, 80, 80)])
def test_boxes_and_names_are_drawn_and_the_picture_stays(box):
    image = np.full((120, 200, 3), 90, "uint8")
    drawn = predict.annotate(image, [Face(box, 1.0, "happy", {"sad": 0.1, "happy": 0.9})])
    assert (image == 90).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    changed = np.argwhere((drawn != image).any(axis=2))
    top, left = changed.min(axis=0)
    assert 300 < len(changed) < 8000
    assert left <= max(0, box[0]) and top <= max(0, box[1])


def test_pictures_are_classified_in_batches(folder, file):
    class Counting:
        def __init__(self):
            self.given, self.sizes = ExpressionClassifier(file, detector="whole"), []

        def analyze_all(self, images):
            self.sizes.append(len(images))
            return self.given.analyze_all(images)

    counting, told = Counting(), []
    found, failures = predict.sources([folder / "a.png"] * 20 + [folder / "missing.png"])
    results = list(predict.analyze(found, counting, report=lambda *numbers: told.append(numbers)))
    assert counting.sizes == [16, 4] and told == [(16, 21), (21, 21)] and failures == []
    assert [bool(result.failure) for result in results] == [False] * 20 + [True]
    assert all(result.image is None for result in results)


@pytest.mark.parametrize("written", [True, False])
def test_who_reads_only_the_start_of_the_table_loses_no_file(file, folder, tmp_path, written):
    table = tmp_path / "faces.csv"
    code = (
        "import os, subprocess, sys; from fer_keras.cli import main; "
        f"words = ['predict', '--detector', 'whole', '--model', {str(file)!r}, {str(folder)!r}]; "
        "end, start = os.pipe(); os.dup2(start, 1); os.close(end); os.close(start); "
        f"sys.exit(main([*words, *{['--csv', str(table)] if written else []}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Broken" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (0 if written else 1) and table.exists() == written
    if written:
        assert [row["file"] for row in read(table)] == ["a.png", "b.bmp", "below/a.png"]


def test_neither_tensorflow_nor_pandas_is_imported(file, folder):
    code = (
        "import sys; from fer_keras.cli import main; "
        f"assert main(['predict', '--detector', 'whole', '--model', {str(file)!r}, {str(folder)!r}]) == 0; "
        "assert not {'tensorflow', 'keras', 'pandas', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_export_writes_beside_the_model_or_where_it_is_told(file, tmp_path, capsys):
    assert main(["export", str(file.parent), str(tmp_path / "mine.onnx")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine.onnx")
    assert ExpressionClassifier(tmp_path / "mine.onnx", "whole").about == ExpressionClassifier(file, "whole").about
    assert main(["export", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
