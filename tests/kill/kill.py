"""Kill anything, lose nothing: `make test-kill`.

A tiny suite on drawn faces is run by the command that a user gives, and killed at random moments: SIGKILL of Snakemake,
of papermill or of the kernel. The same command is given again until all is done. After each kill every file that counts
as a result must be whole, and no finished run may have changed; in the end the metrics and predictions must equal, bit
by bit, those of a suite that was never killed. Then the same with a full disk, with read-only outputs, and with another
Snakemake beside one that still runs.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import yaml

ROOT = Path(__file__).parents[2]
SUITE = "tiny"
RUNS = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())["experiments"]
# By this word in their environment the processes of this test are told from all others.
MARK = f"fer-keras-{uuid.uuid4()}"
PROGRAMS = {"snakemake": "snakemake", "papermill": "papermill", "kernel": "ipykernel_launcher"}


class Broken(Exception):
    """Something was lost, half-written or done twice."""


# --- A project and its processes ------------------------------------------------------------------------------------


def new_project(parent: Path, name: str) -> Path:
    """A copy of what a user has, with the tiny suite."""
    folder = parent / name
    for part in ("notebooks", "params", "profiles"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copy(Path(__file__).parent / "tiny.yaml", folder / "params/suites" / f"{SUITE}.yaml")
    return folder


def start(project: Path) -> subprocess.Popen:
    """The command of a user: the runs, without the pages about them."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FER_KERAS_KILL_TEST": MARK,
    }
    targets = [f"outputs/{SUITE}/{name}/seed-0/report.html" for name in RUNS]
    log = open(project / "said.log", "ab")  # noqa: SIM115  the child writes it
    command = ["snakemake", "--config", f"suite={SUITE}", "--", *targets]
    return subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT)


