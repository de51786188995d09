"""What each number is worth: the published results beside ours under three protocols, and where the differences lie."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from fer_keras import report, run
from fer_keras.evaluate import percent
from fer_keras.report import PUBLISHED, Result, over_seeds
from fer_keras.split import PROTOCOLS

# The classes that the study found hardest.
STUDY_HARDEST = ("angry", "fear", "neutral")
# Kinds of touch, as a reader of the picture needs them.
PARTS = {
    "trained, as a copy": ("identical",),
    "made from a face that trained": ("synthetic",),
    "near-duplicate of one that trained": ("near", "shifted", "mirrored"),
    "seen by the run it starts from": ("ancestor",),
    "never seen": ("untouched",),
}


def collect(
    suites: Sequence[str],
    outputs: str | Path = "outputs",
    folder: str | Path | None = None,
    fingerprint: str | None = None,
) -> list[Result]:
    """The runs of several suites that have been scored, each training once (see `fer_keras.run.adopt`).

    Args:
        suites: names of files in `params/suites/`.
        outputs, folder, fingerprint: see `fer_keras.report.collect`.

    Raises:
        FileNotFoundError: if there is no such suite.
        ValueError: if none of their runs is finished.
    """
    found: dict[str, Result] = {}
    for suite in suites:
        for result in report.collect(suite, outputs, folder, fingerprint):
            if result.metrics:
                found.setdefault(result.metrics["key"], result)
    if not found:
        raise ValueError(f"No run of {', '.join(suites)} is finished in {outputs}. Run them first: make worth.")
    return list(found.values())


def by_protocol(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Runs by experiment, then by the protocol that they used; each a list over seeds. In the study's order."""
    names = dict.fromkeys([*PUBLISHED, *(result.experiment for result in results)])
    table = {name: {protocol: [] for protocol in PROTOCOLS} for name in names}
    for result in results:
        table[result.experiment][result.metrics["protocol"]].append(result)
    return {name: runs for name, runs in table.items() if any(runs.values())}


def side_by_side(results: Sequence[Result]) -> pd.DataFrame:
    """Top-1 in per cent as published and as found under each protocol, and on the official test faces never seen."""
    rows = {}
    for name, runs in by_protocol(results).items():
        published = PUBLISHED.get(name)
        row = {"published": f"{published['top1']:.2f} ({published['protocol']})" if published else "–"}
        for protocol in ("study", "official", "clean"):
            metrics = [result.metrics for result in runs[protocol]]
            n = f", n {metrics[0]['sets']['test']['n']:,}" if metrics else ""
            row[protocol] = over_seeds(metrics, "top1") + n if metrics else "–"
        seen = [_untouched(result.metrics) for result in runs["official"]]
        row["official, test faces never seen"] = "; ".join(filter(None, seen)) or "–"
        rows[name] = row
    return pd.DataFrame(rows).T


def _untouched(metrics: Mapping) -> str:
    scores = metrics["audit"]["sets"]["test"]["top1"].get("untouched")
    return f"{percent(scores['top1'], scores['interval'])}, n {scores['n']:,}" if scores else ""


def points(results: Sequence[Result]) -> pd.DataFrame:
    """One row for each top-1, for `fer_keras.plots.protocols`: of several seeds the mean and their range."""
    rows = []
    for name, runs in by_protocol(results).items():
        if name in PUBLISHED:
            rows.append({"experiment": name, "protocol": "published", "top1": PUBLISHED[name]["top1"]})
        for protocol in ("study", "official", "clean"):
            tests = [result.metrics["sets"]["test"] for result in runs[protocol]]
            if tests:
                values = [100 * test["top1"] for test in tests]
                bounds = [100 * v for v in tests[0]["intervals"]["top1"]] if len(tests) == 1 else values
                row = {"experiment": name, "protocol": protocol, "top1": sum(values) / len(values)}
                rows.append(row | {"low": min(bounds), "high": max(bounds)})
    return pd.DataFrame(rows)


def parts(results: Sequence[Result], protocol: str | None = None) -> dict[str, dict[str, tuple[int, float]]]:
    """Of which faces each run's top-1 is made, for `fer_keras.plots.touched`: by run, by part: faces and top-1.

    Args:
        protocol: of the runs to take; all by default.
    """
    rows = {}
    for result in results:
        metrics = result.metrics
        if protocol and metrics["protocol"] != protocol:
            continue
        found = metrics["audit"]["sets"]["test"]["top1"]
        row = {}
        for part, kinds in PARTS.items():
            there = [found[kind] for kind in kinds if kind in found]
            n = sum(scores["n"] for scores in there)
            row[part] = (n, sum(scores["n"] * scores["top1"] for scores in there) / max(n, 1))
        label = f"{metrics['experiment']} ({metrics['protocol']})"
        rows[label if label not in rows else f"{label} seed {result.seed}"] = row
    return rows


