"""Parameters of a run: flat YAML files that papermill injects into a notebook, resolved and checked by one function.

What is said later wins: the notebook's defaults, the experiment's file, the suite's file, the suite's `overrides` for
that experiment, the command line. A name or a type that does not fit stops the run and names the nearest valid one.
"""

import ast
import contextlib
import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import yaml

from fer_keras import precision

# Every parameter of every notebook, with its type: a suite may set what only some of its notebooks use. The notebooks'
# own `parameters` cells give defaults and explanations; a test keeps both in step.
PARAMETERS = {
    # what and where
    "experiment": str,
    "suite": str,
    "seed": int,
    "sweep": str,
    "point": str,
    "outputs": str,
    "retrain": bool,
    # faces
    "data": str,
    "drawn_faces": int,
    "dataset": str,
    "class_map": dict,
    "num_classes": int,
    "color": str,
    "labels": str,
    "ferplus_csv": str,
    "ferplus_mode": str,
    "auxiliary": str,
    "auxiliary_alone": bool,
    "affectnet": str,
    "expw": str,
    "protocol": str,
    "resampling": str,
    # augmented balanced subset
    "subset_per_class": int,
    "subset_flip": bool,
    "subset_rotation": float,
    "subset_noise": float,
    # network
    "width": float,
    "head": str,
    "dropout": float,
    "l1": float,
    "l2": float,
    "crop": int,
    "starts_from": str,
    "checkpoint": str,
    # training
    "optimizer": str,
    "learning_rate": float,
    "schedule": str,
    "warmup_epochs": int,
    "epochs": int,
    "batch_size": int,
    "patience": int,
    "monitor": str,
    "label_smoothing": float,
    "class_weight": str,
    "weight_decay": float,
    "ema": float,
    "precision": str,
    "distribution": str,
    "deterministic": bool,
    "checkpoint_seconds": float,
    # augmentation
    "flip": bool,
    "rotation": float,
    "translation": float,
    "zoom": float,
    "noise": float,
    "erasing": float,
    "randaugment": float,
    "mixup": float,
    "cutmix": float,
    # evaluation
    "tta": str,
    # ensemble
    "members": list,
    # search
    "search": str,
    "trials": int,
    "hours": float,
    # pages
    "suites": list,
    "show_faces": bool,
    # suite
    "experiments": list,
    "overrides": dict,
    "seeds": list,
}
# How deep a list or table may go: `overrides` holds tables, of which a `class_map` holds names.
DEPTH = 4
# They say which runs there are, and are resolved away.
SUITE_ONLY = ("experiments", "overrides", "seeds")
# They name the folder of a run, and change nothing in it: equal trainings under other names are one (see `run.adopt`).
NAMES = ("suite", "sweep", "point")
# A run has its folder by them: a suite cannot override them for one experiment.
IDENTITY = ("experiment", "seed", *NAMES)
# Of paths, readers are shown the last part.
PATHS = ("data", "outputs", "ferplus_csv", "affectnet", "expw", "checkpoint")
# They say where things are, not what a run does: changing them changes no result.
LOCATIONS = (*PATHS, "retrain", "checkpoint_seconds")
# They say what a training runs on. Several devices round otherwise than one, as two kinds of device do: it is the same
# training, which also goes on from a checkpoint that another number of them left.
HARDWARE = ("distribution",)
# They say how a trained network is scored: changing them predicts anew and trains nothing.
EVALUATION = ("tta",)


class ParameterError(ValueError):
    """A parameter that does not exist, or a value that does not fit."""


def root() -> Path:
    """The project's folder, from here: the nearest one upwards that holds `params/suites`, or this one.

    Jupyter runs a notebook in the notebook's own folder, papermill in the folder in which it was called.
    """
    here = Path.cwd()
    for steps, folder in enumerate([here, *here.parents]):
        if (folder / "params" / "suites").is_dir():
            return Path(*[".."] * steps)
    return Path()


