"""A suite: experiments over one data set and protocol, as a graph of runs that Snakemake executes.

A sweep varies one experiment of a suite over a grid of parameters; its points are runs of the same graph.
"""

import base64
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import yaml

from fer_keras import params, run, source, storage

# The notebook that runs an experiment, told by the parameters that only one of them has.
TRAIN, ENSEMBLE, PYTORCH = (f"notebooks/{name}.ipynb" for name in ("train", "ensemble", "pytorch"))
# A grid does not vary them: they say which run it is, where and on what, or give it other faces to be scored on.
NOT_VARIED = (
    "experiment",
    *params.NAMES,
    "seed",
    "protocol",
    *source.PARAMETERS,
    *params.LOCATIONS,
    *params.HARDWARE,
    *params.SUITE_ONLY,
)
# In a point's name: first these, then the others in the order of `params.PARAMETERS`.
FIRST_IN_NAME = ("optimizer", "learning_rate")
# In a point's name these values speak for themselves, and these parameters are known by a shorter name.
BARE_IN_NAME = ("optimizer", "schedule", "monitor", "precision")
SHORT_IN_NAME = {"learning_rate": "lr", "batch_size": "batch"}
# Folders of a suite that are not experiments.
PAGES = ("explore", "report")


@dataclass(frozen=True)
class Job:
    """One run of a suite: its resolved parameters, notebook, folder, the runs it needs, and its key.

    `experiment` is its place in the suite's folder: the experiment's name, or `<sweep>/<point>`. `needs` holds
    experiment and seed of runs of the same suite, under the name that this run has for them. `missing` says what
    it, or a run that it needs, needs and does not have: a path, or a data set converted otherwise.
    """

    experiment: str
    seed: int
    params: Mapping
    notebook: str
    folder: Path
    needs: Mapping[str, tuple[str, int]]
    key: str
    missing: str = ""

    def encoded(self) -> str:
        """The parameters for `papermill --parameters_base64`, less those that say where things are."""
        moved = {name: value for name, value in self.params.items() if name not in params.LOCATIONS}
        return base64.b64encode(yaml.safe_dump(moved).encode()).decode()


def jobs(
    suite: str,
    command_line: Mapping = {},
    folder: str | Path | None = None,
    fingerprint: str | None = None,
    sweep: str = "",
) -> dict[tuple[str, int], Job]:
    """The runs of a suite, in an order in which each comes after those it needs.

    Args:
        suite: name of a file in `params/suites/`.
        command_line: parameters that win over the files, e.g. `data`.
        folder: where the experiments' files, `suites/` and `sweeps/` are; the project's `params/` by default.
        fingerprint: of the suite's own faces; read from its data by default.
        sweep: name of a file in `params/sweeps/`: its points, and the runs of the suite that they need, in place of the
            suite's experiments.

    Returns:
        Jobs by (experiment, seed); a point of a sweep goes by `<sweep>/<point>`.

    Raises:
        FileNotFoundError, ParameterError: if a file or a parameter is wrong.
        ValueError: if an experiment needs one that the suite does not have, or itself; or a name is none.
    """
    run.check_name("suite", suite)
    if sweep:
        run.check_name("sweep", sweep)
    folder = Path(folder or params.root() / "params")
    content = read_suite(suite, folder)
    command_line = {name: params.check(name, value, "the command line") for name, value in command_line.items()}
    varied = read_sweep(sweep, folder, content["experiments"]) if sweep else {}
    resolve = resolver(folder, content, command_line)
    resolved = {}
    for seed in (
        varied.get("seeds")
        or content.get("seeds")
        or [content.get("seed", params.notebook_defaults(params.root() / TRAIN)["seed"])]
    ):
        resolved |= {(name, seed): resolve(name, {"seed": seed}) for name in content["experiments"]}
        if sweep:
            resolved |= _points(varied, seed, resolve)
    _check_places(suite, resolved)
    # An ensemble whose members all say their seed is one run, and not one for each seed.
    first_of: dict[str, int] = {}
    for name, seed in list(resolved):
        members = resolved[name, seed][1].get("members")
        if members and all("/" in str(member) for member in members) and seed != first_of.setdefault(name, seed):
            del resolved[name, seed]
    if any(one.get("dataset", "fer2013") != "fer2013" for _, one in resolved.values()):
        raise params.ParameterError(
            "`dataset: folder` goes with single runs. For a suite, convert the folder once, `fer-keras data convert "
            "folder SOURCE TARGET`, and give TARGET as `data`."
        )
    if fingerprint is None:
        first = next(iter(resolved.values()))[1]
        fingerprint = source.fingerprint_of({name: first[name] for name in ("data", "drawn_faces")})
    found: dict[tuple[str, int], Job] = {}

    def add(name, seed, needed_by=()):
        if (name, seed) in found:
            return
        if (name, seed) not in resolved:
            listed = any(name == other for other, _ in resolved)
            raise ValueError(
                f"{needed_by[-1]} needs the run {name!r}{f' with seed {seed}' if listed else ''}, which the suite "
                f"{suite!r} does not list."
            )
        if name in needed_by:
            raise ValueError(f"Experiments cannot start from each other: {' → '.join([*needed_by, name])}.")
        notebook, one = resolved[name, seed]
        named = one.get("members") or ([one["starts_from"]] if one.get("starts_from") else [])
        needs = {other: run.place_of(other, seed) for other in named}
        for other in needs.values():
            add(*other, (*needed_by, name))
        missing = source.lacks(one)
        before = {other: found[place].key for other, place in needs.items()}
        if "checkpoint" in one and not missing:
            before["checkpoint"] = storage.file_hash(Path(one["checkpoint"]).expanduser())
        # Without its path, a run has the key that it would have without the file: it is not made.
        faces = fingerprint if missing else source.fingerprint_of(one, fingerprint)
        key = run.key_of(one, faces, before)
        missing = missing or next((found[other].missing for other in needs.values() if found[other].missing), "")
        place = one.get("point") or name
        where = run.folder_of(one["suite"], place, seed, one["outputs"], one.get("sweep", ""))
        found[name, seed] = Job(name, seed, one, notebook, where, needs, key, missing)

    for name, seed in resolved:
        if not sweep or "/" in name:
            add(name, seed)
    return found


