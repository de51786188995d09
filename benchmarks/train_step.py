"""What oneDNN does for TensorFlow's training step on this CPU: `python benchmarks/train_step.py [WIDTH]`.

The same VGGNet, batch of 64 and data in two processes of one run, with TF_ENABLE_ONEDNN_OPTS=0 and =1. Prints images a
second and the ratio. `fer_keras` sets it to 1 unless you say otherwise.
"""

import os
import subprocess
import sys

CODE = """
import sys, time
import fer_keras
import keras, numpy as np
from fer_keras import data, model, train
rng = np.random.default_rng(0)
def faces(n):
    images = rng.integers(0, 256, (n, 48, 48, 1), dtype="uint8")
    return data.Faces(images, rng.integers(0, 7, n), np.arange(n), np.full(n, "Training"))
class Clock(keras.callbacks.Callback):
    steps = []
    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(time.perf_counter())
real = keras.Model.fit
keras.Model.fit = lambda self, *a, callbacks, **k: real(self, *a, callbacks=[*callbacks, Clock()], **k)
train.seed_everything(0)
train.fit(model.vggnet(width=float(sys.argv[1])), faces(64 * 20), faces(64), epochs=1, batch_size=64)
steps = np.diff(Clock.steps)[3:]
print(64 / np.median(steps))
"""


def main(width="0.25"):
    rates = {}
    for flag in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", CODE, width],
            env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": flag},
            capture_output=True,
            text=True,
            check=True,
        )
        rates[flag] = float(done.stdout.split()[-1])
        print(f"TF_ENABLE_ONEDNN_OPTS={flag}   {rates[flag]:6.0f} images/s")
    print(f"ratio   {rates['1'] / rates['0']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
