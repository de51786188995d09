"""usef-kh's PyTorch checkpoints as Keras models: against golden arrays, and against PyTorch where it is installed."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT

from fer_keras import cli, evaluate, model, report, run, source, storage, worth

GOLDEN = ROOT / "tests" / "golden" / "pytorch_vgg.npz"  # made by make_pytorch.py beside it


@pytest.fixture(scope="module")
def golden():
    return storage.read_arrays(GOLDEN)


@pytest.fixture
def weights(golden):
    return {name.removeprefix("weights."): array for name, array in golden.items() if name.startswith("weights.")}


def logits_of(network):
    return keras.Model(network.input, network.get_layer("logits").output)


# --- Without PyTorch ------------------------------------------------------------------------------------------------


def test_logits_are_pytorchs(golden, weights):
    network = model.from_state_dict(weights)
    found = logits_of(network).predict(golden["images"], verbose=0)
    assert np.ptp(golden["logits"], axis=0).min() > 0.2, "the faces differ"
    np.testing.assert_allclose(found, golden["logits"], rtol=0, atol=1e-4)
    probabilities = network.predict(golden["images"], verbose=0)
    np.testing.assert_allclose(probabilities, keras.ops.softmax(golden["logits"]), rtol=0, atol=1e-4)


def test_ten_crops_are_pytorchs(golden, weights):
    network = logits_of(model.from_state_dict(weights))
    found = evaluate.predict(network, golden["images"], "ten_crop", crop=40)
    np.testing.assert_allclose(found, golden["ten_crop"], rtol=0, atol=1e-4)
    assert np.abs(golden["ten_crop"] - golden["logits"]).max() > 0.1, "one crop is not ten"


def test_the_network_is_vggnet_of_the_width_and_classes_that_the_shapes_tell(weights, tmp_path):
    weights |= {"lin3.weight": np.ones((3, 128), "float16"), "lin3.bias": np.zeros(3)}
    network = model.from_state_dict(weights)
    expected = model.vggnet(num_classes=3, width=1 / 32, crop=40)
    assert network.input_shape == (None, 48, 48, 1) and network.input.dtype == "uint8"
    assert [layer.name for layer in network.layers] == [layer.name for layer in expected.layers]
    assert [w.shape for w in network.weights] == [w.shape for w in expected.weights]
    assert {w.dtype for w in network.weights} - {"uint32", "int64"} == {"float32"}
    network.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 1), "uint8")
    np.testing.assert_array_equal(again.predict(images, verbose=0), network.predict(images, verbose=0))


def test_the_count_of_batches_is_not_needed(golden, weights):
    fewer = {name: array for name, array in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(weights) - len(fewer) == 8
    pairs = zip(model.from_state_dict(fewer).weights, model.from_state_dict(weights).weights, strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def changed(weights, name, array):
    return weights | {name: array} if array is not None else {n: a for n, a in weights.items() if n != name}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("bn2a.running_var", None, r"Missing: bn2a.running_var; unknown: none\.$"),
        ("fc.weight", np.ones(1), r"Missing: none; unknown: fc.weight\.$"),
        ("lin1.num_batches_tracked", np.ones(1), r"unknown: lin1.num_batches_tracked\.$"),
        # A network for 48×48 faces has 3 · 3 pixels left where one for 40×40 has 2 · 2.
        (
            "lin1.weight",
            np.ones((128, 144)),
            r"lin1.weight must be \(128, 64\) in .* width 0.03125 .* Received: \(128, 144\)",
        ),
        ("lin3.weight", np.ones((128, 7)), r"lin3.weight must be \(7, 128\) .* Received: \(128, 7\)"),
        ("conv1a.weight", np.ones((2, 3, 3, 3)), r"conv1a.weight must be \(2, 1, 3, 3\) .* Received: \(2, 3, 3, 3\)"),
        ("conv1a.weight", np.float32(1), r"conv1a.weight must be \(2, 1, 3, 3\) .* Received: \(\)"),
        ("conv1a.bias", np.ones(4), r"conv1a.weight must be \(4, 1, 3, 3\) in a network of width 0.0625"),
        ("conv1a.bias", np.ones(0), r"`width` above 0"),
        ("lin3.bias", np.ones(1), r"`num_classes` must be at least 2"),
        ("bn1a.bias", np.array([0, np.nan]), r"bn1a.bias holds values that are not finite"),
        ("lin2.bias", np.full(128, 1e300), r"lin2.bias holds values that are not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_weights_that_do_not_fit_are_refused(weights, name, array, message):
    with pytest.raises(ValueError, match=message):
        model.from_state_dict(changed(weights, name, array))


def test_of_many_wrong_names_the_first_are_told():
    with pytest.raises(ValueError, match=r"Missing: conv1a.weight, .* and 50 more; unknown: a, b\.$"):
        model.from_state_dict({"a": np.ones(1), "b": np.ones(1)})


def test_another_crop_must_leave_as_many_pixels(golden, weights):
    assert model.from_state_dict(weights, crop=44).get_layer("crop").height == 44
    with pytest.raises(ValueError, match=r"lin1.weight must be \(128, 144\) .* sees 48×48 pixels"):
        model.from_state_dict(weights, crop=48)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "VGGNet", tmp_path, ""):
        with pytest.raises(FileNotFoundError, match=f"There is no file '{path}'. Give the path of a PyTorch check"):
            model.from_pytorch(path)


def test_without_pytorch_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"needs PyTorch: pip install -e '\.\[torch\]'"):
        model.from_pytorch(GOLDEN)


def test_the_files_content_counts_in_the_key_and_its_place_does_not(tmp_path, faces, weights):
    paths = [tmp_path / name for name in ("one", "moved", "other")]
    for path, content in zip(paths, (b"1", b"1", b"2"), strict=True):
        path.write_bytes(content)
    keys = [run.key_of({"checkpoint": str(path)}, "f", run.ancestor_keys({"checkpoint": path})) for path in paths]
    assert keys[0] == keys[1] != keys[2]
    params = {"experiment": "pytorch", "checkpoint": str(paths[0])}
    folder = run.folder_of("s", "pytorch", 0, tmp_path / "outputs")
    network = model.from_state_dict(weights)
    run.save_training(folder, params, keys[0], {"test": faces}, None, network, 1.0, {"checkpoint": paths[0]})
    assert run.read_environment(folder)["ancestors"] == {"checkpoint": storage.file_hash(paths[0])}
    storage.write_json(folder / "metrics.json", {})
    paths[0].unlink()  # a finished run does not need it
    assert run.state(folder, keys[0]) == "done" and run.state(folder, keys[2]) == "other parameters"


# --- With PyTorch ---------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")


def test_the_golden_arrays_are_this_pytorchs(torch, golden, weights):
    from golden.make_pytorch import Vgg

    network = Vgg(width=1 / 32)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    np.testing.assert_allclose(network.logits(golden["images"]), golden["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(network.ten_crop(golden["images"]), golden["ten_crop"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def full():
    """usef-kh's network in PyTorch, at full width."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    from golden.make_pytorch import Vgg

    return Vgg(seed=1)


