"""Order and restart of the runs of one suite: `snakemake --config suite=demo`.

The graph comes from the params files: a run waits for the one that it starts from, an ensemble for its members, the
report for all. What reruns is decided by each run's key alone (profiles/default): it changes with the resolved
parameters, the faces, and the keys of the runs before it, never with a file's date or the code.
"""

from pathlib import Path

from fer_keras import suite as suites

SUITE = config.get("suite", "demo")
GIVEN = {name: config[name] for name in ("data", "outputs") if config.get(name)}
JOBS = suites.jobs(SUITE, GIVEN)
FIRST = next(iter(JOBS.values()))
OUTPUTS, DATA = FIRST.params["outputs"], FIRST.params["data"]
FOLDER = f"{OUTPUTS}/{SUITE}"
REPORTS = [f"{FOLDER}/explore/report.html", f"{FOLDER}/report/report.html"]


def job(wildcards):
    return JOBS[wildcards.experiment, int(wildcards.seed)]


wildcard_constraints:
    experiment="|".join(sorted({name for name, _ in JOBS})),
    seed=r"\d+",


rule all:
    input:
        REPORTS,
        [f"{job.folder}/report.html" for job in JOBS.values()],


rule run:
    input:
        lambda w: [f"{JOBS[name, int(w.seed)].folder}/metrics.json" for name in job(w).needs],
    output:
        # Only what is rebuilt in seconds: Snakemake deletes a failed job's outputs, and a training must outlive a
        # picture that fails. The notebook finds weights with the right key and does not train again.
        f"{FOLDER}/{{experiment}}/seed-{{seed}}/metrics.json",
        f"{FOLDER}/{{experiment}}/seed-{{seed}}/report.html",
    log:
        f"{FOLDER}/{{experiment}}/seed-{{seed}}/notebook.ipynb",
    params:
        key=lambda w: job(w).key,
        given=lambda w: job(w).encoded(),
        notebook=lambda w: job(w).notebook,
    threads: workflow.cores
    resources:
        gpu=1,
    shell:
        "papermill {params.notebook} {log} --parameters_base64 {params.given} -p data {DATA:q} -p outputs {OUTPUTS:q}"
        " --no-progress-bar && fer-keras render {log}"


rule summary:
    input:
        lambda w: [f"{job.folder}/metrics.json" for job in JOBS.values()] if w.notebook == "report" else [],
    output:
        f"{FOLDER}/{{notebook}}/report.html",
    log:
        f"{FOLDER}/{{notebook}}/notebook.ipynb",
    wildcard_constraints:
        notebook="explore|report",
    params:
        after=sorted(job.key for job in JOBS.values()),
        more=lambda w: f"-p drawn_faces {FIRST.params['drawn_faces']}" if w.notebook == "explore" else "",
    shell:
        "papermill notebooks/{wildcards.notebook}.ipynb {log} -p suite {SUITE} -p data {DATA:q} -p outputs {OUTPUTS:q}"
        " {params.more} --no-progress-bar && fer-keras render {log}"


onsuccess:
    print("\nReports of the runs:")
    for job in JOBS.values():
        print(f"  {Path(job.folder, 'report.html').resolve()}")
    print("The faces, and the suite as a whole:")
    for report in REPORTS:
        print(f"  {Path(report).resolve()}")
