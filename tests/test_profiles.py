"""The profiles for clusters, as far as they can be tried without one: `make test-slurm` installs what they need."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("snakemake", reason="Snakemake is not installed")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path):
    """A copy of what a user has, and a way to call its Snakemake."""
    for part in ("notebooks", "params", "profiles"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copy(ROOT / "tests/slurm/pair.yaml", tmp_path / "params/suites")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def call(*words):
        done = subprocess.run(
            ["snakemake", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
        )
        return done.returncode, done.stdout + done.stderr

    call.folder, call.environment = tmp_path, environment
    return call


def runs(said):
    """What a dry run says of each run."""
    return [part for part in said.split("\n[") if "rule train_or_average:" in part]


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_plans_all_runs_and_asks_for_what_is_estimated(project, name):
    pytest.importorskip(f"snakemake_executor_plugin_{name}", reason=f"pip install -e '.[{name}]'")
    words = ["--workflow-profile", f"profiles/{name}", "--dry-run", "--quiet", "host"]
    code, said = project(*words, "--config", "suite=demo", "gflops=0.1")
    assert code == 0, said
    assert len(runs(said)) == 7 and all("gpu=1" in part for part in runs(said)), said
    # 0.1 GFLOP/s: hours for the runs that train, and the quarter of an hour for the ensemble
    found = [re.search(r"experiment=(\S+),.*runtime=(\d+)", part, re.DOTALL).groups() for part in runs(said)]
    minutes = {name: int(value) for name, value in found}
    assert minutes["ensemble"] == 15 and minutes["tuned"] > minutes["baseline"] > 60, minutes


def test_the_default_profile_is_as_it_was(project):
    project.environment["CUDA_VISIBLE_DEVICES"] = "0,1"
    words = ["--dry-run", "--quiet", "host", "--printshellcmds", "--cores", "6", "--resources", "gpu=2"]
    code, said = project(*words, "--config", "suite=demo", "--set-resources", "train_or_average:runtime=600")
    assert code == 0 and len(runs(said)) == 7, said
    assert all("gpu=1" in part and "threads: 3" in part and "runtime=600" in part for part in runs(said)), said
    assert all("export CUDA_VISIBLE_DEVICES" in part for part in runs(said)), "each run has a GPU of its own"


def test_a_speed_that_is_none_is_one_sentence(project):
    for speed in ("0", "fast"):
        code, said = project("--dry-run", "--config", "suite=demo", f"gflops={speed}")
        assert code and speed in said and "Traceback" not in said


def test_a_setting_that_is_none_is_one_sentence(project):
    code, said = project("--dry-run", "--config", "suit=best")
    assert code and "There is no setting 'suit': `--config` takes suite, sweep" in said and "Traceback" not in said


def test_suites_with_different_faces_are_refused(project):
    path = project.folder / "params/suites/pair.yaml"
    (path.parent / "other.yaml").write_text(
        path.read_text().replace("suite: pair", "suite: other") + "outputs: outputs/o\n"
    )
    code, said = project("--dry-run", "--config", "suite=pair,other")
    assert code and "have different `outputs`: outputs, outputs/o. Give them one" in said and "Traceback" not in said


def test_results_go_through_a_store_as_they_must_on_kubernetes(project):
    """Locally, with the store of that profile: what Snakemake knows of is copied, all else is in the run's folder."""
    pytest.importorskip("snakemake_storage_plugin_fs", reason="pip install -e '.[kubernetes]'")
    if not shutil.which("rsync"):
        pytest.skip("the storage plugin fs needs rsync")
    path = project.folder / "params/suites/pair.yaml"
    suite = yaml.safe_load(path.read_text()) | {"experiments": ["tuned"], "overrides": {"tuned": {"epochs": 1}}}
    path.write_text(yaml.safe_dump(suite))
    store = yaml.safe_load((ROOT / "profiles/kubernetes/config.yaml").read_text())["default-storage-provider"]
    words = ["--default-storage-provider", store, "--default-storage-prefix", str(project.folder)]
    code, said = project(*words, "--config", "suite=pair", "--until", "train_or_average")
    assert code == 0, said
    folder = project.folder / "outputs/pair/tuned/seed-0"
    assert json.loads((folder / "metrics.json").read_text())["sets"]["test"]["n"]
    assert (folder / "report.html").read_text().rstrip().endswith("</html>") and (folder / "model.keras").exists()
