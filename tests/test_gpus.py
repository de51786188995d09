"""A GPU for each of several runs at a time: with a driver that only lists them, and with real shells that hold them."""

import os
import subprocess

import pytest

from fer_keras import gpus

LISTED = (
    "GPU 0: NVIDIA A (UUID: GPU-1)\\n  MIG 1g.5gb Device 0: (UUID: MIG-1)\\nGPU 1: NVIDIA A (UUID: GPU-2)\\nNo GPU 7:"
)


@pytest.fixture
def shells(tmp_path, monkeypatch):
    """Starts shells that show which GPU they have, and keep it until they are told or killed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started = []

    def start(words):
        command = ["bash", "-c", f'set -euo pipefail; {words} echo "$CUDA_VISIBLE_DEVICES"; read']
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1"]), ("2, GPU-ab", ["2", "GPU-ab"]), ("", []), ("-1", [])],
)
def test_the_gpus_are_those_that_the_driver_lists_or_the_user_shows(tmp_path, monkeypatch, visible, expected):
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\nprintf "{LISTED}"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.found() == expected


def test_without_a_driver_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.found() == [] and gpus.one_each(4) == ""


def test_one_run_at_a_time_has_all_gpus_and_runs_share_a_single_one(monkeypatch):
    for visible, runs in (("0,1", 1), ("0", 3)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus.one_each(runs) == ""


def test_each_run_has_a_gpu_of_its_own_and_the_next_waits_until_one_is_free(shells, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab")
    words = gpus.one_each(2)
    first, second = shells(words), shells(words)
    assert {first.stdout.readline(), second.stdout.readline()} == {"3\n", "GPU-ab\n"}
    third = shells(words)
    with pytest.raises(subprocess.TimeoutExpired):
        third.wait(0.5)
    first.kill()
    first.wait()
    freed = third.stdout.readline()
    assert freed in ("3\n", "GPU-ab\n")
    second.communicate("\n")
    fourth = shells(words)
    assert {freed, fourth.stdout.readline()} == {"3\n", "GPU-ab\n"}


def test_more_runs_than_gpus_share_them_evenly(shells, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    words = gpus.one_each(4)
    assert sorted(shells(words).stdout.readline() for _ in range(4)) == ["0\n", "0\n", "1\n", "1\n"]
