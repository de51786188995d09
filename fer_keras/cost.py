"""What a run needs, estimated from its parameters: the time and memory that a cluster is asked for.

Nothing is read but the counts in a converted set's `dataset.json`, so that a graph of thousands of runs is planned in
seconds. The estimates err on the high side, since a cluster ends a run that exceeds them.
"""

import functools
import itertools
import math
from collections.abc import Mapping

from fer_keras import convert
from fer_keras.data import IMAGE_SIZE
from fer_keras.drawn import FER2013_COUNTS

# Filters, dense units: of `fer_keras.model`, which needs Keras; a test keeps both in step.
FILTERS, UNITS = (64, 128, 256, 512), 4096
# Billions of operations a second in training, as benchmarks/train_step.py prints them: 2 CPU cores do 200. This is an
# assumption about a GPU, a low one, not a measurement.
GFLOPS = 1000.0
# Seconds that a step takes however small the network is.
STEP = 0.01
# What is asked for is so many times the training's estimate, and so many minutes more: for imports, reading, the
# compiler, scoring, pictures and pages.
FACTOR, MINUTES = 2.0, 15
# Seconds to search the nearest neighbours of as many faces as balanced FER2013 has, for SMOTE and what removes rows
# after it: it takes 20 on 2 cores (benchmarks/resample.py), and grows with the square of the rows.
SEARCH, SEARCHED = 60.0, 50_000
# Megabytes of a run on few faces, a GPU's libraries included; and bytes for each pixel that trains: as float32 in three
# copies where neighbours are searched (`fer_keras.resample`), else in as many copies of its own byte.
MEGABYTES, FLOAT_BYTES, BYTES = 6000, 12, 3
# Classes under FER+'s labels, and with contempt.
EIGHT = 8


def resources(params: Mapping, gflops: float = GFLOPS) -> dict[str, int]:
    """What to ask a cluster for, to make one run on one device.

    Args:
        params: its resolved parameters, of whichever notebook.
        gflops: billions of operations a second that the device does in training.

    Returns:
        `runtime` in minutes and `mem_mb`, host memory in megabytes, both whole.

    Raises:
        ValueError: if `gflops` is not above 0.
    """
    if not gflops > 0:
        raise ValueError(f"`gflops`, billions of operations a second in training, must be above 0. Received: {gflops}")
    if "epochs" not in params:  # an ensemble or an imported network, which only predicts
        return {"runtime": MINUTES, "mem_mb": MEGABYTES}
    n, balanced = rows(params), rows(params, balanced=True)
    searches = params.get("resampling", "none") not in ("none", "ros")
    size = _noted(str(params.get("data", "")), params.get("drawn_faces", 0))[1]
    channels = 3 if params.get("color") == "rgb" else 1
    each = operations(params.get("crop") or min(size), params["width"], channels, params.get("head", "dense"))
    steps = math.ceil(n / params["batch_size"])
    seconds = params["epochs"] * (n * each / (gflops * 1e9) + steps * STEP)
    seconds += SEARCH * (balanced / SEARCHED) ** 2 if searches else 0
    pixels = (balanced if searches else n) * size[0] * size[1] * channels
    return {
        "runtime": math.ceil(MINUTES + FACTOR * seconds / 60),
        "mem_mb": math.ceil(MEGABYTES + pixels * (FLOAT_BYTES if searches else BYTES) / 1e6),
    }


def rows(params: Mapping, balanced: bool = False) -> int:
    """How many faces train at most, by the published or noted counts of their source.

    All of a source are counted, although a fifth of FER2013's do not train: that leaves room for the faces that are
    scored. Balancing makes every class as large as the largest one; what removes rows again is not counted.

    Args:
        balanced: count the balanced faces, also where only a subset of them trains.
    """
    counts = _counts(params)
    classes = EIGHT if EIGHT in (params.get("num_classes"), len(counts)) else len(counts)
    if not balanced and params.get("subset_per_class"):
        return classes * params["subset_per_class"]
    return sum(counts) if params.get("resampling", "none") == "none" else classes * max(counts)


def _counts(params: Mapping) -> list[int]:
    """Faces of each class of a run's sources, the largest class first."""
    names = ["data"]
    if auxiliary := params.get("auxiliary"):
        names = [auxiliary] if params.get("auxiliary_alone") else ["data", auxiliary]
    found = [_noted(str(params.get(name, "drawn")), params.get("drawn_faces", 0))[0] for name in names]
    # As if the largest classes of all sources were one: never less than what there is.
    return [sum(counts) for counts in itertools.zip_longest(*found, fillvalue=0)]


@functools.cache
def _noted(path: str, drawn_faces: int) -> tuple[list[int], tuple[int, int]]:
    """Of a source, the faces of each class, the largest first, and their height and width."""
    counts, size = FER2013_COUNTS, IMAGE_SIZE
    if path == "drawn":
        counts = [drawn_faces * count // sum(counts) + len(counts) for count in counts]  # the remainders go to one
    elif path and convert.is_converted(path):
        info = convert.read_info(path)
        size, parts = info["image_size"], [part.values() for part in info["counts"].values()]
        counts = map(sum, zip(*parts, strict=True))
    return sorted(counts, reverse=True), tuple(size)


def operations(side: int, width: float = 1.0, channels: int = 1, head: str = "dense", num_classes: int = 7) -> int:
    """Multiplications and additions of VGGNet's training step for one face, of layers with kernels.

    Three times those of the forward pass, since the backward pass has a product for the inputs and one for the kernels;
    but the first layer needs none for its inputs.

    Args:
        side: of the square that the network sees.
        width, channels, head, num_classes: as in `fer_keras.model.vggnet`.
    """
    products = []
    for filters in FILTERS:
        filters = max(1, round(filters * width))
        products += [side**2 * 9 * channels * filters, side**2 * 9 * filters**2]
        side, channels = side // 2, filters
    if head == "dense":
        units = max(1, round(UNITS * width))
        products += [side**2 * channels * units, units**2]
        channels = units
    products += [channels * num_classes]
    return 2 * (3 * sum(products) - products[0])
