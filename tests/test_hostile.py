"""Hostile and odd files: each gives a picture or one sentence, within bounds, whatever is in it.

They are read in a process of its own, which a crash would end. By default 60 to 70 pictures are tried;
`FER_KERAS_HOSTILE=1000 python -m pytest tests/test_hostile.py` tries 1,000.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
from PIL import Image

from fer_keras import faces as faces_
from fer_keras import predict

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install -e '.[predict]'")
faces_.load_cv2()  # quiet

N = int(os.environ.get("FER_KERAS_HOSTILE", 0))
# Seconds of processor for one file, and MB of the process. The largest picture that is read has 88 million pixels.
SECONDS, MEGABYTES = 30, 1500

READ = """
import json, sys, time, warnings
from pathlib import Path
import numpy as np
from PIL import Image
from fer_keras import faces

warnings.simplefilter("ignore")

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0)

def each(paths, folder):
    for number, path in enumerate(paths):
        began, error = time.process_time(), ""
        try:
            image = faces.read_picture(path).image
            if folder and image.size < 1e6:
                np.save(f"{folder}/{number}.npy", image)
        except faces.PictureError as found:
            error = str(found)
        yield {"error": error, "seconds": time.process_time() - began}

paths, folder = json.load(sys.stdin)
for found in each(paths, folder):
    print(json.dumps(found), flush=True)
small = [path for path in paths if Path(path).stat().st_size < 1e5][:200]
list(each(small, ""))
before = memory("VmRSS")
list(each(small, ""))
print(json.dumps({"peak": memory("VmHWM"), "growth": memory("VmRSS") - before}))
"""


def run(code, given):
    """The lines of JSON that a process writes; a crash is told with what it had done."""
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(given), capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended with {done.returncode} after {len(lines)} files:\n{done.stderr[-1500:]}"
    return lines


def test_each_file_is_a_picture_or_one_sentence(tmp_path):
    made = hostile.files(tmp_path / "files", N or 40)
    if not N:  # these take seconds
        made = [each for each in made if not each.kind.startswith(("large", "hole gif", "bomb tiff"))]
    (tmp_path / "seen").mkdir()
    *found, total = run(READ, [[str(each.path) for each in made], str(tmp_path / "seen")])
    assert len(found) == len(made)
    for number, (file, result) in enumerate(zip(made, found, strict=True)):
        name, error = f"{file.path.name}, {file.kind}", result["error"]
        assert file.expected in ("", "error" if error else "picture"), f"{name}: {error or 'a picture'}"
        assert "\n" not in error and len(error) < 200 and str(tmp_path) not in error, f"{name}: {error}"
        assert result["seconds"] < SECONDS, name
        if file.pixels is not None:
            seen = np.load(tmp_path / "seen" / f"{number}.npy")
            assert seen.shape == file.pixels.shape, name
            assert np.abs(seen.astype(int) - file.pixels).mean() < 12, name  # JPEG's edges
    assert total["peak"] < MEGABYTES and total["growth"] < 20, total


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own
def test_a_pillow_image_that_is_damaged_is_one_sentence(tmp_path):
    tried = 0
    for file in hostile.files(tmp_path, 100, seed=1):
        if not file.kind.startswith(("truncated", "flipped", "spliced")):
            continue
        try:
            image = Image.open(file.path)
        except Exception:  # not ours to say
            continue
        tried += 1
        try:
            faces_.as_rgb(image)
        except faces_.PictureError as error:
            assert "\n" not in str(error), file
    assert tried > 20


def test_other_kinds_than_are_documented_are_not_opened(tmp_path):
    image = Image.new("RGB", (20, 20))
    for suffix in ("jpg", "png", "gif", "bmp", "ppm", "webp", "tif"):
        image.save(tmp_path / f"x.{suffix}")
        assert faces_.read_picture(tmp_path / f"x.{suffix}").image.shape == (20, 20, 3)
    for suffix in ("eps", "ico", "tga", "pcx", "sgi"):
        image.save(tmp_path / f"x.{suffix}")
        with pytest.raises(faces_.PictureError, match="it is no image that can be read"):
            faces_.read_picture(tmp_path / f"x.{suffix}")


def test_a_jpeg_as_cameras_write_it_passes(tmp_path):
    # Ten scans, EXIF data of 60 kB, a colour profile in pieces, and a film behind its end, as phones have it.
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype("uint8")
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    content = hostile.encode(
        Image.fromarray(pixels), "JPEG", progressive=True, exif=exif, icc_profile=bytes(3_000_000), quality=95
    )
    (tmp_path / "x.jpg").write_bytes(content + b"\xff\xda\0\2" * 5000)
    assert faces_.read_picture(tmp_path / "x.jpg").image.shape == pixels.shape


def test_segments_behind_an_early_end_count_too(tmp_path):
    content = hostile.encode(Image.new("RGB", (16, 16)), "JPEG")
    pieces = b"\xff\xe1" + (28).to_bytes(2, "big") + b"Exif\0\0" + bytes(20)
    (tmp_path / "x.jpg").write_bytes(content[:2] + b"\xff\xd9" + b"\xff\x01" + pieces * 2000 + content[2:])
    with pytest.raises(faces_.PictureError, match="more than 100 scans or 1,000 segments"):
        faces_.read_picture(tmp_path / "x.jpg")


class Nothing:
    """Stands for a classifier, and finds no face."""

    class_names = ("happy", "sad")

    def analyze_all(self, images):
        assert all(image.dtype == np.uint8 and image.ndim == 3 for image in images)
        return [[] for _ in images]


def test_bad_names_cost_nothing_and_can_be_written(tmp_path):
    made = hostile.named(tmp_path / "names")
    found, failures = predict.sources([each.path for each in made])
    results = list(predict.analyze(found, Nothing(), keep_images=True))
    assert failures == [] and not any(result.failure for result in results)
    annotations = predict.Annotations(tmp_path / "drawn", found)
    for result in results:
        assert annotations.write(result).parent == tmp_path / "drawn"
        assert predict.line(result).isprintable() or "\u202e" in result.source.name
    text = predict.csv_text([row for result in results for row in predict.rows(result, ("happy",))], ("happy",))
    assert text.encode("utf-8").count(b"\n") == len(made) + 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["drawn", "names"]  # nothing beside them


VIDEOS = """
import json, sys
from fer_keras import faces, predict