@pytest.mark.parametrize("bare", [False, True], ids=["with logs", "bare"])
def test_a_checkpoint_at_full_width_has_pytorchs_logits(torch, full, faces, tmp_path, bare):
    logs = ([1.7, 1.2], [1.6, 1.1], [33.1, 54.0], [35.2, 57.9])
    torch.save(full.state_dict() if bare else {"logs": logs, "params": full.state_dict()}, tmp_path / "VGGNet")
    network = model.from_pytorch(tmp_path / "VGGNet")
    assert network.count_params() == model.vggnet(crop=40).count_params()
    images = faces.images[:16]
    expected = full.logits(images)
    assert np.ptp(expected, axis=0).max() > 1, "the faces differ"
    np.testing.assert_allclose(logits_of(network).predict(images, verbose=0), expected, rtol=0, atol=1e-4)


class Harmful:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "run")


def test_code_in_a_file_is_not_run(torch, weights, tmp_path):
    path, harm = tmp_path / "VGGNet", tmp_path / "harm"
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    torch.save({"params": tensors, "logs": Harmful(harm)}, path)
    with pytest.raises(ValueError, match=r"objects beside tensors .* could run code.*save\(net.state_dict\(\), path\)"):
        model.from_pytorch(path)
    assert not harm.exists()
    torch.load(path, weights_only=False)
    assert harm.exists(), "it would have been run"


