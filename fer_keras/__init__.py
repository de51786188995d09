"""fer-keras: rerun a published facial-expression-recognition study, and see what each of its numbers is worth.

The modules, in the order in which a face passes them: `data`, `drawn`, `convert` (`source` chooses and joins) →
`duplicates`, `split` → `ferplus` (other labels) → `resample` → `augment` (all four by `roles`) → `model` → `train` →
`evaluate` → `audit` → `plots`, `report`, `worth` → `publish`. `params` resolves a run's parameters, `steps` calls the
rooms with them, `run` is its folder, which `lock` keeps to one writer, `suite` the graph of runs, also of a sweep,
which `tuning` judges, and `progress` says how far they are; `search` looks for parameters within a budget. `listing`
knows the layouts of the data sets that `convert` converts, `layouts` draws such data sets. With pictures: `faces` →
`classifier`, from what `export` wrote or the `zoo` holds → `predict`, `app`. `explain` shows which pixels decide, and
`precision` what this machine trains fast in; `devices` shares a training out among several, `gpus` gives each of
several runs one of its own.
"""

import os

# TensorFlow turns oneDNN on by itself only on processors with AVX-512's neural extensions; without them it still makes
# VGGNet's training step about twice as fast (benchmarks/train_step.py). Set before TensorFlow is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"


def __getattr__(name: str):
    """`from fer_keras import ExpressionClassifier`, imported when it is asked for: the package itself stays light."""
    if name == "ExpressionClassifier":
        from fer_keras.classifier import ExpressionClassifier

        return ExpressionClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
