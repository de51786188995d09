"""What a cluster is asked for: against the network's own layers, and against the time that published runs took."""

import json
from pathlib import Path

import keras
import pytest
import yaml

from fer_keras import cost, layouts, model, resample, suite
from fer_keras.convert import convert
from fer_keras.drawn import draw

ROOT = Path(__file__).parent.parent
PUBLISHED = sorted((ROOT / "outputs/published").glob("*/*/seed-*/environment.json"))
TUNED = {"data": "fer2013.csv", "width": 1.0, "epochs": 60, "batch_size": 64, "resampling": "none"}


def counted(network: keras.Model) -> int:
    """Operations of a training step for one face, from the shapes that Keras's layers have."""
    products = []
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            places = layer.output.shape[1] * layer.output.shape[2]
            products.append(places * layer.kernel.shape[0] ** 2 * layer.kernel.shape[2] * layer.filters)
        elif isinstance(layer, keras.layers.Dense):
            products.append(layer.kernel.shape[0] * layer.units)
    return 2 * (3 * sum(products) - products[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 0.3, "channels": 3},
        {"crop": 40, "width": 0.125},
        {"head": "pooling", "width": 0.25, "num_classes": 8},
        {"image_size": (96, 96), "width": 0.0625},
    ],
    ids=str,
)
def test_operations_are_those_of_the_networks_layers(options):
    side = options.get("crop") or options.get("image_size", (48, 48))[0]
    given = {name: value for name, value in options.items() if name not in ("crop", "image_size")}
    assert cost.operations(side, **given) == counted(model.vggnet(**options))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "/".join(path.parts[-4:-2]))
def test_published_runs_took_less_than_estimated_and_not_much_less(path):
    """At the rate that benchmarks/train_step.py shows on the machine that made them, other work on it included."""
    params = yaml.safe_load((path.parent / "params.yaml").read_text())
    took = json.loads(path.read_text())["training_seconds"] / 60
    asked = cost.resources({"data": "fer2013.csv", **params}, gflops=200)["runtime"]
    assert took < asked < cost.MINUTES + 8 * took


def test_rows_are_no_fewer_than_train():
    faces = draw(700)
    for method in ("none", "ros", "smote"):
        params = {"data": "drawn", "drawn_faces": 700, "resampling": method}
        train = resample.resample(faces, method)
        assert len(train) <= cost.rows(params) <= 1.05 * len(train) + 49
    assert cost.rows(TUNED) == 35887 and cost.rows(TUNED | {"resampling": "smote_enn"}) == 62923
    subset = {"resampling": "smote", "subset_per_class": 4000}
    assert cost.rows(TUNED | subset) == 28000 and cost.rows(TUNED | subset | {"num_classes": 8}) == 32000
    assert cost.rows(TUNED | subset, balanced=True) == 62923


def test_a_converted_set_counts_by_what_it_notes(tmp_path):
    layouts.write_affectnet(tmp_path / "source", 160)
    faces = convert("affectnet", tmp_path / "source", tmp_path / "set", image_size=64)
    params = TUNED | {"auxiliary": "affectnet", "affectnet": str(tmp_path / "set")}
    assert cost.rows(params) == 35887 + len(faces)
    assert cost.rows(params | {"auxiliary_alone": True}) == len(faces)
    largest = max((faces.labels == code).sum() for code in range(len(faces.class_names)))
    assert cost.rows(params | {"resampling": "ros"}) >= 7 * (8989 + largest)
    alone = TUNED | {"data": str(tmp_path / "set")}
    assert cost.rows(alone) == len(faces)
    small = alone | {"data": "drawn", "drawn_faces": len(faces) - 49}  # counted with 49 more
    larger, smaller = (cost.resources(one | {"epochs": 10**4}, gflops=1)["runtime"] for one in (alone, small))
    assert larger > 1.5 * smaller, "64×64 pixels, and 48×48"


def test_more_work_asks_for_more():
    base = cost.resources(TUNED)
    for more in ({"epochs": 120}, {"resampling": "ros"}, {"color": "rgb", "epochs": 120}):
        assert cost.resources(TUNED | more)["runtime"] > base["runtime"]
    assert cost.resources(TUNED | {"width": 0.25})["runtime"] < base["runtime"]
    assert cost.resources(TUNED, gflops=200)["runtime"] > 4 * (base["runtime"] - cost.MINUTES)
    ros, smote = (cost.resources(TUNED | {"resampling": method}) for method in ("ros", "smote"))
    # Three float32 copies of balanced FER2013, which benchmarks/resample.py measures.
    assert smote["mem_mb"] - ros["mem_mb"] > 1000 and smote["runtime"] > ros["runtime"]


def test_every_kind_of_run_has_an_estimate(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("official", "more", "ferplus", "demo-more"):
        for job in suite.jobs(name, fingerprint="f").values():
            found = cost.resources(job.params)
            assert all(type(value) is int for value in found.values())
            assert cost.MINUTES <= found["runtime"] < 7 * 24 * 60 and 4000 < found["mem_mb"] < 64000


def test_a_speed_that_is_none_is_refused():
    for speed in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=r"`gflops`.*above 0"):
            cost.resources(TUNED, speed)
