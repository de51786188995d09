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
) -> tuple[list[Result], list[str]]:
    """The runs of several suites that can stand side by side, each training once (see `fer_keras.run.adopt`).

    Args:
        suites: names of files in `params/suites/`.
        outputs, folder, fingerprint: see `fer_keras.report.collect`.

    Returns:
        The runs that were scored and audited with the suites' parameters; and sentences about the others.

    Raises:
        FileNotFoundError: if there is no such suite.
        ValueError: if none of their runs is there, or two suites have different runs of one experiment, protocol and
            seed.
    """
    found: dict[str, Result] = {}
    notes, there = [], {}
    for suite in suites:
        results = report.collect(suite, outputs, folder, fingerprint)
        notes += [f"{suite}: {line}" for line in report.states(results)]
        for result in results:
            if not result.metrics or result.state == "other parameters":
                continue
            if "audit" not in result.metrics:
                notes.append(f"{suite}: {result.experiment} has no leak audit: run it again, without training.")
                continue
            found.setdefault(result.metrics["key"], result)
    if not found:
        raise ValueError(
            f"No run of {', '.join(suites)} is finished in {outputs} with these parameters and faces. "
            + " ".join(notes)
        )
    for result in found.values():
        place = (result.experiment, result.metrics["protocol"], result.seed)
        if other := there.get(place):
            raise ValueError(
                f"{other.folder} and {result.folder} are different trainings of {place[0]} under {place[1]}. "
                "Put suites of one size side by side."
            )
        there[place] = result
    return list(found.values()), notes


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
    """The classes with the lowest recall in the main run of each protocol, and which the study found hardest, too."""
    rows = {}
    for protocol, result in main_runs(results).items():
        classes = result.metrics["sets"]["test"]["per_class"]
        tested = [name for name in classes if classes[name]["support"]]
        lowest = sorted(tested, key=lambda name: classes[name]["recall"])[:count]
        rows[f"{result.experiment} ({protocol})"] = {
            "lowest recall": ", ".join(f"{name} {percent(classes[name]['recall'])} %" for name in lowest),
            "also in the study": ", ".join(name for name in lowest if name in STUDY_HARDEST) or "none",
        }
    return pd.DataFrame(rows).T


def main_runs(results: Sequence[Result]) -> dict[str, Result]:
    """The ensemble of each protocol, or its run with the best validation where there is none; of the first seed."""
    found = {}
    for protocol in ("study", "official", "clean"):
        runs = [r for r in results if r.metrics["protocol"] == protocol and report.chosen_fairly(r.metrics)]
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
        clean = {result.seed: result for result in runs["clean"]}
        for first in runs["official"]:
            if first.seed in clean and (row := report.paired(first.folder, clean[first.seed].folder)):
                rows[name if first.seed == 0 else f"{name} seed {first.seed}"] = row
    return pd.DataFrame(rows).T


def control(results: Sequence[Result]) -> pd.DataFrame:
    """Each `balanced` run against its `scratch` control, which does not start from `tuned`, on the same test faces."""
    rows, table = {}, by_protocol(results)
    for name, runs in table.items():
        for protocol, balanced in runs.items() if name.startswith("balanced-") else ():
            scratch = table.get(name.replace("balanced", "scratch"), {}).get(protocol, [])
            for second in balanced:
                first = next((result for result in scratch if result.seed == second.seed), None)
                if first and (row := report.paired(first.folder, second.folder)):
                    own = percent(first.metrics["sets"]["test"]["top1"])
                    rows[f"{name} ({protocol}), seed {second.seed}"] = {"top-1 of the control %": own} | row
    return pd.DataFrame(rows).T


def ensemble_sets(results: Sequence[Result]) -> pd.DataFrame:
    """Top-1 of the ensembles on each of the sets that the published 97 % may have been scored on."""
    meaning = {
        "test": "all members' test faces together",
        "test_unseen": "originals that none of these runs trained on",
    }
    rows = {}
    for result in results:
        for name, scores in result.metrics["sets"].items():
            if result.metrics["protocol"] != "study" or result.experiment != "ensemble" or name[:4] != "test":
                continue
            touched = result.metrics["audit"]["sets"][name]["touched"]
            rows[name if result.seed == 0 else f"{name}, seed {result.seed}"] = {
                "what it is": meaning.get(name, f"those that {name[5:]} drew"),
                "n": f"{scores['n']:,}",
                "top-1 %": percent(scores["top1"], scores["intervals"]["top1"]),
                "top-2 %": percent(scores["top2"]),
                "top-3 %": percent(scores["top3"]),
                "seen in some way %": percent(touched),
            }
    return pd.DataFrame(rows).T


def findings(results: Sequence[Result]) -> str:
    """What the three protocols say together, in sentences computed from the runs' metrics."""
    table, lines = by_protocol(results), []

    def told(name, protocol):
        runs = table[name][protocol]
        return f"{over_seeds([result.metrics for result in runs], 'top1')} %" if runs else "not run"

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
    official = [r for r in results if r.metrics["protocol"] == "official" and report.chosen_fairly(r.metrics)]
    changes = report.against(official)
    if "ensemble" in changes.index:
        row = changes.loc["ensemble"]
        lines.append(
            f"Under official the ensemble and {changes.index.name.split()[-1]}, on the same {row['n']} test faces, "
            f"differ by {row['top-1, points']} points of top-1, {row['top-1']}."
        )
    if official:
        found = official[0].metrics["audit"]["sets"]["test"]
        seen, new = (found["top1"].get(name) for name in ("all_touched", "untouched"))
        text = f"The official split is not free of it: {percent(found['touched'])} % of its {found['n']:,} test faces "
        text += "have a near-duplicate in Training"
        if seen and new:
            text += (
                f"; {official[0].experiment} has a top-1 of {percent(seen['top1'], seen['interval'])} % on them and of "
                f"{percent(new['top1'], new['interval'])} % on the others"
            )
        lines.append(text + ".")
    return "\n".join(lines)
