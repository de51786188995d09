"""The app: expressions from the camera, from pictures and from films, in the browser.

The camera tab is a small page of our own (`page/camera.*`) inside Gradio: the browser shows the film and draws the
boxes, and sends single frames that stay in memory. Gradio's own streaming image writes every frame to disk. Uploads are
deleted as soon as they are read, and results go to the browser inside the page, not as files.
"""

import base64
import contextlib
import ctypes
import html
import io
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fer_keras import predict, zoo
from fer_keras.classifier import ExpressionClassifier, Face, ModelError, best_run, finished_runs, no_model
from fer_keras.faces import PictureError, read_picture
from fer_keras.params import root

HOST = "127.0.0.1"
FRAME_BYTES = 2 << 20  # of one frame of the camera, as base64; 640×480 has about 60 kB
PICTURE_BYTES = 32 << 20
FILM_BYTES = 256 << 20
REQUEST_BYTES = FILM_BYTES + (1 << 20)
SESSIONS = 64  # whose last picture is kept in memory, for ten minutes at most
SHOWN_SIDE = 2000  # pixels of an annotated picture
MOST_FRAMES = 20_000  # of a film that are looked at
POINTS = 400  # in time, of the plot
DETECTORS = {"YuNet": "yunet", "Haar cascade (no download)": "haar", "the picture is one face": "whole"}
LIMITS = (
    "What a face shows is not what a person feels. The model was trained on pictures from the web whose labels people "
    "dispute, and it is wrong often; see its scores here and [what expression recognition can and cannot tell]"
    "(https://github.com/fer-keras/fer-keras/blob/main/docs/limits.md). Inferring emotions at work or in schools is "
    "prohibited in the EU (AI Act, Article 5)."
)
PRIVACY = (
    "Everything is computed where this app runs. Frames stay in memory, uploads are deleted from the disk once they "
    "are read; your last picture stays in memory for ten minutes at most, so that another model can look at it."
)
GONE = "The upload is gone: the same file was uploaded twice at the same moment. Upload it again."


class Models:
    """The models that the app offers, each loaded when it is first asked for.

    Args:
        paths: by the name that users see.

    A client says a name, never a path.
    """

    def __init__(self, paths: Mapping[str, str | Path]):
        self.paths = dict(paths)
        self._loaded: dict = {}
        self._lock = threading.Lock()

    def get(self, name: str, detector: str) -> ExpressionClassifier:
        """The classifier; the best detector that can be had serves for one that is not known.

        Raises:
            ModelError: if the model cannot be loaded, or the detector cannot be had.
        """
        if name not in self.paths:
            name = next(iter(self.paths))
        kind = DETECTORS.get(detector, "auto")
        if (name, kind) in self._loaded:  # without the lock: who uses one model does not wait while another is loaded
            return self._loaded[name, kind]
        with self._lock:  # two clients must not export one model at once
            if (name, kind) not in self._loaded:
                try:
                    loaded = ExpressionClassifier(self.paths[name], kind)
                except ValueError as error:  # of the detector: not of the picture that is to be looked at
                    raise ModelError(str(error)) from None
                self._loaded[name, kind] = self._loaded[name, loaded.detector] = loaded  # by its own name, too
            return self._loaded[name, kind]


def models(model: str | Path = "compact", outputs: str | Path = "outputs") -> Models:
    """What the app offers: the model that is asked for, the one that comes with the package, the finished runs.

    Args:
        model: see `ExpressionClassifier`.
        outputs: where finished runs are looked for; the best comes first, with "" also before what comes with the
            package.

    Raises:
        ModelError: if there is none.
    """
    top, names = Path(os.path.abspath(root() / Path(outputs).expanduser())), {}
    if str(model) not in ("", "compact"):
        if not Path(model).expanduser().exists() and str(model) not in zoo.names():
            raise ModelError(no_model(str(model)))
        names[_shown(model, top)] = model
    runs = {_shown(folder, top): folder for folder in finished_runs(outputs)}
    shipped = {"compact": "compact"} if zoo.is_shipped("compact") else {}
    for name, path in ({**runs, **shipped} if str(model) == "" else {**shipped, **runs}).items():
        names.setdefault(name, path)
    if not names:
        best_run(outputs)  # says what is missing
    return Models(names)


def _shown(model: str | Path, top: Path) -> str:
    path = Path(os.path.abspath(os.path.expanduser(model)))
    return str(path.relative_to(top) if path.is_relative_to(top) else path.name)


# --- What the tabs do -----------------------------------------------------------------------------------------------


