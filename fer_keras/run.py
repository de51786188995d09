"""A run's folder: `outputs/<suite>/<experiment>/seed-<k>/`, written so that a reader never sees half a file.

A point of a sweep has its folder one level deeper, `outputs/<suite>/<sweep>/<point>/seed-<k>/`.

`environment.json` is written last and removed first: a folder without it holds no finished run. Its `key` is made from
the resolved parameters, the data's fingerprint and the keys of the runs that this one starts from, so equal keys mean
equal results, and a file's date means nothing.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml

from fer_keras import lock
from fer_keras.data import Faces, concatenate
from fer_keras.duplicates import CLEAN_SHA256, THRESHOLD
from fer_keras.params import EVALUATION, HARDWARE, LOCATIONS, NAMES, root
from fer_keras.split import effective_protocol
from fer_keras.storage import file_hash, read_arrays, replacing, write_arrays, write_json, write_text

# The code from data to trained weights: when it has changed since a run, the run is stale.
TRAINING_MODULES = (
    "data",
    "source",
    "ferplus",
    "split",
    "resample",
    "augment",
    "roles",
    "steps",
    "model",
    "train",
    "devices",
)
# What a face can be, as `Faces.origin` says.
ORIGINS = ("original", "copy", "synthetic")
# What of the faces of a role is kept in `rows.npz`; the last only where faces were changed.
KEPT = ("rows", "labels", "parents", "weight", "changes")
# What a run had before there was such a parameter: it counts in no key.
USUAL = {
    "dataset": "fer2013",
    "num_classes": 7,
    "color": "grey",
    "labels": "fer2013",
    "ferplus_mode": "majority",
    "head": "dense",
}
# What papermill says while Snakemake runs it, kept when it fails.
LOG = "papermill.log"
PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "numpy", "scikit-learn", "imbalanced-learn", "fer-keras")


class RunError(ValueError):
    """A run that another one needs is missing, unfinished or does not fit."""


def folder_of(suite: str, experiment: str, seed: int, outputs: str | Path = "outputs", sweep: str = "") -> Path:
    """The folder of a run; `outputs` is looked for in the project's folder.

    Args:
        experiment: its name; of a point of a sweep, the point's.
        sweep: the sweep that a point belongs to.

    Raises:
        ValueError: if a name could lead out of `outputs`.
    """
    for name, value in (("suite", suite), ("experiment", experiment), *([("sweep", sweep)] if sweep else [])):
        check_name(name, value)
    return root() / Path(outputs).expanduser() / suite / sweep / experiment / f"seed-{seed}"


def check_name(name: str, value: str) -> None:
    """Refuse a name of a suite, experiment or sweep that could lead out of `outputs`."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(f"`{name}` must be a plain name of letters, digits, dots, dashes. Received: {value!r}")


def place_of(name: str, seed: int) -> tuple[str, int]:
    """Experiment and seed of a run as another run of its suite names it.

    Args:
        name: `tuned`, the run with the seed of the one that names it, or `tuned/seed-1`.
        seed: of the run that names it.

    Raises:
        ValueError: if it is no such name.
    """
    found = isinstance(name, str) and re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:/seed-(\d+))?", name)
    if not found:
        raise ValueError(
            f"Another run is named by its experiment, or by experiment and seed as in tuned/seed-1. Received: {name!r}"
        )
    return found[1], seed if found[2] is None else int(found[2])


def beside(folder: Path, name: str) -> Path:
    """The folder of another run of the same suite as the run in `folder`, named as `place_of` has it."""
    experiment, seed = place_of(name, int(folder.name.removeprefix("seed-")))
    return folder.parents[2 if read_params(folder).get("sweep") else 1] / experiment / f"seed-{seed}"


