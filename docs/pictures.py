"""Make the README's pictures, `make pictures`: drawn faces, and what the published runs say. No real face is shown."""

from pathlib import Path

import matplotlib.pyplot as plt

from fer_keras import plots, worth
from fer_keras.drawn import draw

HERE = Path(__file__).parent / "images"
SUITES = ("official-cpu", "clean-cpu", "study-cpu")


def main():
    HERE.mkdir(exist_ok=True)
    results, _ = worth.collect(SUITES, "outputs/published")
    bars = worth.parts(results, "study") | worth.parts(results, "official")
    ensemble = worth.main_runs(results)["official"].metrics
    matrix = ensemble["sets"]["test"]["confusion_matrix"]
    pictures = {
        "faces": plots.samples(draw(700), per_class=10),
        "touched": plots.touched(bars).figure,
        "protocols": plots.protocols(worth.points(results)).figure,
        "confusion": plots.confusion_matrices(matrix, ensemble["class_names"]),
    }
    for name, figure in pictures.items():
        figure.savefig(HERE / f"{name}.png", dpi=90, bbox_inches="tight")
        plt.close(figure)
        print(HERE / f"{name}.png")


if __name__ == "__main__":
    main()
