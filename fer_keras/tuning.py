"""A sweep judged: which point the validation faces choose, and how much a choice by the test faces would flatter.

The top-1 on the validation faces chooses. What the test faces say about all the points is shown to see what a choice by
them would have been worth, and chooses nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fer_keras import report, run
from fer_keras.evaluate import BOOTSTRAP_SAMPLES, percent
from fer_keras.params import LOCATIONS, NAMES
from fer_keras.report import Result


def collect(
    suite: str,
    sweep: str,
    outputs: str | Path = "outputs",
    folder: str | Path | None = None,
    fingerprint: str | None = None,
) -> tuple[list[Result], list[str]]:
    """The points of a sweep that can be compared, and sentences about the others.

    Args:
        suite, outputs, folder, fingerprint: see `fer_keras.report.collect`.
        sweep: name of a file in `params/sweeps/`.

    Returns:
        The points that were scored with the sweep's parameters; sentences about those that failed, were not run, are
        stale or were made with other parameters or faces.

    Raises:
        FileNotFoundError: if there is no such suite or sweep.
        ValueError: if no point is finished.
    """
    results = [r for r in report.collect(suite, outputs, folder, fingerprint, sweep) if "/" in r.experiment]
    results = [Result(r.experiment.partition("/")[2], r.seed, r.folder, r.metrics, r.state) for r in results]
    failed = {r.folder: text for r in results if r.state == "not run" and (text := run.failure(r.folder))}
    notes = [f"Failed: {r.experiment} seed {r.seed}: {failed[r.folder]}" for r in results if r.folder in failed]
    notes += report.states([r for r in results if r.folder not in failed])
    found = [r for r in results if r.metrics and r.state != "other parameters"]
    if not found:
        raise ValueError(
            f"No point of the sweep {sweep!r} is finished in {outputs}/{suite} with these parameters and faces. "
            + " ".join(notes)
        )
    return found, notes


def points(results: Sequence[Result]) -> pd.DataFrame:
    """One row a point, the best by validation first; equal ones in the order of the sweep.

    Returns:
        By point: one column for each parameter that varies; `seeds`; `epochs` and `best epoch` (means over the seeds);
        `validation` and `test`, top-1, 0–1, means over the seeds.
    """
    by_point: dict[str, list[Result]] = {}
    for result in results:
        by_point.setdefault(result.experiment, []).append(result)
    given = {name: run.read_params(runs[0].folder) for name, runs in by_point.items()}
    apart = [name for name in next(iter(given.values())) if name not in (*NAMES, *LOCATIONS, "seed")]
    apart = [name for name in apart if len({repr(one.get(name)) for one in given.values()}) > 1]
    rows = {}
    for name, runs in by_point.items():
        kept = [history(result) for result in runs]
        rows[name] = {parameter: given[name].get(parameter) for parameter in apart} | {
            "seeds": len(runs),
            "epochs": np.mean([len(each) for each in kept]),
            "best epoch": np.mean([result.metrics["chosen_by"]["epoch"] for result in runs]),
            **{
                role: np.mean([result.metrics["sets"][role]["top1"] for result in runs])
                for role in ("validation", "test")
            },
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("point")
    return table.sort_values("validation", ascending=False, kind="stable")


def varying(table: pd.DataFrame) -> list[str]:
    """The parameters that vary, of a table from `points`."""
    return list(table.columns[: list(table.columns).index("seeds")])


def history(result: Result) -> pd.DataFrame:
    """The epochs of a run."""
    return pd.read_csv(result.folder / "history.csv")


def readable(table: pd.DataFrame, results: Sequence[Result]) -> pd.DataFrame:
    """`points` for readers: top-1 in per cent, of one seed with its 95 % interval."""
    metrics = {}
    for result in results:
        metrics.setdefault(result.experiment, []).append(result.metrics["sets"])
    shown = table[varying(table)].astype(object)
    if (table["seeds"] > 1).any():
        shown["seeds"] = table["seeds"]
    for name in ("epochs", "best epoch"):
        shown[name] = [f"{value:g}" for value in table[name]]
    for role in ("validation", "test"):
        shown[f"{role} top-1 %"] = [
            percent(row[role], metrics[point][0][role]["intervals"]["top1"] if row["seeds"] == 1 else None)
            for point, row in table.iterrows()
        ]
    return shown


def choices(table: pd.DataFrame) -> tuple[str, str]:
    """The point that validation chooses, and the one that the test faces would have chosen.

    Points with fewer seeds than others are not chosen: luck is larger there.
    """
    whole = table[table["seeds"] == table["seeds"].max()]
    return whole["validation"].idxmax(), whole["test"].idxmax()


def marginals(table: pd.DataFrame) -> pd.DataFrame:
    """For each value of each parameter that varies: how many points have it, and the best of them by validation.

    A sweep that is not the product of its axes tries the values in different company: a value with more points has had
    more chances.
    """
    rows = []
    for parameter in varying(table):
        for value, part in table.groupby(parameter, sort=True):
            best = part["validation"].idxmax()
            rows.append(
                {
                    "parameter": parameter,
                    "value": value,
                    "points": len(part),
                    "best point": best,
                    "validation": part.loc[best, "validation"],
                    "test": part.loc[best, "test"],
                }
            )
    return pd.DataFrame(rows, columns=["parameter", "value", "points", "best point", "validation", "test"])


def by_number_of_points(table: pd.DataFrame) -> pd.DataFrame:
    """What choosing one of k points gives, on average over all ways to have tried only k of them.

    Computed exactly: the i-th best of n points is the best of a random k with probability C(n−i, k−1) / C(n, k).

    Returns:
        By k from 1 to n: `chosen by test`, the test top-1 that a choice by test reports, and `chosen by validation`,
        0–1. Their difference is what choosing by test flatters.

    Reference:
        Dodge et al., "Show Your Work: Improved Reporting of Experimental Results", EMNLP 2019, arXiv 1909.03004.
    """
    from scipy.special import comb

    n = len(table)
    ranks = np.arange(1, n + 1)
    orders = {
        f"chosen by {role}": table.sort_values(role, ascending=False, kind="stable")["test"].to_numpy()
        for role in ("test", "validation")
    }
    rows = {
        k: {name: float(comb(n - ranks, k - 1) @ tests / comb(n, k)) for name, tests in orders.items()}
        for k in range(1, n + 1)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("points tried")


def luck(results: Sequence[Result], random_state: int = 0) -> dict:
    """How far the best of the points would stand out by the luck of these test faces alone, if all were equally good.

    Faces are drawn with replacement (Efron 1979), the same for all points: a point's deviation from its own mean is
    luck, and the expected maximum of the deviations is what the best of that many points gains by it. That the points
    err on the same faces is thereby counted; independent errors would give more.

    Args:
        results: points that were scored on the same faces; of several seeds the first counts.

    Returns:
        points; n, the faces; expected, the expected maximum of the deviations; quantile, their 95 % quantile (0–1).

    Raises:
        ValueError: if they were scored on different faces.
    """
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.experiment, result)
    tests = [run.read_predictions(result.folder)[1]["test"] for result in first.values()]
    if any(not np.array_equal(test.rows, tests[0].rows) for test in tests):
        raise ValueError("The points of a sweep must be scored on the same faces. Run them with the same `data`.")
    hits = np.array([test.probabilities.argmax(axis=1) == test.labels for test in tests]).T.astype("float32")
    n = len(hits)
    rng = np.random.default_rng(random_state)
    drawn = rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAP_SAMPLES).astype("float32")
    best = (drawn @ hits / n - hits.mean(axis=0)).max(axis=1)
    return {"points": len(tests), "n": n, "expected": float(best.mean()), "quantile": float(np.quantile(best, 0.95))}


def against_each_other(results: Sequence[Result], table: pd.DataFrame) -> pd.DataFrame:
    """The point that test would have chosen against the one that validation chose, paired on the same test faces.

    Returns:
        One row a seed, from `fer_keras.report.paired`; empty if both are the same point.
    """
    chosen, flattered = choices(table)
    folders = {(result.experiment, result.seed): result.folder for result in results}
    seeds = sorted({seed for point, seed in folders if point == chosen and (flattered, seed) in folders})
    rows = {seed: report.paired(folders[chosen, seed], folders[flattered, seed]) for seed in seeds}
    return pd.DataFrame(rows if chosen != flattered else {}).T.rename_axis("seed")


def findings(results: Sequence[Result], table: pd.DataFrame) -> str:
    """What a sweep found, in sentences computed from its points."""
    chosen, flattered = choices(table)
    metrics = {(result.experiment, result.seed): result.metrics for result in results}
    runs = [found for (point, _), found in metrics.items() if point == chosen]
    n = {role: runs[0]["sets"][role]["n"] for role in ("validation", "test")}
    lines = [
        f"{len(table)} points were compared. The {n['validation']:,} validation faces choose {chosen}: top-1 "
        f"{percent(table.loc[chosen, 'validation'])} % on them, and {report.over_seeds(runs, 'top1')} % on the "
        f"{n['test']:,} test faces, which had no part in the choice."
    ]
    difference = 100 * (table.loc[flattered, "test"] - table.loc[chosen, "test"])
    if flattered == chosen:
        lines.append(
            "The test faces would have chosen the same point, so here a choice by test would not have flattered."
        )
    else:
        lines.append(
            f"The test faces would have chosen {flattered}, and {percent(table.loc[flattered, 'test'])} % would have "
            f"been reported: {difference:+.2f} points that no new face need confirm."
        )
        for seed, row in against_each_other(results, table).iterrows():
            lines.append(
                f"On the same faces (seed {seed}) the two differ by {row['top-1, points']} points, p "
                f"{row['p (McNemar)']} (McNemar), which is without regard to {flattered} having been picked as the "
                f"highest of {len(table)}."
            )
    if len(table) > 1:
        chance = luck(results)
        lines.append(
            f"Were all {chance['points']} points equally good, the best on these {chance['n']:,} test faces would "
            f"stand {100 * chance['expected']:.2f} points above its worth on average, by chance alone."
        )
        spread = 100 * (table["validation"].iloc[0] - table["validation"].iloc[1])
        lines.append(
            f"By validation the first two points, {table.index[0]} and {table.index[1]}, are {spread:.2f} points "
            "apart. The faces that choose are flattered, too: that is why a score on other faces is needed."
        )
    if any(found["protocol"] == "study" for found in runs):
        lines.append("Under `study` the validation faces leak as the test faces do.")
    return "\n".join(lines)


def curves(results: Sequence[Result], by: str = "") -> dict[str, dict[str, pd.DataFrame]]:
    """The epochs of the points, of the first seed, grouped for small multiples.

    Args:
        by: the parameter whose values are the groups; "" for one group.

    Returns:
        By group, by point.
    """
    groups: dict[str, dict[str, pd.DataFrame]] = {}
    for result in results:
        group = str(run.read_params(result.folder).get(by, "")) if by else "all points"
        groups.setdefault(group, {}).setdefault(result.experiment, history(result))
    return groups
