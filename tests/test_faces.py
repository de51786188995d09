"""Faces in pictures: reading, finding, cropping."""

import hashlib
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fer_keras import faces as faces_
from fer_keras.data import load_fer2013

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install -e '.[predict]'")


def box(*values, score=1.0):
    return np.array([[*values, score, *[np.nan] * 4]], "float32")


@pytest.fixture
def picture():
    """uint8 (200, 300, 3), smooth, all pixels different from their neighbours."""
    y, x = np.mgrid[:200, :300]
    return np.stack([x % 256, y, (x + y) // 2], axis=2).astype("uint8")


# --- Cropping -------------------------------------------------------------------------------------------------------


def test_a_box_of_the_training_size_without_margin_is_cut_out_as_it_is(picture):
    crop = faces_.crop(picture, box(100, 50, 48, 48), channels=3, margin=0)
    assert crop.shape == (1, 48, 48, 3) and crop.dtype == np.uint8
    assert np.array_equal(crop[0], picture[50:98, 100:148])


def test_the_square_has_the_boxs_middle_its_mean_side_and_the_margin(picture):
    # 40 × 90: the mean side is 60, with a quarter on each side 90.
    crop = faces_.crop(picture, box(100, 55, 40, 90), (90, 90), 3, margin=0.25)
    assert np.array_equal(crop[0], picture[55:145, 75:165])


def test_beyond_the_border_the_edge_is_repeated(picture):
    crop = faces_.crop(picture, box(-20, -10, 60, 60), (60, 60), 3, margin=0)[0]
    assert np.array_equal(crop[10:, 20:], picture[:50, :40])
    assert np.array_equal(crop[:10, 20:], np.repeat(picture[:1, :40], 10, axis=0))
    assert np.array_equal(crop[10:, :20], np.repeat(picture[:50, :1], 20, axis=1))


def test_grey_is_luminance():
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], "uint8")
    values = [faces_.crop(np.full((60, 60, 3), color), box(0, 0, 60, 60), margin=0)[0, 24, 24, 0] for color in colors]
    assert values == [76, 150, 29, 255]


def test_reduction_does_not_alias():
    fine = np.indices((480, 480)).sum(axis=0) % 2 * 255  # a chessboard of single pixels
    crop = faces_.crop(np.repeat(fine[..., None], 3, axis=2).astype("uint8"), box(0, 0, 480, 480), margin=0)
    assert crop.min() >= 125 and crop.max() <= 130


@pytest.mark.parametrize("degrees", [30, -20])
def test_alignment_makes_the_eyes_level_and_keeps_the_middle(degrees):
    angle, frame = np.radians(degrees), np.zeros((300, 400, 3), "uint8")
    middle, along = np.array([200.0, 150.0]), np.array([np.cos(angle), np.sin(angle)])
    eyes = np.array([middle - 25 * along, middle + 25 * along])
    for eye in eyes:
        cv2.circle(frame, tuple(np.rint(eye).astype(int).tolist()), 5, (255, 255, 255), -1)
    found = box(150, 100, 100, 100)
    found[0, 5:] = eyes.ravel()
    for align, level in ((False, False), (True, True)):
        crop = faces_.crop(frame, found, (100, 100), margin=0, align=align)[0, :, :, 0]
        right, left = (np.argwhere(half > 127).mean(axis=0) for half in (crop[:, :50], crop[:, 50:]))
        assert (abs(right[0] - left[0]) < 1.5) == level  # the eyes are drawn to whole pixels
    assert abs(right[0] - 49.5) < 1.5 and abs((right[1] + left[1] + 50) / 2 - 49.5) < 1.5


def test_all_faces_of_a_frame_come_in_one_call_and_none_is_none(picture):
    found = np.concatenate([box(0, 0, 48, 48), box(100, 50, 48, 48)])
    assert faces_.crop(picture, found).shape == (2, 48, 48, 1)
    assert faces_.crop(picture, found[:0]).shape == (0, 48, 48, 1)


# --- Finding --------------------------------------------------------------------------------------------------------


