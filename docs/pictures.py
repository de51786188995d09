"""Make the pictures of the README from drawn faces and a finished demo: `make demo && make pictures`."""

from pathlib import Path

import matplotlib.pyplot as plt

from fer_keras import plots, report
from fer_keras.drawn import draw

HERE = Path(__file__).parent / "images"


def main():
    HERE.mkdir(exist_ok=True)
    results = report.scored(report.collect("demo"))
    pictures = {"faces": plots.samples(draw(700), per_class=10)}
    shown = results["ensemble"]
    pictures["confusion"] = plots.confusion_matrices(shown["sets"]["test"]["confusion_matrix"], shown["class_names"])
    tests = [metrics["sets"]["test"] for metrics in results.values()]
    axes = plots.intervals(list(results), [t["top1"] for t in tests], [t["intervals"]["top1"] for t in tests])
    pictures["top1"] = axes.figure
    for name, figure in pictures.items():
        figure.savefig(HERE / f"{name}.png", dpi=90, bbox_inches="tight")
        plt.close(figure)
        print(HERE / f"{name}.png")


if __name__ == "__main__":
    main()
