"""The app in headless Chromium: the camera (a film of drawn faces), a picture, a film, a phone, a keyboard."""

import csv
import io
import re
import time
from pathlib import Path

import cv2
import pytest
from PIL import Image

from fer_keras.predict import COLORS


def test_the_app_starts_without_tensorflow_and_on_this_machine_only(app):
    maps = Path(f"/proc/{app.process.pid}/maps").read_text()
    assert "onnxruntime" in maps and "tensorflow" not in maps and "jaxlib" not in maps
    assert app.url == f"http://127.0.0.1:{app.port}/"


def painted_in(page, color):
    """How many pixels of the camera's picture have exactly this colour, and the middle of their columns, 0–1.

    Boxes and names have the colours of their expressions, the drawn faces are grey.
    """
    return page.evaluate(
        """color => {
            const canvas = document.querySelector('.fer-camera .picture');
            const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let n = 0, sum = 0;
            for (let at = 0; at < pixels.length; at += 4)
                if (color.every((value, channel) => pixels[at + channel] === value)) {
                    n += 1;
                    sum += at / 4 % canvas.width;
                }
            return [n, n ? sum / n / canvas.width : 0];
        }""",
        list(bytes.fromhex(color[1:])),
    )


def test_boxes_and_names_change_with_the_film(open_page, app, frames, shot):
    page = open_page()
    page.get_by_role("button", name="Start the camera").click()
    painted, rates = {}, []
    until = time.time() + 60
    while time.time() < until and any(painted.get(name, 0) < 500 for name in frames):
        page.wait_for_timeout(300)
        speed = page.inner_text(".fer-camera .speed")
        if not speed.endswith(" 1 face"):
            continue
        rates.append(float(speed.split()[0]))
        rows = page.locator(".fer-camera .bar").all_inner_texts()
        shares = {name: int(share.rstrip(" %")) for name, share in (row.split("\n") for row in rows)}
        first = max(shares, key=shares.get)
        now, _ = painted_in(page, COLORS[list(shares).index(first)])
        # The bars follow the box within a second: at a change they differ.
        painted[first] = max(now, painted.get(first, 0))
        if first == "happy" and now > 500:
            shot(page, "camera")
    assert all(painted.get(name, 0) > 500 for name in frames), painted
    print(f"{sorted(rates)[len(rates) // 2]} frames a second")
    assert page.inner_text(".fer-camera .spoken") in painted  # what a screen reader says
    page.get_by_role("button", name="Stop the camera").click()
    assert page.get_by_text("The camera is off").is_visible()
    assert not app.files(), "frames were written to disk"


def test_the_picture_is_mirrored_with_its_boxes_unless_told_otherwise(open_page):
    page = open_page()
    page.get_by_role("button", name="Start the camera").click()
    page.wait_for_selector(".fer-camera .bar", timeout=30_000)

    def middle():
        page.wait_for_timeout(500)
        return max(painted_in(page, color) for color in COLORS)[1]

    assert middle() > 0.55  # the face is in the left half of the frame
    page.get_by_role("checkbox", name="mirrored").uncheck()
    assert middle() < 0.45
    page.get_by_role("button", name="Stop the camera").click()


def test_another_tab_stops_asking_and_coming_back_goes_on(open_page):
    page = open_page()
    asked = []
    page.on("request", lambda request: asked.append(1) if "component_server" in request.url else None)
    page.get_by_role("button", name="Start the camera").click()
    page.wait_for_selector(".fer-camera .bar", timeout=30_000)
    page.get_by_role("tab", name="Picture").click()
    page.wait_for_timeout(1000)
    before = len(asked)
    page.wait_for_timeout(2000)
    assert len(asked) == before > 0
    page.get_by_role("tab", name="Camera").click()
    page.wait_for_timeout(3000)
    assert len(asked) > before


def test_a_picture_gives_a_table_and_downloads(open_page, frames, tmp_path, shot, app):
    first, second = frames["happy"], frames["surprise"]
    both = Image.new("RGB", (1280, 480))
    both.paste(Image.fromarray(first), (0, 0))
    both.paste(Image.fromarray(second), (640, 0))
    both.save(tmp_path / "two.png")
    page = open_page()
    page.get_by_role("tab", name="Picture").click()
    page.set_input_files("#picture-upload input[type=file]", tmp_path / "two.png")
    page.wait_for_selector("#picture img", timeout=60_000)
    page.wait_for_function("document.querySelector('#picture img').complete")
    assert "two.png: 2 faces." in page.inner_text("#picture")
    assert re.search("a box around each face: happy .* surprise", page.get_attribute("#picture img", "alt"))
    page.wait_for_timeout(500)
    shot(page, "picture")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the table").click()
    assert download.value.suggested_filename == "two-faces.csv"
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [row["label"] for row in rows] == ["happy", "surprise"]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the picture").click()
    assert Image.open(download.value.path()).size == (1280, 480)
    assert not app.files(), "the upload was left on disk"
    # Another detector looks at the same picture, without another upload.
    page.get_by_label("How faces are found").click()
    page.get_by_role("option", name="the picture is one face").click()
    page.wait_for_function("document.querySelector('#picture').innerText.includes('1 face.')", timeout=30_000)


