"""Does the code as it is train what an older commit trained, bit by bit? Then the older runs need not be called stale.

Small runs on drawn faces are trained by both, through the notebook: every resampler, protocol and schedule,
augmentation, a crop, class weights, bfloat16, a start from another run, and what else the older code has of other data,
classes, colour, subsets and mixing. If all their weights, histories and rows are
equal, the older code's hash goes into fer_keras/equal_code.json beside that of the code as it is; the list counts for
nothing as soon as the code changes again. Run: python benchmarks/equal_code.py COMMIT
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from papermill import inspect_notebook

ROOT = Path(__file__).parent.parent
HERE = ["-p", "suite", "equal", "-p", "drawn_faces", "280", "-p", "width", "0.03125", "-p", "epochs", "2"]
RUNS = {
    "tuned": {},
    "ros": {"resampling": "ros", "starts_from": "tuned", "schedule": "cosine"},
    "smote": {"resampling": "smote", "protocol": "clean", "starts_from": "", "schedule": "cosine", "warmup_epochs": 1},
    "smote_tomek": {"resampling": "smote_tomek", "protocol": "study", "starts_from": "tuned"},
    "smote_enn": {"resampling": "smote_enn", "protocol": "study", "class_weight": "balanced"},
    "sgd": {"optimizer": "sgd", "schedule": "plateau", "patience": 2, "l2": 1.0e-4, "monitor": "val_loss"},
    "changed": {"flip": True, "rotation": 10.0, "translation": 0.1, "zoom": 0.1, "label_smoothing": 0.1},
    "subset": {"resampling": "ros", "subset_per_class": 50, "subset_flip": True, "subset_rotation": 9.0},
    "contempt": {"auxiliary": "drawn", "num_classes": 8, "starts_from": "tuned", "mixup": 0.2},
    "rgb": {"auxiliary": "drawn", "auxiliary_alone": True, "color": "rgb", "starts_from": "tuned", "cutmix": 1.0},
    "noise": {"noise": 8.0, "erasing": 0.5, "randaugment": 0.2},
    "crop": {"crop": 40, "flip": True, "tta": "ten_crop", "precision": "mixed_bfloat16", "dropout": 0.5},
}
PRINT = "from fer_keras import run; print(run.source_hash())"
COMPARE = """
import sys, keras, numpy as np, pandas as pd
from pathlib import Path
here, there = (Path(word, "equal", sys.argv[3], "seed-0") for word in sys.argv[1:3])
rows = [dict(np.load(folder / "rows.npz")) for folder in (here, there)]
assert rows[0].keys() == rows[1].keys() and all(np.array_equal(rows[0][n], rows[1][n]) for n in rows[0]), "rows differ"
assert (here / "history.csv").read_text() == (there / "history.csv").read_text(), "histories differ"
weights = [keras.models.load_model(folder / "model.keras", compile=False).get_weights() for folder in (here, there)]
assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True)), "weights differ"
"""


def call(tree, *words):
    """Run a program with the package of this tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))[:200]} failed in {tree}:\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def main():
    if len(sys.argv) != 2:
        sys.exit("Give the commit to compare with: python benchmarks/equal_code.py COMMIT")
    with tempfile.TemporaryDirectory() as temporary:
        old = Path(temporary, "old")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", old, sys.argv[1]], cwd=ROOT, check=True)
        try:
            known = set(inspect_notebook(str(old / "notebooks" / "train.ipynb")))
            for name, given in RUNS.items():
                if unknown := set(given) - known:
                    print(f"{name}: the older code has no {', '.join(sorted(unknown))}")
                    continue
                words = [word for pair in given.items() for word in ("-p", pair[0], str(pair[1]))]
                for tree, place in ((old, "there"), (ROOT, "here")):
                    target = Path(temporary, place, f"{name}.ipynb")
                    target.parent.mkdir(exist_ok=True)
                    places = ["-p", "experiment", name, "-p", "outputs", target.parent, "--no-progress-bar"]
                    call(tree, "-m", "papermill", "notebooks/train.ipynb", target, *HERE, *words, *places)
                call(ROOT, "-c", COMPARE, Path(temporary, "here"), Path(temporary, "there"), name)
                print(f"{name}: equal rows, history and weights", flush=True)
            current, older = call(ROOT, "-c", PRINT), {call(old, "-c", PRINT)}
            # And what is equal to the older code.
            listed = json.loads((old / "fer_keras" / "equal_code.json").read_text())
            older |= set(listed["equal"]) if listed["current"] in older else set()
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=ROOT, check=True)
    path = ROOT / "fer_keras" / "equal_code.json"
    known = json.loads(path.read_text())
    equal = known["equal"] if known["current"] == current else []
    equal = sorted({*equal, *older} - {current})
    path.write_text(json.dumps({"current": current, "equal": equal}, indent=1) + "\n")
    print(f"{path}: the code as it is trains what {len(equal)} older one(s) trained.")


if __name__ == "__main__":
    main()
