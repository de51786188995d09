"""The command line `fer-keras`: a thin layer over the library's functions."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a wrong input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="fer-keras", description="Facial expression recognition, run and judged.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="download data sets, or say what a path holds")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = actions.add_parser("fetch", help="download a data set from Kaggle")
    fetch.add_argument("name", choices=["fer2013"])
    fetch.add_argument("--handle", help="another Kaggle data set with the same faces, owner/name")
    fetch.set_defaults(call=_fetch)
    show = actions.add_parser("show", help="load faces and count them")
    show.add_argument("path")
    show.set_defaults(call=_show)

    status = commands.add_parser("status", help="which runs of a suite are done, stale or not run")
    status.add_argument("suite")
    status.add_argument("--outputs", default="outputs")
    status.set_defaults(call=_status)

    render = commands.add_parser("render", help="turn executed notebooks into stand-alone report.html files")
    render.add_argument("notebooks", nargs="+", type=Path)
    render.add_argument("--without-faces", action="store_true", help="leave out the pictures that show faces")
    render.set_defaults(call=_render)

    publish = commands.add_parser("publish", help="copy a suite's metrics, predictions and reports without faces")
    publish.add_argument("suite")
    publish.add_argument("--outputs", default="outputs")
    publish.set_defaults(call=_publish)

    tables = commands.add_parser("tables", help="rebuild the result tables of a Markdown file from published runs")
    tables.add_argument("file", type=Path, nargs="?", default=Path("README.md"))
    tables.add_argument("--outputs", default="outputs/published")
    tables.set_defaults(call=_tables)

    given = parser.parse_args(arguments)
    try:
        return given.call(given) or 0
    except (OSError, ValueError) as error:
        print(f"fer-keras: {error}", file=sys.stderr)
        return 2


def _fetch(given):
    from fer_keras.fetch import fetch

    path, faces = fetch(given.name, given.handle)
    _print_counts(faces)
    print(f"The faces are at {path}\nUse them: make report DATA={path} SUITE=official")


def _show(given):
    from fer_keras.source import load

    _print_counts(load(given.path))


def _print_counts(faces):
    import pandas as pd

    for note in faces.notes:
        print("Note:", note)
    names = pd.Categorical.from_codes(faces.labels, faces.class_names)
    print(pd.crosstab(faces.usage, names, rownames=["usage"], colnames=["class"], margins=True).to_string())


def _status(given):
    from fer_keras.evaluate import percent
    from fer_keras.report import collect

    for result in collect(given.suite, given.outputs):
        line = f"{result.state:8} {result.experiment} seed {result.seed}"
        if result.metrics:
            test = result.metrics["sets"]["test"]
            line += f": top-1 {percent(test['top1'], test['intervals']['top1'])} % of {test['n']:,}"
        print(line)


def _render(given):
    from fer_keras.report import render

    for notebook in given.notebooks:
        print(render(notebook, without_faces=given.without_faces))


def _publish(given):
    from fer_keras.report import publish

    for path in publish(given.suite, given.outputs):
        print(path)


def _tables(given):
    from fer_keras.report import fill_tables
    from fer_keras.run import write_text

    text = given.file.read_text(encoding="utf-8")
    write_text(given.file, fill_tables(text, given.outputs))
    print(given.file)


if __name__ == "__main__":
    sys.exit(main())
