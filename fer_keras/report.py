"""Reports: executed notebooks as pages that open without a network, and a suite's results beside the published ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fer_keras import run, source, storage
from fer_keras import suite as suites
from fer_keras.evaluate import compare, percent

# The study's results as published, in per cent. The number of test faces is not stated there: 3,589 and 6,293 are those
# that the published digits fit. The protocol is what the study describes: balanced sets were split after balancing.
PUBLISHED = {
    "baseline": {"top1": 65.76, "top2": 79.91, "top3": 88.49, "protocol": "official", "n": 3589},
    "tuned": {"top1": 66.15, "top2": 82.22, "top3": 90.89, "protocol": "official", "n": 3589},
    "balanced-ros": {"top1": 85.97, "top2": 92.71, "top3": 96.49, "protocol": "study", "n": 6293},
    "balanced-smote": {"top1": 87.18, "top2": 93.88, "top3": 96.84, "protocol": "study", "n": 6293},
    "balanced-smote_tomek": {"top1": 82.88, "top2": 91.82, "top3": 95.64, "protocol": "study", "n": None},
    "augmented-ros": {"top1": 59.74, "top2": 79.91, "top3": 88.63, "protocol": "official", "n": 3589},
    "augmented-smote": {"top1": 60.88, "top2": 78.99, "top3": 89.22, "protocol": "official", "n": 3589},
    "augmented-smote_tomek": {"top1": 58.29, "top2": 77.46, "top3": 86.77, "protocol": "official", "n": 3589},
    "auxiliary-ros": {"top1": 29.51, "top2": 45.33, "top3": 53.41, "protocol": "official", "n": 3589},
    "auxiliary-smote": {"top1": 30.31, "top2": 44.58, "top3": 54.25, "protocol": "official", "n": 3589},
    "auxiliary-smote_tomek": {"top1": 29.17, "top2": 42.71, "top3": 51.96, "protocol": "official", "n": 3589},
    "ensemble": {"top1": 97.18, "top2": 99.58, "top3": 99.72, "protocol": "study", "n": None},
}
# What others report for experiments that the study does not have: VGG13 on FER+'s eight classes (arXiv 1608.01041), and
# usef-kh's own checkpoint on PublicTest, which is not the test set here.
ELSEWHERE = {
    "ferplus-majority": {"top1": 83.85, "protocol": "official", "n": None},
    "ferplus-probability": {"top1": 84.99, "protocol": "official", "n": None},
    "ferplus-crossentropy": {"top1": 84.72, "protocol": "official", "n": None},
    "pytorch": {"top1": 73.28, "top2": 86.46, "protocol": "on PublicTest", "n": 3589},
}


@dataclass(frozen=True)
class Result:
    """One run of a suite as the report sees it: its metrics, or None if there are none, and its state.

    `needs` names the parameter, a path, without which the run cannot be, "" for most.
    """

    experiment: str
    seed: int
    folder: Path
    metrics: Mapping | None
    state: str
    needs: str = ""


def collect(
    suite: str,
    outputs: str | Path = "outputs",
    folder: str | Path | None = None,
    fingerprint: str | None = None,
    sweep: str = "",
) -> list[Result]:
    """The runs of a suite or of a sweep, in its order, each with its state (see `fer_keras.run.state`).

    Args:
        suite: name of a file in `params/suites/`.
        outputs: where the run folders are.
        folder: where the parameters are; the project's `params/` by default.
        fingerprint: of the suite's own faces; by default each run is believed to have the right ones, as it is believed
            about the files that it adds to them.
        sweep: name of a file in `params/sweeps/`: its points, and what they start from (see `fer_keras.suite.jobs`).

    Raises:
        FileNotFoundError: if there is no such suite or sweep.
    """
    graph = suites.jobs(suite, {"outputs": str(outputs)}, folder, fingerprint or "", sweep)
    found = {place: run.read_environment(job.folder) or {} for place, job in graph.items()}

    def key(place, own):
        """The key that a run should have with these faces, and the files that it says it had."""
        job, there = graph[place], found[place]
        added = there.get("fingerprint", "").partition("+")[2]
        before = {name: key(other, own) for name, other in job.needs.items()}
        if "checkpoint" in there.get("ancestors", {}):
            before["checkpoint"] = there["ancestors"]["checkpoint"]
        return run.key_of(job.params, f"{own}+{added}" if added else own, before)

    results = []
    for place, job in graph.items():
        own = fingerprint or found[place].get("fingerprint", "").partition("+")[0]
        state = run.state(job.folder, key(place, own) if own else None)
        metrics = run.read_metrics(job.folder) if state != "not run" else None
        needs = source.needed(job.params) or next(
            (r.needs for r in results if r.needs and (r.experiment, r.seed) in job.needs.values()), ""
        )
        results.append(Result(job.experiment, job.seed, job.folder, metrics, state, needs))
    return results


def comparison(results: list[Result]) -> pd.DataFrame:
    """Ours beside the published numbers, one row for each experiment of the suite; with any of the study's come all.

    Each number of ours comes with its protocol and its number of test faces, top-1 and balanced accuracy with their
    95 % intervals. Of several seeds, mean and range are given in place of the interval.
    """
    ours: dict[str, list[Result]] = {}
    for result in results:
        ours.setdefault(result.experiment, []).append(result)
    rows = {}
    for name in dict.fromkeys([*ours, *(PUBLISHED if ours.keys() & PUBLISHED else ())]):
        published = PUBLISHED.get(name) or ELSEWHERE.get(name)
        row = dict.fromkeys(("published top-1/2/3 %", "published protocol, n"), "–")
        if published:
            n = f"{published['n']:,}" if published["n"] else "not stated"
            given = [published.get(f"top{k}") for k in (1, 2, 3)]
            row["published top-1/2/3 %"] = " / ".join(f"{value:.2f}" if value else "–" for value in given)
            row["published protocol, n"] = f"{published['protocol']}, {n}"
        row |= dict.fromkeys(("our top-1 %", "our top-2 / 3 %", "balanced accuracy %", "our protocol, n"), "–")
        row["state"] = ", ".join(dict.fromkeys(_state(r) for r in ours.get(name, []))) or "not in this suite"
        runs = [result.metrics for result in ours.get(name, []) if result.metrics]
        if runs:
            row["our top-1 %"] = over_seeds(runs, "top1")
            row["our top-2 / 3 %"] = f"{over_seeds(runs, 'top2', False)} / {over_seeds(runs, 'top3', False)}"
            row["balanced accuracy %"] = over_seeds(runs, "balanced_accuracy")
            row["our protocol, n"] = f"{runs[0]['protocol']}, {runs[0]['sets']['test']['n']:,}"
        rows[name] = row
    return pd.DataFrame(rows).T


def _state(result: Result) -> str:
    return f"{result.state}: needs {result.needs}" if result.needs and result.state == "not run" else result.state


def over_seeds(runs: list[Mapping], metric: str, interval: bool = True) -> str:
    """A metric of the test faces in per cent: of one run with its interval, of several seeds mean and range."""
    tests = [metrics["sets"]["test"] for metrics in runs]
    values = [test[metric] for test in tests]
    if len(values) == 1:
        return percent(values[0], tests[0]["intervals"][metric] if interval else None)
    spread = f" ({percent(min(values))}–{percent(max(values))}, {len(values)} seeds)" if interval else ""
    return percent(sum(values) / len(values)) + spread


def against(results: list[Result]) -> pd.DataFrame:
    """Each run against a reference on the same test faces: differences in points, intervals, McNemar's exact test.

    The reference is `tuned`, or where there is none the first experiment, as the name of the index says. Runs that were
    scored on other faces are left out: they do not compare.
    """
    names = [r.experiment for r in results if r.metrics]
    reference = "tuned" if "tuned" in names else next(iter(names), "")
    first = {r.seed: r for r in results if r.experiment == reference and r.metrics}
    rows = {}
    for result in results:
        base = first.get(result.seed)
        if not result.metrics or not base or result is base:
            continue
        row = paired(base.folder, result.folder)
        if row:
            rows[_label(result, results)] = {"protocol": result.metrics["protocol"]} | row
    return pd.DataFrame(rows).T.rename_axis(f"against {reference}")


def paired(first: Path, second: Path) -> dict | None:
    """The test faces of two runs compared, for readers; None if they are not the same faces."""
    sets = [run.read_predictions(folder)[1]["test"] for folder in (first, second)]
    try:
        found = compare(*sets)
    except ValueError:
        return None
    cells = {
        f"{label}, points": "{:+.2f} ({:+.1f} to {:+.1f})".format(
            *(100 * value for value in (found[name]["difference"], *found[name]["interval"]))
        )
        for name, label in (("top1", "top-1"), ("balanced_accuracy", "balanced accuracy"))
    }
    p = found["p_value"]
    verdict = "within noise" if found["within_noise"] else "better" if found["top1"]["difference"] > 0 else "worse"
    return {"n": f"{found['n']:,}", **cells, "p (McNemar)": "< 0.001" if p < 0.001 else f"{p:.3f}", "top-1": verdict}


def _label(result: Result, results: list[Result]) -> str:
    several = len({each.seed for each in results}) > 1
    return f"{result.experiment} seed {result.seed}" if several else result.experiment


def scored(results: list[Result]) -> dict[str, Mapping]:
    """Metrics of the runs that have them, by experiment (and seed, where there are several)."""
    return {_label(result, results): result.metrics for result in results if result.metrics}


def recalls(results: list[Result]) -> pd.DataFrame:
    """Recall of each class in per cent, one column for each run."""
    runs = scored(results).items()
    return pd.DataFrame(
        {
            name: {
                label: 100 * values["recall"] if values["support"] else float("nan")
                for label, values in metrics["sets"]["test"]["per_class"].items()
            }
            for name, metrics in runs
        }
    )


def roles(results: list[Result]) -> pd.DataFrame:
    """Which rows trained, chose and scored each run, and its accuracy on those that trained."""
    rows = {}
    for name, metrics in scored(results).items():
        sets, chosen = metrics["sets"], metrics["chosen_by"]
        train = sets.get("train")
        rows[name] = {
            "trained on": f"{train['n']:,}" if train else "–",
            "top-1 on these %": percent(train["top1"]) if train else "–",
            "chosen by": f"{chosen['role']}, {chosen['n']:,}",
            "scored on": f"test, {sets['test']['n']:,}",
            "top-1 on test %": percent(sets["test"]["top1"]),
            "touched %": percent(metrics["audit"]["sets"]["test"]["touched"]) if "audit" in metrics else "–",
            "protocol": metrics["protocol"],
        }
    return pd.DataFrame(rows).T


def main_run(results: list[Result]) -> str:
    """The run to show in full: the ensemble, or else the best by top-1 on the rows that choose.

    Raises:
        ValueError: if no run of the suite is finished.
    """
    found = scored(results)
    if not found:
        raise ValueError("No run of this suite is finished, so there is nothing to report. Run one first.")
    if ensembles := [name for name in found if name.startswith("ensemble")]:
        return ensembles[0]
    fair = [name for name, metrics in found.items() if chosen_fairly(metrics)]
    return max(fair or found, key=lambda name: found[name]["sets"]["validation"]["top1"])


def chosen_fairly(metrics: Mapping) -> bool:
    """Whether the test faces did not choose the model, as they did usef-kh's checkpoint."""
    return metrics["chosen_by"]["role"] != "test"


