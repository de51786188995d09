"""A training that is killed goes on: a real process, a real SIGKILL, and the same numbers bit by bit."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from fer_keras import lock, run, storage

# What notebooks/train.ipynb does, in a few lines; it stops at a moment that the test chooses, to be killed there.
TRAINING = """
import sys, time
from pathlib import Path
import keras
import numpy as np
from fer_keras import drawn, lock, model, evaluate, roles, run, train
folder, stop = Path(sys.argv[1]), sys.argv[2]

def hang():
    print("now", flush=True)
    time.sleep(600)

class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if stop.isdigit() and self.model.optimizer.iterations == int(stop):
            hang()

if stop == "checkpoint":  # while it is being written
    def half(file, **arrays):
        file.write(b"half")
        file.flush()
        hang()
    np.savez = half
faces = drawn.draw(280)
parts = roles.assign_roles(faces, "official", "none", 0)
train.seed_everything(0)
network = model.vggnet(width=1 / 32, dropout=0.2)
with lock.writing(folder):
    run.begin(folder, "key", False, parts)
    history = train.fit(
        network, parts["train"], parts["validation"], epochs=3, batch_size=32, patience=3, seed=0, key="key",
        checkpoint=run.checkpoint_path(folder), checkpoint_seconds=0.0,
        extra_callbacks=[run.progress(folder, "key", "val_loss", 3), Stop()],
    )
    params = {"experiment": "tuned", "suite": "s", "seed": 0, "data": "drawn"}
    run.save_training(folder, params, "key", parts, history, network, 1.0)
sets = run.predictions(folder, parts, lambda images: evaluate.predict(network, images))
run.save_metrics(folder, params, "key", sets, "official", {"n": len(parts["validation"])}, {"sets": {}})
"""


def train(folder, stop="never"):
    return subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(folder), str(stop)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.timeout(600)
def test_a_killed_training_goes_on_and_ends_like_one_that_was_never_killed(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    never = train(whole)
    # In the middle of the second of three epochs and of its checkpoint.
    for stop, done in ((12, [1]), ("checkpoint", [1])):
        process = train(killed, stop)
        assert process.stdout.readline() == "now\n"
        assert lock.holder(killed)["pid"] == process.pid
        process.kill()
        process.wait()
        assert lock.holder(killed) is None and not run.is_trained(killed, "key") and run.state(killed) == "not run"
        assert [row["epoch"] for row in run.checkpoint_history(killed, "key")] == done
    assert train(killed).wait() == never.wait() == 0
    again, history = (pd.read_csv(folder / "history.csv") for folder in (killed, whole))
    pd.testing.assert_frame_equal(again, history, check_exact=True)
    assert run.read_metrics(killed) == run.read_metrics(whole)
    for name in ("predictions.npz", "rows.npz"):
        ours, theirs = (storage.read_arrays(folder / name) for folder in (killed, whole))
        assert ours.keys() == theirs.keys()
        for array in theirs:
            np.testing.assert_array_equal(ours[array], theirs[array], err_msg=f"{name}: {array}", strict=True)
    weights = [run.load_model(folder).get_weights() for folder in (killed, whole)]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}, "nothing half is left"
