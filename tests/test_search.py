"""A search within a budget: what it draws, that it goes on after a kill, and that it leaves the test faces alone."""

import functools
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from test_notebooks import call
from test_run import Weights

from fer_keras import evaluate, params, run, search, split, train

TINY = {
    "suite": "tiny",
    "data": "drawn",
    "drawn_faces": 280,
    "protocol": "official",
    "experiments": ["tuned"],
    "width": 0.03125,
    "batch_size": 64,
    "checkpoint_seconds": 0.0,
}
SEARCH = {
    "search": "w",
    "experiment": "tuned",
    "trials": 4,
    "pruner": "none",
    "epochs": 3,
    "space": [
        {"optimizer": {"choices": ["adam", "sgd"]}, "learning_rate": {"low": "1e-3", "high": 1e-1, "log": True}},
        {"optimizer": {"choices": ["rmsprop"]}, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
    ],
}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Makes a tiny search from changed values; everything is in a folder of its own, which is the current one."""
    for name in ("params", "notebooks", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "params/suites/tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)

    def make(outputs="outputs", **values):
        content = {name: value for name, value in (SEARCH | values).items() if value is not None}
        (tmp_path / "params/searches/w.yaml").write_text(yaml.safe_dump(content))
        return search.read("w", "tiny", {"outputs": str(outputs)})

    return make


def results(study):
    """What a search found, less what a kill changes: numbers and times."""
    return [(t.state.name, t.value, t.params, t.intermediate_values) for t in search.ended(study)]


# --- What is drawn --------------------------------------------------------------------------------------------------


def test_a_plan_shares_what_is_not_drawn(plan):
    made = plan(dropout=0.4, seed=3)
    assert made.folder.resolve() == run.root().resolve() / "outputs/tiny/search-w"
    assert made.best == run.folder_of("tiny", "best", 3, sweep="search-w")
    assert made.base["dropout"] == 0.4 and made.base["epochs"] == 3 and made.base["width"] == 0.03125
    assert not {"optimizer", "learning_rate"} & set(made.base)
    assert made.tables[0]["learning_rate"]["low"] == 1e-3
    one = made.resolve({"optimizer": "sgd"})
    assert (one["optimizer"], one["suite"], one["seed"], one["experiment"]) == ("sgd", "tiny", 3, "tuned")


def test_each_trial_draws_from_one_table(plan):
    made = plan(space=[*SEARCH["space"], {"epochs": {"low": 2, "high": 5}, "dropout": {"choices": [0.1, 1]}}])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [search.suggest(study.ask(), made.tables) for _ in range(60)]
    assert {frozenset(one) for one in drawn} == {frozenset(table) for table in made.tables}
    assert {one["optimizer"] for one in drawn if "optimizer" in one} == {"adam", "sgd", "rmsprop"}
    for one in drawn:
        if one.get("optimizer") == "rmsprop":
            assert 1e-4 <= one["learning_rate"] <= 1e-2
        elif "optimizer" in one:
            assert 1e-3 <= one["learning_rate"] <= 1e-1
        else:
            assert one["epochs"] in range(2, 6) and type(one["epochs"]) is int and one["dropout"] in (0.1, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"space": {"learning_rat": {"choices": [1.0]}}}, r"w\.yaml. Did you mean 'learning_rate'"),
        ({"space": {"optimizer": {"choices": ["adan"]}}}, "optimizer 'adan': `optimizer` must be one of adadelta"),
        ({"space": {"learning_rate": {"low": 0.0, "high": 1.0}}}, "learning_rate 0.0: `learning_rate` must be above 0"),
        ({"space": {"learning_rate": {"low": 0.0, "high": 1.0, "log": True}}}, "then `low` above 0"),
        ({"space": {"learning_rate": {"low": 2.0, "high": 1.0}}}, "must be `{choices"),
        ({"space": {"learning_rate": {"low": 1.0}}}, "must be `{choices"),
        ({"space": {"learning_rate": [1.0]}}, "must be `{choices"),
        ({"space": {"optimizer": {"low": "adam", "high": "sgd"}}}, "must be `{choices"),
        ({"space": {"epochs": {"low": 1.5, "high": 3}}}, "'epochs' in the space of .* must be a whole number"),
        ({"space": {"monitor": {"choices": ["val_loss"]}}}, "cannot vary 'monitor'"),
        ({"space": {"seed": {"choices": [1]}}}, "cannot vary 'seed'"),
        ({"space": None}, "must have a `space`"),
        ({"space": []}, "must have a `space`"),
        ({"trials": None}, "must have a budget above 0"),
        ({"trials": -1, "hours": 1.0}, "must have a budget above 0"),
        ({"experiment": "ensemble"}, "varies 'ensemble', which does not train"),
        ({"protocol": "study"}, "cannot set 'protocol'"),
    ],
)
def test_a_search_that_cannot_run_is_refused(plan, values, message):
    with pytest.raises(params.ParameterError, match=message):
        plan(**values)


def test_an_unknown_pruner_is_refused(plan):
    with pytest.raises(ValueError, match="`pruner` must be one of none, median, hyperband"):
        plan(pruner="medium")


@pytest.mark.parametrize("name", search.PRUNERS)
def test_pruners_are_made_for_the_epochs(name):
    for epochs in (1, 5, 180):
        assert isinstance(search.PRUNERS[name](epochs), optuna.pruners.BasePruner)


# --- Running --------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from fer_keras import search
from fer_keras.source import load

real = search.Report.on_epoch_end

def kill(self, epoch, logs=None):
    real(self, epoch, logs)
    if self.trial.number == 2 and epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)

search.Report.on_epoch_end = kill
plan = search.read("w", "tiny")
search.search(plan, load("drawn", 280))
"""


@pytest.mark.timeout(300)
def test_a_search_that_was_killed_finds_what_one_finds_that_was_not(plan, faces, monkeypatch):
    made = plan()
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=200)
    assert done.returncode == -9, done.stderr[-3000:]
    assert [t.state.name for t in search.open_study(made, faces.fingerprint).trials] == ["COMPLETE"] * 2 + ["RUNNING"]

    trained = []
    step = search.Report.on_epoch_end
    monkeypatch.setattr(
        search.Report, "on_epoch_end", lambda self, epoch, logs: trained.append(epoch) or step(self, epoch, logs)
    )
    resumed = search.search(made, faces, tell=lambda text: None)
    assert trained == [2, 0, 1, 2], "the killed trial goes on from its second epoch"
    table = search.trials(resumed)
    assert table["state"].tolist() == ["complete"] * 2 + ["killed, went on"] + ["complete"] * 2
    assert table.loc[3, "learning_rate"] == table.loc[2, "learning_rate"]

    whole = search.search(plan(outputs="elsewhere"), faces, tell=lambda text: None)
    assert results(resumed) == results(whole)
    best = [run.read_environment(folder) for folder in (made.best, plan(outputs="elsewhere").best)]
    assert best[0]["key"] == best[1]["key"]
    again = search.search(made, faces, tell=lambda text: pytest.fail("the budget was spent"))
    assert len(again.trials) == 5


