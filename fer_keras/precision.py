"""`precision: auto`: bfloat16 where this machine computes it fast, float32 elsewhere.

`fer_keras.params` asks here before a run has a key, so that the key, the run's folder and its report name what was
chosen, never "auto": two machines that choose differently make two different runs. The processes that this one starts,
on other hosts of a cluster, too, choose as it did: they find it in the environment, where you may say it, as well.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# What Linux calls the instructions that multiply matrices of bfloat16, the fastest first.
FLAGS = ("amx_bf16", "avx512_bf16")
# What "auto" is, where somebody has said it.
CHOSEN, CHOICES = "FER_KERAS_PRECISION", ("mixed_bfloat16", "float32")
# The first NVIDIA GPUs with them have this compute capability.
CAPABILITY = 8.0


def resolve(precision: str) -> str:
    """The precision itself, or for "auto" what is fast here: "mixed_bfloat16" or "float32"."""
    return _choose() if precision == "auto" else precision


@functools.cache
def _choose() -> str:
    if (chosen := os.environ.get(CHOSEN)) is not None:
        if chosen not in CHOICES:
            raise ValueError(f"The environment's {CHOSEN} must be {' or '.join(CHOICES)}. Received: {chosen!r}")
        return chosen
    chosen, why = fastest()
    os.environ[CHOSEN] = chosen
    print(f"precision: auto is {chosen} here: {why}.", file=sys.stderr)  # once, however many runs ask
    return chosen


def fastest() -> tuple[str, str]:
    """The precision that this machine trains fastest in, and why.

    A GPU that the driver lists, and that is not hidden from CUDA, is taken to be what Keras trains on; of several the
    oldest decides. Asking the backend instead would make this process hold the GPU's memory, and it may be one that
    only puts runs in order. On a processor it is TensorFlow that computes bfloat16 fast, by oneDNN; JAX does not.
    """
    capabilities = _gpus()
    if capabilities:
        least = min(capabilities)
        return _by(least >= CAPABILITY, f"the GPU has compute capability {least}, and bfloat16 is fast from 8.0 on")
    flag = next((flag for flag in FLAGS if flag in _flags()), None)
    if flag is None:
        return _by(False, f"there is no GPU, and the processor has neither {' nor '.join(FLAGS)}")
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    return _by(backend == "tensorflow", f"there is no GPU, the processor has {flag}, and Keras's backend is {backend}")


def _by(fast: bool, why: str) -> tuple[str, str]:
    return "mixed_bfloat16" if fast else "float32", why


def _gpus() -> list[float]:
    """Compute capability of each NVIDIA GPU, empty where there is none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        return [float(line) for line in done.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):  # no driver, or one that does not answer
        return []


def _flags() -> list[str]:
    """What the processor can do, as Linux says it; empty on other systems."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
