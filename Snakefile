"""Order and restart of the runs of suites: `snakemake --config suite=demo`, or several: `suite=official,clean,study`.

The graph comes from the params files: a run waits for the one that it starts from, an ensemble for its members, the
report for all. What reruns is decided by each run's key alone (profiles/default): it changes with the resolved
parameters, the faces, and the keys of the runs before it, never with a file's date or the code. Several suites also get
a page that puts them side by side.
"""

from pathlib import Path

from fer_keras import run
from fer_keras import suite as suites

SUITES = str(config.get("suite", "demo")).split(",")
GIVEN = {name: config[name] for name in ("data", "outputs") if config.get(name)}
try:
    JOBS = {(name, *place): job for name in SUITES for place, job in suites.jobs(name, GIVEN).items()}
except (OSError, ValueError) as error:
    raise WorkflowError(str(error)) from None
# A training that several suites have is made by the first and taken over by the others, which wait for it.
MADE_BY = {}
for job in JOBS.values():
    MADE_BY.setdefault(job.key, job)
FIRST = next(iter(JOBS.values()))
OUTPUTS, DATA = FIRST.params["outputs"], FIRST.params["data"]
# The faces are the same in all suites, and shown once.
REPORTS = [f"{OUTPUTS}/{SUITES[0]}/explore/report.html", *(f"{OUTPUTS}/{name}/report/report.html" for name in SUITES)]
WORTH = f"{OUTPUTS}/worth/{'+'.join(SUITES)}"
if len(SUITES) > 1:
    REPORTS.append(f"{WORTH}/report.html")
# As many runs at a time as there are GPUs to share out, each with its part of the cores.
RUNS = workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else 1


def job(wildcards):
    return JOBS[wildcards.suite, wildcards.experiment, int(wildcards.seed)]


def before(wildcards):
    this = job(wildcards)
    needed = [JOBS[wildcards.suite, name, this.seed] for name in this.needs]
    if MADE_BY[this.key] is not this:
        needed.append(MADE_BY[this.key])
    return [f"{each.folder}/metrics.json" for each in needed]


wildcard_constraints:
    suite="|".join(SUITES),
    experiment="|".join(sorted({name for _, name, _ in JOBS})),
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
    threads: max(1, workflow.cores // max(1, RUNS))
    resources:
        gpu=1,
    shell:
        "papermill {params.notebook} {log:q} --parameters_base64 {params.given} -p data {DATA:q} -p outputs {OUTPUTS:q}"
        " --no-progress-bar && fer-keras render {log:q}"


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
    shell:
        "papermill notebooks/{wildcards.notebook}.ipynb {log:q} -p suite {wildcards.suite} -p data {DATA:q}"
        " -p outputs {OUTPUTS:q} {params.more} --no-progress-bar && fer-keras render {log:q}"


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
        ferplus=["-p", "ferplus_csv", config["ferplus"]] if config.get("ferplus") else [],
    shell:
        "papermill notebooks/worth.ipynb {log:q} -y {params.suites:q} {params.ferplus:q} -p data {DATA:q} -p outputs {OUTPUTS:q}"
        " {params.more} --no-progress-bar && fer-keras render {log:q}"


onsuccess:
    print("\nReports of the runs:")
    for job in JOBS.values():
        print(f"  {Path(job.folder, 'report.html').resolve()}")
    print("The faces, each suite as a whole" + (", and the suites side by side:" if len(SUITES) > 1 else ":"))
    for report in REPORTS:
        print(f"  {Path(report).resolve()}")
