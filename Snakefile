"""Order and restart of the runs of suites: `snakemake --config suite=demo`, or several: `suite=official,clean,study`.

The graph comes from the params files: a run waits for the one that it starts from, an ensemble for its members, the
report for all. What reruns is decided by each run's key alone (profiles/default): it changes with the resolved
parameters, the faces, and the keys of the runs before it, never with a file's date or the code. Several suites also get
a page that puts them side by side. A run whose path is not given, such as `affectnet=PATH`, is left out. With `sweep=tuning` the points of params/sweeps/tuning.yaml run in place of a suite's
experiments, by the same rule, and then the page that compares them. With `--workflow-profile
profiles/slurm` each run is a job of a cluster (docs/clusters.md), which is asked for what `fer_keras.cost` estimates;
`gflops=2000` says how fast its GPUs are.
"""

import re
import shlex
from pathlib import Path

from fer_keras import cost, gpus, lock, progress, run
from fer_keras import suite as suites
from fer_keras.params import PATHS

# A misspelled one would be passed over in silence, and with `suit=best` the demo run.
SETTINGS = ("suite", "sweep", "ferplus", "gflops", *PATHS)
for name in config:
    if name not in SETTINGS:
        raise WorkflowError(
            f"There is no setting {name!r}: `--config` takes {', '.join(SETTINGS)}. The parameters of runs stand in params/."
        )
SWEEP = str(config.get("sweep", ""))
SUITES = str(config.get("suite", "demo")).split(",")
if config.get("ferplus"):
    config["ferplus_csv"] = config["ferplus"]
GIVEN = {name: str(config[name]) for name in PATHS if config.get(name)}
try:
    ALL = {(name, *place): job for name in SUITES for place, job in suites.jobs(name, GIVEN, sweep=SWEEP).items()}
    JOBS = {place: job for place, job in ALL.items() if not job.missing}
    if not JOBS:
        raise ValueError(f"Every run of {', '.join(SUITES)} needs a path that is not given: {next(iter(ALL.values())).missing}.")
    if SWEEP:
        suites.check(JOBS.values())
    for name in PATHS:
        if len(found := sorted({job.params[name] for job in JOBS.values() if job.params.get(name)})) > 1:
            raise ValueError(f"These suites have different `{name}`: {', '.join(found)}. Give them one: --config {name}=PATH")
except (OSError, ValueError) as error:
    raise WorkflowError(str(error)) from None
# A training that several suites have is made by the first and taken over by the others, which wait for it.
MADE_BY = {}
for job in JOBS.values():
    MADE_BY.setdefault(job.key, job)
LEFT_OUT = [f"{name} (needs {job.missing})" for (_, name, _), job in ALL.items() if job.missing]
FIRST = next(iter(JOBS.values()))
OUTPUTS, DATA = FIRST.params["outputs"], FIRST.params["data"]
# The faces are the same in all suites, and shown once.
REPORTS = [f"{OUTPUTS}/{SUITES[0]}/explore/report.html", *(f"{OUTPUTS}/{name}/report/report.html" for name in SUITES)]
WORTH = f"{OUTPUTS}/worth/{'+'.join(SUITES)}"
if len(SUITES) > 1:
    REPORTS.append(f"{WORTH}/report.html")
if SWEEP:
    REPORTS = [f"{OUTPUTS}/{name}/{SWEEP}/report.html" for name in SUITES]
# Where things are is told to every notebook, which takes what it needs; a file of parameters may say it, too.
GIVEN = {name: job.params[name] for job in JOBS.values() for name in PATHS if job.params.get(name)} | GIVEN
try:
    GFLOPS = float(config.get("gflops", cost.GFLOPS))
    cost.resources(FIRST.params, GFLOPS)
except ValueError as error:
    raise WorkflowError(str(error)) from None
if workflow.is_main_process and not workflow.dryrun:
    lock.only_snakemake()
# Pods share no file system, as Snakemake sees them (profiles/kubernetes): what it knows of goes through a store, which is
# a folder on a volume that all of them mount. There each run has its folder, with what Snakemake does not know of.
STORE = workflow.storage_settings.default_storage_prefix
RESULTS = f"{STORE}/{OUTPUTS}" if STORE else OUTPUTS
if STORE:
    GIVEN["outputs"] = RESULTS
