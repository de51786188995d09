"""How long the graph of a large sweep takes to plan: python benchmarks/graph.py 100 1000 10000

Draws a sweep of so many runs of one experiment, nothing of which is made, and measures the library's own part
(`suite.jobs`) and the whole of `snakemake --dry-run`, in seconds of processor time (what it takes on an idle machine)
and by the clock, with the most memory that Snakemake held.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from fer_keras import suite

ROOT = Path(__file__).parents[1]


def draw(folder: Path, runs: int) -> None:
    """A project with the sweep `drawn` of so many points over the suite `demo`."""
    for name in ("notebooks", "params", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    grid = {"learning_rate": [float(f"{(i + 1) * 1e-6:.6g}") for i in range(runs)]}
    if runs >= 100:
        grid = {
            "learning_rate": [float(f"{(i + 1) * 1e-5:.6g}") for i in range(runs // 10)],
            "l2": [float(f"{i * 1e-4:.6g}") for i in range(10)],
        }
    (folder / "params/sweeps/drawn.yaml").write_text(
        yaml.safe_dump({"sweep": "drawn", "experiment": "tuned", "grid": grid})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=int, nargs="*", default=[100, 1000, 10000])
    print(f"{'runs':>7} {'suite.jobs':>16} {'snakemake --dry-run':>24} {'memory':>9}")
    for runs in parser.parse_args().runs:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            draw(folder, runs)
            os.chdir(folder)
            began, clock = time.process_time(), time.perf_counter()
            found = suite.jobs("demo", {}, sweep="drawn")
            own = time.process_time() - began, time.perf_counter() - clock
            assert len(found) == runs, (len(found), runs)
            environment = os.environ | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            }
            before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = ["snakemake", "--dry-run", "--quiet", "all", "--config", "suite=demo", "sweep=drawn"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - clock
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            own, whole = f"{own[0]:.1f} s ({own[1]:.0f})", f"{used:.1f} s ({took:.0f})"
            print(f"{runs:7,} {own:>16} {whole:>24} {after.ru_maxrss / 1e6:6.1f} GB", flush=True)
            os.chdir(ROOT)


if __name__ == "__main__":
    main()
