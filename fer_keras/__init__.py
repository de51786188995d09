"""fer-keras: rerun a published facial-expression-recognition study, and see what each of its numbers is worth.

The modules, in the order in which a face passes them: `data`, `drawn` (`source` chooses) → `duplicates`, `split` →
`resample` → `augment` → `model` → `train` → `evaluate` → `audit` → `plots`, `report`, `worth` → `publish`. `params`
resolves a run's parameters, `run` is its folder, `suite` the graph of runs, also of a sweep, which `tuning` judges;
`search` looks for parameters within a budget. `ferplus` is a second opinion on labels.
"""

import os

# TensorFlow turns oneDNN on by itself only on processors with AVX-512's neural extensions; without them it still makes
# VGGNet's training step about twice as fast (benchmarks/train_step.py). Set before TensorFlow is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "0.1.0"