class Nothing:
    def analyze_all(self, images):
        return [[] for _ in images]

for path in json.load(sys.stdin):
    results = list(predict.analyze([predict.Source(path, "video", "x")], Nothing()))
    print(json.dumps([[result.failure, result.size] for result in results]), flush=True)
"""


def test_each_video_gives_frames_or_one_sentence(tmp_path):
    made = hostile.videos(tmp_path, seed=N)
    found = run(VIDEOS, [str(each.path) for each in made])
    for file, results in zip(made, found, strict=True):
        frames = [size for failure, size in results if not failure]
        failures = [failure for failure, _ in results if failure]
        assert frames or failures, file.kind
        assert file.expected in ("", "picture" if frames else "error"), (file.kind, results)
        assert len(failures) < 2 and not any("\n" in each for each in failures), file.kind
        assert all(max(size) <= 64 for size in frames), (file.kind, frames)


@pytest.mark.parametrize(
    ("suffix", "code"),
    [
        *(("mp4", "mp4v"), ("mov", "mp4v"), ("3gp", "mp4v"), ("m4v", "mp4v"), ("avi", "MJPG"), ("mkv", "MJPG")),
        *(("webm", "VP80"), ("mpg", "MPG1"), ("ts", "mp4v"), ("wmv", "WMV2"), ("mjpeg", "MJPG")),
    ],
)
def test_the_usual_containers_are_still_read(tmp_path, suffix, code):
    cv2 = faces_.load_cv2()
    path = tmp_path / f"x.{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 25, (176, 144))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {code}")
    for number in range(6):
        writer.write(np.full((144, 176, 3), number * 30, "uint8"))
    writer.release()
    assert f".{suffix}" in predict.VIDEOS
    results = list(predict.analyze([predict.Source(str(path), "video", "x")], Nothing()))
    assert [result.size for result in results if not result.failure] == [(176, 144)] * 6


def test_the_same_seed_makes_the_same_files(tmp_path):
    one, other = (hostile.files(tmp_path / name, 20, seed=3) for name in "ab")
    assert [each.kind for each in one] == [each.kind for each in other]
    assert {each.kind.split()[0] for each in one} == {kind.split()[0] for kind in hostile.KINDS}
    for first, second in zip(one, other, strict=True):
        assert first.path.stat().st_size == second.path.stat().st_size
        if first.path.stat().st_size < 1e6:
            assert first.path.read_bytes() == second.path.read_bytes()


def test_a_thousand_have_each_kind_as_often_as_it_says():
    assert sum(share for _, share in hostile.KINDS.values()) == 1000
    assert all(Path(name).name == name for name in hostile.NAMES if "\\" not in name)