def _check_places(suite: str, resolved: Mapping) -> None:
    """Refuse runs whose parameters name other places than the suite's, where Snakemake would look for them."""
    values: dict[str, set] = {}
    for (name, seed), (_, one) in resolved.items():
        if seed < 0:
            raise params.ParameterError(f"A seed is a whole number from 0 on. Received: {seed}")
        sweep, _, point = name.rpartition("/")
        for key, value in {"suite": suite, "sweep": sweep, "point": point if sweep else ""}.items():
            if one.get(key, value) != value:
                raise params.ParameterError(
                    f"{name} says `{key}: {one[key]}`, which a file of a suite's runs cannot set. Take it out."
                )
        for key in (*params.PATHS, "drawn_faces"):
            if one.get(key):
                values.setdefault(key, set()).add(one[key])
    for key, found in values.items():
        if len(found) > 1:
            raise params.ParameterError(
                f"The runs of a suite share their `{key}`, and those of {suite!r} have {len(found)}: "
                f"{', '.join(sorted(map(str, found)))}. Make a suite of each."
            )


def read_suite(suite: str, folder: Path) -> dict:
    """The content of a suite's file, checked.

    Raises:
        FileNotFoundError, ParameterError: see `fer_keras.params.read`; also if it has another name or no experiments.
    """
    content = read_named(folder / "suites" / f"{suite}.yaml", "suite")
    if not content.get("experiments"):
        raise params.ParameterError(f"{folder}/suites/{suite}.yaml must list its `experiments`.")
    for name in content["experiments"]:
        run.check_name("experiment", name)
    return content


def resolver(folder: Path, suite: Mapping, command_line: Mapping) -> Callable[[str, Mapping], tuple[str, dict]]:
    """A function from an experiment's name, and values that win over the files, to its notebook and its parameters."""
    defaults = {name: params.notebook_defaults(params.root() / name) for name in (TRAIN, ENSEMBLE, PYTORCH)}

    @functools.cache  # the file is the same for all points of a sweep
    def experiment_of(name):
        return read_named(folder / f"{name}.yaml", "experiment")

    def resolve(name, given):
        experiment = experiment_of(name)
        notebook = ENSEMBLE if "members" in experiment else PYTORCH if "checkpoint" in experiment else TRAIN
        return notebook, params.resolve(defaults[notebook], experiment, suite, {**given, **command_line})

    return resolve


def read_named(path: Path, kind: str, besides=()) -> dict:
    """The content of a file of parameters, which must say its own name."""
    content = params.read(path, besides)
    if content.get(kind) != path.stem:
        raise params.ParameterError(f"{path} must say `{kind}: {path.stem}`. Received: {content.get(kind)!r}")
    return content


# --- Sweeps ---------------------------------------------------------------------------------------------------------


