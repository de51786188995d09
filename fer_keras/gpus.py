"""A GPU of its own for each of several runs at a time here: TensorFlow would take all, and work on the first."""

import os
import re
import shlex
import subprocess


def found() -> list[str]:
    """The NVIDIA GPUs that CUDA may use here, as CUDA_VISIBLE_DEVICES names them; empty where there is none."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # no driver, or one that does not answer
        return []
    return re.findall(r"^GPU (\d+):", done.stdout, re.MULTILINE)


def one_each(runs: int) -> str:
    """Words for the shell, in front of a command: wait for a free GPU, hold it until the shell ends, and show no other.

    A lock of the kernel tells which are free, so that a killed run leaves nothing to remove, and one that was left
    behind keeps its GPU; other commands of this user on this machine count, too.

    Args:
        runs: how many there are at a time; of more than there are GPUs, several share one.

    Returns:
        "" where there is nothing to share out: one run at a time, which has all GPUs, or less than two GPUs.
    """
    names = found() if runs > 1 else []
    if len(names) < 2:
        return ""
    slots = [f"{names[i % len(names)]}={i // len(names)}" for i in range(runs)]
    return (
        f"until for slot in {shlex.join(slots)}; do "
        'exec 9>>"${TMPDIR:-/tmp}/fer-keras-$(id -u)-gpu-${slot//[^A-Za-z0-9-]/_}.lock" && flock -n 9 && break; done; '
        'do sleep 1; done; export CUDA_VISIBLE_DEVICES="${slot%=*}"; '
    )
