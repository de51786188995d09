"""The command line `fer-keras`: a thin layer over the library's functions."""

import argparse
import hashlib
import os
import sys
from pathlib import Path

from fer_keras import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a wrong input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="fer-keras", description="Facial expression recognition, run and judged.")
    parser.add_argument("--version", action="version", version=f"fer-keras {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="download data sets, or say what a path holds")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = actions.add_parser("fetch", help="download a data set from Kaggle")
    fetch.add_argument("name", choices=["fer2013", "affectnet"])
    fetch.add_argument("--handle", help="another Kaggle data set with the same faces, owner/name")
    fetch.set_defaults(call=_fetch)
    convert = actions.add_parser("convert", help="bring AffectNet, ExpW or a folder of images to one form")
    convert.add_argument("kind", choices=["affectnet", "expw", "folder"])
    convert.add_argument("source", help="the data set's folder, which is only read")
    convert.add_argument("target", help="a new folder")
    convert.add_argument("--image-size", type=int, default=48, help="side of the faces in pixels, default 48")
    convert.add_argument("--color", choices=["grey", "rgb"], default="grey")
    convert.add_argument("--contempt", action="store_true", help="keep AffectNet's eighth class")
    convert.add_argument(
        "--labels", choices=["folder", "column"], default="folder", help="whose labels, in AffectNet's Kaggle copies"
    )
    convert.add_argument("--margin", type=float, help="added on each side of a face's box, default 0.1 of its side")
    convert.add_argument("--min-confidence", type=float, help="leave out ExpW's faces that were detected with less")
    convert.add_argument("--classes", nargs="+", help="all classes, in the order of the labels; others are left out")
    convert.add_argument(
        "--class-map", nargs="+", metavar="FOLDER=CLASS", type=_pair, help="what folders are called here"
    )
    convert.add_argument("--max-bad", type=float, default=0.05, help="share of unusable faces to stop at, default 0.05")
    convert.add_argument("--workers", type=int, help="processes that read images, default one a core, at most 8")
    convert.set_defaults(call=_convert)
    show = actions.add_parser("show", help="load faces and count them")
    show.add_argument("path")
    show.set_defaults(call=_show)
    clean = actions.add_parser("clean", help="find the rows that the protocol `clean` leaves out, and compare the list")
    clean.add_argument("path")
    clean.add_argument("file", type=Path, nargs="?", help="where to write the list as CSV")
    clean.set_defaults(call=_clean)

    audit = commands.add_parser(
        "audit",
        help="which test faces had been seen in training",
        description="Audit a finished run by its folder, or two sets of faces: folders of images, converted sets or "
        "CSV files like FER2013's; PATH:USAGE takes the rows of one usage.",
    )
    audit.add_argument("paths", nargs="+", metavar="RUN | TRAIN TEST")
    audit.add_argument("--data", help="the faces of the run, where they are no longer at the place that it names")
    audit.add_argument("--threshold", type=float, help="least correlation of duplicates, default 0.95")
    audit.add_argument("--size", type=int, default=48, help="side to which all faces are brought, default 48")
    audit.add_argument("--no-resize", action="store_true", help="refuse faces of another size")
    audit.add_argument("--csv", type=Path, help="where to write the pairs")
    audit.set_defaults(call=_audit)

    status = commands.add_parser(
        "status", help="which runs of a suite or a sweep are done, running, failed, stale or not run"
    )
    status.add_argument("suite")
    status.add_argument("--sweep", default="", help="the points of this sweep in place of the suite's experiments")
    status.add_argument("--outputs", default="outputs")
    status.set_defaults(call=_status)

    check = commands.add_parser(
        "check",
        help="whether files of parameters from elsewhere hold nothing but parameters",
        description="Papermill writes the names in a file of parameters into code. Snakemake and make check first; "
        "before `papermill -f`, do it by this.",
    )
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.set_defaults(call=_check)

    render = commands.add_parser("render", help="turn executed notebooks into stand-alone report.html files")
    render.add_argument("notebooks", nargs="+", type=Path)
    render.add_argument("--without-faces", action="store_true", help="leave out the pictures that show faces")
    render.set_defaults(call=_render)

    publish = commands.add_parser("publish", help="copy metrics, predictions and reports without faces of suites")
    publish.add_argument("suites", nargs="+", metavar="SUITE")
    publish.add_argument("--sweep", default="", help="what this sweep found, in place of the suites' runs")
    publish.add_argument("--outputs", default="outputs")
    publish.set_defaults(call=_publish)

    tables = commands.add_parser("tables", help="rebuild the result tables of a Markdown file from published runs")
    tables.add_argument("file", type=Path, nargs="?", default=Path("README.md"))
    tables.add_argument("--outputs", default="outputs/published")
    tables.set_defaults(call=_tables)

    predict = commands.add_parser(
        "predict",
        help="expressions of the faces in images, folders, videos or the camera",
        description="Find the faces in pictures and tell their expressions. What cannot be read is listed at the end, "
        "and the others are still analysed.",
    )
    predict.add_argument("paths", nargs="+", metavar="PATH", help="image, folder, video, or 0 for the first camera")
    predict.add_argument(
        "--model",
        default="compact",
        help="a name in the zoo, an .onnx file or a run's folder; default the network that comes with fer-keras",
    )
    predict.add_argument("--outputs", default="outputs", help="where the best run is looked for")
    predict.add_argument("--detector", default="auto", choices=["auto", "yunet", "haar", "whole"])
    predict.add_argument("--align", action="store_true", help="turn faces so that their eyes are level")
    predict.add_argument("--every", type=_count, default=1, metavar="N", help="of videos, each N-th frame")
    predict.add_argument("--csv", type=Path, help="write a row for each face")
    predict.add_argument("--json", type=Path, help="write everything, also what could not be read")
    predict.add_argument("--annotate", type=Path, metavar="DIR", help="write the pictures with boxes and names")
    predict.set_defaults(call=_predict)

    app = commands.add_parser("app", help="the app in the browser: camera, pictures, videos")
    app.add_argument("--model", default="compact", help="what is shown first; as in predict")
    app.add_argument("--outputs", default="outputs", help="where finished runs are looked for")
    app.add_argument("--host", default="127.0.0.1", help="address to listen on; default this machine only")
    app.add_argument("--port", type=_port, help="default the first free one from 7860 on")
    app.add_argument("--share", action="store_true", help="ask Gradio for a public link through its servers")
    app.add_argument("--no-browser", action="store_true", help="do not open the browser")
    app.set_defaults(call=_app)

    export = commands.add_parser(
        "export",
        help="write a run's model as a file that needs nothing else",
        description="Write the model of a finished run, as it was scored, and compare its answers with Keras's.",
    )
    export.add_argument("run", help="the folder of a finished run")
    export.add_argument("file", type=Path, nargs="?", help="default RUN/model.onnx, or as the format says")
    export.add_argument("--format", default="onnx", choices=["onnx", "litert", "saved_model"])
    small = export.add_mutually_exclusive_group()
    small.add_argument("--int8", action="store_true", help="weights and values in 8 bits; a quarter of the size")
    small.add_argument("--float16", action="store_true", help="weights in 16 bits; half of the size, ONNX only")
    export.add_argument("--data", default="", help="the run's faces, which --int8 needs, where they are elsewhere now")
    export.set_defaults(call=_export)

    zoo = commands.add_parser("zoo", help="the trained networks that have a name, and how to add one")
    acts = zoo.add_subparsers(dest="action", required=True, metavar="ACTION")
    acts.add_parser("list", help="name, size and worth of each").set_defaults(call=_zoo_list)
    show = acts.add_parser("show", help="the card of a network")
    show.add_argument("name")
    show.set_defaults(call=_zoo_show)
    add = acts.add_parser("add", help="make an entry from a finished run")
    add.add_argument("run", help="the folder of a finished run")
    add.add_argument("--name", required=True, help="what it shall be known by")
    add.add_argument("--file", type=Path, help="where to write the file; by default it comes with the package")
    add.add_argument("--url", default="", help="from where others can download the file")
    add.add_argument("--float16", action="store_true", help="weights in 16 bits, half of the size")
    add.add_argument("--replace", action="store_true", help="the network that has this name already")
    add.set_defaults(call=_zoo_add)

    given = parser.parse_args(arguments)
    try:
        code = given.call(given) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads the table has seen enough of it, as in `| head`
        _to_nowhere(sys.stdout)
        return 1
    except (OSError, ValueError) as error:
        print(f"fer-keras: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        print("fer-keras: A path that begins with ~ names a user who is not known here.", file=sys.stderr)
        return 2


def _to_nowhere(stream) -> None:
    """Let what is still written to a stream whose reader has gone be lost, also at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fetch(given):
    from fer_keras.fetch import fetch

    path, faces = fetch(given.name, given.handle)
    _print_counts(faces)
    use = f"DATA={path}" if given.name == "fer2013" else f"DATA=/path/to/fer2013.csv {given.name.upper()}={path}"
    print(f"The faces are at {path}\nUse them: make report {use} SUITE=official")


def _pair(text):
    folder, equals, name = text.partition("=")
    if not (folder and equals and name):
        raise argparse.ArgumentTypeError(f"expected FOLDER=CLASS, received {text!r}")
    return folder, name


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port, 1 to 65535, received {text!r}")
    return int(text)


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text!r}")
    return int(text)


def _convert(given):
    import time

    from fer_keras import convert

    began, there = time.perf_counter(), Path(given.target).expanduser().exists()
    names = ("image_size", "color", "contempt", "labels", "margin", "min_confidence", "classes", "max_bad", "workers")
    options = {name: getattr(given, name) for name in names}
    try:
        faces = convert.convert(
            given.kind, given.source, given.target, class_map=dict(given.class_map or ()), **options
        )
    except KeyboardInterrupt:
        print("\nfer-keras: interrupted. Give the same command again: it goes on.", file=sys.stderr)
        return 130
    taken = time.perf_counter() - began
    _print_counts(faces)
    for reason, files in convert.read_info(given.target)["bad"].items():
        print(
            f"{reason}, {files['count']:,}:", *files["files"][:10], *(["…"] if files["count"] > 10 else []), sep="\n  "
        )
    speed = "" if there else f", {len(faces) / taken:,.0f} a second, listing and splitting included"
    print(f"{len(faces):,} faces in {taken:.1f} s{speed}\nThey are at {given.target}")
    return 0


def _show(given):
    from fer_keras.source import load

    _print_counts(load(given.path))


def _print_counts(faces):
    import pandas as pd

    for note in faces.notes:
        print("Note:", note)
    names = pd.Categorical.from_codes(faces.labels, faces.class_names)
    print(pd.crosstab(faces.usage, names, rownames=["usage"], colnames=["class"], margins=True).to_string())


def _clean(given):
    from fer_keras import duplicates
    from fer_keras.source import load
    from fer_keras.storage import replacing

    faces = load(given.path)
    table = duplicates.clean_list(faces, progress=True)
    content = duplicates.clean_csv(table)
    if len(table):
        print(table.groupby(["usage", "duplicate_usage", "kind"], observed=True).size().to_string(header=False))
    print(f"{len(table):,} of {len(faces):,} rows are left out. SHA-256 {hashlib.sha256(content).hexdigest()}")
    if duplicates.rows_hash(faces) == duplicates.FER2013_ROWS:
        equal = hashlib.sha256(content).hexdigest() == duplicates.CLEAN_SHA256
        print(f"These are FER2013's rows, and the list {'equals' if equal else 'differs from'} the one that ships.")
    if given.file:
        with replacing(given.file) as temporary:
            temporary.write_bytes(content)
        print(given.file)


def _audit(given):
    from fer_keras import audit, run, storage

    if len(given.paths) == 1:
        from fer_keras.source import load_for

        if given.threshold is not None or given.csv or given.no_resize:
            raise ValueError("--threshold, --csv and --no-resize go with two sets of faces, not with a run.")
        folder = Path(given.paths[0])
        if not folder.exists():
            raise FileNotFoundError(f"There is no {folder}. Give the folder of a run, or two sets of faces.")
        if not all((folder / name).exists() for name in ("environment.json", "predictions.npz", "rows.npz")):
            raise ValueError(f"{folder} holds no finished run with its rows. Give one, or two sets of faces.")
        params = run.read_params(folder)
        where = given.data or params.get("data", "")
        # An ensemble's faces are those of its members.
        faces = load_for(run.read_params(run.members(folder)[0]) | {"data": where})
        if faces.fingerprint != run.read_environment(folder)["fingerprint"]:
            raise ValueError(f"{where} holds other faces than this run had.")
        found = audit.audit(folder, faces)
        for name, part in found["sets"].items():
            print(f"{name}\n{audit.table(part).to_string()}\n{audit.sentences(found, name)}\n")
        return
    if len(given.paths) != 2:
        raise ValueError(f"Give the folder of one run, or two sets of faces. Received: {len(given.paths)} paths")
    sets = [audit.load(path, given.size, not given.no_resize, progress=True) for path in given.paths]
    for path, faces in zip(given.paths, sets, strict=True):
        print(f"{path}: {len(faces):,} faces. {' '.join(faces.notes)}")
    threshold = audit.duplicates.THRESHOLD if given.threshold is None else given.threshold
    kinds, pairs = audit.audit_sets(*sets, threshold=threshold, progress=True)
    print(audit.describe(kinds, pairs))
    if given.csv:
        names = {"first_row": "test_row", "second_row": "train_row"}
        names |= {
            "first_label": "test_label",
            "second_label": "train_label",
            "kind": "kind",
            "similarity": "similarity",
        }
        for name, path in zip(("train", "test"), given.paths, strict=True):
            if Path(path).expanduser().is_dir():
                files = audit.files_of(path)
                column = "first_row" if name == "test" else "second_row"
                pairs[f"{name}_file"] = [str(files[row]) for row in pairs[column]]
                names[f"{name}_file"] = f"{name}_file"
        with storage.replacing(given.csv) as temporary:
            pairs.rename(columns=names)[list(names.values())].to_csv(temporary, index=False)
        print(given.csv)


def _status(given):
    from fer_keras import lock, progress
    from fer_keras.evaluate import percent
    from fer_keras.report import collect

    for result in collect(given.suite, given.outputs, sweep=given.sweep):
        state, said = result.state, ""
        if result.metrics:
            test = result.metrics["sets"]["test"]
            said = f"top-1 {percent(test['top1'], test['intervals']['top1'])} % of {test['n']:,}"
        if state == "not run" or lock.holder(result.folder):
            state, said = progress.of(result.folder)
        if state == "not run" and result.needs:
            said = f"needs {result.needs}"
        print(f"{state:8} {result.experiment} seed {result.seed}" + (f": {said}" if said else ""))


def _check(given):
    from fer_keras import params

    for file in given.files:
        content = params.read(file)
        for part in (content, *(content.get("overrides") or {}).values()):
            params.resolve({}, part or {})
        print(f"{file}: {len(content)} parameters")


def _render(given):
    from fer_keras.report import render

    for notebook in given.notebooks:
        print(render(notebook, without_faces=given.without_faces))


def _publish(given):
    from fer_keras.publish import publish, publish_sweep

    if given.sweep:
        written = [path for suite in given.suites for path in publish_sweep(suite, given.sweep, given.outputs)]
    else:
        written = publish(given.suites, given.outputs)
    for path in written:
        print(path)


def _tables(given):
    from fer_keras.publish import fill_tables
    from fer_keras.storage import write_text

    text = given.file.read_text(encoding="utf-8")
    write_text(given.file, fill_tables(text, given.outputs))
    print(given.file)


def _predict(given):
    import warnings

    from fer_keras import predict
    from fer_keras.classifier import ExpressionClassifier

    found, results = predict.sources(given.paths)
    given.csv, given.json = (path and predict.check_writable(path, found) for path in (given.csv, given.json))
    if given.csv and given.json and os.path.realpath(given.csv) == os.path.realpath(given.json):
        raise ValueError(f"--csv and --json both name {given.csv}: give two files.")
    annotations = predict.Annotations(given.annotate, found) if given.annotate else None
    classifier = ExpressionClassifier(given.model, given.detector, given.align, outputs=given.outputs)
    print(classifier.describe(), file=sys.stderr)
    pictures = number = 0
    with predict.progress_bar(sys.stderr.isatty()) as (report, write), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on large pictures and odd EXIF data: what matters becomes a reason

        def show(line):
            try:
                write(line)
                sys.stdout.flush()
            except BrokenPipeError:  # as by `| head`; what goes to files is not to be lost with it
                if not (given.csv or given.json or annotations):
                    raise
                _to_nowhere(sys.stdout)

        show(predict.heading())
        analysis = predict.analyze(found, classifier, given.every, report, keep_images=bool(annotations))
        try:
            for result in analysis:
                if result.failure:
                    results.append(result)
                    continue
                pictures, number = pictures + 1, number + len(result.faces)
                show(predict.line(result))
                if annotations:
                    try:
                        annotations.write(result)
                    except OSError as error:
                        reason = f"its annotated picture cannot be written: {error.strerror or error}"
                        results.append(predict.Result(result.source, result.frame, failure=reason))
                    result.image = None
                if given.csv or given.json:  # else a camera may run for days
                    results.append(result)
        except KeyboardInterrupt:  # how a camera ends; what was seen is kept
            print("fer-keras: interrupted.", file=sys.stderr)
        finally:
            analysis.close()
    _write_predictions(given, results, classifier)
    print(f"{number:,} face{'' if number == 1 else 's'} in {pictures:,} picture{'' if pictures == 1 else 's'}.")
    failures = [result for result in results if result.failure]
    if failures:
        listed = "".join(f"\n  {result.source.name}: {result.failure}" for result in failures)
        print(f"fer-keras: {len(failures):,} could not be read or written:{listed}", file=sys.stderr)
    return 0 if pictures else 1


def _write_predictions(given, results, classifier):
    from fer_keras import predict

    if not (given.csv or given.json):
        return
    import json

    seen, names = [result for result in results if not result.failure], classifier.class_names
    if given.csv:
        rows = [row for result in seen for row in predict.rows(result, names)]
        predict.write_text(given.csv, predict.csv_text(rows, names))
    if given.json:
        content = {"model": classifier.about, "detector": classifier.detector}
        content |= {"pictures": [predict.as_json(result) for result in seen]}
        failures = [{"file": result.source.name, "reason": result.failure} for result in results if result.failure]
        content = json.dumps(content | {"failures": failures}, indent=1, allow_nan=False)
        predict.write_text(given.json, content + "\n")


def _app(given):
    import signal

    from fer_keras.app import launch

    # Ended by a service manager it ends as by Ctrl+C, and leaves no folder of uploads behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    if given.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"Others can reach the app at {given.host}. Their browsers give it no camera without https, and what they "
            "upload is analysed here."
        )
    launch(given.model, given.outputs, given.host, given.port, given.share, open_browser=not given.no_browser)


def _export(given):
    from fer_keras import export

    calibration = export.calibration_faces(given.run, given.data) if given.int8 else None
    options = {"calibration": calibration, "float16": given.float16}
    path, found = export.export(given.run, given.file, given.format, **options)
    print(path)
    print(
        f"Its probabilities differ from Keras's by at most {found['largest']:.1e}, {found['mean']:.1e} on average; "
        f"{100 * found['same_class']:.0f} % of the compared faces get the same class.",
        file=sys.stderr,
    )


def _zoo_list(given):
    from fer_keras import zoo
    from fer_keras.evaluate import percent

    for name in zoo.names():
        card = zoo.card(name)
        test, run = card["test"], card["run"]
        place = "comes with fer-keras" if zoo.is_shipped(name) else card["url"] or "give its path"
        print(
            f"{name}: {card['size'] / 1e6:.1f} MB, top-1 {percent(test['top1'], test['intervals']['top1'])} % of "
            f"{test['n']:,} test faces of {run['data']} under {run['protocol']}; {place}"
        )
    if not zoo.names():
        print("The zoo is still empty: fer-keras zoo add RUN --name compact")


def _zoo_show(given):
    from fer_keras import zoo

    print(zoo.markdown(zoo.card(given.name)), end="")


def _zoo_add(given):
    from fer_keras import zoo

    made = zoo.add(given.run, given.name, given.file, given.url, given.float16, given.replace)
    print(f"{made['name']}: {made['file']}, {made['size']:,} bytes, SHA-256 {made['sha256']}")
    print(f"Its card: {zoo.FOLDER / made['name']}.md")
    print(f"Use it: fer-keras predict photograph.jpg --model {given.file or made['name']}")


if __name__ == "__main__":
    sys.exit(main())
