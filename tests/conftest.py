"""Shared fixtures: tiny drawn faces, and the real FER2013 where it is at hand."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import fer_keras  # noqa: F401  sets the backend's environment before Keras is imported
from fer_keras.drawn import draw

matplotlib.use("Agg")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def faces():
    """280 drawn faces, all classes in all parts of the split."""
    return draw(280)


@pytest.fixture(scope="session")
def real_csv(tmp_path_factory):
    """The real fer2013.csv, unpacked from the folder that FER_KERAS_TEST_DATA names."""
    source = os.environ.get("FER_KERAS_TEST_DATA")
    if not source:
        pytest.skip("set FER_KERAS_TEST_DATA to a folder with fer2013/unpack.py to test on the real faces")
    target = tmp_path_factory.mktemp("fer2013") / "fer2013.csv"
    subprocess.run([sys.executable, Path(source, "fer2013", "unpack.py"), "csv", target], check=True)
    return target


@pytest.fixture
def write_csv(tmp_path):
    """Writes a FER2013 file from lines, and returns its path."""

    def write(*lines, header="emotion,pixels,Usage", name="fer2013.csv", end="\n"):
        path = tmp_path / name
        path.write_bytes(end.join([header, *lines, ""]).encode())
        return path

    return write


@pytest.fixture
def row():
    """Makes one line of a FER2013 file."""

    def make(emotion=0, usage="Training", pixels=None, seed=0):
        pixels = np.random.default_rng(seed).integers(0, 256, 2304) if pixels is None else pixels
        return f"{emotion},{' '.join(map(str, pixels))},{usage}"

    return make
