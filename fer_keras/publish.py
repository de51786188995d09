"""Publishing: what may be shown of runs on real faces, and the tables of a Markdown file made from it."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from fer_keras import params, run, storage, tuning, worth
from fer_keras.report import collect, comparison, render


def publish(suites: Sequence[str], outputs: str | Path = "outputs") -> list[Path]:
    """Copy what may be shown of suites to `outputs/published/`: metrics, predictions, reports without faces.

    The predictions on the faces that trained stay behind: they are most of the file, and no table needs them.

    Args:
        suites: names of suites; of several, the page that puts them side by side is copied, too.
        outputs: where the run folders are.

    Returns:
        The files written.

    Raises:
        ValueError: if no run of a suite is finished, or one was made with other parameters or has no notebook.
    """
    base = (params.root() / Path(outputs).expanduser()).absolute()
    target, written, finished = base / "published", [], {}
    for suite in suites:  # all is checked before anything is copied
        results = collect(suite, base)
        finished[suite] = [result for result in results if result.metrics]
        if not finished[suite]:
            raise ValueError(
                f"No run of the suite {suite!r} is finished in {outputs}. Run it first: make report SUITE={suite}"
            )
        if others := [result.experiment for result in results if result.state == "other parameters"]:
            raise ValueError(
                f"{', '.join(others)} of {suite!r} were made with other parameters than the suite has now. "
                "Run the suite again, or change it back."
            )
        for result in finished[suite]:
            if not (result.folder / "notebook.ipynb").exists():
                raise ValueError(f"{result.folder} has no executed notebook.ipynb. Run it by papermill or Snakemake.")
    for suite in suites:
        for result in finished[suite]:
            there = run.folder_of(suite, result.experiment, result.seed, target)
            there.mkdir(parents=True, exist_ok=True)
            kept = {name: v for name, v in run.read_params(result.folder).items() if name not in params.LOCATIONS}
            storage.write_text(there / "params.yaml", yaml.safe_dump(kept, sort_keys=False))
            arrays = storage.read_arrays(result.folder / "predictions.npz")
            arrays = {name: array for name, array in arrays.items() if not name.startswith("train.")}
            storage.write_arrays(there / "predictions.npz", **arrays)
            written += [there / "params.yaml", there / "predictions.npz"]
            for name in ("metrics.json", "environment.json", "history.csv"):
                if (result.folder / name).exists():
                    written.append(Path(shutil.copyfile(result.folder / name, there / name)))
            written.append(render(result.folder / "notebook.ipynb", there / "report.html", without_faces=True))
        written += _pages(base, target, [f"{suite}/explore", f"{suite}/report"])
    side_by_side = [path.name for path in base.glob("worth/*") if set(path.name.split("+")) == set(suites)]
    return written + _pages(base, target, [f"worth/{name}" for name in side_by_side])


def publish_sweep(suite: str, sweep: str, outputs: str | Path = "outputs") -> list[Path]:
    """Write what a sweep found to `outputs/published/<suite>/<sweep>.md`, and its page beside it.

    Raises:
        FileNotFoundError, ValueError: see `fer_keras.tuning.collect`.
    """
    base = (params.root() / Path(outputs).expanduser()).absolute()
    results, notes = tuning.collect(suite, sweep, base)
    table = tuning.points(results)
    told = [f"- {line}" for line in [*tuning.findings(results, table).splitlines(), *notes]]
    rows = markdown(tuning.readable(table, results).astype(str), "point")
    there = base / "published" / suite / f"{sweep}.md"
    there.parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(there, "\n".join([f"# {sweep}, a sweep of {suite}", "", *told, "", rows, ""]))
    return [there, *_pages(base, base / "published", [f"{suite}/{sweep}"])]


def _pages(outputs, target, pages):
    """Render the pages that are there, without faces."""
    written = []
    for page in pages:
        notebook = outputs / page / "notebook.ipynb"
        if notebook.exists():
            there = target / f"{page}.html"
            there.parent.mkdir(parents=True, exist_ok=True)
            written.append(render(notebook, there, without_faces=True))
    return written


def markdown(table, index: str = "experiment") -> str:
    """A table of texts in Markdown, its index as the first column."""
    lines = [f"| {index} | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join(lines)


def suite_table(suite: str, outputs: str | Path) -> str:
    """The comparison of a suite with the published numbers, of the runs that there are."""
    table = comparison([result for result in collect(suite, outputs) if result.metrics])
    return markdown(table[table["our top-1 %"] != "–"].drop(columns="state"))


def fill_tables(text: str, outputs: str | Path = "outputs/published") -> str:
    """Put tables of published runs between `<!-- table: … -->` and `<!-- end table -->` of a Markdown text.

    One suite's name gives its comparison with the published numbers, several (`a, b, c`) the protocols side by side
    and, below, what they say together; `suite/sweep` what the sweep found.
    """

    def fill(match):
        suites = [name.strip() for name in match[2].split(",")]
        if "/" in match[2]:
            published = (params.root() / Path(outputs) / f"{match[2]}.md").read_text(encoding="utf-8")
            told = "\n".join(line for line in published.splitlines() if line.startswith("- "))
            return f"{match[1]}{told}\n{match[3]}"
        if len(suites) == 1:
            return f"{match[1]}{suite_table(suites[0], outputs)}\n{match[3]}"
        results, notes = worth.collect(suites, outputs)
        told = "\n".join(f"- {line}" for line in [*worth.findings(results).splitlines(), *notes])
        return f"{match[1]}{markdown(worth.side_by_side(results))}\n\n{told}\n{match[3]}"

    pattern = re.compile(r"(<!-- table: ([\w., +/-]+?) -->\n).*?(<!-- end table -->)", re.DOTALL)
    return pattern.sub(fill, text)