def read_sweep(sweep: str, folder: str | Path | None = None, experiments=()) -> dict:
    """The content of a sweep's file, checked, with `grid` as a list of points in place of tables.

    Args:
        sweep: name of a file in `params/sweeps/`: `sweep`, its name; `experiment`, what is varied; `grid`, a table of
            parameters and lists of values, or a list of such tables; `seeds`; and parameters that all points share.
        folder: where `sweeps/` is; the project's `params/` by default.
        experiments: those of the suite, whose names a sweep cannot have.

    Raises:
        FileNotFoundError, ParameterError: if there is no such file, or it cannot be a sweep.
    """
    from sklearn.model_selection import ParameterGrid

    path = Path(folder or params.root() / "params") / "sweeps" / f"{sweep}.yaml"
    content = read_named(path, "sweep", besides=("grid",))
    if sweep in (*experiments, *PAGES):
        raise params.ParameterError(
            f"A sweep cannot be called {sweep!r}: the suite has a folder of that name. Rename {path}."
        )
    check_shared(content, path, ("sweep", "experiment", "seeds", "grid"))
    known = trainable()
    grid = content.get("grid")
    tables = grid if isinstance(grid, list) else [grid]
    if not tables or not all(isinstance(table, dict) and table for table in tables):
        raise params.ParameterError(
            f"{path} must have a `grid`: a table of parameters and lists of values, or a list of such tables. "
            f"Received: {grid!r}"
        )
    for table in tables:
        for name, values in table.items():
            check_varied(name, known, path, "vary")
            if not isinstance(values, list) or not values:
                raise params.ParameterError(
                    f"In the grid of {path}, {name!r} must have a list of values, `{name}: [a, b]`. "
                    f"Received: {values!r}"
                )
    checked = [
        {name: [params.check(name, value, f"the grid of {path}") for value in values] for name, values in table.items()}
        for table in tables
    ]
    return content | {"grid": list(ParameterGrid(checked))}


def check_shared(content: Mapping, path: Path, besides) -> None:
    """Refuse a file of a sweep or a search without an experiment, or with parameters that its runs cannot share."""
    if not content.get("experiment"):
        raise params.ParameterError(f"{path} must say which `experiment` it varies, e.g. `experiment: tuned`.")
    known = trainable()
    for name in content:
        if name not in besides:
            check_varied(name, known, path, "set")


def trainable() -> list[str]:
    """The parameters that runs of one sweep may differ in."""
    return [name for name in params.notebook_defaults(params.root() / TRAIN) if name not in NOT_VARIED]


def check_varied(name: str, known, path: Path, cannot: str) -> None:
    """Refuse a parameter that is not `known`, in a file that wants to do with it what it `cannot`."""
    params.check_name(name, str(path))
    if name not in known:
        raise params.ParameterError(
            f"{path} cannot {cannot} {name!r}: its runs are of one suite and experiment, trained by {TRAIN} and scored "
            "on the same faces."
        )


def _points(sweep: Mapping, seed: int, resolve) -> dict:
    """Resolve the points of a sweep; of equal ones the first stays."""
    shared = {name: v for name, v in sweep.items() if name not in ("experiment", "seeds", "grid")}
    resolved, seen = {}, {}
    for values in sweep["grid"]:
        point = point_name(values)
        given = {"seed": seed, **shared, **values, "point": point}
        notebook, one = resolve(sweep["experiment"], given)
        if notebook != TRAIN:
            raise params.ParameterError(
                f"The sweep {sweep['sweep']!r} varies {sweep['experiment']!r}, which does not train."
            )
        same = [value for name, value in sorted(one.items()) if name != "point"]
        if same in seen.values():
            continue
        if point in seen:
            raise params.ParameterError(f"Two points of the sweep {sweep['sweep']!r} are called {point!r}.")
        seen[point] = same
        resolved[f"{sweep['sweep']}/{point}", seed] = (notebook, one)
    return resolved


def point_name(values: Mapping) -> str:
    """A short name for a point of a grid, made of nothing but its own values: `adam-lr1e-3-l2-5e-4-cosine`.

    It stays the same when the grid grows, and two points of a grid have different ones.
    """
    order = [*FIRST_IN_NAME, *(name for name in params.PARAMETERS if name not in FIRST_IN_NAME)]
    return "-".join(_part(name, values[name]) for name in order if name in values)


def _part(name: str, value) -> str:
    short = SHORT_IN_NAME.get(name, name)
    if isinstance(value, bool):
        return short if value else f"no-{short}"
    if isinstance(value, str):
        value = re.sub(r"[^A-Za-z0-9._]", "_", value) or "none"
        return value if name in BARE_IN_NAME else f"{short}-{value}"
    return f"{short}{'-' if short[-1].isdigit() else ''}{_number(value)}"


def _number(value: float) -> str:
    """All digits of a number, as short as they go: 64, 0.25, 1e-3."""
    exact = Decimal(repr(value)).normalize()
    plain = f"{exact:f}"
    return plain if len(plain) <= (6 if abs(value) >= 1 else 4) else f"{exact:e}".replace("+", "").replace(".0e", "e")


def check(jobs: Iterable[Job]) -> None:
    """Check the training parameters of runs, so that a wrong value stops the first minute, not the last hour.

    Raises:
        ParameterError: names the run.
    """
    from fer_keras import train

    for job in jobs:
        if job.notebook == TRAIN:
            try:
                train.check(SimpleNamespace(**job.params))
            except ValueError as error:
                raise params.ParameterError(f"{job.experiment}: {error}") from None
