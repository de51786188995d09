"""Drawn faces: a small data set that the package makes itself, so that everything runs without a download.

Each face is drawn from a seed with Pillow at four times the size and reduced: a head with hair, brows, eyes, nose and
mouth whose shape follows the expression, at a random strength, so that weak expressions look neutral and a network
learns them well, but not perfectly. Pose, proportions, line thickness, lighting, contrast, blur and noise vary. Classes
are as unbalanced as FER2013's.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fer_keras.data import CLASS_NAMES, IMAGE_SIZE, USAGES, Faces

# FER2013's class counts, in the order of `CLASS_NAMES`, and the shares of its official split.
FER2013_COUNTS = (4953, 547, 5121, 8989, 6077, 4002, 6198)
USAGE_SHARES = (0.8, 0.1, 0.1)
# Faces of contempt, which FER2013 lacks, where they are wanted beside those.
CONTEMPT_COUNT = 3000
SCALE = 4  # drawn larger, then reduced: smooth lines

# What an expression does to a face at full strength. brow: height (up is positive) and slope (positive: inner ends
# down); eye: opening; lid: droop; mouth: curve (positive: corners up), opening, width; sneer: one-sided lift of the
# upper lip and wrinkles beside the nose. Contempt also lifts one corner of the mouth.
SHAPES = {
    "angry": {"brow": -0.55, "slope": 0.9, "eye": 0.75, "lid": 0.3, "curve": -0.35, "open": 0.12, "wide": -0.05},
    "disgust": {"brow": -0.3, "slope": 0.35, "eye": 0.5, "lid": 0.3, "curve": -0.45, "open": 0.2, "sneer": 1.0},
    "fear": {"brow": 0.65, "slope": -0.7, "eye": 1.5, "curve": -0.15, "open": 0.4, "wide": 0.2},
    "happy": {"brow": 0.1, "slope": -0.05, "eye": 0.75, "curve": 1.0, "open": 0.3, "wide": 0.3},
    "sad": {"brow": 0.1, "slope": -0.85, "eye": 0.75, "lid": 0.4, "curve": -0.75, "wide": -0.15},
    "surprise": {"brow": 0.95, "slope": -0.1, "eye": 1.6, "curve": 0.0, "open": 1.0, "wide": -0.35},
    "neutral": {},
    "contempt": {"brow": -0.1, "eye": 0.8, "lid": 0.35, "curve": -0.1},
}
REST = {"brow": 0.0, "slope": 0.0, "eye": 1.0, "lid": 0.0, "curve": 0.0, "open": 0.0, "wide": 0.0, "sneer": 0.0}


def draw(n: int = 2800, seed: int = 0, contempt: bool = False) -> Faces:
    """Draw a set of faces, unbalanced like FER2013 and split like it.

    Args:
        n: number of faces, at least 140, so that the rarest class has some in each part of the split.
        seed: two calls with the same arguments give the same pixels.
        contempt: draw faces of contempt, too, as class 7.

    Returns:
        `Faces` with uint8 images (n, 48, 48, 1), shuffled; usage is 80 % Training, 10 % PublicTest, 10 % PrivateTest
        of every class.

    Raises:
        ValueError: if `n` is below 140.
    """
    if n < 140:
        raise ValueError(f"`n` must be at least 140, so that each class is in each part of the split. Received: n={n}")
    rng = np.random.default_rng(seed)
    names = (*CLASS_NAMES, "contempt") if contempt else CLASS_NAMES
    wanted = np.array([*FER2013_COUNTS, CONTEMPT_COUNT][: len(names)])
    counts = np.maximum(10, np.floor(n * wanted / wanted.sum())).astype(int)
    counts[np.argmax(counts)] += n - counts.sum()
    labels = np.repeat(np.arange(len(names)), counts)
    usage = np.empty(n, "U11")
    for code, count in enumerate(counts):
        tests = max(1, round(count * USAGE_SHARES[1]))
        usage[labels == code] = [USAGES[1]] * tests + [USAGES[2]] * tests + [USAGES[0]] * (count - 2 * tests)
    order = rng.permutation(n)
    labels, usage = labels[order], usage[order]
    images = np.stack([draw_face(names[label], rng) for label in labels])[..., None]
    identity = fingerprint(n, seed, contempt)
    return Faces(images, labels, np.arange(n), usage, class_names=names, fingerprint=identity)


def fingerprint(n: int = 2800, seed: int = 0, contempt: bool = False) -> str:
    """Identity of what `draw` returns: made from this file, so that other pictures are other data."""
    return hashlib.sha256(Path(__file__).read_bytes() + f"{n} {seed} {contempt}".encode()).hexdigest()


def draw_face(expression: str, rng: np.random.Generator, strength: float | None = None) -> np.ndarray:
    """Draw one face.

    Args:
        expression: one of `CLASS_NAMES`, or "contempt".
        rng: source of everything that varies.
        strength: how pronounced the expression is, 0–1; drawn from a beta distribution by default.

    Returns:
        uint8 (48, 48), 0–255.
    """
    size = IMAGE_SIZE[0] * SCALE
    strength = rng.beta(5.0, 1.2) if strength is None else strength
    shape = {
        name: rest + strength * (SHAPES[expression].get(name, rest) - rest) + rng.normal(0, 0.07)
        for name, rest in REST.items()
    }
    skin, dark = rng.uniform(120, 225), rng.uniform(10, 60)
    image = Image.new("L", (size, size), int(rng.uniform(20, 235)))
    pen = ImageDraw.Draw(image)
    thick = rng.uniform(0.75, 1.5)

    # A face is drawn in its own coordinates (x right, y down, head about −1 to 1), then placed by pose.
    tilt, turn = rng.normal(0, 0.10), rng.normal(0, 0.16)
    width, height = size * rng.uniform(0.33, 0.40), size * rng.uniform(0.42, 0.49)
    centre = size / 2 + rng.normal(0, size * 0.02, 2)
    cos, sin = np.cos(tilt), np.sin(tilt)

    def place(points):
        x, y = np.asarray(points, float).reshape(-1, 2).T
        x = x * width + turn * width * 0.9 * np.clip(1 - np.hypot(x, y * 0.8), 0, 1)  # turning moves the middle most
        y = y * height
        return list(zip(centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y, strict=True))

    def oval(x, y, rx, ry, fill):
        angle = np.linspace(0, 2 * np.pi, 40)
        pen.polygon(
            place(np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)), fill=int(np.clip(fill, 0, 255))
        )

    def line(points, weight, fill):
        pen.line(place(points), fill=int(np.clip(fill, 0, 255)), width=max(1, round(weight * thick)), joint="curve")

    hair = rng.uniform(5, 110)
    long_hair = rng.random() < 0.45
    if long_hair:
        oval(0, 0.0, 1.22, 1.2, hair)
    oval(-1.0, 0.02, 0.14, 0.17, skin * 0.85)
    oval(1.0, 0.02, 0.14, 0.17, skin * 0.85)
    oval(0, 0, 1.0, 1.05, skin)
    hairline = rng.uniform(-0.78, -0.55)
    angle = np.linspace(np.pi * 1.04, np.pi * 1.96, 30)
    top = np.stack([1.06 * np.cos(angle), 1.12 * np.sin(angle)], 1)
    fringe = np.stack([np.linspace(0.98, -0.98, 12), hairline + 0.25 * np.linspace(-1, 1, 12) ** 2], 1)
    fringe[1:-1, 1] += rng.normal(0, 0.025, 10)
    pen.polygon(place(np.concatenate([top, fringe])), fill=int(hair))

    eye_y, eye_x = -0.12 + rng.normal(0, 0.02), 0.42 + rng.normal(0, 0.025)
    eye_rx, eye_ry = 0.19 * rng.uniform(0.9, 1.15), 0.095 * np.clip(shape["eye"], 0.15, 1.8)
    gaze = rng.normal(0, 0.04)
    for side in (-1, 1):
        x = side * eye_x
        oval(x, eye_y, eye_rx, eye_ry, min(skin * 1.25, 250))
        iris = min(0.085, eye_ry * 0.95)
        oval(x + gaze, eye_y, 0.085, iris, dark)
        lid = np.linspace(-1, 1, 9)
        droop = np.clip(shape["lid"], 0, 1) * eye_ry
        lid_y = eye_y - eye_ry * np.sqrt(1 - lid**2 * 0.98) + droop
        pen.polygon(
            place(
                np.concatenate(
                    [np.stack([x + lid * eye_rx, lid_y], 1), [[x + eye_rx, eye_y - 0.2], [x - eye_rx, eye_y - 0.2]]]
                )
            ),
            fill=int(skin),
        )
        line(np.stack([x + lid * eye_rx, lid_y], 1), 3.2, dark)
        # The brow: `slope` lowers (angry) or lifts (sad) its inner end.
        t = np.linspace(-1, 1, 7)  # from the inner to the outer end
        brow_y = eye_y - 0.24 - 0.11 * shape["brow"] - 0.035 * (1 - t**2) * (1 + max(shape["brow"], 0))
        brow_y = brow_y - shape["slope"] * 0.085 * t
        line(np.stack([x + side * t * 0.23, brow_y], 1), 6.0, min(hair, 90))

    nose_y = 0.27 + rng.normal(0, 0.02)
    line([[0.02, eye_y + 0.05], [0.075, nose_y - 0.04], [0.085, nose_y], [-0.06, nose_y + 0.015]], 2.4, skin * 0.68)
    if shape["sneer"] > 0.3:
        for side in (-1, 1):
            for step in range(2):
                line([[side * 0.09, 0.02 + step * 0.08], [side * 0.2, -0.02 + step * 0.08]], 2.2, skin * 0.6)
            line([[side * 0.17, nose_y], [side * 0.36, nose_y + 0.2]], 2.4, skin * 0.62)

    mouth_y, mouth_rx = 0.58 + rng.normal(0, 0.02), 0.33 * (1 + 0.55 * shape["wide"])
    x = np.linspace(-1, 1, 15)
    base = mouth_y - 0.14 * shape["curve"] * (x**2 - 0.4)
    if expression == "contempt":
        base = base - 0.16 * strength * np.maximum(x, -0.3) ** 2 * (x > -0.3)
    opening = max(shape["open"], 0) * 0.17
    arch = np.sqrt(1 - x**2 * 0.995)
    lift = np.clip(shape["sneer"], 0, 1.3) * 0.09 * np.exp(-((x - 0.45) ** 2) / 0.12)
    upper, lower = base - opening * arch * 0.75 - lift, base + opening * arch * (1.0 + 0.3 * max(shape["curve"], 0))
    if opening > 0.012:
        outline = np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]]) * [mouth_rx, 1]
        pen.polygon(place(outline), fill=int(dark))
        if rng.random() < 0.6:  # upper teeth
            teeth = np.stack([x * mouth_rx * 0.9, upper + 0.02], 1)
            pen.polygon(place(np.concatenate([teeth, (teeth + [0, opening * 0.45] * arch[:, None])[::-1]])), fill=235)
    line(np.stack([x * mouth_rx, upper], 1), 3.6, skin * 0.42)
    line(np.stack([x * mouth_rx, lower], 1), 3.6, skin * 0.45)
    if shape["curve"] > 0.45:  # cheeks of a smile
        for side in (-1, 1):
            line([[side * 0.28, nose_y], [side * 0.47, mouth_y - 0.1], [side * 0.47, mouth_y + 0.04]], 2.2, skin * 0.7)
    if rng.random() < 0.12:  # glasses
        for side in (-1, 1):
            angle = np.linspace(0, 2 * np.pi, 30)
            ring = np.stack([side * eye_x + 0.28 * np.cos(angle), eye_y + 0.22 * np.sin(angle)], 1)
            line(ring, 2.6, dark)
        line([[-eye_x + 0.28, eye_y], [eye_x - 0.28, eye_y]], 2.6, dark)

    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 3.6)))
    pixels = np.asarray(image.resize(IMAGE_SIZE[::-1], Image.Resampling.BOX), "float64")
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    light, direction = rng.uniform(0, 0.35), rng.uniform(0, 2 * np.pi)
    pixels = pixels * (1 + light * (np.cos(direction) * x + np.sin(direction) * y))
    pixels = 128 + rng.uniform(0.6, 1.15) * (pixels - 128) + rng.normal(0, 18)
    pixels = pixels + rng.normal(0, rng.uniform(2, 12), pixels.shape)
    return np.rint(np.clip(pixels, 0, 255)).astype("uint8")
