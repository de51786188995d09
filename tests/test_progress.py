"""How far runs are: read from their folders, and from Snakemake's events."""

import json
import logging
import re

import nbformat
import numpy as np
import pytest
from conftest import ROOT

from fer_keras import lock, progress, run, storage, suite
from fer_keras.cli import main


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """The runs of the demo suite, by suite, experiment and seed, in an empty place."""
    monkeypatch.chdir(ROOT)
    found = suite.jobs("demo", {"outputs": str(tmp_path)}, fingerprint="f")
    return {("demo", *place): job for place, job in found.items()}


def job(jobs, name):
    return jobs["demo", name, 0]


def fail(folder, ename="ValueError", evalue="Input contains NaN."):
    error = nbformat.v4.new_output("error", ename=ename, evalue=evalue, traceback=[])
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[error])]), folder / "notebook.ipynb"
    )


def finish(job):
    """Enough of a finished run for what is read here."""
    storage.write_json(job.folder / "environment.json", {"key": job.key})
    storage.write_json(job.folder / "metrics.json", {})
    storage.write_text(job.folder / "report.html", "")


def leave_checkpoint(folder, epochs):
    history = [{"epoch": e + 1, "val_accuracy": 0.5} for e in range(epochs)]
    storage.write_arrays(folder / "checkpoint.npz", note=np.array(json.dumps({"key": "k", "history": history})))