def stops(results: Sequence[Result]) -> pd.DataFrame:
    """Where each training stopped, and which epoch the validation faces chose."""
    rows = {}
    for result in results:
        path = result.folder / "history.csv"
        if not path.exists():
            continue
        history, chosen = pd.read_csv(path), result.metrics["chosen_by"]
        most = run.read_params(result.folder)["epochs"]
        patience = run.read_params(result.folder)["patience"]
        early = len(history) < most
        rows[f"{result.experiment} ({result.metrics['protocol']}), seed {result.seed}"] = {
            "epochs": f"{len(history)} of {most}",
            "chosen epoch": chosen["epoch"],
            "stopped": "early" if early else "at the last" if patience else "at the last (early stopping off)",
            "top-1 that trained, last epoch %": percent(history["accuracy"].iloc[-1]),
            "top-1 that validated, chosen epoch %": percent(history["val_accuracy"][chosen["epoch"] - 1]),
        }
    return pd.DataFrame(rows).T


def hardest(results: Sequence[Result], count: int = 3) -> pd.DataFrame:
    """The classes with the lowest recall, mean over the runs of each protocol, and which the study found hardest."""
    rows = {}
    for protocol in ("study", "official", "clean"):
        chosen = [result for result in results if result.metrics["protocol"] == protocol]
        if chosen:
            recall = pd.DataFrame(
                [
                    {name: values["recall"] for name, values in r.metrics["sets"]["test"]["per_class"].items()}
                    for r in chosen
                ]
            ).mean()
            lowest = recall.sort_values().head(count)
            rows[protocol] = {
                "runs": len(chosen),
                "lowest mean recall": ", ".join(f"{name} {percent(value)} %" for name, value in lowest.items()),
                "also in the study": ", ".join(name for name in lowest.index if name in STUDY_HARDEST) or "none",
            }
    return pd.DataFrame(rows).T


def main_runs(results: Sequence[Result]) -> dict[str, Result]:
    """The ensemble of each protocol, or its run with the best validation where there is none; of the first seed."""
    found = {}
    for protocol in ("study", "official", "clean"):
        runs = [result for result in results if result.metrics["protocol"] == protocol]
        ensembles = [result for result in runs if result.experiment == "ensemble"]
        if ensembles:
            found[protocol] = ensembles[0]
        elif runs:
            found[protocol] = max(runs, key=lambda r: r.metrics["sets"]["validation"]["top1"])
    return found


def official_against_clean(results: Sequence[Result]) -> pd.DataFrame:
    """Each experiment under `clean` against itself under `official`, on the same test faces."""
    rows = {}
    for name, runs in by_protocol(results).items():
        for first, second in zip(runs["official"], runs["clean"], strict=False):
            if row := report.paired(first.folder, second.folder):
                rows[name if first.seed == 0 else f"{name} seed {first.seed}"] = row
    return pd.DataFrame(rows).T


def findings(results: Sequence[Result]) -> str:
    """What the three protocols say together, in sentences computed from the runs' metrics."""
    table, lines = by_protocol(results), []

    def test(name, protocol):
        runs = table.get(name, {}).get(protocol)
        return runs[0].metrics["sets"]["test"] if runs else None

    def told(name, protocol):
        scores = test(name, protocol)
        return f"{percent(scores['top1'], scores['intervals']['top1'])} %" if scores else "not run"

    for name in ("ensemble", "balanced-ros", "balanced-smote", "balanced-smote_tomek"):
        if name in table:
            lines.append(
                f"{name}: published {PUBLISHED[name]['top1']:.2f} %; ours {told(name, 'study')} under study, "
                f"{told(name, 'official')} under official, {told(name, 'clean')} under clean."
            )
    for label, row in parts(results, "study").items():
        total = sum(n for n, _ in row.values())
        n, new = row["never seen"]
        text = f"{label}: {100 - 100 * n / total:.1f} % of its {total:,} test faces had been seen in some way"
        lines.append(text + (f"; top-1 on the other {n:,} is {percent(new)} %." if n else "; none is new to it."))
    start, end = test("tuned", "official"), test("ensemble", "study")
    honest = test("ensemble", "official")
    if start and end and honest:
        lines.append(
            f"From tuned to the ensemble, top-1 rises by {100 * (end['top1'] - start['top1']):.1f} points under study "
            f"and by {100 * (honest['top1'] - start['top1']):.1f} under official, on faces of the same data set."
        )
    official = [result for result in results if result.metrics["protocol"] == "official"]
    if official:
        found = official[0].metrics["audit"]["sets"]["test"]
        lines.append(
            f"The official split is not free of it: {percent(found['touched'])} % of its {found['n']:,} test "
            "faces have a near-duplicate in Training."
        )
    return "\n".join(lines)
