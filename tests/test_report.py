"""Tables over runs, on metrics made by hand; the notebooks' own runs are in test_notebooks.py."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fer_keras import report, storage, worth
from fer_keras.data import CLASS_NAMES
from fer_keras.evaluate import score
from fer_keras.report import Result


@pytest.fixture
def make(tmp_path):
    """Makes a finished run whose predictions are right on the faces that `hits` names."""

    def made(experiment, hits, protocol="official", seed=0, rows=None, untouched=None):
        labels = np.arange(len(hits)) % 7
        rows = np.arange(len(hits)) if rows is None else rows
        probabilities = np.eye(7)[np.where(hits, labels, (labels + 1) % 7)]
        folder = tmp_path / protocol / experiment / f"seed-{seed}"
        arrays = {"rows": rows, "labels": labels, "origin": np.full(len(rows), "original")}
        arrays["probabilities"] = probabilities
        storage.write_arrays(
            folder / "predictions.npz",
            class_names=np.array(CLASS_NAMES),
            **{f"test.{name}": array for name, array in arrays.items()},
        )
        pd.DataFrame({"accuracy": [0.5, 0.9], "val_accuracy": [0.4, 0.3]}).to_csv(folder / "history.csv", index=False)
        storage.write_text(folder / "params.yaml", "epochs: 2\npatience: 0\n")
        scores = score(labels, probabilities)
        new = len(hits) if untouched is None else untouched
        kinds = {"identical": {"n": len(hits) - new, "top1": 1.0, "interval": [1.0, 1.0]}} if new < len(hits) else {}
        if new:
            kinds["untouched"] = {"n": new, "top1": 0.5, "interval": [0.4, 0.6]}
        metrics = {
            "experiment": experiment,
            "protocol": protocol,
            "seed": seed,
            "key": f"{experiment} {protocol} {seed}",
            "data": "fer2013",
            "chosen_by": {"role": "validation", "n": 70, "epoch": 1},
            "sets": {"test": scores, "validation": scores},
            "audit": {"sets": {"test": {"n": len(hits), "touched": 1 - new / len(hits), "top1": kinds}}},
        }
        return Result(experiment, seed, Path(folder), metrics, "done")

    return made


def right(n, share):
    return np.arange(n) < n * share


def test_one_seed_has_an_interval_and_several_have_mean_and_range(make):
    one = [make("tuned", right(700, 0.6))]
    assert report.comparison(one).loc["tuned", "our top-1 %"].startswith("60.00 (56.")
    several = [make("tuned", right(700, share), seed=seed) for seed, share in enumerate((0.5, 0.6, 0.67))]
    row = report.comparison(several).loc["tuned"]
    assert row["our top-1 %"] == "59.00 (50.00–67.00, 3 seeds)" and row["our protocol, n"] == "official, 700"
    assert row["published top-1/2/3 %"] == "66.15 / 82.22 / 90.89"
    points = worth.points(several).query("protocol == 'official'")
    np.testing.assert_allclose(points[["top1", "low", "high"]], [[59, 50, 67]])
    assert worth.side_by_side(several).loc["tuned", "official"] == "59.00 (50.00–67.00, 3 seeds), n 700"


def test_an_experiment_without_a_run_says_so(make):
    table = report.comparison([Result("tuned", 0, Path("x"), None, "not run"), make("baseline", right(70, 0.5))])
    assert table.loc["tuned", "our top-1 %"] == "–" and table.loc["tuned", "state"] == "not run"
    assert table.loc["ensemble", "state"] == "not in this suite"
    other = report.comparison([make("ferplus-majority", right(70, 0.5)), make("own", right(70, 0.4))])
    assert list(other.index) == ["ferplus-majority", "own"], "the study's rows would be on other faces"


def test_differences_on_the_same_faces_are_told_from_noise(make):
    tuned = make("tuned", right(700, 0.5))
    results = [tuned, make("balanced-ros", right(700, 0.8)), make("balanced-smote", np.roll(right(700, 0.5), 1))]
    table = report.against(results)
    assert list(table.index) == ["balanced-ros", "balanced-smote"]
    assert table.loc["balanced-ros", "top-1, points"].startswith("+30.00 (+26.")
    assert table.loc["balanced-ros", ["top-1", "p (McNemar)"]].tolist() == ["better", "< 0.001"]
    assert table.loc["balanced-smote", ["top-1", "p (McNemar)"]].tolist() == ["within noise", "1.000"]
    assert report.against([make("balanced-ros", right(700, 0.8)), *results[:1]]).loc["balanced-ros", "n"] == "700"
    other = make("balanced-smote_enn", right(700, 0.8), protocol="study", rows=np.arange(700) + 9)
    assert report.against([tuned, other]).empty
    table = report.against([make("first", right(700, 0.5)), make("second", right(700, 0.8))])
    assert table.index.name == "against first" and list(table.index) == ["second"]


def test_runs_on_different_faces_are_never_ranked_together(make):
    results = [
        make("tuned", right(700, 0.5)),
        make("balanced-ros", right(700, 0.6)),
        make("balanced-smote", right(900, 0.9), protocol="study"),
        make("balanced-smote_tomek", right(900, 0.8), protocol="study", rows=np.arange(900)[::-1]),
    ]
    lines = report.findings(results).splitlines()
    assert lines[0].startswith("Highest top-1 on 700 test faces of official: balanced-ros, 60.00 (")
    assert lines[0].endswith("%.") and "within noise" not in lines[0]
    alone = [line for line in lines if "drew them" in line]
    assert len(alone) == 4 and all(line.startswith("Only ") for line in alone)
    assert any(line.startswith("balanced-ros against tuned: top-1 +10.00") for line in lines)
    assert "Numbers under the protocol `study` leak" in report.findings(results)


def test_a_best_run_within_noise_of_others_is_no_winner(make):
    results = [make("tuned", right(700, 0.5)), make("baseline", np.roll(right(700, 0.505), 2))]
    line = report.findings(results).splitlines()[0]
    assert "baseline, 50.57 (" in line and line.endswith("; within noise of tuned.")


def test_what_the_protocols_say_together(make):
    results = [
        make("tuned", right(700, 0.6), untouched=600),
        make("ensemble", right(700, 0.62), untouched=600),
        make("ensemble", right(1000, 0.95), protocol="study", untouched=200),
        make("ensemble", right(700, 0.61), protocol="clean"),
    ]
    text = worth.findings(results)
    assert "ensemble: published 97.18 %; ours 95.00 (" in text
    assert "ensemble (study): 80.0 % of its 1,000 test faces had been seen in some way; top-1 on the other 200" in text
    assert "on the same 700 test faces, differ by +2.00 (" in text and "points of top-1, better." in text
    assert "14.29 % of its 700 test faces have a near-duplicate in Training" in text
    assert worth.parts(results, "study")["ensemble (study)"]["trained, as a copy"] == (800, 1.0)
    clean = worth.official_against_clean(results)
    assert list(clean.index) == ["ensemble"] and clean.loc["ensemble", "top-1, points"].startswith("-1.00")


def test_runs_of_two_protocols_are_paired_by_their_seed(make):
    results = [make("tuned", right(700, 0.5), seed=seed) for seed in (1, 2)]
    results += [make("tuned", right(700, (5 + seed) / 10), "clean", seed) for seed in (0, 1, 2)]
    table = worth.official_against_clean(results)
    assert table["top-1, points"].str.split(" ").str[0].to_dict() == {
        "tuned seed 1": "+10.00",
        "tuned seed 2": "+20.00",
    }
    assert "ours not run under study" not in worth.findings(results)


def test_several_seeds_are_told_by_mean_and_range(make):
    results = [make("ensemble", right(1000, share), "study", seed) for seed, share in enumerate((0.9, 0.7, 0.7))]
    assert "ours 76.67 (70.00–90.00, 3 seeds) % under study" in worth.findings(results)


def test_a_balanced_run_is_paired_with_its_control(make):
    results = [make("balanced-ros", right(700, 0.9), "study"), make("scratch-ros", right(700, 0.8), "study")]
    table = worth.control([*results, make("scratch-smote", right(700, 0.8), "study")])
    assert list(table.index) == ["balanced-ros (study), seed 0"]
    assert table.iloc[0]["top-1 of the control %"] == "80.00" and table.iloc[0]["top-1, points"].startswith("+10.00")


def test_where_a_training_stopped(make):
    table = worth.stops([make("tuned", right(70, 0.5))])
    row = table.loc["tuned (official), seed 0"]
    assert row["epochs"] == "2 of 2" and row["stopped"] == "at the last (early stopping off)"
    assert row["chosen epoch"] == 1 and row["top-1 that validated, chosen epoch %"] == "40.00"


def test_the_hardest_classes_are_those_of_the_main_run(make):
    labels = np.arange(700) % 7
    enn = make("balanced-smote_enn", labels != 6)  # few neutral faces left to train on: not a finding about faces
    table = worth.hardest([enn, make("ensemble", ~np.isin(labels, [0, 2, 5]))])
    row = table.loc["ensemble (official)"]
    assert row["lowest recall"] == "angry 0.00 %, fear 0.00 %, surprise 0.00 %"
    assert row["also in the study"] == "angry, fear"
