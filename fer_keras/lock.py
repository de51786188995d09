"""One writer at a time: a lock on a folder that says who holds it and ends when its process ends, however it ends.

The lock is the kernel's own (`flock` on the file `.writer`), so that a killed process leaves nothing to remove; NFS
passes it on between hosts. The file holds a note about the holder: process, host, since when, and how far it is. Where
a file system keeps such locks to one host, or knows none, the note and the holder's heartbeat, the file's date, decide.
"""

import atexit
import contextlib
import errno
import functools
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from fer_keras.storage import remove_leftovers

try:
    import fcntl
except ImportError:  # on Windows: the note alone decides
    fcntl = None

NAME = ".writer"
# Seconds between two signs of life, and without one after which a process of another host counts as dead.
BEAT, DEAD = 15.0, 180.0
# Seconds between two looks of one who waits, and between two words about it: papermill saves a notebook when something
# is said in it, but not so soon after it has begun the cell.
POLL, REMIND = 1.0, 40.0
# Seconds after which, where the kernel knows no locks, the note of one who looked at the same moment is seen.
SETTLE = 0.5
# Set by the Snakefile: wait for a process that an earlier command left behind, in place of an error.
WAIT = "FER_KERAS_WAIT"
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: dict[Path, tuple[int, dict]] = {}  # of this process: the file's descriptor and the note, by path
_until_the_end = contextlib.ExitStack()
atexit.register(_until_the_end.close)


class LockError(ValueError):
    """Another process writes in the folder."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold a folder alone, which is made if need be; within a block that holds it, nothing more happens.

    Files that a killed writer left half-written under temporary names are removed.

    Raises:
        LockError: if another process holds it: which one, where, and since when. With the environment variable
            FER_KERAS_WAIT it is waited for.
        OSError: if nothing can be written there.
    """
    path = Path(folder).resolve() / NAME
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _take(path)
    stopped = threading.Event()
    try:
        _held[path] = file, _introduction()
        _write(*_held[path])
        threading.Thread(target=_beat, args=(path, stopped), daemon=True).start()
        remove_leftovers(path.parent)
        yield
    finally:
        stopped.set()
        del _held[path]
        if _is(file, path):
            path.unlink()  # before the lock ends: who has opened it meanwhile finds it gone, and opens anew
        os.close(file)


def writes(function: Callable) -> Callable:
    """A function whose first argument is the folder that it writes in, which it holds alone meanwhile."""

    @functools.wraps(function)
    def alone(folder, *arguments, **named):
        with writing(folder):
            return function(folder, *arguments, **named)

    return alone


def claim(folder: Path) -> None:
    """Hold a folder until this process ends if papermill runs it; in Jupyter only see that nobody else does.

    Under papermill the kernel ends with the notebook; in Jupyter it lives on, and holds the folder while it writes.

    Raises:
        LockError, OSError: see `writing`.
    """
    if _papermill(psutil.Process().parent()):
        _until_the_end.enter_context(writing(folder))
        return
    with writing(folder):
        pass


def holder(folder: Path) -> dict | None:
    """Who writes in a folder now, as noted there: `pid`, `host`, `since`, `command` and what it told; None: nobody.

    Of another host, a process counts as alive while its last sign of life is younger than `DEAD`.
    """
    path = Path(folder) / NAME
    note = _read(path)
    return note if note and _alive(note, path, time.time()) else None


def only_snakemake(folder: Path = Path(".snakemake")) -> None:
    """Remove the locks of a Snakemake that was killed, as `snakemake --unlock` does, unless another one still runs.

    Each Snakemake holds a shared lock of the kernel while it lives: who can have it alone knows that no other lives.
    """
    if not fcntl:
        return
    folder.mkdir(exist_ok=True)
    file = os.open(folder / "fer-keras.lock", os.O_RDWR | os.O_CREAT, 0o644)  # open until this process ends
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder / "locks", ignore_errors=True)
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)


def tell(folder: Path, **facts) -> None:
    """Add facts about its progress to the note of a folder that this process holds."""
    path = Path(folder).resolve() / NAME
    if path in _held:
        _held[path][1].update(facts)
        with contextlib.suppress(OSError):  # a full disk: what is told here is no result
            _write(*_held[path])