FOUND = "{RESULTS:q}/{wildcards.suite}/{wildcards.experiment:q}/seed-{wildcards.seed}/metrics.json"
PLACES = " ".join(f"-p {name} {shlex.quote(path)}" for name, path in GIVEN.items())
# As many runs at a time as there are GPUs to share out, each with its part of the cores.
RUNS = workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else 1
# On a cluster it shares out the GPUs itself.
ONE_GPU = "" if workflow.remote_exec else gpus.one_each(int(RUNS))
# On a cluster the profile says how many cores a run takes (set-threads), as its nodes, which read this file again, may
# have others than this machine.
CORES = None if workflow.remote_exec else workflow.global_resources["_cores"].value
# TensorFlow still starts a thread for each core in every run: on a CPU their number changes the last bits of a training,
# and a run must not depend on how many run beside it.
THREADS = max(1, CORES // max(1, RUNS)) if CORES else 1
# What a cluster is asked for to make a page.
PAGE = {"mem_mb": 8000, "runtime": 60}
# How a notebook is executed and rendered; what papermill says is kept when it fails. A run waits for a process that an
# earlier command left behind.
EXECUTED = (
    f"said=$(dirname {{notebook}})/{run.LOG}; ({lock.WAIT}=1 papermill {{name}} {{notebook}} {{given}} --no-progress-bar"
    ' && fer-keras render {notebook}) > "$said" 2>&1 && rm -f "$said"'
)
# The pages about a suite and about a sweep.
OF_SUITE = EXECUTED.replace("{given}", "-p suite {suite} -p data {{DATA:q}} -p outputs {{RESULTS:q}} {more}")
TUNING = OF_SUITE.replace("{name}", "notebooks/tuning.ipynb").replace("{more}", f"-p sweep {SWEEP}")


def job(wildcards):
    return JOBS[wildcards.suite, wildcards.experiment, int(wildcards.seed)]


def before(wildcards):
    this = job(wildcards)
    needed = [JOBS[(wildcards.suite, *other)] for other in this.needs.values()]
    if MADE_BY[this.key] is not this:
        needed.append(MADE_BY[this.key])
    return [f"{each.folder}/metrics.json" for each in needed]


wildcard_constraints:
    suite="|".join(SUITES),
    experiment="|".join(sorted({re.escape(name) for _, name, _ in JOBS})),  # of a point, <sweep>/<point>
    seed=r"\d+",


rule all:
    input:
        REPORTS,
        [f"{job.folder}/report.html" for job in JOBS.values()],


rule train_or_average:
    input:
        before,
    output:
        # Only what is rebuilt in seconds: Snakemake deletes a failed job's outputs, and a training must outlive a
        # picture that fails. The notebook finds weights with the right key and does not train again.
        f"{OUTPUTS}/{{suite}}/{{experiment}}/seed-{{seed}}/metrics.json",
        f"{OUTPUTS}/{{suite}}/{{experiment}}/seed-{{seed}}/report.html",
    log:
        f"{OUTPUTS}/{{suite}}/{{experiment}}/seed-{{seed}}/notebook.ipynb",
    params:
        key=lambda w: job(w).key,
        # A folder that somebody filled with another run since is not the result that was recorded.
        fits=lambda w: run.state(job(w).folder, job(w).key) != "other parameters",
        given=lambda w: job(w).encoded(),
        notebook=lambda w: job(w).notebook,
    threads: THREADS
    resources:
        gpu=1,
        mem_mb=lambda w: cost.resources(job(w).params, GFLOPS)["mem_mb"],
        runtime=lambda w: cost.resources(job(w).params, GFLOPS)["runtime"],
    shell:
        "{ONE_GPU}"
        + EXECUTED.format(
            name="{params.notebook}", notebook="{log:q}", given="--parameters_base64 {params.given} {PLACES}"
        )
        # Snakemake looks for the results where it put the notebook; in a store that is not the run's folder.
        + f" && (test {FOUND} -ef {{output[0]:q}} || cp {FOUND} {{output[0]:q}})"


rule summary:
    input:
        lambda w: [f"{job.folder}/metrics.json" for (suite, *_), job in JOBS.items() if suite == w.suite]
        if w.notebook == "report"
        else [],
    output:
        f"{OUTPUTS}/{{suite}}/{{notebook}}/report.html",
    log:
        f"{OUTPUTS}/{{suite}}/{{notebook}}/notebook.ipynb",
    wildcard_constraints:
        notebook="explore|report",
    params:
        after=lambda w: sorted(job.key for (suite, *_), job in JOBS.items() if suite == w.suite),
        more=f"-p drawn_faces {FIRST.params['drawn_faces']}",
    resources:
        **PAGE,
    shell:
        OF_SUITE.format(
            name="notebooks/{wildcards.notebook}.ipynb", notebook="{log:q}", suite="{wildcards.suite}", more="{params.more}"
        )


rule worth:
    input:
        [f"{job.folder}/metrics.json" for job in JOBS.values()],
    output:
        f"{WORTH}/report.html",
    log:
        f"{WORTH}/notebook.ipynb",
    params:
        after=sorted(job.key for job in JOBS.values()),
        suites=f"suites: [{', '.join(SUITES)}]",
        more=f"-p drawn_faces {FIRST.params['drawn_faces']}",
        ferplus=["-p", "ferplus_csv", config["ferplus_csv"]] if config.get("ferplus_csv") else [],
    resources:
        **PAGE,
    shell:
        EXECUTED.format(
            name="notebooks/worth.ipynb",
            notebook="{log:q}",
            given="-y {params.suites:q} {params.ferplus:q} -p data {DATA:q} -p outputs {RESULTS:q} {params.more}",
        )


rule tuning:
    input:
        lambda w: [f"{job.folder}/metrics.json" for (suite, *_), job in JOBS.items() if suite == w.suite],
    output:
        f"{OUTPUTS}/{{suite}}/{{sweep}}/report.html",
    log:
        f"{OUTPUTS}/{{suite}}/{{sweep}}/notebook.ipynb",
    wildcard_constraints:
        sweep=re.escape(SWEEP) or "(?!)",
    params:
        after=lambda w: sorted(job.key for (suite, *_), job in JOBS.items() if suite == w.suite),
    resources:
        **PAGE,
    shell:
        TUNING.format(suite="{wildcards.suite}", notebook="{log:q}")


# While the runs are made, a line that says how far they are stands in for Snakemake's own, which its log file has.
LINES = []


onstart:
    logger = workflow.logger_manager.logger
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler" and not workflow.output_settings.verbose:
            handler.addFilter(progress.matters)
    planned = [each.wildcards for each in workflow.dag.needrun_jobs() if each.rule.name == progress.RULE]
    LINES.append(progress.Lines(JOBS, [(w.suite, w.experiment, int(w.seed)) for w in planned], queued=workflow.non_local_exec))
    logger.addHandler(LINES[0])


def conclude():
    for lines in LINES:
        lines.close()
    print(progress.summary(JOBS, LINES[0].failed if LINES else [], [Path(page) for page in REPORTS]))
    if LEFT_OUT:
        print(f"\nNot run: {', '.join(dict.fromkeys(LEFT_OUT))}.")


onsuccess:
    conclude()


# A run that fails, e.g. because its training diverged, must not hide what the others found.
onerror:
    for suite in SUITES:
        if any(Path(job.folder, "metrics.json").exists() for (name, *_), job in JOBS.items() if name == suite):
            if SWEEP:
                command = TUNING.format(suite=suite, notebook=shlex.quote(f"{OUTPUTS}/{suite}/{SWEEP}/notebook.ipynb"))
            else:
                more = f"-p drawn_faces {FIRST.params['drawn_faces']}"
                notebook = shlex.quote(f"{OUTPUTS}/{suite}/report/notebook.ipynb")
                command = OF_SUITE.format(name="notebooks/report.ipynb", notebook=notebook, suite=suite, more=more)
            shell(f"mkdir -p {{OUTPUTS:q}}/{suite}/{SWEEP or 'report'}; ({command}) || true")
    conclude()
