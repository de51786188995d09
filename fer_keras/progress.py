"""How far the runs of a suite are: for `fer-keras status`, and line by line while Snakemake runs them.

Everything is read from the runs' folders: the note of the process that writes there, the checkpoint of a training that
was interrupted, the executed notebook of one that failed.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from fer_keras import lock, run
from fer_keras.suite import Job

# The rule of the Snakefile that makes a run, and seconds between two lines when nothing happens.
RULE, EVERY = "train_or_average", 60.0
# So many runs are named one by one.
NAMED = 20


def of(folder: Path) -> tuple[str, str]:
    """What goes on in the folder of a run that is not done.

    Returns:
        "running", "failed", "interrupted" or "not run", and what there is to say about it.
    """
    if note := lock.holder(folder):
        who = f"process {note['pid']} on {note['host']}"
        return "running", f"{how_far(note)}for {duration(time.time() - note['began'])}, {who}"
    if error := run.failure(folder):
        return "failed", error
    if history := run.checkpoint_history(folder):
        return "interrupted", f"after epoch {len(history)}; the same command goes on"
    if (folder / lock.NAME).exists():
        return "interrupted", "before its first checkpoint; the same command begins again"
    return "not run", ""


def how_far(note: Mapping) -> str:
    """What a training told last, see `fer_keras.run.progress`."""
    if "epoch" not in note:
        return ""
    return f"epoch {note['epoch']} of {note['epochs']}, best {note['monitor']} {note['best']:.4f}, "


def duration(seconds: float) -> str:
    """A time for readers: "40 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(0, seconds):.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def matters(record: logging.LogRecord) -> bool:
    """Whether a message of Snakemake's is for a reader who sees `Lines`: a warning, an error, or that it ends.

    That the command of a run failed is told by its own last line.
    """
    text = record.getMessage()
    ends = text.startswith(("Will exit", "Terminating", "Shutting down", "Complete log"))
    return ends or (record.levelno >= logging.WARNING and "CalledProcessError" not in text)


class Lines(logging.Handler):
    """Follows Snakemake's own events, and tells in a line a reader understands how many runs are done.

    A line comes when a run starts, ends or fails, and every minute; `close` ends them.

    Args:
        jobs: the runs by (suite, experiment, seed), each after those it needs.
        planned: of these, the runs to be made now.
        tell: called with each line; prints it by default.
        queued: Snakemake's jobs are a cluster's, which starts them when it can: a run is running when its process has
            taken its folder. No line comes then for each that is handed over.
    """

    def __init__(
        self, jobs: Mapping[tuple[str, str, int], Job], planned: Iterable[tuple], tell=None, queued: bool = False
    ):
        super().__init__()
        self.jobs, self.tell, self.queued = jobs, tell or partial(print, flush=True), queued
        self.waiting = dict.fromkeys(planned)
        # Of the others some may be neither done nor asked for, as with `--batch` or one run's page as a target.
        self.before = sum(place not in self.waiting and _done(job) for place, job in jobs.items())
        self.running: dict[int, tuple] = {}  # by Snakemake's number of the job
        self.finished, self.failed = [], []
        self.began, self.last, self.ended = time.monotonic(), "", threading.Event()
        threading.Thread(target=self._every_minute, daemon=True).start()

    def emit(self, record):
        try:
            self._follow(record)
        except Exception:  # a line that cannot be told must not end the runs
            self.handleError(record)

    def _follow(self, record):
        event = str(getattr(record, "event", None) or "")
        if event == "job_info" and record.rule_name == RULE:
            place = (record.wildcards["suite"], record.wildcards["experiment"], int(record.wildcards["seed"]))
            self.waiting.pop(place, None)
            self.running[record.jobid] = place
            if not self.queued:
                self.show()
        elif event == "job_finished" and record.job_id in self.running:
            self.finished.append(self.running.pop(record.job_id))
            self.show()
        elif event == "job_error" and record.jobid in self.running:
            place = self.running.pop(record.jobid)
            self.failed.append(place)
            self.tell(f"Failed: {name_of(place, self.jobs)}: {run.failure(self.jobs[place].folder) or KILLED}")
            self.show()
        elif event == "job_error" and record.log:  # a page about many runs
            folder = Path(record.log[0]).parent
            self.tell(f"Failed: {folder / 'notebook.ipynb'}: {run.failure(folder) or KILLED}")

    def close(self):
        self.ended.set()
        super().close()

    def show(self):
        """Tell the line, if it says something new."""
        with self.lock:  # events come from several threads
            line = self.line()
            if line != self.last:
                self.last = line
                self.tell(f"{time.strftime('%H:%M')}  {line}")

    def line(self) -> str:
        """How many runs are done, which are running and how far, how many failed, and the time left."""
        notes = {place: lock.holder(self.jobs[place].folder) or {} for place in self.running.values()}
        parts = [f"{self.before + len(self.finished)} of {len(self.jobs)} runs done"]
        running = {place: note for place, note in notes.items() if note or not self.queued}
        if running:
            names = [f"{name_of(place, self.jobs)}{_epoch(note)}" for place, note in list(running.items())[:4]]
            parts.append(f"{len(running)} running ({'; '.join(names)}{'; …' if len(running) > 4 else ''})")
        if len(running) < len(notes):
            parts.append(f"{len(notes) - len(running)} queued or starting")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        left = self._seconds_left(notes)
        return ", ".join(parts + ([f"about {duration(left)} left"] if left else []))

    def _seconds_left(self, notes) -> float | None:
        """By the epochs that were trained since the beginning; early stopping makes it less."""
        made = sum(_epochs(self.jobs[place]) for place in self.finished)
        made += sum(note.get("epoch", 0) for note in notes.values())
        taken = time.monotonic() - self.began
        if not made or taken < 10:
            return None
        blocked = needing(self.failed, self.jobs)
        left = sum(_epochs(self.jobs[place]) for place in self.waiting if place not in blocked)
        left += sum(_epochs(self.jobs[place]) - note.get("epoch", 0) for place, note in notes.items())
        return max(0, left) * taken / made

    def _every_minute(self):
        while not self.ended.wait(EVERY):
            self.show()


