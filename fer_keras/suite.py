"""A suite: experiments over one data set and protocol, as a graph of runs that Snakemake executes."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from fer_keras import params, run

# The notebook that runs an experiment, told by the parameters that only one of them has.
TRAIN, ENSEMBLE = "notebooks/train.ipynb", "notebooks/ensemble.ipynb"


@dataclass(frozen=True)
class Job:
    """One run of a suite: its resolved parameters, notebook, folder, the runs it needs, and its key."""

    experiment: str
    seed: int
    params: Mapping
    notebook: str
    folder: Path
    needs: tuple[str, ...]
    key: str

    def encoded(self) -> str:
        """The parameters for `papermill --parameters_base64`, less those that say where things are."""
        moved = {name: value for name, value in self.params.items() if name not in params.LOCATIONS}
        return base64.b64encode(yaml.safe_dump(moved).encode()).decode()


def jobs(
    suite: str, command_line: Mapping = {}, folder: str | Path | None = None, fingerprint: str | None = None
) -> dict[tuple[str, int], Job]:
    """The runs of a suite, in an order in which each comes after those it needs.

    Args:
        suite: name of a file in `params/suites/`.
        command_line: parameters that win over the files, e.g. `data`.
        folder: where the experiments' files and `suites/` are; the project's `params/` by default.
        fingerprint: of the faces; read from the suite's data by default.

    Returns:
        Jobs by (experiment, seed).

    Raises:
        FileNotFoundError, ParameterError: if a file or a parameter is wrong.
        ValueError: if an experiment needs one that the suite does not have, or itself.
    """
    folder = Path(folder or params.root() / "params")
    content = params.read(folder / "suites" / f"{suite}.yaml")
    if content.get("suite") != suite:
        raise params.ParameterError(
            f"{folder}/suites/{suite}.yaml must say `suite: {suite}`. Received: {content.get('suite')!r}"
        )
    if not content.get("experiments"):
        raise params.ParameterError(f"{folder}/suites/{suite}.yaml must list its `experiments`.")
    command_line = {name: params.check(name, value, "the command line") for name, value in command_line.items()}
    defaults = {notebook: params.notebook_defaults(params.root() / notebook) for notebook in (TRAIN, ENSEMBLE)}
    resolved = {}
    for seed in content.get("seeds") or [defaults[TRAIN]["seed"]]:
        for name in content["experiments"]:
            experiment = params.read(folder / f"{name}.yaml")
            if experiment.get("experiment") != name:
                raise params.ParameterError(
                    f"{folder}/{name}.yaml must say `experiment: {name}`. Received: {experiment.get('experiment')!r}"
                )
            notebook = ENSEMBLE if "members" in experiment else TRAIN
            one = params.resolve(defaults[notebook], experiment, content, {"seed": seed, **command_line})
            resolved[name, seed] = (notebook, one)
    if fingerprint is None:
        from fer_keras.source import fingerprint_of

        first = next(iter(resolved.values()))[1]
        fingerprint = fingerprint_of(first["data"], first["drawn_faces"])
    found: dict[tuple[str, int], Job] = {}

    def add(name, seed, needed_by=()):
        if (name, seed) in found:
            return
        if (name, seed) not in resolved:
            raise ValueError(f"{needed_by[-1]} needs the run {name!r}, which the suite {suite!r} does not list.")
        if name in needed_by:
            raise ValueError(f"Experiments cannot start from each other: {' → '.join([*needed_by, name])}.")
        notebook, one = resolved[name, seed]
        needs = tuple(
            one.get("members") or [one["starts_from"]] if one.get("members") or one.get("starts_from") else []
        )
        for other in needs:
            add(other, seed, (*needed_by, name))
        key = run.key_of(one, fingerprint, {other: found[other, seed].key for other in needs})
        where = run.folder_of(one["suite"], name, seed, one["outputs"])
        found[name, seed] = Job(name, seed, one, notebook, where, needs, key)

    for name, seed in resolved:
        add(name, seed)
    return found
