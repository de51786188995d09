"""A suite on a real Slurm with two nodes, both on this machine: `make test-slurm`.

Munge, slurmctld and two slurmd run in namespaces of their own, with an own /etc/slurm and host names of their own, so
that nothing of the machine is touched, and all of it ends with this process, however it ends. Tried are: that the runs
go to both nodes, are asked for what `fer_keras.cost` estimates and give the numbers of a local call, bit by bit; that
Ctrl-C cancels the jobs; that after a kill -9 of the one who submits, whose jobs live on, the same command lets nobody
write a run beside them.

It needs root, for the namespaces, and Debian's packages slurm-wlm and munge; elsewhere it is skipped, and says why.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
SUITE, RUNS = "pair", ("baseline", "tuned", "ensemble")
CONTROL, NODES = "control", ("n1", "n2")
PROGRAMS = ("unshare", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
INSIDE = "FER_KERAS_SLURM_TEST"
# Seconds after which something that should happen has not.
PATIENCE = 300
# The test's cluster has no accounting, and is in a hurry.
OF_THE_CLUSTER = ["--slurm-status-command=squeue", "--default-resources", "slurm_partition=main"]
HURRY = ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"]
WITHOUT_PAGES = ["--", *(f"outputs/{SUITE}/{name}/seed-0/report.html" for name in RUNS)]


class Broken(Exception):
    """Something is not as promised."""


class Unavailable(Exception):
    """Slurm cannot be started here."""


# --- A cluster --------------------------------------------------------------------------------------------------------


def lacking() -> str:
    """Why this cannot be tried here, "" if it can."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if sys.platform != "linux" or missing:
        return f"there is no {' and no '.join(missing)} (Debian's packages slurm-wlm and munge)"
    if os.geteuid():
        return "it needs root, for namespaces of its own"
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        return "there is no snakemake-executor-plugin-slurm: pip install -e '.[slurm]'"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    return f"namespaces cannot be made here ({done.stderr.strip()})" if done.returncode else ""


UNSHARE = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]