def findings(results: list[Result]) -> str:
    """What a suite found, in sentences computed from its metrics."""
    found = scored(results)
    if not found:
        return "No run of this suite is finished."
    lines = []
    # Scores on different faces are never ranked together.
    fair = [result for result in results if result.metrics and chosen_fairly(result.metrics)]
    for rows, group in comparable(fair).items():
        for metric, word in (("top1", "top-1"), ("balanced_accuracy", "balanced accuracy")):
            best = max(group, key=lambda result: result.metrics["sets"]["test"][metric])
            test = best.metrics["sets"]["test"]
            which = "Highest" if len(group) > 1 else "Only"
            line = f"{which} {word} on {rows}: {_label(best, results)}, "
            line += f"{percent(test[metric], test['intervals'][metric])} %"
            if metric == "top1" and (near := within_noise(best, group)):
                line += f"; within noise of {', '.join(_label(result, results) for result in near)}"
            lines.append(line + ".")
    changes = against(results)
    for name, row in changes.iterrows() if len(changes) else ():
        if name.startswith(("balanced-", "augmented-", "auxiliary-", "ferplus-")):
            lines.append(
                f"{name} {changes.index.name}: top-1 {row['top-1, points']} points, {row['top-1']}; "
                f"balanced accuracy {row['balanced accuracy, points']} points."
            )
    for result in results:
        if result.metrics and not chosen_fairly(result.metrics):
            test = result.metrics["sets"]["test"]
            lines.append(
                f"{_label(result, results)} was chosen by its test faces, so {percent(test['top1'])} % on them says "
                "little about others, and is not ranked."
            )
    shown = main_run(results)
    classes = found[shown]["sets"]["test"]["per_class"].items()
    hard = sorted((item for item in classes if item[1]["support"]), key=lambda item: item[1]["recall"])[:3]
    lines.append(
        f"Hardest classes of {shown} by recall: "
        + ", ".join(f"{name} {percent(values['recall'])} %" for name, values in hard)
        + "."
    )
    if any(metrics["protocol"] == "study" for metrics in found.values()):
        lines.append("Numbers under the protocol `study` leak: what was made of their test faces trained those runs.")
    return "\n".join(lines + states(results))