def test_impossible_boxes_are_left_out_and_the_rest_goes_from_left_to_right(picture):
    given = [[200, 20, 50, 50], [10, 20, 50, 50], [np.nan, 0, 5, 5], [0, 0, 0, 9], [280, 0, 60, 60], [0, 0, 9, np.inf]]
    found = faces_.find(picture, lambda image: np.array(given))
    assert found.shape == (2, 9) and found[:, 0].tolist() == [10, 200] and found[:, 4].tolist() == [1, 1]
    assert np.isnan(found[:, 5:]).all()


def test_a_detector_of_ones_own_must_give_boxes(picture):
    with pytest.raises(ValueError, match=r"left, top, width, height.* Received: \(1, 3\)"):
        faces_.find(picture, lambda image: np.ones((1, 3)))


def test_an_unknown_detector_names_the_known_ones():
    with pytest.raises(ValueError, match=r"auto, yunet, haar, whole\. Received: 'mtcnn'"):
        faces_.detector("mtcnn")


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4000, 3), (3000, 2, 3), (240, 320, 3)])
@pytest.mark.parametrize("name", ["haar", "yunet"])
def test_no_face_is_no_error(shape, name):
    if name == "yunet" and not os.environ.get("FER_KERAS_YUNET"):
        pytest.skip("set FER_KERAS_YUNET to the path of YuNet's file to test it")
    if name == "haar" and not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("OpenCV 5 has no Haar cascade")
    _, detect = faces_.detector(name)
    assert faces_.find(np.full(shape, 128, "uint8"), detect).shape == (0, 9)


@pytest.mark.parametrize("name", ["yunet", "haar"])
def test_real_faces_are_found_and_cropped_as_they_were(real_csv, name):
    if name == "yunet" and not os.environ.get("FER_KERAS_YUNET"):
        pytest.skip("set FER_KERAS_YUNET to the path of YuNet's file to test it")
    if name == "haar" and not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("OpenCV 5 has no Haar cascade")
    _, detect = faces_.detector(name)
    sides, away = [], []
    for face in load_fer2013(real_csv).images[:100, :, :, 0]:
        frame = np.full((480, 640, 3), 128, "uint8")
        frame[140:332, 224:416] = np.asarray(Image.fromarray(face).resize((192, 192)))[..., None]
        found = faces_.find(frame, detect)
        if len(found):
            left, top, width, height = found[found[:, 4].argmax(), :4]
            sides.append((width * height) ** 0.5 * (1 + 2 * faces_.MARGINS[name]) / 192)
            away.append([(left + width / 2 - 320) / 192, (top + height / 2 - 236) / 192])
    assert len(sides) >= {"yunet": 95, "haar": 65}[name]
    # Each face was cropped a little otherwise; half of 100 ratios lie within 0.09 of their median.
    assert np.median(sides) == pytest.approx(1, abs=0.05)
    assert np.abs(np.median(away, axis=0)).max() < 0.04


# --- The detector's file --------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Stands for the model repository: a file that is "downloaded"."""
    monkeypatch.delenv("FER_KERAS_YUNET", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "served.onnx"
    file.write_bytes(b"the detector")
    monkeypatch.setattr(faces_, "YUNET_URL", file.as_uri())
    monkeypatch.setattr(faces_, "YUNET_SHA256", hashlib.sha256(b"the detector").hexdigest())
    return file


def test_the_detector_is_downloaded_once_and_again_when_it_is_damaged(server):
    kept = faces_.yunet_file()
    assert kept.read_bytes() == b"the detector" and kept != server
    kept.write_bytes(b"damaged")
    assert faces_.yunet_file().read_bytes() == b"the detector"
    server.unlink()
    assert faces_.yunet_file() == kept


def test_a_download_with_another_hash_is_not_kept(server, tmp_path):
    server.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"has the SHA-256 .*, expected .*, and was not kept.* FER_KERAS_YUNET"):
        faces_.yunet_file()
    assert not any((tmp_path / "cache").rglob("*.onnx"))


def test_without_a_network_the_haar_cascade_finds_faces_and_says_so(server):
    server.unlink()
    with pytest.raises(ValueError, match=r"could not be downloaded: .* by hand and set FER_KERAS_YUNET"):
        faces_.detector("yunet")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("OpenCV 5 has no Haar cascade")
    said = []
    assert faces_.detector("auto", say=said.append)[0] == "haar"
    assert "could not be downloaded" in said[0] and "the Haar cascade finds faces" in said[0]