def test_the_test_faces_are_scored_once_and_only_for_the_best(plan, faces, monkeypatch):
    made = plan(trials=3)
    roles = split.split_official(faces)
    seen = []
    real = train.fit

    @functools.wraps(real)
    def fit(network, *parts, **named):
        seen.extend(parts)
        return real(network, *parts, **named)

    with monkeypatch.context() as patched:
        patched.setattr(search.train, "fit", fit)
        patched.setattr(evaluate, "predict", lambda *given: pytest.fail("predicted during the search"))
        told = []
        study = search.search(made, faces, told.append)
    assert len(told) == 3 and told[0].startswith("Trial 0: complete after 3 epochs, ")
    assert not np.isin(np.concatenate([part.rows for part in seen]), roles["test"].rows).any()
    assert not {"predictions.npz", "metrics.json"} & {path.name for path in made.best.iterdir()}
    metrics = search.score_best(made, study, faces)
    best = study.best_trial
    assert metrics["sets"]["validation"]["top1"] == pytest.approx(best.value)
    assert metrics["sets"]["test"]["n"] == len(roles["test"]) and metrics["chosen_by"]["role"] == "validation"
    assert run.read_params(made.best)["learning_rate"] == search.drawn(best)["learning_rate"]
    assert pd.read_csv(made.best / "history.csv")["val_accuracy"].max() == pytest.approx(best.value)
    monkeypatch.setattr(evaluate, "predict", lambda *given: pytest.fail("predicted again"))
    assert search.score_best(made, study, faces) == metrics
    assert len(study.user_attrs["scored"]) == 1
    text = search.findings(made, study, metrics)
    assert "3 trials (3 complete)" in text and f"chose trial {best.number}" in text and "scored" not in text
    study.set_user_attr("scored", ["of another best", *study.user_attrs["scored"]])
    assert "its test faces have scored 2 best trials so far" in search.findings(made, study, metrics)


@pytest.fixture
def quick(monkeypatch):
    """In place of training: scores that follow from the learning rate."""
    fit = SimpleNamespace(value=lambda named: named["learning_rate"], trained=[])

    def stand_in(network, first, second, *, epochs, extra_callbacks, **named):
        fit.trained.append(named)
        value = fit.value(named)
        for epoch in range(epochs):
            for callback in extra_callbacks:
                callback.on_epoch_end(epoch, {"val_accuracy": value})
        return pd.DataFrame({"epoch": range(1, epochs + 1), "val_accuracy": value})

    stand_in.__signature__ = search.inspect.signature(train.fit)
    monkeypatch.setattr(search.train, "fit", stand_in)
    monkeypatch.setattr(search.model, "float32", lambda network: Weights())
    return fit


