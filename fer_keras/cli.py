"""The command line `fer-keras`: a thin layer over the library's functions."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a wrong input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="fer-keras", description="Facial expression recognition, run and judged.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    render = commands.add_parser("render", help="turn executed notebooks into stand-alone report.html files")
    render.add_argument("notebooks", nargs="+", type=Path)
    render.set_defaults(call=_render)

    given = parser.parse_args(arguments)
    try:
        return given.call(given) or 0
    except (OSError, ValueError) as error:
        print(f"fer-keras: {error}", file=sys.stderr)
        return 2


def _render(given):
    from fer_keras.report import render

    for notebook in given.notebooks:
        print(render(notebook))


if __name__ == "__main__":
    sys.exit(main())