def check(name: str, value, where: str = ""):
    """Return `value` as the type of parameter `name`.

    `1e-4`, which YAML reads as a string, and a whole number are taken as floats.

    Raises:
        ParameterError: on an unknown name, with the nearest valid one, a value of another type, or a list or table that
            holds what is neither text, a number, true, false, nor a list or table of these.
    """
    check_name(name, where)
    place = f" in {where}" if where else ""
    wanted = PARAMETERS[name]
    if not _is_plain(value, DEPTH):
        raise ParameterError(
            f"The parameter {name!r}{place} may hold nothing but text, numbers, true, false, and lists and tables of "
            f"these, {DEPTH} deep at most. Received: {reprlib.repr(value)}"
        )
    if wanted is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
        raise ParameterError(
            f"The parameter {name!r}{place} must be {_describe(wanted)}. Received: {value!r} ({type(value).__name__})"
        )
    return value


def _is_plain(value, depth: int) -> bool:
    """Whether a list or table holds only what papermill writes as values.

    YAML has sets and bytes, too: papermill puts them between quotes as they print, so that a quote in them would begin
    code.
    """
    if isinstance(value, (list, dict)):
        names = value if isinstance(value, dict) else ()
        parts = value.values() if isinstance(value, dict) else value
        plain = all(type(name) in (str, int) for name in names)
        return depth > 0 and plain and all(_is_plain(part, depth - 1) for part in parts)
    return value is None or type(value) in (str, int, float, bool) or depth == DEPTH  # whose type is checked below


def check_name(name: str, where: str = "") -> None:
    """Refuse a name that no parameter has; names the nearest one."""
    if name not in PARAMETERS:
        near = difflib.get_close_matches(str(name), PARAMETERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(PARAMETERS)}."
        raise ParameterError(f"There is no parameter {name!r}{f' in {where}' if where else ''}.{hint}")


def _describe(wanted: type) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        list: "a list",
        dict: "a table",
    }
    return names[wanted]