def look(offered: Models, request: Mapping) -> dict:
    """One frame of the camera.

    Args:
        request: `image`, a JPEG as data URL; `model` and `detector`, names from the page.

    Returns:
        `faces`, each with box, label and probabilities, and `milliseconds`; or `error`, a sentence.
    """
    try:
        kind, _, text = str(request.get("image", "")).partition(",")
        if kind != "data:image/jpeg;base64" or len(text) > FRAME_BYTES:
            return {"error": "The frame is no JPEG, or too large."}
        classifier = offered.get(str(request.get("model")), str(request.get("detector")))
        began = time.perf_counter()
        found = classifier.analyze(read_picture(base64.b64decode(text, validate=True)).image)
    except ModelError as error:
        return {"error": str(error)}
    except ValueError as error:  # no base64, or no picture
        return {"error": f"The frame cannot be read: {error}."}
    answer = [{"box": face.box, "label": face.label, "probabilities": face.probabilities} for face in found]
    return {"faces": answer, "milliseconds": 1000 * (time.perf_counter() - began)}


def picture(offered: Models, name: str, content: bytes, model: str, detector: str) -> tuple[str, list[list]]:
    """An uploaded picture.

    Returns:
        The annotated picture with links to download it and the table, as HTML; and the rows of the table.
    """
    if len(content) > PICTURE_BYTES:
        return problem(f"{name} is larger than {PICTURE_BYTES / 1e6:.0f} MB, which are read at most."), []
    try:
        read = read_picture(content)
        classifier = offered.get(model, detector)
        seen = classifier.analyze(read.image)
    except PictureError as error:
        return problem(f"{name} cannot be read: {error}."), []
    except ModelError as error:
        return problem(str(error)), []
    drawn, reduced = _reduced(read.image, seen)
    count = "no face" if not seen else "1 face" if len(seen) == 1 else f"{len(seen)} faces"
    notes = "".join(f" Note: {html.escape(note)}." for note in read.notes)
    stem = Path(name).stem or "picture"
    result = predict.Result(predict.Source(name, "image", name), size=read.image.shape[1::-1], faces=seen)
    table = predict.csv_text(predict.rows(result, classifier.class_names), classifier.class_names)
    spoken = ", ".join(f"{face.label} {100 * face.probabilities[face.label]:.0f} %" for face in seen) or "no face found"
    page = (
        f'<p role="status">{html.escape(name)}: {count}.{notes}</p>'
        f'<img alt="{html.escape(f"{name} with a box around each face: {spoken}")}" src="{_jpeg(drawn)}" '
        'style="max-width:100%;height:auto">'
        f"<p>{_download(f'{stem}-faces.jpg', _jpeg(drawn), 'Download the picture')} "
        f"{_download(f'{stem}-faces.csv', _data_url('text/csv', table.encode()), 'Download the table (CSV)')}"
        f"{' The picture is reduced; the table is in pixels of the original.' if reduced < 1 else ''}</p>"
    )
    return page, [_row(number, face) for number, face in enumerate(seen, 1)]


