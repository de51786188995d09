from pathlib import Path

import keras
import pytest

from fer_keras import params, precision, suite, train

FAST = "processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_bf16 amx_bf16\nflags\t\t: fpu\n"
OLD = "flags\t\t: fpu sse2 avx2\nbugs\t\t: none that bf16 has\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this machine one with another processor and other GPUs."""
    precision._choose.cache_clear()
    for name in ("CUDA_VISIBLE_DEVICES", "KERAS_BACKEND", precision.CHOSEN):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile does not stay
        monkeypatch.delenv(name)

    def make(cpuinfo=OLD, gpus=None):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
        if cpuinfo is not None:
            (tmp_path / "cpuinfo").write_text(cpuinfo)
        if gpus is not None:
            (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\necho "{gpus}"\n')
            (tmp_path / "nvidia-smi").chmod(0o755)

    yield make
    precision._choose.cache_clear()


@pytest.mark.parametrize(
    ("given", "chosen", "why"),
    [
        ({"gpus": "9.0"}, "mixed_bfloat16", "the GPU has compute capability 9.0"),
        ({"gpus": "8.0\n7.5", "cpuinfo": FAST}, "float32", "compute capability 7.5"),
        ({"cpuinfo": FAST}, "mixed_bfloat16", "the processor has amx_bf16"),
        ({"cpuinfo": FAST.replace(" amx_bf16", "")}, "mixed_bfloat16", "the processor has avx512_bf16"),
        ({"cpuinfo": OLD}, "float32", "the processor has neither amx_bf16 nor avx512_bf16"),
        ({"cpuinfo": None}, "float32", "the processor has neither"),
        ({"cpuinfo": FAST, "gpus": "No devices were found"}, "mixed_bfloat16", "no GPU, the processor has amx_bf16"),
    ],
    ids=str,
)
def test_auto_is_what_the_machine_computes_fast_and_says_so_once(machine, capsys, given, chosen, why):
    machine(**given)
    defaults = {"precision": "float32", "epochs": 1}
    for _ in range(2):
        assert params.resolve(defaults, suite={"precision": "auto"})["precision"] == chosen
    said = capsys.readouterr().err
    assert said.count(f"precision: auto is {chosen} here: ") == 1 and why in said


def test_other_hosts_choose_as_the_one_that_started_them(machine, monkeypatch, capsys):
    machine(gpus="9.0")
    assert precision.resolve("auto") == "mixed_bfloat16"
    capsys.readouterr()
    machine(gpus="7.5")
    precision._choose.cache_clear()
    assert precision.resolve("auto") == "mixed_bfloat16" and capsys.readouterr().err == ""
    precision._choose.cache_clear()
    monkeypatch.setenv(precision.CHOSEN, "bfloat16")
    with pytest.raises(
        ValueError, match=r"FER_KERAS_PRECISION must be mixed_bfloat16 or float32. Received: 'bfloat16'"
    ):
        precision.resolve("auto")


def test_a_hidden_gpu_does_not_count(machine, monkeypatch):
    machine(gpus="9.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert precision.fastest()[0] == "float32"


def test_a_processor_counts_only_under_the_backend_that_uses_it(machine, monkeypatch):
    machine(cpuinfo=FAST)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    why = "there is no GPU, the processor has amx_bf16, and Keras's backend is jax"
    assert precision.fastest() == ("float32", why)


def test_a_run_that_asks_for_a_precision_gets_it_on_every_machine(machine, capsys):
    machine(gpus="9.0")
    for name in ("float32", "mixed_bfloat16", "mixed_float16"):
        assert params.resolve({"precision": "auto"}, {"precision": name}) == {"precision": name}
    assert params.resolve({"epochs": 1}, suite={"precision": "auto"}) == {"epochs": 1}
    assert capsys.readouterr().err == ""


def test_a_suites_runs_have_the_key_of_what_was_chosen(machine, tmp_path, monkeypatch):
    """What Snakemake compares and hands on to the notebook is the resolved name."""
    folder = tmp_path / "params"
    (folder / "suites").mkdir(parents=True)
    (folder / "tuned.yaml").write_text("experiment: tuned\n")
    (folder / "suites" / "s.yaml").write_text("suite: s\ndata: drawn\ndrawn_faces: 70\nexperiments: [tuned]\n")
    monkeypatch.chdir(Path(__file__).parent.parent)

    def job(**given):
        return suite.jobs("s", given, folder, fingerprint="f")["tuned", 0]

    machine(gpus="9.0")
    auto, named = job(precision="auto"), job(precision="mixed_bfloat16")
    assert auto.params["precision"] == "mixed_bfloat16" and auto.key == named.key != job(precision="float32").key


def test_the_seed_takes_auto_too(machine):
    machine(gpus="9.0")
    try:
        train.seed_everything(0, "auto")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