def key_of(params: Mapping, fingerprint: str, ancestors: Mapping[str, str]) -> str:
    """Identity of a training: SHA-256 of what its weights depend on.

    A parameter that is off (0, false, empty, "none" or `USUAL`) does not count, so that a new one changes no key of a
    run that does not use it. The names of suite, sweep and point do not count either, and the protocol is the one in
    effect: `baseline` and `tuned` are the same under `study` as under `official` (see `adopt`).

    Args:
        params: resolved parameters; those that say where things are, on what to train, or how to score, do not count.
        fingerprint: of the faces, from `Faces.fingerprint`.
        ancestors: key of each run (or file) that this one starts from or averages, from `ancestor_keys`.
    """
    params = dict(params)
    if params.get("members"):  # whose keys say which files their faces came from, besides those of `data`
        fingerprint = fingerprint.partition("+")[0]
    if "resampling" in params:
        more = params.get("subset_per_class", 0), params.get("auxiliary", "")
        params["protocol"] = effective_protocol(params["protocol"], params["resampling"], *more)
    if params.get("protocol") == "clean":
        params["clean"] = f"{CLEAN_SHA256} {THRESHOLD}"  # other rows to leave out are another training
    counted = {
        name: value
        for name, value in sorted(params.items())
        if name not in (*NAMES, *LOCATIONS, *HARDWARE, *EVALUATION)
        and (value != USUAL[name] if name in USUAL else value and value != "none")
    }
    text = json.dumps([counted, fingerprint, dict(sorted(ancestors.items()))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def source_hash() -> str:
    """SHA-256 of the code from data to train, without its comments and docstrings."""
    files = [Path(__file__).parent / f"{module}.py" for module in TRAINING_MODULES]
    return _code_hash(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@functools.cache  # by the files' dates: the states of a sweep of thousands of runs ask each time
def _code_hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, *_ in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):  # a text that stands alone is a docstring
                node.body = [line for line in body if not _is_text(line)] or [ast.Pass()]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def current_code(now: str) -> set[str]:
    """The hashes of code that counts as this one: itself, and older ones that were shown to train the same.

    benchmarks/equal_code.py shows it and keeps the list in `equal_code.json`, which is void when the code has changed.
    """
    known = json.loads((Path(__file__).parent / "equal_code.json").read_text())
    return {now, *known["equal"]} if known["current"] == now else {now}


LOADED_CODE = source_hash()  # now, because the files may change while a training runs


# --- Writing --------------------------------------------------------------------------------------------------------


@lock.writes
def begin(folder: Path, key: str, retrain: bool = False, parts: Mapping[str, Faces] = {}) -> None:
    """Note which code begins a training, and on which rows, before it does.

    A training that was interrupted goes on from its checkpoint, also when the code has changed since: the note then
    stays, and the run will be stale. Only `retrain` starts anew with other code. Rows that differ from those that the
    checkpoint was trained on, as another version of imbalanced-learn may draw them, always start anew.

    Args:
        parts: faces by role.

    Raises:
        RunError: if another process finished this run since this one looked.
    """
    if is_trained(folder, key) and not retrain:
        raise RunError(f"Another process finished {folder} meanwhile. Run this notebook again: it takes the results.")
    note, rows = folder / "started.json", _roles_hash(parts)
    if checkpoint_path(folder).exists() and (started := _started(folder, key)):
        # A process that was killed between its last two steps left the checkpoint of a finished training.
        over = is_trained(folder, key) and started["started"] <= read_environment(folder)["finished"]
        same_rows = started.get("rows", rows) == rows
        if same_rows and not over and (started["source_hash"] == LOADED_CODE or not retrain):
            return
        if not same_rows:
            print("Other rows train than those of the interrupted training, so it starts anew.")
        checkpoint_path(folder).unlink()
    write_json(note, {"key": key, "source_hash": LOADED_CODE, "rows": rows, "started": _now()})


def _roles_hash(parts: Mapping[str, Faces]) -> str:
    """SHA-256 of what each role's faces are made from."""
    digest = hashlib.sha256()
    for role, faces in sorted(parts.items()):
        arrays = faces.arrays()
        for name in (*KEPT, "targets"):
            if name in arrays:
                digest.update(f"{role} {name} ".encode())
                digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def progress(folder: Path, key: str, monitor: str, epochs: int):
    """A Keras callback that tells how far a training is, for others to read (see `fer_keras.progress.of`).

    Args:
        monitor: a key of `fer_keras.train.MONITORS`.
        epochs: at most.
    """
    from keras.callbacks import LambdaCallback

    from fer_keras.train import MONITORS

    better = min if MONITORS[monitor] == "min" else max
    known = [row[monitor] for row in checkpoint_history(folder, key)]

    def tell(epoch, logs):
        known[epoch:] = [float(logs[monitor])]  # an epoch that is done again after an interruption
        lock.tell(folder, epoch=epoch + 1, epochs=epochs, monitor=monitor, best=better(known))

    return LambdaCallback(on_epoch_end=tell)


def checkpoint_history(folder: Path, key: str | None = None) -> list[dict]:
    """The epochs, as in `history.csv`, of the checkpoint of an unfinished training; [] without one."""
    try:
        note = json.loads(str(read_arrays(checkpoint_path(folder), ["note"])["note"]))
    except FileNotFoundError:
        return []
    return note["history"] if key in (None, note["key"]) else []


def _started(folder: Path, key: str) -> dict | None:
    """The note of `begin` if it is about this run."""
    try:
        found = json.loads((folder / "started.json").read_text())
    except FileNotFoundError:
        return None
    return found if found["key"] == key else None


@lock.writes
def save_training(
    folder: Path,
    params: Mapping,
    key: str,
    parts: Mapping[str, Faces],
    history,
    model,
    seconds: float,
    ancestors: Mapping[str, Path] = {},
):
    """Write what a training leaves, before anything is scored: parameters, rows, history, weights, environment.

    Args:
        ancestors: folders of the runs that this one starts from or averages, by experiment, or a file of weights.
    """
    (folder / "environment.json").unlink(missing_ok=True)
    for stale in ("predictions.npz", "metrics.json"):
        (folder / stale).unlink(missing_ok=True)
    write_text(folder / "params.yaml", yaml.safe_dump(dict(params), sort_keys=False))
    rows = {}
    for role, faces in parts.items():
        arrays = faces.arrays()
        rows |= {f"{role}_{name}": arrays[name] for name in KEPT if name in arrays}
    write_arrays(folder / "rows.npz", **rows)
    if history is not None:
        with replacing(folder / "history.csv") as temporary:
            history.to_csv(temporary, index=False)
    with replacing(folder / "model.keras") as temporary:
        model.save(temporary)
        _reproducible(temporary)
    identity = {
        "key": key,
        "fingerprint": next((faces.fingerprint for faces in parts.values()), ""),
        "model_sha256": file_hash(folder / "model.keras"),
        "ancestors": model_hashes(ancestors),
        "source_hash": (_started(folder, key) or {}).get("source_hash", LOADED_CODE),
    }
    write_json(folder / "environment.json", identity | environment(seconds))
    checkpoint_path(folder).unlink(missing_ok=True)
    (folder / "started.json").unlink(missing_ok=True)


def _reproducible(path: Path) -> None:
    """Write a `.keras` file, a ZIP file, anew without times and addresses: equal trainings then leave equal files."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    about = json.loads(parts["metadata.json"])
    about.pop("date_saved", None)
    parts["metadata.json"] = json.dumps(about)
    numbers: dict[str, int] = {}  # for objects that the layers share, of which Keras notes the address in memory
    parts["config.json"] = re.sub(
        r'(?<="shared_object_id": )\d+',
        lambda found: str(numbers.setdefault(found[0], len(numbers))),
        parts["config.json"].decode(),
    )
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(zipfile.ZipInfo(name), content)


def model_hashes(folders: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of the model file of each finished run, by experiment: another one means that it was trained again.

    Args:
        folders: of the runs; a file of weights that no run made stands for itself.
    """
    return {
        name: file_hash(path) if path.is_file() else read_environment(path)["model_sha256"]
        for name, path in folders.items()
    }


def save_predictions(folder: Path, class_names, sets: Mapping[str, tuple[Faces, np.ndarray]], tta: str = "none"):
    """Write `predictions.npz`: row ids, labels, origins and probabilities of each named set, and how they were made."""
    arrays = {"class_names": np.array(class_names), "tta": np.array(tta)}
    for name, (faces, probabilities) in sets.items():
        arrays |= {
            f"{name}.rows": faces.rows,
            f"{name}.labels": faces.labels,
            f"{name}.origin": faces.origin,
            f"{name}.probabilities": probabilities.astype("float32"),
        }
    write_arrays(folder / "predictions.npz", **arrays)


def read_predictions(folder: Path) -> tuple[list[str], dict[str, SimpleNamespace]]:
    """Read `predictions.npz`: the class names, and per set rows, labels, origin, probabilities."""
    arrays = read_arrays(folder / "predictions.npz")
    class_names = arrays.pop("class_names").tolist()
    arrays.pop("tta", None)
    sets: dict[str, dict] = {}
    for name, array in arrays.items():
        subset, _, column = name.rpartition(".")
        sets.setdefault(subset, {})[column] = array
    return class_names, {name: SimpleNamespace(**columns) for name, columns in sets.items()}


def environment(seconds: float) -> dict:
    """What a run was made with: commit, versions, backend, devices, time."""
    import keras

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "git_commit": _git_commit(),
        "versions": versions,
        "backend": keras.backend.backend(),
        "devices": keras.distribution.list_devices(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "training_seconds": round(seconds, 1),
        "finished": _now(),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def checkpoint_path(folder: Path) -> Path:
    """Where an unfinished training keeps what resuming needs."""
    return folder / "checkpoint.npz"


def load_model(folder: Path):
    """The trained model of a run, without running code from the file.

    Raises:
        RunError: if the file is truncated or damaged.
    """
    import keras

    path = folder / "model.keras"
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception:  # Keras, zipfile and h5py raise many kinds
        if _is_whole(path):
            raise
        size = f"has {path.stat().st_size:,} bytes" if path.exists() else "is not there"
        raise RunError(
            f"{path} {size} and cannot be read: it is truncated or damaged. Copy it again, or train it anew: the run's "
            "command with `-p retrain true`."
        ) from None


def _is_whole(path: Path) -> bool:
    """Whether a `.keras` file, which is a ZIP file, holds what was written."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


def load_roles(folder: Path, faces: Faces, without: Sequence[str] = ()) -> dict[str, Faces]:
    """The faces of each role of a finished run, rebuilt from its `rows.npz` without resampling.

    Args:
        without: roles to leave out.
    """
    from fer_keras.roles import rebuild

    kept: dict[str, dict] = {}
    for name, array in read_arrays(folder / "rows.npz").items():
        role, _, column = name.rpartition("_")
        kept.setdefault(role, {})[column] = array
    return {role: rebuild(faces, **columns) for role, columns in kept.items() if role not in without}


@lock.writes
def predictions(
    folder: Path, sets: Mapping[str, Faces], predict: Callable, tta: str = "none"
) -> dict[str, SimpleNamespace]:
    """The predictions of a run on each set: read if it has them, otherwise made and written.

    Args:
        sets: faces by set name.
        predict: from uint8 images to probabilities.
        tta: the test-time augmentation that `predict` uses; predictions made with another one are made anew.
    """
    path = folder / "predictions.npz"
    if not path.exists() or str(read_arrays(path, ["tta"])["tta"]) != tta:
        names = next(iter(sets.values())).class_names
        save_predictions(folder, names, {name: (faces, predict(faces.images)) for name, faces in sets.items()}, tta)
    return read_predictions(folder)[1]


@lock.writes
def save_metrics(
    folder: Path, params: Mapping, key: str, sets: Mapping, protocol: str, chosen_by: Mapping, audit: Mapping
) -> dict:
    """Score each set of predictions and write `metrics.json`.

    Args:
        sets: from `predictions`.
        protocol: the one that the run used, from `fer_keras.split.effective_protocol`.
        chosen_by: which rows chose the model, and how.
        audit: which of the scored faces had been seen, from `fer_keras.audit.audit`.
    """
    from fer_keras.evaluate import score, score_by
    from fer_keras.source import name_of

    class_names = read_predictions(folder)[0]
    metrics = {
        "experiment": params["experiment"],
        "suite": params["suite"],
        "seed": params["seed"],
        "data": name_of(params),
        "protocol": protocol,
        "key": key,
        "class_names": class_names,
        "chosen_by": dict(chosen_by),
        "sets": {},
    }
    for name, found in sets.items():
        scores = score(found.labels, found.probabilities, class_names)
        if (found.origin != "original").any():
            scores["by_origin"] = score_by(found.labels, found.probabilities, found.origin, ORIGINS)
        metrics["sets"][name] = scores
    metrics["audit"] = dict(audit)
    write_json(folder / "metrics.json", metrics)
    return metrics


# --- Reading --------------------------------------------------------------------------------------------------------


def read_environment(folder: Path) -> dict | None:
    """`environment.json`, or None if the run is not finished."""
    try:
        return json.loads((folder / "environment.json").read_text())
    except FileNotFoundError:
        return None


def is_trained(folder: Path, key: str) -> bool:
    """Whether the folder holds the training with this key."""
    found = read_environment(folder)
    return bool(found) and found["key"] == key and (folder / "model.keras").exists()


def adopt(folder: Path, params: Mapping, key: str) -> Path | None:
    """Copy the training with this key from another suite's or sweep's folder, if the code as it is now made one.

    Returns:
        The folder that it came from, None if there is none.
    """
    outputs = folder.parents[3 if params.get("sweep") else 2]
    for other in sorted([*outputs.glob(f"*/*/{folder.name}"), *outputs.glob(f"*/*/*/{folder.name}")]):
        found = read_environment(other)
        if other != folder and is_trained(other, key) and found["source_hash"] in current_code(LOADED_CODE):
            with lock.writing(folder):
                (folder / "environment.json").unlink(missing_ok=True)
                for stale in ("predictions.npz", "metrics.json"):
                    (folder / stale).unlink(missing_ok=True)
                for name in ("rows.npz", "history.csv", "model.keras"):
                    with replacing(folder / name) as temporary:
                        shutil.copyfile(other / name, temporary)
                if read_environment(other) != found:  # trained again meanwhile
                    continue
                write_text(folder / "params.yaml", yaml.safe_dump(dict(params), sort_keys=False))
                write_json(folder / "environment.json", found)
                return other
    return None


def state(folder: Path, key: str | None = None) -> str:
    """What a run's folder holds.

    Args:
        key: what the run's key should be, None if it is not known.

    Returns:
        "done"; "not run"; "other parameters", if they or the faces are not those that the run should have; "stale", if
        the code has changed since the training, or a run that it comes from was trained again, or is stale itself.
    """
    found = read_environment(folder)
    if not found or not (folder / "metrics.json").exists():
        return "not run"
    if key is not None and found["key"] != key:
        return "other parameters"
    return "stale" if is_stale(folder) else "done"


def is_stale(folder: Path) -> bool:
    """Whether a run that is trained, scored or not, is "stale" in the sense of `state`."""
    found = read_environment(folder)
    if not found:
        return False
    if found["source_hash"] not in current_code(source_hash()):
        return True
    for name, model in found.get("ancestors", {}).items():
        where = beside(folder, name)
        ancestor = read_environment(where)
        if ancestor and (ancestor["model_sha256"] != model or is_stale(where)):
            return True
    return False


def failure(folder: Path) -> str:
    """The error that ended the run in a folder, empty if there is none: from its notebook, or what papermill said."""
    try:
        cells = json.loads((folder / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):  # there is none yet, or it is being written
        cells = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"{output['ename']}: {output['evalue']}".splitlines()[0]
    try:  # without a kernel, no cell has an error
        said = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    if said and not said.endswith("\n"):  # cut in the middle of a line
        return f"OSError: probably no space left on the disk: {folder / LOG} could not be written to its end"
    last = said.strip().rpartition("\n")[2].strip()
    command = "fer-keras: "  # which renders the notebook, and says in one sentence what is wrong
    return last.removeprefix(command) if "Traceback" in said or last.startswith(command) else ""


def sibling(p, name: str) -> Path:
    """The folder of another run of the same suite, which must be finished.

    Args:
        p: parameters with `suite`, `seed` and `outputs`.
        name: of the run, see `place_of`.

    Raises:
        RunError: if it is not there; says how to make it.
    """
    experiment, seed = place_of(name, p.seed)
    folder = folder_of(p.suite, experiment, seed, p.outputs)
    if read_environment(folder) is None:
        raise RunError(
            f"The run {experiment!r} of suite {p.suite!r} with seed {seed} is needed and is not finished: there is "
            f"no {folder / 'environment.json'}. Run it first, with the same `data`: papermill notebooks/train.ipynb "
            f"{folder / 'notebook.ipynb'} -f params/{experiment}.yaml -f params/suites/{p.suite}.yaml -p seed {seed}"
        )
    return folder


def class_names(folder: Path) -> list[str]:
    """Class names of a run, in the order of its outputs."""
    return read_arrays(folder / "predictions.npz", ["class_names"])["class_names"].tolist()


def read_metrics(folder: Path) -> dict:
    """`metrics.json` of a run."""
    return json.loads((folder / "metrics.json").read_text())


def read_params(folder: Path) -> dict:
    return yaml.safe_load((folder / "params.yaml").read_text())


def lineage(folder: Path) -> list[Path]:
    """The folders of this run and of all runs that it starts from or averages, nearest first."""
    params = read_params(folder)
    names = [params["starts_from"]] if params.get("starts_from") else params.get("members", [])
    found = [folder]
    for name in names:
        found += lineage(beside(folder, name))
    return found


def trainings(folder: Path) -> list[Path]:
    """Of `lineage`, the runs that trained: an ensemble itself does not."""
    return [run for run in dict.fromkeys(lineage(folder)) if not read_params(run).get("members")]


def members(folder: Path) -> list[Path]:
    """The folders of the runs that an ensemble averages; of another run, itself."""
    names = read_params(folder).get("members", [])
    return [beside(folder, name) for name in names] or [folder]


def trained_rows(folders: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the source that trained these runs: themselves, and as parents of synthetic faces; each sorted."""
    themselves, parents = [np.empty(0, int)], [np.empty(0, int)]
    for folder in folders:
        rows = read_arrays(folder / "rows.npz", ("train_rows", "train_parents"))
        themselves.append(rows["train_rows"])
        parents.append(rows["train_parents"].ravel())
    return tuple(found[found >= 0] for found in (np.unique(np.concatenate(rows)) for rows in (themselves, parents)))


def with_trained_labels(faces: Faces, folders: Sequence[Path]) -> Faces:
    """The faces with the labels that they trained these runs with, where they did: FER+'s, for example."""
    labels = faces.labels.copy()
    position = np.argsort(faces.rows, kind="stable")
    for folder in folders:
        kept = read_arrays(folder / "rows.npz", ("train_rows", "train_labels"))
        known = np.isin(kept["train_rows"], faces.rows)
        at = position[np.searchsorted(faces.rows, kept["train_rows"][known], sorter=position)]
        labels[at] = kept["train_labels"][known]
    return replace(faces, labels=labels)


def ancestor_keys(folders: Mapping[str, Path]) -> dict[str, str]:
    """The key of each run, by experiment; of a file of weights that no run made, its SHA-256."""
    return {
        name: file_hash(path) if path.is_file() else read_environment(path)["key"] for name, path in folders.items()
    }


def check_ancestors(folder: Path, parts: Mapping[str, Faces], protocol: str) -> None:
    """Refuse to start from a run that trained on the faces that this one tests, except under the study's protocol.

    Args:
        folder: the run to start from.
        parts: faces by role; those that test are "test" and "test_<name>".

    Raises:
        RunError: with the number of shared rows; also if the run was made from other faces under the same name.
    """
    if protocol == "study":
        return
    for ancestor in trainings(folder):
        other = _by_source(read_environment(ancestor)["fingerprint"])
        own = _by_source(parts["test"].fingerprint)
        for source in other.keys() & own.keys():
            if other[source] != own[source]:
                raise RunError(
                    f"{ancestor} was made from other faces (fingerprint {other[source][:8]}) than this run has "
                    f"({own[source][:8]}), so their rows cannot be compared. Give both the same `{source or 'data'}`."
                )
        rows = np.union1d(*trained_rows([ancestor]))
        for role, part in parts.items():
            if role.startswith("test") and len(shared := np.intersect1d(rows, part.rows)):
                raise RunError(
                    f"{ancestor} trained on {len(shared)} of the {len(part)} faces that this run tests as {role!r}. "
                    "Start from a run of the same protocol, or say `protocol: study`."
                )


def _by_source(fingerprint: str) -> dict[str, str]:
    """The parts of a fingerprint by the name of the data set; that of `data` itself by ""."""
    own, *others = fingerprint.split("+")
    return {"": own} | dict(part.split(":") for part in others)


def check_members(folders: Mapping[str, Path]) -> list[str]:
    """Check that the members of an ensemble have one class order, and return it.

    Raises:
        RunError: if two differ, or there are none.
    """
    if not folders:
        raise RunError("An ensemble needs at least two runs: `members` is empty.")
    orders = {name: class_names(folder) for name, folder in folders.items()}
    first, order = next(iter(orders.items()))
    for name, other in orders.items():
        if other != order:
            raise RunError(
                f"The members of an ensemble must have the same classes in the same order: {first} has "
                f"{', '.join(order)}; {name} has {', '.join(other)}."
            )
    return order


def crop_of_members(folders: Mapping[str, Path], tta: str) -> int:
    """The `crop` of the first member, for test-time augmentation.

    Raises:
        RunError: if views of test-time augmentation depend on it, and the members differ.
    """
    crops = {name: read_params(folder)["crop"] for name, folder in folders.items()}
    if tta == "ten_crop" and len(set(crops.values())) > 1:
        raise RunError(
            "`tta: ten_crop` needs members with the same `crop`; these have "
            f"{', '.join(f'{crop} ({name})' for name, crop in crops.items())}. Use `tta: flip`."
        )
    return next(iter(crops.values()))


def chosen_by_members(metrics: Mapping[str, Mapping]) -> dict:
    """Which rows chose an ensemble: those that chose its members; under `study` each has its own.

    Args:
        metrics: of the members, by experiment.
    """
    chosen = {name: found["chosen_by"] for name, found in metrics.items()}
    numbers = [each["n"] for each in chosen.values()]
    apart = any(found["protocol"] == "study" for found in metrics.values())
    return {
        "role": "validation",
        "n": sum(numbers) if apart else numbers[0],
        "monitor": ", ".join(dict.fromkeys(each["monitor"] for each in chosen.values())),
        "epoch": None,
        "members": chosen,
    }


def ensemble_sets(faces: Faces, folders: Mapping[str, Path], protocol: str) -> dict[str, Faces]:
    """The faces that an ensemble is scored on.

    Under `official` and `clean` the members share their roles; `train` then holds the original faces that trained the
    first one. Under `study` each member has drawn its own, and the published text does not say which rows gave 97 %, so
    there are each member's test faces (`test_<member>`), all of them pooled (`test`), and the original faces that no
    member and no ancestor trained on (`test_unseen`, if there are any).

    Args:
        faces: all faces of the source.
        folders: of the members, by experiment.

    Raises:
        RunError: if members that should share their test faces do not.
    """
    first = next(iter(folders))
    roles = {
        name: load_roles(folder, faces, without=() if name == first else ["train"]) for name, folder in folders.items()
    }
    if protocol != "study":
        sets = roles[first]
        for name, other in roles.items():
            if not np.array_equal(other["test"].rows, sets["test"].rows):
                raise RunError(
                    f"The members of an ensemble must be scored on the same faces: {first} has {len(sets['test'])} "
                    f"test faces, {name} {len(other['test'])} others. Average runs of one protocol and one data set."
                )
        return sets | {"train": sets["train"].take(sets["train"].origin == "original")}
    sets = {f"test_{name}": parts["test"] for name, parts in roles.items()}
    trained = trained_rows([run for folder in folders.values() for run in trainings(folder)])
    unseen = faces.take(~np.isin(faces.rows, np.union1d(*trained)))
    return {"test": concatenate(list(sets.values()))} | ({"test_unseen": unseen} if len(unseen) else {}) | sets