@contextlib.contextmanager
def cluster(folder: Path):
    """Start Slurm, wait until both nodes are idle, and end it."""
    folder.mkdir(mode=0o755)
    subprocess.run(["hostname", CONTROL], check=True)
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {CONTROL} {' '.join(NODES)}\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    Path("/etc/slurm").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/slurm"], check=True)
    ports = [_free_port() for _ in (CONTROL, *NODES)]
    (folder / "state").mkdir()
    Path("/etc/slurm/slurm.conf").write_text(
        f"ClusterName=test\nSlurmctldHost={CONTROL}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n"
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge.socket\n"
        f"CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\nSlurmctldPort={ports[0]}\n"
        f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool_%n\n"
        f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd_%n.pid\n"
        f"SlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd_%n.log\n"
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n"
        "AccountingStorageType=accounting_storage/none\nMpiDefault=none\nReturnToService=2\nMinJobAge=3600\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\nGresTypes=gpu\nKillWait=10\n"
        "SlurmdParameters=config_overrides\n"  # the nodes are larger than this machine
        + "".join(
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=32000 Gres=gpu:1\n"
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        + f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=2-0 State=UP\n"
    )
    Path("/etc/slurm/gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File=/dev/null\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    places = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munge = [f"--{name}{'' if name == 'socket' else '-file'}={place}" for name, place in places.items()]
    programs = [["munged", "--foreground", "--force", f"--key-file={key}", *munge], ["slurmctld", "-D"]]
    programs += [["unshare", "--uts", "sh", "-c", f"hostname {name} && exec slurmd -D -N {name}"] for name in NODES]
    started = []
    try:
        for program in programs:
            with open(folder / "said.log", "ab") as log:
                started.append(subprocess.Popen(program, stdout=log, stderr=log))
            time.sleep(1)
        idle = [f"{name} idle" for name in NODES]
        try:
            wait(lambda: sorted(told("sinfo", "-h", "-N", "-o", "%N %T").splitlines()) == idle, "cluster")
        except Broken as error:
            raise Unavailable(str(error)) from None
        yield
    except BaseException:
        for log in folder.glob("*.log"):
            print(f"--- the end of {log.name}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
        raise
    finally:
        subprocess.run(["scancel", "--partition=main"], capture_output=True)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def told(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def wait(happens, what: str, process: subprocess.Popen | None = None):
    """What `happens` returns as soon as that is true."""
    began = time.monotonic()
    while not (found := happens()):
        if process and process.poll() is not None:
            raise Broken(f"The command ends before {what}.")
        if time.monotonic() - began > PATIENCE:
            raise Broken(f"In {PATIENCE} s there was no {what}.")
        time.sleep(0.2)
    return found


def jobs() -> list[dict]:
    """All jobs that the cluster has had, with what Slurm says of each."""
    lines = told("scontrol", "--oneliner", "show", "jobs").splitlines()
    return [dict(word.partition("=")[::2] for word in line.split()) for line in lines if line.startswith("JobId=")]


def of_run(name: str, state: str = "") -> list[dict]:
    """The jobs that a run has had."""
    return [job for job in jobs() if f"_{name}_" in job["Comment"] and state in ("", job["JobState"])]


def over() -> bool:
    return not {job["JobState"] for job in jobs()} & {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}


# --- A project --------------------------------------------------------------------------------------------------------


def new_project(parent: Path, name: str) -> Path:
    """A copy of what a user has, with the suite."""
    folder = parent / name
    for part in ("notebooks", "params", "profiles"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copy(Path(__file__).parent / f"{SUITE}.yaml", folder / "params/suites")
    return folder


def start(project: Path, *more: str) -> subprocess.Popen:
    """The command of a user."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    with open(project / "said.log", "ab") as log:
        command = ["snakemake", "--config", f"suite={SUITE}", *more]
        return subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT)


def submit(project: Path, *targets: str) -> subprocess.Popen:
    return start(project, "--workflow-profile", "profiles/slurm", *OF_THE_CLUSTER, *HURRY, *targets)


def finish(project: Path, process: subprocess.Popen) -> None:
    try:
        code = process.wait(2 * PATIENCE)
    except subprocess.TimeoutExpired:
        raise Broken(f"In {2 * PATIENCE} s it does not end:\n{said(project)}") from None
    if code:
        raise Broken(f"The command fails:\n{said(project)}")


def said(project: Path) -> str:
    return (project / "said.log").read_text(errors="replace")[-4000:]


def folder_of(project: Path, name: str) -> Path:
    return project / f"outputs/{SUITE}/{name}/seed-0"


def writer(project: Path, name: str) -> dict:
    """The note of the kernel that writes a run, {} if there is none that lives."""
    from fer_keras import lock

    note = lock.holder(folder_of(project, name)) or {}
    return note if note.get("pid") in [kernel.pid for kernel in kernels()] else {}


def check_equal(project: Path, local: Path) -> None:
    """The same metrics and predictions, bit by bit, as those of runs on this machine."""
    for name in RUNS:
        here, there = (folder_of(each, name) for each in (project, local))
        if json.loads((here / "metrics.json").read_text()) != json.loads((there / "metrics.json").read_text()):
            raise Broken(f"The metrics of {name} differ from those of a local run.")
        with np.load(here / "predictions.npz") as a, np.load(there / "predictions.npz") as b:
            if a.files != b.files or not all(np.array_equal(a[n], b[n]) for n in a.files):
                raise Broken(f"The predictions of {name} differ from those of a local run.")
        if not (here / "report.html").read_text().rstrip().endswith("</html>"):
            raise Broken(f"The page of {name} is not whole.")
        if left := [path.name for path in here.iterdir() if path.name.startswith(".") or path.suffix == ".log"]:
            raise Broken(f"{name} leaves {', '.join(left)}.")


# --- The trials -------------------------------------------------------------------------------------------------------


def both_nodes(parent: Path, local: Path) -> None:
    """The whole suite: each run where a GPU is free, asked for as estimated, and the numbers of a local run."""
    from fer_keras import cost, suite

    project = new_project(parent, "both")
    began = time.monotonic()
    finish(project, submit(project))
    check_equal(project, local)
    os.chdir(project)
    planned = {name: job for (name, _), job in suite.jobs(SUITE, {}).items()}
    made = {name: of_run(name)[0] for name in RUNS}
    if {made[name]["NodeList"] for name in ("baseline", "tuned")} != set(NODES):
        raise Broken(f"The runs did not go to both nodes: {made}")
    for name, job in made.items():
        asked = cost.resources(planned[name].params)
        days, minutes = divmod(asked["runtime"], 24 * 60)
        time_limit = f"{f'{days}-' if days else ''}{minutes // 60:02}:{minutes % 60:02}:00"
        wanted = {"TimeLimit": time_limit, "MinMemoryNode": f"{asked['mem_mb']}M", "NumCPUs": "4"}
        wanted |= {"TresPerJob": "gres:gpu:1", "JobState": "COMPLETED"}
        if {key: job.get(key) for key in wanted} != wanted:
            raise Broken(f"For {name} {wanted} was to be asked for, and it was {job}.")
    if not list(project.glob("outputs/*/report/report.html")):
        raise Broken("There is no page about the suite.")
    nodes = ", ".join(f"{name} on {job['NodeList']}" for name, job in made.items())
    print(f"     {nodes}; equal to a local call; {time.monotonic() - began:.0f} s", flush=True)


def interrupted(parent: Path) -> None:
    """Ctrl-C cancels the jobs, and nobody goes on writing."""
    project = new_project(parent, "interrupted")
    process = submit(project, *WITHOUT_PAGES)
    wait(lambda: [name for name in RUNS if writer(project, name)], "run", process)
    process.send_signal(signal.SIGINT)
    if process.wait(PATIENCE) == 0:
        raise Broken("After Ctrl-C the command says that all is done.")
    wait(over, "end of the jobs")
    states = {job["JobState"] for job in jobs()}
    if "CANCELLED" not in states:
        raise Broken(f"No job was cancelled: {jobs()}")
    wait(lambda: not kernels(), "end of the kernels")
    print(f"     Ctrl-C: the jobs are {' and '.join(sorted(states)).lower()}, and no kernel is left", flush=True)


def killed(parent: Path, local: Path) -> None:
    """kill -9 of the one who submits: the same command waits for the jobs that live on, and trains nothing twice."""
    project = new_project(parent, "killed")
    process = submit(project, *WITHOUT_PAGES)
    name = wait(lambda: [name for name in RUNS if writer(project, name)], "run", process)[0]
    note = writer(project, name)
    kernel = psutil.Process(note["pid"])
    kernel.suspend()  # so that it is still there when the next job for its run starts
    before = {job["JobId"] for job in jobs()}
    process.kill()
    process.wait()
    again = submit(project, *WITHOUT_PAGES)
    notebook = folder_of(project, name) / "notebook.ipynb"
    waiting = f"process {note['pid']} on {note['host']}"
    wait(lambda: waiting in _read(notebook).decode(errors="replace"), "job that waits for the other one", again)
    new = [job for job in of_run(name, "RUNNING") if job["JobId"] not in before]
    if [job["NodeList"] for job in new] != [other for other in NODES if other != note["host"]]:
        raise Broken(f"The run of {note} was to be submitted to the other node: {new}")
    if writer(project, name).get("pid") != note["pid"]:
        raise Broken(f"{name} has another writer than {note}.")
    kernel.resume()
    environment = wait(lambda: _read(folder_of(project, name) / "environment.json"), "end of the training", again)
    finish(project, again)
    if _read(folder_of(project, name) / "environment.json") != environment:
        raise Broken(f"{name} was trained twice.")
    wait(over, "end of all jobs")
    check_equal(project, local)
    print(
        f"     kill -9: {name}'s job on {note['host']} lives on, the new one on {new[0]['NodeList']} waits and takes "
        "its results; equal to a local call",
        flush=True,
    )


def kernels() -> list[psutil.Process]:
    """Kernels of notebooks, of which there are only this test's in its namespace."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ipykernel_launcher" in process.cmdline():
                found.append(process)
    return found


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def main() -> int:
    if reason := lacking():
        print(f"skipped: {reason}")
        return 0
    if INSIDE not in os.environ:  # in place of this process, so that whoever ends it ends all
        os.execvpe(UNSHARE[0], [*UNSHARE, sys.executable, __file__], os.environ | {INSIDE: "1"})
    # The first process of a namespace ignores the one; what is started in the background, and its children, the other.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, str(ROOT))
    folder = tempfile.TemporaryDirectory(prefix="fer-keras-slurm-", ignore_cleanup_errors=True)
    parent = Path(folder.name)
    try:
        local = new_project(parent, "local")
        began = time.monotonic()
        finish(local, start(local, *WITHOUT_PAGES))
        print(f"     a local call: {time.monotonic() - began:.0f} s", flush=True)
        with cluster(parent / "cluster"):
            both_nodes(parent, local)
            interrupted(parent)
            killed(parent, local)
    except (Unavailable, subprocess.CalledProcessError) as error:  # of a command that prepares the cluster
        print(f"skipped: Slurm cannot be started here: {error}")
        return 0
    except Broken as error:
        print(f"BROKEN: {error}", file=sys.stderr)
        return 1
    print("The suite runs on Slurm.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