def states(results: list[Result]) -> list[str]:
    """Sentences about runs that are stale, were made with other parameters or faces, or are not there."""
    by_state: dict[str, list[str]] = {}
    for result in results:
        label = _label(result, results)
        if result.needs and result.state == "not run":
            label += f" (needs `{result.needs}`: {source.NEEDS[result.needs]})"
        by_state.setdefault(result.state, []).append(label)
    said = {
        "stale": "Stale, made by older code or from a run that has changed: {}. They stand until they are run again.",
        "other parameters": "Made with other parameters or faces than the suite has now: {}.",
        "not run": "Not run: {}.",
    }
    return [text.format(", ".join(by_state[state])) for state, text in said.items() if state in by_state]


def comparable(results: list[Result]) -> dict[str, list[Result]]:
    """Runs that were scored on the same faces, by a name for these faces."""
    groups: dict[bytes, list[Result]] = {}
    for result in results:
        if result.metrics:
            rows = storage.read_arrays(result.folder / "predictions.npz", ["test.rows"])["test.rows"]
            groups.setdefault(rows.tobytes(), []).append(result)
    named = {}
    for group in groups.values():
        first = group[0].metrics
        name = f"{first['sets']['test']['n']:,} test faces of {first['protocol']}"
        if first["protocol"] == "study":  # each way of balancing draws its own
            name += f" as {' and '.join(_label(result, results) for result in group)} drew them"
        named[name] = group
    return named