def test_what_is_no_checkpoint_is_refused(torch, weights, tmp_path):
    path = tmp_path / "VGGNet"
    for content in (b"", b"no checkpoint", GOLDEN.read_bytes(), pickle.dumps({"params": 1}, protocol=2)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no checkpoint|cannot be read as a PyTorch checkpoint"):
            model.from_pytorch(path)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    for content, message in (
        ([1, 2], "Received: list"),
        ({"params": [1], "logs": 2}, "Received: params, logs"),
        ({"epoch": 3, "state_dict": tensors}, "Received: epoch, state_dict"),
        ({"params": {f"module.{name}": value for name, value in tensors.items()}}, "VGGNet: .* unknown: module.conv1a"),
        ({}, "Missing: conv1a.weight"),
        (changed(tensors, "bn1a.bias", torch.full((2,), torch.nan)), "VGGNet: bn1a.bias holds values"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            model.from_pytorch(path)


def test_half_precision_and_old_files_are_read(torch, golden, weights, tmp_path):
    tensors = {name: torch.from_numpy(array).bfloat16() for name, array in weights.items()}
    torch.save(tensors, tmp_path / "VGGNet", _use_new_zipfile_serialization=False)
    found = logits_of(model.from_pytorch(tmp_path / "VGGNet")).predict(golden["images"], verbose=0)
    np.testing.assert_allclose(found, golden["logits"], rtol=0, atol=0.1)  # bfloat16 has 8 bits


def test_the_notebook_scores_a_checkpoint(torch, weights, faces, tmp_path):
    checkpoint, outputs = tmp_path / "VGGNet", tmp_path / "outputs"
    torch.save({"params": {name: torch.from_numpy(array) for name, array in weights.items()}}, checkpoint)
    words = f"-f params/pytorch.yaml -p checkpoint {checkpoint} -p drawn_faces 280 -p outputs {outputs} -p suite s"
    command = [sys.executable, "-m", "papermill", "notebooks/pytorch.ipynb", tmp_path / "out.ipynb", *words.split()]
    done = subprocess.run([*command, "--no-progress-bar"], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = run.folder_of("s", "pytorch", 0, outputs)
    metrics = run.read_metrics(folder)
    ancestors = run.ancestor_keys({"checkpoint": checkpoint})
    key = run.key_of(run.read_params(folder), source.fingerprint_of("drawn", 280), ancestors)
    assert metrics["key"] == key and run.state(folder, key) == "done"
    # PublicTest and PrivateTest, by ten crops.
    _, sets = run.read_predictions(folder)
    assert set(sets) == set(metrics["sets"]) == {"validation", "test"}
    for name, usage in (("validation", "PublicTest"), ("test", "PrivateTest")):
        assert sets[name].rows.tolist() == faces.rows[faces.usage == usage].tolist()
        images = faces.images[faces.usage == usage]
        expected = evaluate.predict(model.from_state_dict(weights), images, "ten_crop", 40)
        np.testing.assert_allclose(sets[name].probabilities, expected, atol=1e-5)
    # PrivateTest chose it, and may have trained it.
    n = int((faces.usage == "PrivateTest").sum())
    assert (metrics["chosen_by"]["role"], metrics["chosen_by"]["n"]) == ("test", n)
    audit = metrics["audit"]
    assert audit["trained"]["rows"] == (faces.usage != "PublicTest").sum() and "unknown" in audit["assumption"]
    assert audit["sets"]["test"]["touched"] == 1 > audit["sets"]["validation"]["touched"]
    # The rest of the suite's tables take it like any run.
    results = [report.Result("pytorch", 0, folder, metrics, "done")]
    assert report.roles(results).loc["pytorch", "chosen by"] == f"test, {n}"
    assert worth.side_by_side(results).loc["pytorch", "official, test faces never seen"] == "–"
    assert worth.stops(results).empty and "Only top-1" in report.findings(results)
    assert cli.main(["audit", str(folder)]) == 0