def read(path: str | Path, besides: Sequence[str] = ()) -> dict:
    """Read a YAML file of parameters, checked.

    Args:
        besides: names that the file may have and that are no parameters; their values are not checked.

    Raises:
        FileNotFoundError: if it does not exist; names the files beside it.
        ParameterError: if it is not a flat table of known parameters.
    """
    path = Path(path)
    if path.is_dir():
        raise ParameterError(f"{path} is a folder. Give a file of parameters, `name: value`.")
    if not path.is_file():
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"There is no {path}, and no folder {path.parent}. Run this in a clone of the fer-keras repository."
            )
        there = sorted(file.stem for file in path.parent.glob("*.yaml"))
        near = difflib.get_close_matches(path.stem, there, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(there)}."
        raise FileNotFoundError(f"There is no {path}.{hint}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ParameterError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError:
        raise ParameterError(f"{path} is no text in UTF-8. Give a file of parameters, `name: value`.") from None
    if not isinstance(content, dict):
        raise ParameterError(f"{path} must hold a table of parameters, `name: value`. Received: {content!r}")
    return {name: value if name in besides else check(name, value, str(path)) for name, value in content.items()}


def resolve(defaults: Mapping, experiment: Mapping = {}, suite: Mapping = {}, command_line: Mapping = {}) -> dict:
    """Resolve the parameters of one run; what is said later wins.

    Args:
        defaults: of the notebook that runs; its names are the run's parameters.
        experiment: content of `params/<experiment>.yaml`.
        suite: content of `params/suites/<suite>.yaml`; its `overrides` may set parameters of single experiments.
        command_line: what the user gave beside the files.

    Returns:
        A flat dict with the names of `defaults`, less those that only a suite has; `precision: auto` is what it means
        on this machine.

    Raises:
        ParameterError: see `check`; also if `overrides` names an experiment that the suite does not have, or a file
            sends results out of the project's `outputs/`, which only the command line may.
    """
    merged = {**defaults, **experiment, **suite, **command_line}
    name = merged.get("experiment", "")
    overrides = check("overrides", merged.get("overrides") or {})
    for other, content in overrides.items():
        if merged.get("experiments") and other not in merged["experiments"]:
            near = difflib.get_close_matches(str(other), merged["experiments"], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ParameterError(f"`overrides` names the experiment {other!r}, which the suite does not have.{hint}")
        if not isinstance(content or {}, dict):
            raise ParameterError(f"The overrides of {other} must be a table of parameters. Received: {content!r}")
        for key, value in (content or {}).items():
            check(key, value, f"overrides of {other}")
            if key in IDENTITY:
                raise ParameterError(
                    f"The overrides of {other} cannot set {key!r}, which says which run it is. Take it out of them."
                )
    merged |= overrides.get(name) or {}
    if "outputs" not in command_line and "outputs" in merged:
        _check_outputs(merged["outputs"], defaults.get("outputs"))
    merged |= command_line
    merged = {key: check(key, value) for key, value in merged.items()}
    if "precision" in merged and "precision" in defaults:
        merged["precision"] = precision.resolve(merged["precision"])
    return {key: value for key, value in merged.items() if key in defaults and key not in SUITE_ONLY}


def _check_outputs(given: str, default: str | None) -> None:
    inside = (root() / "outputs").resolve()
    if given != default and not (root() / Path(str(given)).expanduser()).resolve().is_relative_to(inside):
        raise ParameterError(
            f"A file of parameters sends results to {given}, which is not in {inside}. If you want them there, say so "
            f"yourself: `-p outputs {given}` to papermill, `--config outputs={given}` to Snakemake."
        )


def notebook_defaults(notebook: str | Path) -> dict:
    """The defaults in a notebook's `parameters` cell."""
    from papermill import inspect_notebook

    found = inspect_notebook(str(notebook))
    return {name: check(name, ast.literal_eval(entry["default"])) for name, entry in found.items()}


def from_notebook(namespace: Mapping) -> SimpleNamespace:
    """Resolve a run's parameters inside its notebook, in the cell below the `parameters` cell.

    Papermill only warns about a parameter that the notebook does not have, and merges files and command line before the
    notebook sees them; so this looks at what was injected, and at the command, too.

    Args:
        namespace: the notebook's `globals()`.

    Returns:
        The parameters as attributes.
    """
    injected = {name: namespace[name] for name in _assigned(_injected_cell(namespace)) if name in namespace}
    given = {name: injected[name] for name in _command_line_names() if name in injected}
    for name, value in injected.items():
        check(name, value)
    defaults = {name: namespace[name] for name in namespace["__annotations__"]}
    defaults = {name: check(name, value) for name, value in defaults.items()}
    return SimpleNamespace(**resolve(defaults, injected, {}, given))


def table(p: SimpleNamespace):
    """The resolved parameters as a pandas table for readers; of paths the last part, since reports are passed on."""
    import pandas as pd  # here, because `fer-keras predict` starts without it

    shown = {name: Path(value).name if name in PATHS else value for name, value in vars(p).items()}
    return pd.Series({name: str(value) for name, value in shown.items()}, name="value").to_frame()


def _injected_cell(namespace: Mapping) -> str:
    """The cell that papermill put below the `parameters` cell; it starts with this comment."""
    return next((cell for cell in reversed(namespace.get("In", [])) if cell.startswith("# Parameters\n")), "")


def _assigned(cell: str) -> list[str]:
    return [target.id for node in ast.parse(cell).body if isinstance(node, ast.Assign) for target in node.targets]


def _command_line_names() -> list[str]:
    """Names given by `-p`, `-r` or `-y` to the papermill that runs this notebook: they win over a suite's overrides."""
    import psutil

    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return []
    names = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if word in ("-p", "--parameters", "-r", "--parameters_raw"):
            names.append(following)
        elif word in ("-y", "--parameters_yaml"):
            names += list(yaml.safe_load(following) or {})
    return names