def test_the_sampler_finds_the_better_half(plan, faces, quick):
    study = search.search(plan(trials=25), faces, tell=lambda text: None)
    found = [t.value for t in study.trials]
    assert len(set(found)) == 25 and np.mean(found[10:]) > 1.3 * np.mean(found[:10])


def test_a_hopeless_trial_is_pruned_and_leaves_no_checkpoint(plan, faces, quick, monkeypatch):
    threshold = optuna.pruners.ThresholdPruner(lower=0.02)
    monkeypatch.setitem(search.PRUNERS, "median", lambda epochs: threshold)
    made = plan(trials=8, pruner="median")
    study = search.search(made, faces, tell=lambda text: None)
    table = search.trials(study)
    assert set(table["state"]) == {"complete", "pruned"}
    assert (table["epochs"] == np.where(table["learning_rate"] < 0.02, 1, 3)).all()
    assert ((table["state"] == "pruned") == (table["learning_rate"] < 0.02)).all()
    assert not run.checkpoint_path(made.folder).exists()
    shown = search.readable(table)
    assert shown["state"].tolist() == sorted(table["state"])


def test_trials_that_fail_are_told_and_three_in_a_row_end_the_search(plan, faces, quick):
    def fail_sometimes(named):
        if len(quick.trained) % 2:
            raise RuntimeError("out of memory\nand more")
        return named["learning_rate"]

    quick.value = fail_sometimes
    study = search.search(plan(), faces, tell=lambda text: None)
    assert search.trials(study)["state"].tolist() == ["fail", "complete"] * 2
    assert search.trials(study).loc[0, "error"] == "RuntimeError: out of memory"

    def fail(named):
        raise OSError("disk full")

    quick.value = fail
    quick.trained.clear()
    with pytest.raises(OSError, match="disk full"):
        search.search(plan(trials=9), faces, tell=lambda text: None)
    assert len(quick.trained) == 3
    made = plan(outputs="other")
    with pytest.raises(OSError, match="disk full"):
        search.search(made, faces, tell=lambda text: None)
    with pytest.raises(run.RunError, match="No trial of the search 'w' is complete"):
        search.score_best(made, search.open_study(made, faces.fingerprint), faces)


def test_equal_draws_are_trained_once(plan, faces, quick):
    study = search.search(plan(trials=6, space={"dropout": {"choices": [0.1, 0.2]}}), faces, tell=lambda text: None)
    assert len(quick.trained) == 2 and [t.state.name for t in study.trials] == ["COMPLETE"] * 6


def test_the_budget_may_be_hours_and_may_be_raised(plan, faces, quick):
    quick.value = lambda named: search.time.sleep(0.05) or 0.5
    made = plan(trials=None, hours=1e-6)
    study = search.search(made, faces, tell=lambda text: None)
    assert len(study.trials) == 1 and search.hours(study) > 1e-6
    more = search.read("w", "tiny", {"outputs": "outputs"}, trials=3)
    assert (more.trials, more.hours) == (3, 1e-6), "the first that is spent ends it"
    more = search.read("w", "tiny", {"outputs": "outputs"}, trials=3, hours=1.0)
    assert len(search.search(more, faces, tell=lambda text: None).trials) == 3


def test_other_faces_or_shared_parameters_do_not_go_into_the_same_search(plan, faces, quick):
    search.search(plan(trials=1), faces, tell=lambda text: None)
    with pytest.raises(run.RunError, match=r"optuna\.db holds trials with other shared parameters or faces"):
        search.search(plan(trials=1, epochs=4), faces)
    with pytest.raises(run.RunError, match="other shared parameters or faces"):
        search.open_study(plan(), "of other faces")
    wider = [*SEARCH["space"], {"optimizer": {"choices": ["nadam"]}, "learning_rate": {"choices": [1e-3]}}]
    assert len(search.search(plan(trials=2, space=wider), faces, tell=lambda text: None).trials) == 2


def test_two_processes_do_not_run_one_search(plan, faces):
    made = plan()
    with search._alone(made.folder), pytest.raises(run.RunError, match="Another process runs the search"):
        search.search(made, faces)


@pytest.mark.timeout(300)
def test_the_notebook_searches_and_says_what_it_found(plan, faces, tmp_path):
    made = plan(trials=2, epochs=1)
    there = made.folder / "notebook.ipynb"
    there.parent.mkdir(parents=True)
    given = ("-p", "suite", "tiny", "-p", "search", "w", "--no-progress-bar")
    code, output = call("papermill", "notebooks/search.ipynb", there, *given, cwd=tmp_path)
    assert code == 0, output[-3000:]
    study = search.open_study(made, faces.fingerprint)
    text = there.read_text()
    for line in search.findings(made, study, run.read_metrics(made.best)).splitlines():
        assert line in text