KILLED = "it ended without an error of its own: killed, or out of memory or of time"


def summary(jobs: Mapping[tuple[str, str, int], Job], failed: Iterable[tuple], pages: Iterable[Path] = ()) -> str:
    """What came out, with the places to look at.

    Args:
        jobs: the runs by (suite, experiment, seed).
        failed: of these, the ones that failed just now.
        pages: reports on more than one run.
    """
    failed = list(failed)
    done = [job for place, job in jobs.items() if place not in failed and _done(job)]
    blocked = [place for place in needing(failed, jobs) if jobs[place] not in done]
    lines = ["", f"{len(done)} of {len(jobs)} runs are done."]
    if failed:
        lines += ["Failed (the notebook shows where):"]
        for place in failed:
            folder = jobs[place].folder
            lines += [f"  {name_of(place, jobs)}: {run.failure(folder) or KILLED}"]
            lines += [f"    {(folder / 'notebook.ipynb').resolve()}"]
        if blocked:
            lines += [f"Not begun, since they need them: {', '.join(name_of(place, jobs) for place in blocked)}."]
        lines += ["The same command goes on with what is missing, and trains nothing twice."]
    if done:
        lines += ["Reports of the runs:", *(f"  {(job.folder / 'report.html').resolve()}" for job in done[:NAMED])]
        if len(done) > NAMED:
            lines += [f"  and {len(done) - NAMED} more"]
    if pages := [page for page in pages if page.exists()]:
        lines += ["Pages about all of them:", *(f"  {page.resolve()}" for page in pages)]
    return "\n".join(lines)


def name_of(place: tuple[str, str, int], jobs: Mapping) -> str:
    """A run as short as it can be named among these."""
    suite, experiment, seed = place
    suite = f"{suite}/" if len({name for name, *_ in jobs}) > 1 else ""
    return suite + experiment + (f" seed {seed}" if len({seed for *_, seed in jobs}) > 1 else "")


def needing(failed: Iterable[tuple], jobs: Mapping[tuple[str, str, int], Job]) -> list[tuple]:
    """The runs that need one of those that failed, or one that needs it."""
    found = dict.fromkeys(failed)
    for (suite, name, seed), job in jobs.items():
        if any((suite, *other) in found for other in job.needs.values()):
            found[suite, name, seed] = None
    return [place for place in found if place not in set(failed)]


def _done(job: Job) -> bool:
    found = run.read_environment(job.folder)
    return bool(found) and found["key"] == job.key and (job.folder / "report.html").exists()


def _epochs(job: Job) -> int:
    return job.params.get("epochs", 1)


def _epoch(note: Mapping) -> str:
    return f": {how_far(note)[:-2]}" if "epoch" in note else ""