def film(
    offered: Models,
    path: str | Path,
    name: str,
    model: str,
    detector: str,
    every: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[dict]:
    """An uploaded film, frame by frame, until its end or until `stopped` says so.

    Yields:
        `done` and `total` frames, `page` (HTML) and `points` (time in seconds, probability of the largest face,
        expression) as far as they are known; the last one is complete.
    """
    try:
        classifier = offered.get(model, detector)
    except ModelError as error:
        yield {"done": 0, "total": 0, "page": problem(str(error)), "points": []}
        return
    state, table, times, failures = [0, 0], [], [], []
    source = predict.Source(str(path), "video", name)
    report = lambda done, total: state.__setitem__(slice(None), [done, total])  # noqa: E731
    with contextlib.closing(predict.analyze([source], classifier, every, report)) as results:
        for result in results:
            if result.failure:
                failures.append(result.failure)
                continue
            table += predict.rows(result, classifier.class_names)
            largest = max(result.faces, key=lambda face: face.box[2] * face.box[3], default=None)
            times.append((result.time, largest))
            if len(times) % 32 == 0:
                yield {
                    "done": state[0],
                    "total": state[1],
                    "page": "",
                    "points": _points(times, classifier.class_names),
                }
            if stopped():
                failures.append("stopped before its end")
                break
            if len(times) == MOST_FRAMES:
                failures.append(f"only the first {MOST_FRAMES:,} frames were looked at; choose a larger step")
                break
    if not times:
        yield {"done": 0, "total": 0, "page": problem(f"{name} cannot be read: {'; '.join(failures)}."), "points": []}
        return
    shown = [face for _, face in times if face]
    counts = {label: sum(face.label == label for face in shown) for label in classifier.class_names}
    most = ", ".join(
        f"{label} in {count:,}" for label, count in sorted(counts.items(), key=lambda item: -item[1]) if count
    )
    notes = "".join(f" Note: {html.escape(failure)}." for failure in failures)
    text = f"{html.escape(name)}: {len(times):,} frames looked at, {len(shown):,} with a face."
    text += f" Largest face: {most or 'none'}.{notes}"
    link = _data_url("text/csv", predict.csv_text(table, classifier.class_names).encode())
    stem = Path(name).stem or "film"
    page = f'<p role="status">{text}</p><p>{_download(f"{stem}-faces.csv", link, "Download the table (CSV)")}</p>'
    yield {"done": len(times), "total": len(times), "page": page, "points": _points(times, classifier.class_names)}


def card(classifier: ExpressionClassifier) -> str:
    """What a model says about itself, as Markdown: origin, scores of each class, limits."""
    about = classifier.about
    lines = [classifier.describe(), *classifier.notes, ""]
    chosen, test = about.get("validation", {}), about.get("test", {})
    if about.get("data") == "drawn":
        lines += ["**It was trained on drawn faces: a trial, no model for photographs.**", ""]
    if chosen.get("n"):
        lines += [f"Chosen by {chosen['n']:,} validation faces; the test faces chose nothing.", ""]
    if per_class := test.get("per_class"):
        lines += [
            "Recall: of the test faces with this expression, how many were told. Precision: of these answers, how "
        ]
        lines[-1] += "many were right."
        lines += ["", "| expression | recall | precision | faces |", "|---|---|---|---|"]
        for name, row in per_class.items():
            shares = (f"{100 * row[key]:.0f} %" if row[key] is not None else "–" for key in ("recall", "precision"))
            lines.append(f"| {name} | {' | '.join(shares)} | {row['support']:,} |")
    said = [about[part] for part in ("audit", "limits", "licence") if about.get(part)]  # of a network of the zoo
    return "\n\n".join(["\n".join(lines), *said, LIMITS])


def problem(text: str) -> str:
    """A sentence about what went wrong, as HTML."""
    return f'<p role="alert" class="fer-problem">{html.escape(text)}</p>'


def _row(number: int, face: Face) -> list:
    (first, share), (second, other) = sorted(face.probabilities.items(), key=lambda item: -item[1])[:2]
    box = "{2}×{3} at {0}, {1}".format(*face.box)
    return [number, first, f"{100 * share:.0f} %", f"{second} {100 * other:.0f} %", box]


def _points(times, class_names) -> list[tuple[float, float, str]]:
    """Probabilities of the largest face over time, averaged where there are more than `POINTS` frames.

    Without a face they are NaN, which interrupts the lines.
    """
    step = math.ceil(len(times) / POINTS)
    points = []
    for at in range(0, len(times), step):
        part = times[at : at + step]
        moment = round(sum(moment for moment, _ in part) / len(part), 3)
        seen = [face.probabilities for _, face in part if face]
        for label in class_names:
            points.append((moment, sum(shares[label] for shares in seen) / len(seen) if seen else math.nan, label))
    return points


def _reduced(image, seen):
    """The annotated picture, at most `SHOWN_SIDE` long, and how much smaller it is."""
    from PIL import Image

    scale = min(1.0, SHOWN_SIDE / max(image.shape[:2]))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        image = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
        seen = [
            Face(tuple(round(value * scale) for value in face.box), face.score, face.label, face.probabilities)
            for face in seen
        ]
    import numpy as np

    return predict.annotate(np.asarray(image), seen), scale


def _jpeg(image) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=90)
    return _data_url("image/jpeg", content.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _download(name: str, url: str, text: str) -> str:
    return f'<a class="fer-download" download="{html.escape(name)}" href="{url}">{text}</a>'


# --- The page -------------------------------------------------------------------------------------------------------

CSS = """
.fer-problem { color: #b00020; font-weight: 600; }  /* also the camera's, in camera.html */
.dark .fer-problem { color: #ff8a8a; }
.fer-download { display: inline-block; padding: 8px 14px; margin: 4px 8px 4px 0; border-radius: 8px;
    background: #0b5cad; color: #fff !important; font-weight: 600; text-decoration: none !important; }
.fer-download:focus-visible { outline: 3px solid #e69f00; outline-offset: 2px; }
#film-plot .vega-embed { height: 340px !important; }  /* its legend would be cut off */
@media (max-width: 640px) {
    .gradio-container { padding: 8px !important; }
    #film-plot .vega-embed { overflow-x: auto; }
}
"""


def build(offered: Models):
    """The page, a `gradio.Blocks`."""
    gr = _gradio()
    import pandas as pd

    page = Path(__file__).parent / "page"
    html_, css, js = ((page / f"camera.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    names, first = list(offered.paths), next(iter(offered.paths))
    # What "auto" finds, shown by its name.
    kinds = list(DETECTORS)
    used = offered.get(first, "").detector
    detector_ = next((name for name, kind in DETECTORS.items() if kind == used), kinds[0])
    columns = {"x": "seconds", "y": "probability", "color": "expression"}

    def read_frame(request):
        return look(offered, request if isinstance(request, Mapping) else {})

    read_frame.__name__ = "look"  # the browser calls it by this name

    def upload_box(**options):
        """A box for a file, which gives its path and the name that it had; what it holds is found by reading it."""
        box = gr.File(height=140, **options)
        # Gradio's own would leave a second, empty file in its folder, and refuse by the suffix without a reason.
        box.preprocess = lambda payload: payload and (payload.path, payload.orig_name or Path(payload.path).name)
        return box

    def take(given, model, detector):
        """An uploaded picture: read, deleted, answered; kept in memory so that another model can look at it."""
        if not given:
            return None, "", [], None
        path, name = given
        try:
            with _deleted(path) as file, file.open("rb") as content:
                kept = name, content.read(PICTURE_BYTES + 1)
        except FileNotFoundError:
            return None, problem(GONE), [], None
        page, rows = picture(offered, *kept, model, detector)
        return (kept if "<img " in page else None), page, rows, None

    def again(kept, model, detector):
        return picture(offered, *kept, model, detector) if kept else ("", [])

    progress = gr.Progress()

    stopping = set()  # the sessions whose film is to end

    def watch(given, model, detector, every, request: gr.Request, progress=progress):
        if not given:
            return
        stopping.discard(request.session_hash)
        path, name = given
        if not os.path.exists(path):
            yield problem(GONE), None, None
            return
        with (
            _deleted(path) as file,
            contextlib.closing(
                film(
                    offered,
                    file,
                    name,
                    model,
                    detector,
                    max(1, int(every or 1)),
                    lambda: request.session_hash in stopping,
                )
            ) as parts,
        ):
            for part in parts:
                if part["total"]:
                    progress((part["done"], part["total"]), unit="frames")
                yield part["page"], pd.DataFrame(part["points"], columns=list(columns.values())), None

    def stop(request: gr.Request):
        stopping.add(request.session_hash)

    with gr.Blocks(title="Facial expressions", analytics_enabled=False, delete_cache=(60, 900)) as blocks:
        gr.Markdown(f"# Facial expressions\n{PRIVACY}")
        with gr.Row():
            model = gr.Dropdown(
                names, value=first, label="Model; runs by their validation faces, best first", min_width=280
            )
            detector = gr.Dropdown(kinds, value=detector_, label="How faces are found", min_width=280)
        with gr.Accordion("What this model is worth, and what it cannot tell", open=False):
            about = gr.Markdown(card(offered.get(first, detector_)))
        with gr.Tab("Camera"):
            gr.HTML(
                html_template=html_,
                css_template=css,
                js_on_load=js,
                server_functions=[read_frame],
                colors=list(predict.COLORS),
                elem_id="camera",
            )
        with gr.Tab("Picture"):
            kept = gr.State(time_to_live=600)
            upload = upload_box(label="A picture", file_types=sorted(predict.IMAGES), elem_id="picture-upload")
            shown = gr.HTML(elem_id="picture")
            table = gr.Dataframe(
                headers=["face", "expression", "probability", "next", "box, in pixels"],
                label="Faces, from left to right",
                interactive=False,
                elem_id="picture-table",
            )
        with gr.Tab("Video"):
            every = gr.Slider(1, 60, value=5, step=1, label="Look at each N-th frame")
            upload_film = upload_box(label="A video", file_types=sorted(predict.VIDEOS), elem_id="film-upload")
            cancel = gr.Button("Stop looking", size="sm")
            summary = gr.HTML(elem_id="film")
            plot = gr.LinePlot(
                **columns,
                x_title="seconds",
                y_lim=[0, 1],
                color_map=dict(zip(offered.get(first, detector_).class_names, predict.COLORS, strict=False)),
                label="The largest face over time",
                height=400,
                elem_id="film-plot",
            )

        settings = "(model, detector) => { window.ferKeras = {model, detector}; }"
        private = {"api_visibility": "private"}
        blocks.load(None, [model, detector], None, js=settings, **private)
        for choice in (model, detector):
            choice.change(None, [model, detector], None, js=settings, **private)
            choice.change(again, [kept, model, detector], [shown, table], **private)
        model.change(lambda *which: _card(offered, *which), [model, detector], about, **private)
        upload.upload(take, [upload, model, detector], [kept, shown, table, upload], **private)
        upload_film.upload(
            watch, [upload_film, model, detector, every], [summary, plot, upload_film], concurrency_limit=2, **private
        )
        # Not Gradio's `cancels`, which shows an error and loses what was seen so far.
        cancel.click(stop, None, None, queue=False, **private)
    return blocks


def _card(offered: Models, model: str, detector: str) -> str:
    try:
        return card(offered.get(model, detector))
    except ModelError as error:
        return str(error)


@contextlib.contextmanager
def _deleted(path) -> Iterator[Path]:
    """An uploaded file, which is gone afterwards, whatever happens."""
    file = Path(path)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            file.parent.rmdir()


def _gradio():
    # Both before the first import: no call home on start.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError:
        raise ValueError("The app needs Gradio: pip install -e '.[app]' in the project's folder.") from None
    return gradio


def _give_memory_back() -> None:
    """Ask the C library to return large buffers to the system as soon as they are freed.

    By itself, glibc raises the size from which it does so to that of the largest buffer freed so far, and keeps what is
    smaller, for each thread: a few pictures of 80 million pixels leave more than a gigabyte behind.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD, bytes


class LimitedRequests:
    """ASGI middleware: a request whose body is larger than `most` bytes gets 413, before it fills the memory."""

    def __init__(self, app, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        # The upload route writes to disk as it reads and has Gradio's own limit; everything else is small.
        most = self.most if scope["path"].rstrip("/").endswith("/upload") else 2 * FRAME_BYTES
        if not length.isdigit() or int(length) > most:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"The request is too large."})
            return None
        read = 0

        async def limited():
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return {"type": "http.disconnect"} if read > most else message

        return await self.app(scope, limited, send)


def _check_address(host: str, port: int | None) -> None:
    """See that the app can listen there, before a model is loaded: Gradio would try a hundred ports."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError:
        raise ValueError(_no_address(host, port)) from None


def _no_address(host: str, port: int | None) -> str:
    tried = f"{host}:{port}" if port else f"{host}, ports 7860 to 7959"
    return (
        f"The app cannot start at {tried}: it is taken, or no address of this machine. Give another --port or --host."
    )


def launch(
    model: str | Path = "compact",
    outputs: str | Path = "outputs",
    host: str = HOST,
    port: int | None = None,
    share: bool = False,
    inline: bool = False,
    open_browser: bool = False,
    block: bool | None = None,
):
    """Start the app.

    Args:
        model: what the app starts with, see `ExpressionClassifier`; the network that comes with fer-keras by default.
        outputs: where finished runs are looked for.
        host: the address to listen on; only this machine by default.
        port: the first free one from 7860 on by default.
        share: ask Gradio for a public link, which goes through its servers.
        inline: show it below the cell, in Jupyter and Colab.
        open_browser: open it in the browser.
        block: wait until it is stopped; by default unless `inline`.

    Returns:
        The running `gradio.Blocks`, with `local_url`; `close()` ends it.

    Raises:
        ModelError: if there is no model.
        ValueError: if Gradio is not installed, or the port is taken.
    """
    _check_address(host, port)
    gr = _gradio()
    from starlette.middleware import Middleware

    _give_memory_back()
    offered = models(model, outputs)
    # Of its own, so that nothing of an upload outlives the app.
    folder = tempfile.TemporaryDirectory(prefix="fer-keras-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    blocks = build(offered)
    blocks.fer_folder = folder  # lives, and is deleted, with it
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            inline=inline,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            enable_monitoring=False,
            max_file_size=FILM_BYTES,
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [Middleware(LimitedRequests, most=REQUEST_BYTES)]},
            css=CSS,
            theme=gr.themes.Default(),
        )
    except OSError:  # Gradio's own text speaks of its variables
        raise ValueError(_no_address(host, port)) from None
    if not inline:
        print(f"Facial expressions: {blocks.local_url}  (Ctrl+C ends it)")
        if blocks.share_url:
            print(f"Public link, through Gradio's servers: {blocks.share_url}")
    if block if block is not None else not inline:
        with contextlib.suppress(KeyboardInterrupt):
            blocks.block_thread()
        blocks.close()
        folder.cleanup()
    return blocks