def test_a_bad_picture_says_why(open_page, tmp_path, app):
    (tmp_path / "page.png").write_text("<script>document.title = 'taken over'</script>")
    page = open_page()
    page.get_by_role("tab", name="Picture").click()
    page.set_input_files("#picture-upload input[type=file]", tmp_path / "page.png")
    alert = page.locator("#picture [role=alert]")
    alert.wait_for(timeout=30_000)
    assert alert.inner_text() == "page.png cannot be read: it is no image that can be read."
    assert page.title() == "Facial expressions" and not app.files()


def test_a_film_gives_a_timeline_and_a_table(open_page, frames, tmp_path, shot, app):
    writer = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (640, 480))
    for frame in [each for each in frames.values() for _ in range(20)]:
        writer.write(frame[..., ::-1].copy())
    writer.release()
    page = open_page()
    page.get_by_role("tab", name="Video").click()
    page.set_input_files("#film-upload input[type=file]", tmp_path / "film.mp4")
    link = page.get_by_role("link", name="Download the table")
    link.wait_for(timeout=60_000)
    assert "film.mp4: 12 frames looked at" in page.inner_text("#film")
    page.wait_for_selector("#film-plot canvas, #film-plot svg", timeout=30_000)
    page.wait_for_timeout(1000)
    shot(page, "video")
    with page.expect_download() as download:
        link.click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert {row["label"] for row in rows} >= set(frames) and len({row["frame"] for row in rows}) == 12
    assert not app.files(), "the upload was left on disk"


def test_a_film_that_is_stopped_gives_what_was_seen_and_can_be_given_again(open_page, frames, tmp_path, app):
    write = cv2.VideoWriter(str(tmp_path / "long.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (640, 480))
    for _ in range(3000):
        write.write(frames["happy"][..., ::-1].copy())
    write.release()
    page = open_page()
    page.get_by_role("tab", name="Video").click()
    for _ in range(2):
        page.set_input_files("#film-upload input[type=file]", tmp_path / "long.mp4")
        note = page.get_by_text("Note: stopped before its end.")
        for _ in range(60):  # there is nothing to stop before the film has arrived
            page.get_by_role("button", name="Stop looking").click()
            page.wait_for_timeout(500)
            if note.is_visible():
                break
        assert note.is_visible()
        assert page.get_by_role("link", name="Download the table").is_visible() and not app.files()
        page.reload()
        page.get_by_role("tab", name="Video").click()


def test_what_the_model_is_worth_is_one_click_away(open_page):
    page = open_page()
    page.get_by_role("button", name="What this model is worth").click()
    page.get_by_text("trained on drawn faces").wait_for(timeout=10_000)
    assert page.get_by_role("cell", name="surprise", exact=True).is_visible()
    assert page.get_by_text("AI Act").is_visible()


def test_a_phone_shows_everything_in_its_width(open_page, shot):
    page = open_page(width=390, height=844)
    page.get_by_role("button", name="Start the camera").click()
    page.wait_for_selector(".fer-camera .bar", timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "phone")
    for name in ("Picture", "Video"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_the_keyboard_reaches_and_works_the_camera(open_page):
    page = open_page()
    page.locator(".fer-camera .start").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".fer-camera .bar", timeout=30_000)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").split()[0] == "which"
    page.locator(".fer-camera .start").focus()
    page.keyboard.press("Space")
    assert page.get_by_text("The camera is off").is_visible()


def test_a_camera_that_may_not_be_used_is_explained(open_page):
    page = open_page()
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia ="
        " () => Promise.reject(new DOMException('no', 'NotAllowedError')); }"
    )
    page.get_by_role("button", name="Start the camera").click()
    assert "was not allowed to use the camera" in page.inner_text(".fer-camera .message")
    for dark in (False, True):
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        for selector in (".fer-camera .message", ".fer-camera .which"):
            assert contrast(page, selector) >= 4.5, f"{selector}, dark: {dark}"  # WCAG 2.2, 1.4.3


def contrast(page, selector):
    """Contrast of a text with what is behind it, by WCAG 2.2's definition."""
    text, behind = page.evaluate(
        """selector => {
            let at = document.querySelector(selector);
            const text = getComputedStyle(at).color, clear = "rgba(0, 0, 0, 0)";
            while (at.parentElement && getComputedStyle(at).backgroundColor === clear) at = at.parentElement;
            return [text, getComputedStyle(at).backgroundColor];
        }""",
        selector,
    )

    def luminance(color):
        shares = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    darker, lighter = sorted((luminance(text), luminance(behind)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_shows_the_app_below_the_cell(outputs, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    code = f"from fer_keras.app import launch\nblocks = launch(outputs={str(outputs)!r}, inline=True)"
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("blocks.close()")]
    )
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    shown = "".join(out.get("data", {}).get("text/html", "") for out in book.cells[0].outputs)
    assert re.search(r'<iframe src="http://127\.0\.0\.1:\d+/"[^>]*allow="[^"]*camera', shown)
