"""One writer at a time: with real processes that hold the lock and are killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_keras import lock

HOLD = "import sys, time; from fer_keras import lock\nwith lock.writing(sys.argv[1]):\n print('held', flush=True); "

NO_LOCKS = "def unknown(*_): raise OSError(38, 'no locks here')\nlock.fcntl.flock = unknown\n"


@pytest.fixture
def other():
    """Starts a process that holds a folder for some seconds, or until it is killed."""
    started = []

    def hold(folder, seconds=60):
        process = subprocess.Popen(
            [sys.executable, "-c", f"{HOLD}time.sleep({seconds})", str(folder)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def leave_note(folder, age=0.0, **facts):
    """What a holder leaves that did not end in order."""
    folder.mkdir(exist_ok=True)
    note = {"pid": 1, "host": "elsewhere", "since": "2026-01-01 00:00:00", "command": "papermill a.ipynb"} | facts
    (folder / lock.NAME).write_text(json.dumps(note))
    os.utime(folder / lock.NAME, (time.time() - age,) * 2)


def test_another_process_is_refused_and_the_holder_named(tmp_path, other):
    holder = other(tmp_path)
    named = rf"is writing {tmp_path}: process {holder.pid} on .* since 20.*kill "
    with pytest.raises(lock.LockError, match=named), lock.writing(tmp_path):
        pytest.fail("two processes hold one folder")
    note = lock.holder(tmp_path)
    assert note["pid"] == holder.pid and "python" in note["command"]


def test_in_the_end_nothing_is_left_and_the_next_may_write(tmp_path):
    for _ in range(2):
        with lock.writing(tmp_path / "new"):
            assert lock.holder(tmp_path / "new")["pid"] == os.getpid()
        assert lock.holder(tmp_path / "new") is None and not list((tmp_path / "new").iterdir())
    with pytest.raises(KeyError), lock.writing(tmp_path):
        raise KeyError
    with lock.writing(tmp_path):
        pass


def test_a_block_within_a_block_does_not_end_the_lock(tmp_path):
    with lock.writing(tmp_path):
        with lock.writing(Path(os.path.relpath(tmp_path))):
            pass
        assert lock.holder(tmp_path)
    assert not lock.holder(tmp_path)


def test_the_lock_of_a_killed_process_ends_with_it_and_its_half_files_go(tmp_path, other):
    holder = other(tmp_path)
    (tmp_path / ".writing-abc.npz").write_text("half")
    (tmp_path / "whole.npz").write_text("whole")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert lock.holder(tmp_path) is None, "its note is left, and it is dead"
    with lock.writing(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"whole.npz", lock.NAME}


def test_a_job_of_snakemake_waits_for_a_process_that_was_left_behind(tmp_path, other, monkeypatch, capsys):
    monkeypatch.setenv(lock.WAIT, "1")
    holder = other(tmp_path, seconds=1.5)
    with lock.writing(tmp_path):
        assert holder.wait(5) == 0
    assert f"process {holder.pid} on" in capsys.readouterr().out


@pytest.mark.parametrize("kernels", [True, False], ids=["the kernel's locks", "the note alone"])
def test_many_processes_write_one_after_the_other(tmp_path, kernels):
    """Each reads a number, waits, and writes the next: none is lost."""
    code = (
        "import sys, time; from pathlib import Path; from fer_keras import lock; lock.POLL, lock.SETTLE = 0.02, 0.1\n"
        f"{'' if kernels else NO_LOCKS}"
        f"for _ in range({5 if kernels else 2}):\n"
        " with lock.writing(sys.argv[1]):\n"
        "  path = Path(sys.argv[1], 'n'); n = int(path.read_text()) if path.exists() else 0\n"
        "  time.sleep(0.005); path.write_text(str(n + 1))\n"
    )
    environment = os.environ | {lock.WAIT: "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.DEVNULL)
        for _ in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "n").read_text() == ("20" if kernels else "8")


def test_another_hosts_process_counts_as_alive_until_it_has_been_silent_for_long(tmp_path):
    """As on a file system that keeps locks to one host: only the note is seen."""
    leave_note(tmp_path, age=5)
    assert lock.holder(tmp_path)["host"] == "elsewhere"
    named = r"process 1 on elsewhere, since 2026-.*papermill a.*180 s without a sign"
    with pytest.raises(lock.LockError, match=named), lock.writing(tmp_path):
        pass
    leave_note(tmp_path, age=lock.DEAD + 5)
    assert lock.holder(tmp_path) is None
    with lock.writing(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_knows_no_locks_the_note_decides(tmp_path, monkeypatch, other, code):
    def unknown(file, how):
        raise OSError(code, "no locks here")

    holder = other(tmp_path)
    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    with pytest.raises(lock.LockError, match=f"process {holder.pid}"), lock.writing(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with lock.writing(tmp_path):
        pass
    # The number of a dead process may be another one's by now.
    leave_note(tmp_path, pid=os.getppid(), host=lock.socket.gethostname(), started=0.0)
    with lock.writing(tmp_path):
        pass


def test_the_holder_gives_signs_of_life_and_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with lock.writing(tmp_path):
        lock.tell(tmp_path, epoch=3)
        os.utime(tmp_path / lock.NAME, (0, 0))
        time.sleep(0.5)
        assert time.time() - (tmp_path / lock.NAME).stat().st_mtime < 10
        assert lock.holder(tmp_path)["epoch"] == 3
        lock.tell(tmp_path, epoch=4)
        assert lock.holder(tmp_path)["epoch"] == 4 and lock.holder(tmp_path)["pid"] == os.getpid()
    lock.tell(tmp_path, epoch=5)
    assert not (tmp_path / lock.NAME).exists(), "only who holds the folder tells"


def test_a_full_disk_ends_no_training_that_tells_how_far_it_is(tmp_path, monkeypatch):
    with lock.writing(tmp_path):

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(lock.os, "write", full)
        lock.tell(tmp_path, epoch=1)
        monkeypatch.undo()
        lock.tell(tmp_path, best=0.5)
        assert lock.holder(tmp_path)["epoch"] == 1 and lock.holder(tmp_path)["pid"] == os.getpid()


def test_the_lock_of_another_is_not_removed(tmp_path):
    """Somebody removed the file of a process that lives, and another took the folder."""
    with lock.writing(tmp_path):
        (tmp_path / lock.NAME).unlink()
        leave_note(tmp_path)
    assert lock.holder(tmp_path)["host"] == "elsewhere"


def test_the_locks_of_a_killed_snakemake_go_and_those_of_a_living_one_stay(tmp_path):
    code = "import sys, time; from pathlib import Path; from fer_keras import lock\n"
    code += "lock.only_snakemake(Path(sys.argv[1])); print('there', flush=True); time.sleep(60)"
    (tmp_path / "locks").mkdir()

    def snakemake():
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "there\n"
        return process

    first = snakemake()
    assert not (tmp_path / "locks").exists(), "nobody lived"
    (tmp_path / "locks").mkdir()
    second = snakemake()
    first.kill()
    first.wait()
    third = snakemake()
    assert (tmp_path / "locks").exists(), "the second one lives"
    for process in (second, third):
        process.kill()
        process.wait()
    fourth = snakemake()
    assert not (tmp_path / "locks").exists()
    fourth.kill()
    fourth.wait()


def test_a_claim_under_jupyter_only_looks(tmp_path, other):
    lock.claim(tmp_path)
    assert lock.holder(tmp_path) is None
    other(tmp_path)
    with pytest.raises(lock.LockError):
        lock.claim(tmp_path)
