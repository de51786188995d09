"""A training step beside PyTorch's: `python benchmarks/train_step.py [--torch-python PATH] [--jax-python PATH]`.

The same VGGNet, batch, precision and optimizer (SGD, Nesterov momentum), each in a process of its own, one after the
other in one run: Keras on TensorFlow, with and without oneDNN, and on JAX, through `fer_keras.train.fit`; PyTorch with
channels last, eager and compiled; and a loop of the reference's kind (github.com/usef-kh/fer): Pillow changes each face
in two worker processes, and ten crops of 40×40 of it train. PyTorch and JAX are looked for in the environments whose
interpreters you name; what is not named is left out. In float32, and in bfloat16 where the GPU or the processor
multiplies it. Each trains on the GPU, if it sees one (`CUDA_VISIBLE_DEVICES=""` hides it); on a GPU nothing of this has
been tried yet.

Prints faces a second (the median step's), operations a second as counted from the layers' shapes, their share of the
highest rate of a plain matrix product of the same precision that any of the processes measured, which is the limit, and
ratios.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
WAYS = ("keras-tensorflow", "keras-tensorflow-plain", "keras-jax", "torch-eager", "torch-compile", "reference")
FILTERS, UNITS, CLASSES = (64, 128, 256, 512), 4096, 7


def rate(step, repeat):
    """Faces or operations a second from the median of some calls, after two to warm up."""
    taken = []
    for _ in range(repeat + 2):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return 1 / np.median(taken[2:])


# --- What a process measures ------------------------------------------------------------------------------------------


def keras_rates(precision, width, batch, steps):
    import keras

    import fer_keras  # noqa: F401  sets the backend's environment
    from fer_keras import data, model, train

    rng = np.random.default_rng(0)

    def faces(n):
        images = rng.integers(0, 256, (n, 48, 48, 1), dtype="uint8")
        return data.Faces(images, rng.integers(0, CLASSES, n), np.arange(n), np.full(n, "Training"))

    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.ends = []

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for it
            self.ends.append(time.perf_counter())

    clock = Clock()
    train.seed_everything(0, {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision])
    network = model.vggnet(width=width)
    options = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1, "batch_size": batch}
    train.fit(network, faces(batch * (steps + 3)), faces(batch), extra_callbacks=[clock], **options)
    left = keras.ops.cast(rng.normal(size=(4096, 4096)), precision)
    product = rate(lambda: keras.ops.convert_to_numpy(keras.ops.matmul(left, left)[:1, :1]), 4)
    return batch / np.median(np.diff(clock.ends)[2:]), product * 2 * 4096**3


def torch_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_network(side, width):
    from torch import nn

    layers, channels = [], 1
    for filters in FILTERS:
        filters = max(1, round(filters * width))
        for _ in range(2):
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
            channels = filters
        layers.append(nn.MaxPool2d(2))
    units = max(1, round(UNITS * width))
    layers += [nn.Flatten(), nn.Linear(channels * (side // 16) ** 2, units), nn.ReLU(), nn.Dropout(0.2)]
    layers += [nn.Linear(units, units), nn.ReLU(), nn.Dropout(0.2), nn.Linear(units, CLASSES)]
    return nn.Sequential(*layers).to(torch_device())


def torch_step(network, precision, compiled=False, **options):
    """A training step from float images (n, 1, side, side) and labels (n,)."""
    import torch

    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, **options)

    def loss_of(images, labels):
        with torch.autocast(torch_device(), torch.bfloat16, enabled=precision == "bfloat16"):
            return torch.nn.functional.cross_entropy(network(images).float(), labels)

    forward = torch.compile(loss_of) if compiled else loss_of

    def step(images, labels):
        loss = forward(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_rates(precision, width, batch, steps, compiled):
    import torch

    network = torch_network(48, width).to(memory_format=torch.channels_last)
    step = torch_step(network, precision, compiled)
    on = {"device": torch_device()}
    images = torch.randint(0, 256, (batch * 8, 1, 48, 48), **on).byte()
    labels = torch.randint(0, CLASSES, (batch * 8,), **on)

    def one():
        at = torch.randint(0, len(images), (batch,), **on)
        step((images[at].float() / 255).contiguous(memory_format=torch.channels_last), labels[at])

    faces = batch * rate(one, steps)
    left = torch.randn(4096, 4096, **on).to(getattr(torch, precision))
    return faces, rate(lambda: (left @ left)[:1, :1].cpu(), 4) * 2 * 4096**3


class Changed:
    """A data set of random faces, changed by Pillow as the reference does (probabilities and strengths are its own)."""

    def __init__(self, n):
        rng = np.random.default_rng(0)
        self.images, self.labels = rng.integers(0, 256, (n, 48, 48)).astype("uint8"), rng.integers(0, CLASSES, n)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        import torch
        from PIL import Image, ImageOps

        rng = np.random.default_rng(index)
        image = Image.fromarray(self.images[index])
        size = min(48, 48 * np.sqrt(rng.uniform(0.8, 1.2)))  # a random resized crop
        left, top = rng.uniform(0, 48 - size, 2)
        image = image.resize((48, 48), Image.Resampling.BILINEAR, box=(left, top, left + size, top + size))
        if rng.random() < 0.5:
            right, down = rng.uniform(-9.6, 9.6, 2)
            image = image.transform((48, 48), Image.Transform.AFFINE, (1, 0, right, 0, 1, down))
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        if rng.random() < 0.5:
            image = image.rotate(rng.uniform(-10, 10))
        corners = [(0, 0), (8, 0), (0, 8), (8, 8), (4, 4)]
        crops = [one.crop((x, y, x + 40, y + 40)) for one in (image, ImageOps.mirror(image)) for x, y in corners]
        crops = torch.stack([torch.from_numpy(np.array(crop)).float()[None] / 255 for crop in crops])
        for crop in crops:
            if rng.random() < 0.5:  # random erasing
                height, breadth = rng.integers(6, 24, 2)
                y, x = rng.integers(0, 40 - height), rng.integers(0, 40 - breadth)
                crop[:, y : y + height, x : x + breadth] = 0
        return crops, int(self.labels[index])


def reference_rates(precision, width, batch, steps):
    import torch

    loader = torch.utils.data.DataLoader(Changed(batch * (steps + 3)), batch_size=batch, shuffle=True, num_workers=2)
    step = torch_step(torch_network(40, width), precision, weight_decay=1e-4)
    batches = iter(loader)

    def one():
        crops, labels = next(batches)
        step(crops.flatten(0, 1).to(torch_device()), labels.repeat_interleave(10).to(torch_device()))

    return batch * rate(one, steps), 0.0


def measure(way, precision, width, batch, steps):
    if way.startswith("keras"):
        return keras_rates(precision, width, batch, steps)
    if way == "reference":
        return reference_rates(precision, width, batch, max(2, steps // 5))
    return torch_rates(precision, width, batch, steps, way == "torch-compile")


# --- The table --------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", metavar="PATH", help="interpreter of an environment with PyTorch and Pillow")
    parser.add_argument("--jax-python", metavar="PATH", help="interpreter of an environment with Keras and JAX")
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument("--batch", type=int, default=64, help="faces in a step")
    parser.add_argument("--steps", type=int, default=8, help="steps of which the median counts")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, help="measure only these")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # way and precision, in its own process
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(list(map(float, measure(*given.measure, given.width, given.batch, given.steps)))))
        return
    from fer_keras import precision as precision_  # here: an environment with PyTorch alone measures, too
    from fer_keras.cost import operations

    pythons = {"keras-tensorflow": sys.executable, "keras-jax": given.jax_python}
    pythons |= {"keras-tensorflow-plain": sys.executable} | dict.fromkeys(WAYS[3:], given.torch_python)
    for way in given.ways:
        if not pythons[way]:
            print(f"{way}: left out, as no interpreter was named for it")
    fastest, why = precision_.fastest()
    precisions = ["float32", *(["bfloat16"] if fastest != "float32" else [])]
    if len(precisions) == 1:
        print(f"bfloat16: left out, since {why}")
    faces, products = {}, {}
    for precision in precisions:
        for way in given.ways:
            if not pythons[way] or (precision != "float32" and way == "keras-tensorflow-plain"):
                continue
            environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
            environment |= {"KERAS_BACKEND": "jax" if way == "keras-jax" else "tensorflow"}
            environment |= {"TF_ENABLE_ONEDNN_OPTS": "0" if way == "keras-tensorflow-plain" else "1"}
            words = [pythons[way], __file__, "--measure", way, precision]
            words += [f"--width={given.width}", f"--batch={given.batch}", f"--steps={given.steps}"]
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{way} in {precision} failed:\n{done.stderr[-2000:]}")
            faces[way, precision], product = json.loads(done.stdout.splitlines()[-1])
            products[precision] = max(products.get(precision, 0), product)
            print(f"{way:24} {precision:9} {faces[way, precision]:8.1f} faces/s", flush=True)
    print(f"\nVGGNet, width {given.width:g}, batch {given.batch}, {os.cpu_count()} cores ({platform.machine()})")
    for precision, product in products.items():
        print(f"{precision}: the matrix product {product / 1e9:,.0f} GFLOP/s")
    for (way, precision), found in faces.items():
        each = 10 * operations(40, given.width) if way == "reference" else operations(48, given.width)
        print(
            f"{way:24} {precision:9} {found:8.1f} faces/s × {each / 1e9:5.2f} GFLOP = {found * each / 1e9:6.0f} GFLOP/s"
            f", {found * each / products[precision]:4.0%} of the matrix product"
        )
    print("\nratios of faces a second")
    for precision in precisions:
        for ours, theirs in (
            (("keras-tensorflow", precision), ("keras-tensorflow-plain", precision)),
            *((("keras-tensorflow", precision), (way, precision)) for way in WAYS[2:]),
            *((("keras-tensorflow", precision), (way, "float32")) for way in WAYS[3:] if precision != "float32"),
        ):
            if ours in faces and theirs in faces:
                print(f"{' '.join(ours):34} / {' '.join(theirs):34} {faces[ours] / faces[theirs]:6.2f}")


if __name__ == "__main__":
    main()