def test_status_says_what_goes_on_in_each_folder(jobs, tmp_path, capsys):
    with lock.writing(job(jobs, "tuned").folder):
        told = run.progress(job(jobs, "tuned").folder, "k", "val_accuracy", 7)
        for epoch, value in enumerate((0.25, 0.625, 0.5)):
            told.on_epoch_end(epoch, {"val_accuracy": value})
        fail(job(jobs, "baseline").folder)
        leave_checkpoint(job(jobs, "balanced-ros").folder, 3)
        broken = job(jobs, "balanced-smote").folder
        broken.mkdir(parents=True)
        (broken / "papermill.log").write_text("Traceback (most recent call last):\n  x\nDeadKernelError: Kernel died\n")
        dead = {"pid": 1, "host": lock.socket.gethostname(), "started": 0}
        storage.write_json(job(jobs, "ensemble").folder / lock.NAME, dead)
        assert main(["status", "demo", "--outputs", str(tmp_path)]) == 0
    lines = {line.split(" seed")[0].split()[-1]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {name for _, name, _ in jobs}
    assert re.fullmatch(
        r"running  tuned seed 0: epoch 3 of 7, best val_accuracy 0.6250, for \d+ (s|min), process \d+ on .+",
        lines["tuned"],
    )
    assert lines["baseline"] == "failed   baseline seed 0: ValueError: Input contains NaN."
    assert lines["balanced-ros"].startswith("interrupted balanced-ros seed 0: after epoch 3; the same command")
    assert lines["balanced-smote"] == "failed   balanced-smote seed 0: DeadKernelError: Kernel died"
    assert lines["ensemble"].startswith("interrupted ensemble seed 0: before its first checkpoint")
    assert lines["balanced-smote_tomek"] == "not run  balanced-smote_tomek seed 0"


def test_what_was_said_last_and_a_log_that_is_cut_short_tell_of_a_full_disk(tmp_path):
    assert run.failure(tmp_path) == ""
    for said, told in (
        ("Executing notebook\n", ""),
        ("Traceback (most recent call last):\nOSError: gone\n", "OSError: gone"),
        ("Traceback (most recent call last):\n  return f(get_curre", "probably no space left on the disk"),
        ("Executing notebook\nfer-keras: [Errno 28] No space left on device\n", "[Errno 28] No space left"),
    ):
        (tmp_path / run.LOG).write_text(said)
        assert told in run.failure(tmp_path) and bool(told) == bool(run.failure(tmp_path))


def test_the_best_score_is_that_of_all_epochs_also_before_an_interruption(tmp_path):
    for monitor, values, best in (("val_accuracy", (0.75, 0.5), 0.75), ("val_loss", (0.5, 0.25), 0.25)):
        history = [{"epoch": 1, monitor: values[0]}]
        storage.write_arrays(tmp_path / "checkpoint.npz", note=np.array(json.dumps({"key": "k", "history": history})))
        with lock.writing(tmp_path):
            run.progress(tmp_path, "k", monitor, 5).on_epoch_end(1, {monitor: values[1]})
            assert progress.how_far(lock.holder(tmp_path)) == f"epoch 2 of 5, best {monitor} {best:.4f}, "
            run.progress(tmp_path, "of other parameters", monitor, 5).on_epoch_end(0, {monitor: 0.125})
            assert lock.holder(tmp_path)["best"] == 0.125


def event(name, **facts):
    record = logging.makeLogRecord({"event": name, **facts})
    record.event = name
    return record


def start(number, name):
    wildcards = {"suite": "demo", "experiment": name, "seed": "0"}
    return event("job_info", jobid=number, rule_name=progress.RULE, wildcards=wildcards)


def test_lines_follow_the_runs(jobs, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    told = []
    finish(job(jobs, "baseline"))
    lines = progress.Lines(jobs, [place for place in jobs if place[1] != "baseline"], told.append)
    lines.emit(event("job_info", jobid=9, rule_name="summary", wildcards={}))
    lines.emit(start(1, "tuned"))
    assert told[-1].endswith("1 of 7 runs done, 1 running (tuned)")
    clock[0] = 70.0  # seven epochs
    finish(job(jobs, "tuned"))
    lines.emit(event("job_finished", job_id=1))
    # 2 epochs for each of four balanced runs, and the ensemble as one
    assert told[-1].endswith("2 of 7 runs done, about 2 min left")
    lines.emit(start(2, "balanced-ros"))
    with lock.writing(job(jobs, "balanced-ros").folder):
        lock.tell(job(jobs, "balanced-ros").folder, epoch=1, epochs=2, monitor="val_loss", best=1.25)
        lines.show()
        assert "1 running (balanced-ros: epoch 1 of 2, best val_loss 1.2500), about 70 s left" in told[-1]
        lines.show()
    assert len(told) == 4, "nothing new, no line"
    fail(job(jobs, "balanced-ros").folder)
    lines.emit(event("job_error", jobid=2, log=[]))
    assert told[-2] == "Failed: balanced-ros: ValueError: Input contains NaN."
    # the ensemble needs balanced-ros, so that three balanced runs are left
    assert told[-1].endswith("2 of 7 runs done, 1 failed, about 60 s left")
    lines.emit(event("job_finished", job_id=77))
    lines.close()
    text = progress.summary(jobs, lines.failed)
    assert "2 of 7 runs are done." in text and "Not begun, since they need them: ensemble." in text
    assert (
        f"  balanced-ros: ValueError: Input contains NaN.\n    {job(jobs, 'balanced-ros').folder}/notebook.ipynb"
        in text
    )
    assert f"{job(jobs, 'tuned').folder}/report.html" in text and "smote/seed-0/report.html" not in text


def test_a_run_that_is_neither_asked_for_nor_done_does_not_count_as_done(jobs):
    told = []
    finish(job(jobs, "baseline"))
    lines = progress.Lines(jobs, [("demo", "tuned", 0)], told.append)
    lines.emit(start(1, "tuned"))
    lines.emit(event("job_finished", job_id=1))
    lines.close()
    assert [line.split("  ")[1] for line in told] == ["1 of 7 runs done, 1 running (tuned)", "2 of 7 runs done"]


def test_on_a_cluster_what_waits_in_the_queue_is_not_running(jobs, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    told = []
    lines = progress.Lines(jobs, jobs, told.append, queued=True)
    lines.emit(start(1, "tuned"))
    lines.emit(start(2, "baseline"))
    assert not told, "no line for each that is handed over"
    lines.show()
    assert told[-1].endswith("0 of 7 runs done, 2 queued or starting")
    clock[0] = 70.0
    with lock.writing(job(jobs, "tuned").folder):
        lock.tell(job(jobs, "tuned").folder, epoch=3, epochs=7, monitor="val_loss", best=1.25)
        lines.show()
    assert "1 running (tuned: epoch 3 of 7, best val_loss 1.2500), 1 queued or starting, about" in told[-1]
    # 3 of 21 epochs took 70 s, and the ensemble counts as one
    assert progress.duration(19 / 3 * 70) in told[-1]
    lines.emit(event("job_finished", job_id=1))
    assert told[-1].split("  ")[1].startswith("1 of 7 runs done, 1 queued or starting")
    lines.close()


def test_a_line_that_cannot_be_told_does_not_end_the_runs(jobs, capsys):
    def tell(line):
        raise BlockingIOError("the terminal is gone")

    lines = progress.Lines(jobs, jobs, tell)
    lines.emit(start(1, "tuned"))
    lines.emit(event("job_finished", job_id=1))
    lines.close()
    assert lines.finished == [("demo", "tuned", 0)] and "the terminal is gone" in capsys.readouterr().err


def test_a_run_that_was_killed_is_told_without_an_error_of_its_own(jobs):
    told = []
    lines = progress.Lines(jobs, jobs, told.append)
    lines.emit(start(1, "tuned"))
    lines.emit(event("job_error", jobid=1, log=[]))
    lines.close()
    assert "Failed: tuned: it ended without an error of its own: killed" in told[1]


@pytest.mark.parametrize(
    ("level", "text", "shown"),
    [
        (logging.INFO, "Select jobs to execute...", False),
        (logging.INFO, "Terminating processes on user request, this might take some time.", True),
        (logging.WARNING, "Missing input files", True),
        (logging.ERROR, "RuleException:\nCalledProcessError in file", False),
        (logging.ERROR, "OSError: No space left on device", True),
    ],
)
def test_of_snakemakes_own_messages_only_those_that_matter_are_shown(level, text, shown):
    assert progress.matters(logging.makeLogRecord({"levelno": level, "msg": text})) == shown


def test_what_needs_a_failed_run_is_known_through_all_steps(jobs):
    found = progress.needing([("demo", "tuned", 0)], jobs)
    assert {name for _, name, _ in found} == {name for _, name, _ in jobs} - {"tuned", "baseline"}
    assert progress.needing([], jobs) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (91, "2 min"), (3570, "1 h 0 min"), (12000, "3 h 20 min")]
)
def test_times_are_for_readers(seconds, text):
    assert progress.duration(seconds) == text