def test_a_given_file_must_be_there_and_be_a_detector(monkeypatch, tmp_path):
    monkeypatch.setenv("FER_KERAS_YUNET", str(tmp_path / "missing.onnx"))
    with pytest.raises(ValueError, match=r"no file '.*missing.onnx' of the face detector"):
        faces_.detector("yunet")
    (tmp_path / "other.onnx").write_bytes(b"no network of any kind")
    with pytest.raises(ValueError, match=r"other.onnx is no face detector YuNet that OpenCV"):
        faces_.detector("yunet", tmp_path / "other.onnx")


# --- Reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(tmp_path, picture, orientation):
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image, exif = Image.fromarray(picture), Image.Exif()
    exif[0x0112] = orientation
    if orientation in turned:
        image = image.transpose(turned[orientation])
    image.save(tmp_path / "photograph.png", exif=exif)
    assert np.array_equal(faces_.read_picture(tmp_path / "photograph.png").image, picture)
    assert np.array_equal(faces_.as_rgb(Image.open(tmp_path / "photograph.png")), picture)


def test_all_kinds_of_images_become_rgb(tmp_path, picture):
    grey = picture[..., 1]
    as_grey = np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(grey.astype("uint16") * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(np.dstack([picture, grey])).save(tmp_path / "alpha.png")
    Image.fromarray(grey).save(tmp_path / "grey.bmp")
    expected = {"sixteen.png": as_grey, "cmyk.tif": picture, "alpha.png": picture, "grey.bmp": as_grey}
    for name, pixels in expected.items():
        found = faces_.read_picture(tmp_path / name)
        assert np.array_equal(found.image, pixels) and found.notes == (), name


def test_of_an_animation_the_first_picture_is_taken_and_it_says_so(tmp_path):
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    found = faces_.read_picture(tmp_path / "moving.gif")
    assert found.image[0, 0].tolist() == [255, 0, 0] and found.notes == ("of its several pictures the first was taken",)


def bomb(path, side=60_000):
    """A PNG of a few kilobytes that would be 450 MB of bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = zlib.compress(bytes(side // 8 + 1) * 500, 9)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "the file is empty"),
        ("text.jpg", lambda path: path.write_text("no picture"), "it is no image that can be read"),
        ("cut.png", lambda path: path.write_bytes(_noise()[:3000]), "it is damaged: "),
        ("bomb.png", bomb, "twice Pillow's limit of 89,478,485 pixels"),
        ("large.png", lambda path: bomb(path, 10_000), "it has 10,000×10,000 pixels, and at most 89,000,000"),
        ("folder.png", lambda path: path.mkdir(), "it is no file"),
        ("missing.png", lambda path: None, "there is no such file"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_file_is_one_clear_reason(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(faces_.PictureError, match=message):
        faces_.read_picture(tmp_path / name)


def _noise():
    import io

    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype("uint8")).save(content, "PNG")
    return content.getvalue()


def test_limits_are_respected(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(_noise())
    assert faces_.read_picture(tmp_path / "x.png").image.shape == (90, 90, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8_000)
    with pytest.raises(faces_.PictureError, match="90×90 pixels, and at most 8,000"):
        faces_.as_rgb(Image.fromarray(np.zeros((90, 90), "uint8")))
    monkeypatch.setattr(faces_, "MOST_BYTES", 1_000)
    with pytest.raises(faces_.PictureError, match=r"MB, and .* are read at most"):
        faces_.read_picture(tmp_path / "x.png")


@pytest.mark.parametrize(
    "image", [np.zeros((5, 5, 3)), np.zeros((5, 5, 2), "uint8"), np.zeros((0, 5, 3), "uint8"), np.zeros(5, "uint8")]
)
def test_an_array_that_is_no_picture_is_refused(image):
    with pytest.raises(faces_.PictureError, match=r"A picture must be .*Received: "):
        faces_.as_rgb(image)


def test_grey_and_transparent_arrays_are_pictures(picture):
    grey = picture[..., 0]
    for array in (grey, grey[..., None]):
        assert np.array_equal(faces_.as_rgb(array), np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(faces_.as_rgb(np.dstack([picture, grey])), picture)