def within_noise(best: Result, group: list[Result]) -> list[Result]:
    """Of runs on the same faces, those that do not differ from the best by more than chance (McNemar's exact test)."""
    sets = {result.folder: run.read_predictions(result.folder)[1]["test"] for result in group}
    others = [result for result in group if result is not best]
    return [r for r in others if compare(sets[r.folder], sets[best.folder])["within_noise"]]


def render(notebook: str | Path, target: str | Path | None = None, without_faces: bool = False) -> Path:
    """Turn an executed notebook into a page that stands alone, `report.html` beside it by default.

    Args:
        notebook: the executed notebook.
        target: where to write the page.
        without_faces: leave out the pictures of cells tagged `faces`, for pages that are published.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: if there is no such notebook.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook = Path(notebook)
    if not notebook.is_file():
        raise FileNotFoundError(f"There is no notebook {notebook}. Execute one first, e.g. with papermill.")
    config = Config()
    config.HTMLExporter.exclude_input = True
    config.HTMLExporter.exclude_input_prompt = config.HTMLExporter.exclude_output_prompt = True
    config.HTMLExporter.embed_images = True
    # No formulas and no widgets: nothing is fetched when the page opens.
    config.HTMLExporter.mathjax_url = config.HTMLExporter.require_js_url = config.HTMLExporter.mermaid_js_url = ""
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = {"injected-parameters", "parameters"}
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        cell.outputs = _for_readers(cell.get("outputs", []))
        if without_faces and "faces" in cell.metadata.get("tags", []) and cell.outputs:
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="Faces are not shown on this page.\n")]
    page, _ = HTMLExporter(config=config).from_notebook_node(content, {"metadata": {"name": _title(content)}})
    # The template breaks lines of text anywhere, also within numbers.
    page = page.replace("</head>", "<style>.jp-RenderedText pre { word-break: normal !important; }</style></head>", 1)
    target = Path(target) if target else notebook.with_name("report.html")
    storage.write_text(target, page)
    return target


def _title(notebook) -> str:
    """The first heading, for the page's title."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    return first.partition("\n")[0].lstrip("# ") or "Report"


def _for_readers(outputs: list) -> list:
    """Of what libraries write to stderr, only the last state of a progress bar is for readers."""
    shown = [output for output in outputs if output.get("name") != "stderr"]
    text = "".join(output.text for output in outputs if output.get("name") == "stderr")
    bars = [line for line in re.split(r"[\r\n]", text) if re.match(r"\s*\d+%\|", line)]
    if bars:
        first = next(output for output in outputs if output.get("name") == "stderr")
        shown.insert(0, first | {"name": "stdout", "text": bars[-1] + "\n"})
    return shown
