"""What a sweep costs beyond its runs: `python benchmarks/sweep.py`, and `--simulate SECONDS` for up to 1,000 workers.

A sweep of short runs on drawn faces is executed by Snakemake and papermill with 1, 2 and 4 runs at a time, each with
one core, nothing of it done before, and the same runs by plain library calls in one process. Prints seconds for each
run, what Snakemake, papermill, the pictures and the page add to a run, and the efficiency on K workers: the time on one
worker over K times that on K. Runs at a time beyond the machine's cores share them, which is no loss of the engine's.

With `--simulate`, no run is made: so many runs of SECONDS each, whose lengths vary as those of early stopping do, are
given to K workers by a scheduler that starts `--rate` jobs a second, of which each waits in the queue and starts up.
"""

import argparse
import heapq
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
EPOCHS, FACES, WIDTH = 10, 1400, 0.0625


def draw(folder: Path, runs: int) -> None:
    """A project with the sweep `drawn` of so many points over the suite `short`."""
    for name in ("notebooks", "params", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    suite = {"suite": "short", "experiments": ["tuned"], "data": "drawn", "drawn_faces": FACES, "protocol": "official"}
    suite |= {"width": WIDTH, "epochs": EPOCHS, "patience": 0}
    grid = {"learning_rate": [float(f"{1e-4 * (i + 1):.6g}") for i in range(runs)]}
    (folder / "params/suites/short.yaml").write_text(yaml.safe_dump(suite))
    sweep = {"sweep": "drawn", "experiment": "tuned", "grid": grid}
    (folder / "params/sweeps/drawn.yaml").write_text(yaml.safe_dump(sweep))


def execute(folder: Path, workers: int) -> float:
    """Seconds that the sweep's runs take with so many at a time, without the page that compares them."""
    shutil.rmtree(folder / "outputs", ignore_errors=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # each run has one core, also where it runs alone
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
    }
    command = ["snakemake", "--cores", str(workers), "--resources", f"gpu={workers}"]
    command += ["--config", "suite=short", "sweep=drawn", "--until", "train_or_average"]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - began


def call(folder: Path) -> list[float]:
    """Seconds of each of the sweep's runs by library calls, in one process that has imported everything."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import sweep; sweep.call_here()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        cwd=folder,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("took ")]


def call_here() -> None:
    from types import SimpleNamespace

    from fer_keras import audit, evaluate, model, run, source, steps, suite, train

    for job in suite.jobs("short", {"outputs": "called"}, sweep="drawn").values():
        began = time.perf_counter()
        p = SimpleNamespace(**job.params)
        train.seed_everything(p.seed, p.precision, p.deterministic)
        faces = source.load_for(job.params)
        network, parts = steps.network(p, faces), steps.roles(p, faces)
        history = train.fit(
            network,
            parts["train"],
            parts["validation"],
            optimizer=p.optimizer,
            learning_rate=p.learning_rate,
            epochs=p.epochs,
            batch_size=p.batch_size,
            patience=p.patience,
            monitor=p.monitor,
            seed=p.seed,
        )
        network = model.float32(network)
        run.save_training(job.folder, job.params, job.key, parts, history, network, time.perf_counter() - began)
        sets = run.predictions(job.folder, parts, lambda images, network=network: evaluate.predict(network, images))
        chosen_by = {"role": "validation", "n": len(parts["validation"]), "monitor": p.monitor, "epoch": 1}
        found = audit.audit(job.folder, faces)
        run.save_metrics(job.folder, job.params, job.key, sets, p.protocol, chosen_by, found)
        print("took", time.perf_counter() - began, flush=True)


def simulate(runs: int, seconds: float, workers: int, rate: float, startup: float, queue: float, seed: int = 0):
    """Efficiency of a scheduler with a central queue: the work over the workers' time until the last run has ended."""
    rng = random.Random(seed)
    lengths = [seconds * rng.uniform(0.5, 1.5) for _ in range(runs)]
    free = [0.0] * workers
    submitted = 0.0
    for length in lengths:
        earliest = heapq.heappop(free)
        # A job is submitted when the scheduler has room for it, and no faster than it can.
        submitted = max(submitted + 1 / rate, earliest)
        heapq.heappush(free, submitted + queue + startup + length)
    return sum(lengths) / (workers * max(free))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--simulate", type=float, metavar="SECONDS", help="of a run, on a worker")
    parser.add_argument("--rate", type=float, default=2.0, help="jobs that the scheduler starts in a second")
    parser.add_argument("--startup", type=float, default=10.0, help="seconds until a job's notebook computes")
    parser.add_argument("--queue", type=float, default=15.0, help="seconds until a free worker has its job")
    given = parser.parse_args()
    if given.simulate:
        workers = [1, 4, 16, 64, 250, 1000]
        print(f"runs a worker {'':6}" + "".join(f"{f'K = {k}':>10}" for k in workers))
        for each in (1, 4, 10, 40):
            shares = [simulate(each * k, given.simulate, k, given.rate, given.startup, given.queue) for k in workers]
            print(f"{each:13} {'':6}" + "".join(f"{share:10.2f}" for share in shares))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder, given.runs)
        called = statistics.median(call(folder))
        print(f"library call: {called:.1f} s a run (median of {given.runs}, in one process)", flush=True)
        one = None
        for workers in given.workers:
            took = execute(folder, workers)
            one = one or took * workers
            each = took * min(workers, given.runs) / given.runs
            shared = f", which share {os.cpu_count()} cores" if workers > os.cpu_count() else ""
            print(
                f"{workers} at a time: {took:.0f} s, {each:.1f} s a run, {each - called:+.1f} s beside the call; "
                f"efficiency {one / (workers * took):.2f}{shared}",
                flush=True,
            )


if __name__ == "__main__":
    main()