def ours() -> list[psutil.Process]:
    """All living processes of this test, orphans too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FER_KERAS_KILL_TEST") == MARK and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def find(victim: str) -> list[psutil.Process]:
    found = []
    for process in ours():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()[:4]
            if words and "python" in Path(words[0]).name and any(PROGRAMS[victim] == Path(w).name for w in words[1:]):
                found.append(process)
    return found


def end_all() -> None:
    for process in ours():
        with contextlib.suppress(psutil.Error):
            process.kill()


def finish(project: Path, tries: int = 3) -> float:
    """Give the command until it succeeds; the seconds that it took."""
    began = time.monotonic()
    for _ in range(tries):
        if start(project).wait() == 0:
            while ours():
                time.sleep(0.2)
            return time.monotonic() - began
    raise Broken(f"After {tries} calls without a kill it still fails:\n{tail(project)}")


def tail(project: Path, lines: int = 40) -> str:
    return "\n".join((project / "said.log").read_text(errors="replace").splitlines()[-lines:])


# --- What must hold -------------------------------------------------------------------------------------------------


def check_whole(project: Path) -> None:
    """Every file that counts as a result is whole, and what says that a run is trained has its weights."""
    readers = {
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": lambda path: yaml.safe_load(path.read_text()) or _fail("it is empty"),
        ".csv": lambda path: len(pd.read_csv(path)) or _fail("it is empty"),
        ".npz": _read_arrays,
        ".keras": lambda path: zipfile.ZipFile(path).testzip() and _fail("it is no whole zip"),
        ".html": lambda path: path.read_text().rstrip().endswith("</html>") or _fail("it ends early"),
    }
    for folder in project.glob("outputs/*/*/seed-*"):
        for path in folder.iterdir():
            if path.name.startswith(".") or path.suffix not in readers:
                continue  # temporary names, and the notebook and papermill's words, which are no results
            with contextlib.suppress(FileNotFoundError):  # an orphan or a new call takes it away meanwhile
                try:
                    readers[path.suffix](path)
                except FileNotFoundError:
                    raise
                except Exception as error:
                    raise Broken(f"{path} is half a file: {type(error).__name__}: {error}") from None


def _fail(why):
    raise ValueError(why)


def _read_arrays(path):
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            file[name]


class Finished:
    """Remembers each run from when it is finished, and refuses that it is run again."""

    def __init__(self):
        self.seen = {}

    def check(self, project: Path) -> None:
        from fer_keras.storage import file_hash

        for name in RUNS:
            folder = project / f"outputs/{SUITE}/{name}/seed-0"
            path = folder / "environment.json"
            found = path.read_bytes() if path.exists() else None
            if name in self.seen and found != self.seen[name]:
                raise Broken(f"{name} was finished and was run again.")
            if found is not None and name not in self.seen:
                self.seen[name] = found
            if found is not None and file_hash(folder / "model.keras") != json.loads(found)["model_sha256"]:
                raise Broken(f"{name} counts as finished and has other weights than it says.")


def check_equal(project: Path, whole: Path) -> None:
    """The same metrics and predictions, bit by bit, and nothing left over."""
    for name in RUNS:
        here, there = (each / f"outputs/{SUITE}/{name}/seed-0" for each in (project, whole))
        if json.loads((here / "metrics.json").read_text()) != json.loads((there / "metrics.json").read_text()):
            raise Broken(f"The metrics of {name} differ from those of a run that was never killed.")
        for file in ("predictions.npz", "rows.npz"):
            with np.load(here / file) as a, np.load(there / file) as b:
                if a.files != b.files or not all(np.array_equal(a[n], b[n]) for n in a.files):
                    raise Broken(f"{file} of {name} differs from that of a run that was never killed.")
        names = [{path.name for path in folder.iterdir()} for folder in (here, there)]
        if names[0] != names[1]:
            raise Broken(f"{name} has other files than a run that was never killed: {sorted(names[0] ^ names[1])}")
        cells = nbformat.read(here / "notebook.ipynb", as_version=4).cells
        if any(output.output_type == "error" for cell in cells for output in cell.get("outputs", [])):
            raise Broken(f"The notebook of {name} shows an error.")


# --- The trials -----------------------------------------------------------------------------------------------------


def kill_at_random(parent: Path, whole: Path, moments: int, seconds: float, rng: random.Random) -> None:
    """Kill so many times, each at another moment; a suite that is done is begun anew."""
    chain, project, finished = 0, None, None
    victims = [name for _ in range(-(-moments // 3)) for name in rng.sample(list(PROGRAMS), 3)]
    number = 0
    while number < moments:
        if project is None:
            chain += 1
            project, finished = new_project(parent, f"killed-{chain}"), Finished()
        process, wait = start(project), rng.uniform(0.5, seconds / 2)
        before = time.monotonic()
        while process.poll() is None and time.monotonic() - before < wait:
            time.sleep(0.05)
        victim = victims[number]
        while process.poll() is None and not find(victim):
            time.sleep(0.05)
        if process.poll() is None:
            target = rng.choice(find(victim) or [psutil.Process(process.pid)])
            with contextlib.suppress(psutil.Error):
                target.kill()
            number += 1
            if victim != "snakemake":
                process.wait()
            left = len(find("kernel"))
            check_whole(project)
            finished.check(project)
            print(
                f"{number:3}  {victim:9} after {wait:5.1f} s: whole; {done(project)}; {left} kernels left", flush=True
            )
        elif process.returncode:
            raise Broken(f"The command fails without a kill:\n{tail(project)}")
        if all((project / f"outputs/{SUITE}/{name}/seed-0/report.html").exists() for name in RUNS) and not find(
            "kernel"
        ):
            conclude(project, whole, finished)
            project = None
    if project:
        conclude(project, whole, finished)


def done(project: Path) -> str:
    names = [name for name in RUNS if (project / f"outputs/{SUITE}/{name}/seed-0/environment.json").exists()]
    return f"trained: {', '.join(names) or 'none'}"


def conclude(project: Path, whole: Path, finished: Finished) -> None:
    finish(project)
    check_whole(project)
    finished.check(project)
    check_equal(project, whole)
    print(f"     {project.name} is done, and equal to a suite that was never killed", flush=True)


def second_snakemake(parent: Path, whole: Path) -> None:
    """The same command beside one that runs is refused, and harms nothing; when that one is killed, it is not."""
    project, finished = new_project(parent, "two"), Finished()
    first = start(project)
    while not find("kernel"):
        time.sleep(0.1)
    if start(project).wait() == 0 or "LockException" not in tail(project):
        raise Broken(f"A second Snakemake beside a running one is not refused:\n{tail(project)}")
    if first.wait() != 0:
        raise Broken(f"A second Snakemake broke the first one:\n{tail(project)}")
    finished.check(project)
    check_equal(project, whole)
    print("     a second Snakemake is refused while the first one runs, which ends well", flush=True)


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """A file system of its own for a folder, of so many bytes.

    Raises:
        PermissionError: where it may not be mounted.
    """
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        raise PermissionError(made.stderr.strip())
    try:
        yield
    finally:
        end_all()
        time.sleep(0.5)
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def disk_full(parent: Path, whole: Path) -> None:
    """The disk is full somewhere in the middle; with room, the same command goes on."""
    needed = sum(path.stat().st_size for path in (whole / "outputs").rglob("*") if path.is_file())
    for share in (0.2, 0.7):
        project, finished = new_project(parent, f"full-{share}"), Finished()
        outputs = project / "outputs"
        with small_disk(outputs, int(share * needed)):
            if start(project).wait() == 0:
                raise Broken(f"All fits on {share:.0%} of the room that it needs.")
            check_whole(project)
            finished.check(project)
            told = [line for line in tail(project, 200).splitlines() if "no space left" in line.lower()]
            if not told:
                raise Broken(f"The user is not told that the disk is full:\n{tail(project)}")
            print(f"     disk full at {share:.0%}: {done(project)}; {told[-1].strip()[:100]}", flush=True)
            remount(outputs, f"size={20 * needed}")
            conclude(project, whole, finished)


def read_only(parent: Path, whole: Path) -> None:
    """Outputs that cannot be written stop the command, and stay as they are."""
    project, finished = new_project(parent, "read-only"), Finished()
    outputs = project / "outputs"
    with small_disk(outputs, 500_000_000):
        process = start(project)
        while not list(outputs.glob("*/tuned/seed-0/environment.json")):
            time.sleep(0.2)
            if process.poll() is not None:
                raise Broken(f"The command ends early:\n{tail(project)}")
        end_all()
        while ours():
            time.sleep(0.2)
        finished.check(project)
        remount(outputs, "ro")
        before = {path: path.stat().st_mtime_ns for path in outputs.rglob("*")}
        if start(project).wait() == 0:
            raise Broken("It succeeds although nothing can be written.")
        if {path: path.stat().st_mtime_ns for path in outputs.rglob("*")} != before:
            raise Broken("Read-only outputs were changed.")
        told = [line for line in tail(project).splitlines() if "Read-only" in line]
        if not told:
            raise Broken(f"The user is not told that the outputs are read-only:\n{tail(project)}")
        print(f"     read-only outputs: {told[-1].strip()[:100]}", flush=True)
        remount(outputs, "rw")
        conclude(project, whole, finished)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=["kills", "two", "full", "read-only"])
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    trials = {
        "kills": lambda parent, whole, took: kill_at_random(
            parent, whole, given.moments, took, random.Random(given.seed)
        ),
        "two": lambda parent, whole, took: second_snakemake(parent, whole),
        "full": lambda parent, whole, took: disk_full(parent, whole),
        "read-only": lambda parent, whole, took: read_only(parent, whole),
    }
    with tempfile.TemporaryDirectory(prefix="fer-keras-kill-") as temporary:
        parent = Path(temporary)
        try:
            whole = new_project(parent, "whole")
            took = finish(whole)
            print(f"     never killed: {took:.0f} s", flush=True)
            for name, trial in trials.items():
                if not given.only or name in given.only:
                    try:
                        trial(parent, whole, took)
                    except PermissionError as error:
                        print(f"     skipped: {name}: a file system of its own cannot be mounted here ({error})")
        except Broken as error:
            print(f"BROKEN: {error}", file=sys.stderr)
            return 1
        finally:
            end_all()
    print("Nothing was lost.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
