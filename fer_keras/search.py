"""A search for parameters within a budget, by Optuna: it may be killed and goes on, and never looks at the test faces.

Each trial is a training of one experiment with parameters that the sampler draws; the top-1 on the validation faces
judges it, after each epoch, so that hopeless trials are pruned. The folder `outputs/<suite>/search-<name>/` holds the
trials (`optuna.db`) and, in `best/seed-<k>/`, the run of the best trial, which alone is scored on the test faces.
"""

import contextlib
import inspect
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState

from fer_keras import audit, evaluate, model, params, run, steps, suite, train
from fer_keras.data import Faces

# By name: how trials are stopped early, made for trials of so many epochs. The first fifth of the epochs prunes none,
# since a schedule that warms up is slow there.
PRUNERS = {
    "none": lambda epochs: optuna.pruners.NopPruner(),
    "median": lambda epochs: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 5),
    "hyperband": lambda epochs: optuna.pruners.HyperbandPruner(max(1, epochs // 9), epochs),
}
# So many failures in a row are not the drawn parameters' fault.
FAILURES = 3


@dataclass(frozen=True)
class Plan:
    """A search: its file and its suite's, checked.

    `resolve` makes the parameters of a run from drawn values; `tables` holds what to draw (see `read`); `base` are the
    parameters of which nothing is drawn.
    """

    name: str
    suite: str
    seed: int
    trials: int
    hours: float
    pruner: str
    tables: list[dict]
    base: Mapping
    resolve: Callable[[Mapping], dict]

    @property
    def folder(self) -> Path:
        """Where the search is kept."""
        return self.best.parent.parent

    @property
    def best(self) -> Path:
        """The folder of the best trial's run."""
        return run.folder_of(self.suite, "best", self.seed, self.base["outputs"], f"search-{self.name}")


def read(
    search: str,
    suite_name: str,
    command_line: Mapping = {},
    folder: str | Path | None = None,
    trials: int = 0,
    hours: float = 0.0,
) -> Plan:
    """Read a search's file and resolve what it needs.

    Args:
        search: name of a file in `params/searches/`: `search`, its name; `experiment`, what is varied; `space`, a
            table of parameters, each `{choices: […]}` or `{low: …, high: …}` with `log: true` if wanted, or a list of
            such tables, of which each trial draws one; `trials` or `hours` or both, the budget; `pruner`, a key of
            `PRUNERS`; `seed`; and parameters that all trials share.
        suite_name: name of a file in `params/suites/`, which gives faces, protocol and size.
        command_line: parameters that win over the files, e.g. `data`.
        folder: where the files are; the project's `params/` by default.
        trials, hours: another budget than the file's, 0 for the file's.

    Raises:
        FileNotFoundError, ParameterError: if a file or a parameter is wrong.
    """
    folder = Path(folder or params.root() / "params")
    path = folder / "searches" / f"{search}.yaml"
    content = suite.read_named(path, "search", besides=("space", "pruner"))
    own = ("search", "experiment", "seed", "trials", "hours", "pruner", "space")
    suite.check_shared(content, path, own)
    command_line = {name: params.check(name, value, "the command line") for name, value in command_line.items()}
    resolver = suite.resolver(folder, suite.read_suite(suite_name, folder), command_line)
    shared = {name: value for name, value in content.items() if name not in own}
    place = {"seed": content.get("seed", 0), "sweep": f"search-{search}", "point": "best"}

    def resolve(values):
        notebook, one = resolver(content["experiment"], {**shared, **values, **place})
        if notebook != suite.TRAIN:
            raise params.ParameterError(f"{path} varies {content['experiment']!r}, which does not train.")
        return one

    budget = (trials or content.get("trials", 0), hours or content.get("hours", 0.0))
    if max(budget) <= 0 or min(budget) < 0:
        raise params.ParameterError(
            f"{path} must have a budget above 0: `trials`, `hours` or both. Received: {budget[0]}, {budget[1]}"
        )
    pruner = train.choose("pruner", content.get("pruner", "median"), PRUNERS)
    tables = _check_space(content.get("space"), path, resolve)
    base = {name: v for name, v in resolve({}).items() if not any(name in table for table in tables)}
    return Plan(search, suite_name, place["seed"], *budget, pruner, tables, base, resolve)


def _check_space(space, path: Path, resolve) -> list[dict]:
    """The tables of a space, with values of their parameters' types; each extreme value is tried on `train.check`."""
    tables = space if isinstance(space, list) else [space]
    if not tables or not all(isinstance(table, dict) and table for table in tables):
        raise params.ParameterError(
            f"{path} must have a `space`: a table of parameters, or a list of such tables. Received: {space!r}"
        )
    known, checked = suite.trainable(), []
    for table in tables:
        ranges = {}
        for name, given in table.items():
            suite.check_varied(name, known, path, "vary")
            if name == "monitor":
                raise params.ParameterError(f"{path} cannot vary 'monitor': it says what a good trial is.")
            ranges[name] = _check_range(name, given, path)
        checked.append(ranges)
        first = {name: given.get("choices", [given.get("low")])[0] for name, given in ranges.items()}
        for name, given in ranges.items():
            for value in given.get("choices") or [given["low"], given["high"]]:
                try:
                    train.check(SimpleNamespace(**resolve(first | {name: value})))
                except ValueError as error:
                    raise params.ParameterError(f"{path}, {name} {value!r}: {error}") from None
    return checked


def _check_range(name: str, given, path: Path) -> dict:
    wrong = params.ParameterError(
        f"In the space of {path}, {name!r} must be `{{choices: [a, b]}}` or `{{low: a, high: b}}`, with `log: true` if "
        f"wanted (then `low` above 0). Received: {given!r}"
    )
    if not isinstance(given, dict):
        raise wrong
    where = f"the space of {path}"
    if set(given) == {"choices"} and isinstance(given["choices"], list) and given["choices"]:
        return {"choices": [params.check(name, value, where) for value in given["choices"]]}
    if not {"low", "high"} <= set(given) <= {"low", "high", "log"} or params.PARAMETERS[name] not in (int, float):
        raise wrong
    low, high = (params.check(name, given[end], where) for end in ("low", "high"))
    log = given.get("log", False)
    if not isinstance(log, bool) or low > high or (log and low <= 0):
        raise wrong
    return {"low": low, "high": high, "log": log}


def suggest(trial: optuna.Trial, tables: list[dict]) -> dict:
    """Draw the values of one trial."""
    at, prefix = 0, ""
    if len(tables) > 1:
        at = trial.suggest_categorical("table", list(range(len(tables))))
        prefix = f"{at}."  # the same parameter may have another range in another table
    values = {}
    for name, given in tables[at].items():
        if "choices" in given:
            values[name] = trial.suggest_categorical(prefix + name, given["choices"])
        else:
            draw = trial.suggest_int if params.PARAMETERS[name] is int else trial.suggest_float
            values[name] = draw(prefix + name, given["low"], given["high"], log=given["log"])
    return values


class Report(keras.callbacks.Callback):
    """Tells a trial its validation top-1 after each epoch, and the time spent; ends a trial that is to be pruned."""

    def __init__(self, trial: optuna.Trial, known: Mapping[int, float] = {}):
        super().__init__()
        self.trial, self.known, self.began = trial, set(known), time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 not in self.known:
            self.trial.report(logs["val_accuracy"], epoch + 1)
        self.trial.set_user_attr("seconds", round(time.monotonic() - self.began, 1))
        if self.trial.should_prune():
            raise optuna.TrialPruned


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, so that a trial that is marked as running belongs to a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = sqlite3.connect(folder / "lock.db", timeout=0, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        raise run.RunError(f"Another process runs the search in {folder}. Wait for it, or end it.") from None
    try:
        yield
    finally:
        lock.close()


def open_study(plan: Plan, fingerprint: str) -> optuna.Study:
    """Open the study of a search, or begin it.

    Raises:
        RunError: if its trials were made with other shared parameters or faces.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan.folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{plan.folder.resolve() / 'optuna.db'}",
        study_name=plan.name,
        pruner=PRUNERS[plan.pruner](_most_epochs(plan)),
        direction="maximize",
        load_if_exists=True,
    )
    key = run.key_of(plan.base, fingerprint, _ancestors(plan.base)[1])
    if study.user_attrs.get("key", key) != key:
        raise run.RunError(
            f"{plan.folder / 'optuna.db'} holds trials with other shared parameters or faces, which do not compare "
            f"with new ones. Move {plan.folder} away, or give the search another name."
        )
    if "key" not in study.user_attrs:
        study.set_user_attr("source_hash", run.LOADED_CODE)
        study.set_user_attr("key", key)
    return study


def _most_epochs(plan: Plan) -> int:
    drawn_from = [table["epochs"] for table in plan.tables if "epochs" in table]
    return max([plan.resolve({})["epochs"], *(max(g.get("choices") or [g["high"]]) for g in drawn_from)])


def _ancestors(one: Mapping) -> tuple[dict[str, Path], dict[str, str]]:
    """Folders and keys of the run that trials start from."""
    name = one.get("starts_from")
    folders = {name: run.sibling(SimpleNamespace(**one), name)} if name else {}
    return folders, run.ancestor_keys(folders)


def search(plan: Plan, faces: Faces, tell: Callable[[str], None] = print) -> optuna.Study:
    """Run trials until the budget is spent; a search that was killed goes on where it was.

    A trial that was killed is done again with the same parameters, from its last checkpoint. Trial and sampler are
    seeded by the search's seed and the number of trials before, so on a CPU a search that was interrupted finds the
    same as one that was not. The budget counts trials that ended (complete, pruned or failed) and hours spent in all,
    and is looked at between trials.

    Args:
        faces: all faces of the source; of those of the role `test`, no more than the row ids are used.
        tell: called with a sentence after each trial.

    Raises:
        RunError: if another process runs this search, or it was begun with other shared parameters or faces.
    """
    with _alone(plan.folder):
        study = open_study(plan, faces.fingerprint)
        _take_up(study)
        roles: dict[tuple, dict] = {}
        while not _spent(plan, study):
            study.sampler = optuna.samplers.TPESampler(seed=_seed(plan, len(ended(study))))
            trial = study.ask()
            try:
                value = _train(plan, study, trial, faces, roles)
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
                run.checkpoint_path(plan.folder).unlink(missing_ok=True)
            except Exception as error:
                trial.set_user_attr("error", f"{type(error).__name__}: {error}".splitlines()[0][:300])
                study.tell(trial, state=TrialState.FAIL)
                if all("error" in t.user_attrs for t in ended(study)[-FAILURES:]) and len(ended(study)) >= FAILURES:
                    raise
            else:
                study.tell(trial, value)
                run.checkpoint_path(plan.folder).unlink(missing_ok=True)
            tell(_sentence(study, trial.number))
    return study


def _seed(plan: Plan, number: int) -> int:
    return int(np.random.SeedSequence([plan.seed, number]).generate_state(1)[0])


def ended(study: optuna.Study) -> list:
    """The trials that ended by themselves: complete, pruned or failed, but not killed."""
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) or "error" in t.user_attrs]


def hours(study: optuna.Study) -> float:
    """Time spent in trials, also in those that were killed."""
    return sum(t.user_attrs.get("seconds", 0.0) for t in study.get_trials(deepcopy=False)) / 3600


def _spent(plan: Plan, study: optuna.Study) -> bool:
    return bool(plan.trials and len(ended(study)) >= plan.trials) or bool(plan.hours and hours(study) >= plan.hours)


def _take_up(study: optuna.Study) -> None:
    """Queue again what a killed process left running."""
    trials = study.get_trials(deepcopy=False)
    queued = {t.user_attrs.get("goes_on") for t in trials}
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            if trial.number not in queued and trial.params:
                study.enqueue_trial(trial.params, user_attrs={"goes_on": trial.number})
            study.tell(trial.number, state=TrialState.FAIL)


def _train(plan: Plan, study: optuna.Study, trial: optuna.Trial, faces: Faces, roles: dict) -> float:
    """Train one trial, keep it if it is the best so far, and return its top-1 on the validation faces."""
    known = {}
    if (killed := trial.user_attrs.get("goes_on")) is not None:
        known = study.trials[killed].intermediate_values
        for step, value in known.items():
            trial.report(value, step)
    one = plan.resolve(suggest(trial, plan.tables))
    if known and trial.should_prune():
        raise optuna.TrialPruned
    p = SimpleNamespace(**one)
    folders, ancestor_keys = _ancestors(one)
    key = run.key_of(one, faces.fingerprint, ancestor_keys)
    for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if other.user_attrs["key"] == key:  # a space of few choices is drawn from with repetition
            trial.set_user_attr("key", key)
            trial.set_user_attr("epochs", other.user_attrs["epochs"])
            return other.value
    began = time.monotonic()
    train.seed_everything(p.seed, p.precision, p.deterministic)
    kind = tuple(one[name] for name in steps.OF_ROLES)
    if kind not in roles:
        roles.clear()
        roles[kind] = steps.roles(p, faces)
    parts = roles[kind]
    augmentation, mixing = steps.augmentation(p, faces.images.shape[1:3]), steps.mixing(p)
    network = steps.network(p, faces)
    for name, folder in folders.items():
        run.check_ancestors(folder, parts, steps.protocol(p))
        model.copy_weights(run.load_model(folder), network, name, run.class_names(folder), faces.class_names)
    history = train.fit(
        network,
        parts["train"],
        parts["validation"],
        **_arguments(train.fit, one),
        augmentation=augmentation,
        mixing=mixing,
        draw_labels=p.ferplus_mode == "probability",
        checkpoint=run.checkpoint_path(plan.folder),
        key=key,
        extra_callbacks=[Report(trial, known)],
    )
    best = train.best_epoch(history, p.monitor)
    value = float(history["val_accuracy"][best])
    seconds = time.monotonic() - began
    trial.set_user_attr("seconds", round(seconds, 1))
    trial.set_user_attr("key", key)
    trial.set_user_attr("epochs", len(history))
    if value > max((t.value for t in study.get_trials(False, (TrialState.COMPLETE,))), default=-1.0):
        run.save_training(plan.best, one, key, parts, history, model.float32(network), seconds, folders)
    return value


def _arguments(function: Callable, one: Mapping) -> dict:
    """Of a run's parameters, those that a function takes."""
    return {name: one[name] for name in inspect.signature(function).parameters if name in one}


def _sentence(study: optuna.Study, number: int) -> str:
    row = trials(study).loc[number]
    given = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in drawn(study.trials[number]).items()
    )
    score = f"{100 * row['validation']:.2f} % on validation" if np.isfinite(row["validation"]) else "no score"
    return f"Trial {number}: {row['state']} after {row['epochs']} epochs, {score}; {given}"


def drawn(trial) -> dict:
    """The values of a trial by parameter."""
    return {name.rpartition(".")[2]: value for name, value in trial.params.items() if name != "table"}


def trials(study: optuna.Study) -> pd.DataFrame:
    """One row a trial: state, validation (of a pruned one the last; 0–1), epochs, seconds, the drawn values, error."""
    went_on = {t.user_attrs.get("goes_on") for t in study.get_trials(deepcopy=False)}
    rows = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:
            continue
        state = trial.state.name.lower()
        if trial.state in (TrialState.FAIL, TrialState.RUNNING) and "error" not in trial.user_attrs:
            state = "killed, went on" if trial.number in went_on else "running or killed"
        reported = trial.intermediate_values
        last = reported[max(reported)] if reported else np.nan
        rows[trial.number] = {
            "state": state,
            "validation": trial.value if trial.state == TrialState.COMPLETE else last,
            "epochs": trial.user_attrs.get("epochs", max(reported, default=0)),
            "seconds": trial.user_attrs.get("seconds", 0.0),
            **drawn(trial),
        } | ({"error": trial.user_attrs["error"]} if "error" in trial.user_attrs else {})
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("trial")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`trials` for readers, the best by validation first: complete ones, then pruned ones."""
    order = {"complete": 0, "pruned": 1}
    ranked = table.assign(rank=[order.get(state, 2) for state in table["state"]])
    ranked = ranked.sort_values(["rank", "validation"], ascending=[True, False], kind="stable").drop(columns="rank")
    shown = ranked.astype(object).where(ranked.notna(), "–")
    shown["validation"] = [f"{100 * v:.2f}" if np.isfinite(v) else "–" for v in ranked["validation"]]
    for name in shown.columns.difference(["validation"]):
        shown[name] = [f"{value:.4g}" if isinstance(value, float) else value for value in shown[name]]
    return shown.rename(columns={"validation": "validation top-1 %"})


def score_best(plan: Plan, study: optuna.Study, faces: Faces) -> dict:
    """Score the best trial on the test faces, once, and note in the study that it was.

    Returns:
        The run's metrics, as in its `metrics.json`.

    Raises:
        RunError: if no trial is complete.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise run.RunError(f"No trial of the search {plan.name!r} is complete, so there is nothing to score.")
    folder = plan.best
    one, key = run.read_params(folder), run.read_environment(folder)["key"]
    scored = study.user_attrs.get("scored", [])
    if key not in scored:
        study.set_user_attr("scored", [*scored, key])
    parts, network = run.load_roles(folder, faces), run.load_model(folder)
    sets = run.predictions(
        folder, parts, lambda images: evaluate.predict(network, images, one["tta"], one["crop"]), one["tta"]
    )
    history = pd.read_csv(folder / "history.csv")
    best = history.loc[train.best_epoch(history, one["monitor"])]
    return run.save_metrics(
        folder,
        one,
        key,
        sets,
        protocol=steps.protocol(SimpleNamespace(**one)),
        chosen_by={
            "role": "validation",
            "n": len(parts["validation"]),
            "monitor": one["monitor"],
            "epoch": int(best["epoch"]),
        },
        audit=audit.audit(folder, faces),
    )


def findings(plan: Plan, study: optuna.Study, metrics: Mapping) -> str:
    """What a search found, in sentences computed from its trials."""
    table = trials(study)
    states = table["state"].value_counts()
    counted = ", ".join(f"{n} {state}" for state, n in states.items())
    best, test, validation = study.best_trial, metrics["sets"]["test"], metrics["sets"]["validation"]
    given = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in drawn(best).items()
    )
    budget = " or ".join(
        text for text, there in ((f"{plan.trials} trials", plan.trials), (f"{plan.hours:g} hours", plan.hours)) if there
    )
    lines = [
        f"{len(table)} trials ({counted}) in {hours(study):.2f} hours; the budget is {budget}.",
        f"The {validation['n']:,} validation faces chose trial {best.number}: {given}; top-1 "
        f"{evaluate.percent(validation['top1'])} % on them, the highest of {states.get('complete', 0)}, so flattered.",
        f"On the {test['n']:,} test faces, which no trial was shown, its top-1 is "
        f"{evaluate.percent(test['top1'], test['intervals']['top1'])} %.",
    ]
    if (times := len(study.user_attrs.get("scored", []))) > 1:
        lines.append(
            f"This search was taken up again after a scoring: its test faces have scored {times} best trials so far."
        )
    for number, error in table["error"].dropna().items() if "error" in table else ():
        lines.append(f"Trial {number} failed: {error}")
    if study.user_attrs["source_hash"] != run.source_hash():
        lines.append("The training code has changed since this search began: its trials do not all compare.")
    return "\n".join(lines)