def sentence(note: dict, folder: Path) -> str:
    """Who holds a folder, and what can be done about it."""
    where, path = note.get("host", "an unknown host"), Path(folder) / NAME
    who = f"process {note.get('pid', '?')} on {where}, since {note.get('since', '?')} ({note.get('command', '?')})"
    if note.get("host") == socket.gethostname():
        advice = f"Wait until it ends, or end it: kill {note['pid']}."
    else:
        advice = f"Wait until it ends. After {DEAD:.0f} s without a sign of life it counts as dead."
    return f"Another process is writing {path.parent}: {who}. {advice}"


def _take(path: Path) -> int:
    """Open the file and lock it; the descriptor."""
    told = None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            note = _in_the_way(file, path)
            if note is None and _is(file, path):
                return file
            if note is not None and not os.environ.get(WAIT):
                raise LockError(sentence(note, path.parent))
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        if note is not None:
            if told is None or time.monotonic() - told > REMIND:
                print(f"{sentence(note, path.parent)} Waiting for it.", flush=True)
                told = time.monotonic()
            time.sleep(POLL)


def _is(file: int, path: Path) -> bool:
    """Whether the open file is the one of this name: its holder removes it in the end."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _in_the_way(file: int, path: Path) -> dict | None:
    """Lock the file, or say who holds it."""
    known = True
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path) or {}
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        known = False
    note = _read(path)
    # Of this host, the kernel knows that the process that left its note is dead; of another, it may not.
    if known and fcntl and note.get("host", socket.gethostname()) == socket.gethostname():
        return None
    if note and _alive(note, path, _file_systems_now(path.parent)):
        if fcntl and known:
            fcntl.flock(file, fcntl.LOCK_UN)
        return note
    return None if fcntl and known else _outdone(file, path)


def _outdone(file: int, path: Path) -> dict | None:
    """Leave a note where nobody's is, and say whose is there a moment later, unless it is one's own: the last stays."""
    own = _introduction()
    _write(file, own)
    time.sleep(SETTLE)
    found = _read(path)
    return found if found and any(found.get(name) != own[name] for name in ("pid", "host", "started")) else None


def _alive(note: dict, path: Path, now: float) -> bool:
    try:
        if note.get("host") != socket.gethostname():
            return now - path.stat().st_mtime < DEAD
        # The number may be another process's by now.
        return abs(psutil.Process(note["pid"]).create_time() - note["started"]) < 10
    except (psutil.Error, KeyError, FileNotFoundError):
        return False


def _file_systems_now(folder: Path) -> float:
    """The time by the clock that dates the folder's files: a host's own may differ."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"1")
        file.flush()
        return os.fstat(file.fileno()).st_mtime


def _introduction() -> dict:
    me = psutil.Process()
    parent = me.parent()
    return {
        "pid": me.pid,
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "began": time.time(),
        "started": me.create_time(),
        "command": _command(parent if _papermill(parent) else me),
    }


def _words(process: psutil.Process | None) -> list[str]:
    try:
        return process.cmdline() if process else []
    except psutil.Error:
        return []


def _papermill(process: psutil.Process | None) -> bool:
    return "papermill" in [Path(word).name for word in _words(process)[:3]]


def _command(process: psutil.Process | None) -> str:
    """A process as a reader would name it: the program's name and its first arguments."""
    words = _words(process)
    if len(words) > 1 and Path(words[0]).name.startswith("python") and not words[1].startswith("-"):
        words = words[1:]
    return " ".join(" ".join([Path(word).name for word in words[:1]] + words[1:3]).split())[:160]


def _write(file: int, note: dict) -> None:
    """Over the old note, and cut to size then: a reader never finds the file empty while it is held."""
    data = json.dumps(note).encode()
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, data)
    os.ftruncate(file, len(data))
    os.fsync(file)  # over NFS nobody else sees it before


def _read(path: Path) -> dict:
    """The note, {} if there is none."""
    for _ in range(3):  # in the moment of writing it is no JSON
        try:
            text = path.read_text(encoding="utf-8")
            return json.loads(text) if text else {}
        except FileNotFoundError:
            return {}
        except ValueError:
            time.sleep(0.05)
    return {}


def _beat(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
