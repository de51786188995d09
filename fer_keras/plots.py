"""Pictures: each takes numbers, draws on `ax` (or on a new figure), and returns the axes.

Colours are chosen to stay apart for colour-blind readers and in print.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from fer_keras.data import Faces


def _axes(ax, width=7.0, height=4.0):
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def class_counts(sets: Mapping[str, Faces], ax=None):
    """Bars of faces per class, one group of bars for each named set, e.g. before and after balancing."""
    ax = _axes(ax, 8)
    names = next(iter(sets.values())).class_names
    width = 0.8 / len(sets)
    colours = sns.color_palette("colorblind", len(sets))
    for number, (title, faces) in enumerate(sets.items()):
        counts = np.bincount(faces.labels, minlength=len(names))
        at = np.arange(len(names)) + (number - (len(sets) - 1) / 2) * width
        bars = ax.bar(at, counts, width, label=f"{title}: {len(faces):,}", color=colours[number])
        if len(sets) <= 2:
            ax.bar_label(bars, labels=[f"{c:,}" for c in counts], fontsize=7)
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("faces")
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(sets))  # above, where no bar is
    sns.despine(ax=ax)
    return ax


def faces_grid(images: np.ndarray, titles: Sequence[str] | None = None, columns: int = 7):
    """Faces in a grid, each with a title; returns the figure."""
    rows = max(1, -(-len(images) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * 1.25, rows * (1.5 if titles is not None else 1.25)), layout="constrained"
    )
    for index, ax in enumerate(np.atleast_1d(axes).ravel()):
        ax.axis("off")
        if index < len(images):
            ax.imshow(images[index].squeeze(), cmap="gray", vmin=0, vmax=255)
            if titles is not None:
                ax.set_title(titles[index], fontsize=8)
    return figure


def samples(faces: Faces, per_class: int = 7, random_state: int = 0):
    """Random faces in one row for each class; returns the figure, with one axes for each class."""
    rng = np.random.default_rng(random_state)
    names = faces.class_names
    height, width = faces.images.shape[1:3]
    figure, axes = plt.subplots(len(names), 1, figsize=(per_class * 1.1, len(names) * 1.1), layout="constrained")
    for code, (name, ax) in enumerate(zip(names, axes, strict=True)):
        members = np.flatnonzero(faces.labels == code)
        chosen = rng.choice(members, min(per_class, len(members)), replace=False)
        row = np.full((height, per_class * (width + 2), *faces.images.shape[3:]), 255, "uint8")
        for column, index in enumerate(chosen):
            row[:, column * (width + 2) :][:, :width] = faces.images[index]
        ax.imshow(row.squeeze(), cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        sns.despine(ax=ax, left=True, bottom=True)
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def mistakes(faces: Faces, probabilities: np.ndarray, count: int = 14):
    """The most confident mistakes, titled "true → predicted" with the probability; returns the figure."""
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != faces.labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]
    names = faces.class_names
    titles = [f"{names[faces.labels[i]]} →\n{names[predicted[i]]} {probabilities[i].max():.0%}" for i in wrong]
    return faces_grid(faces.images[wrong], titles)


def training_curves(history, axes=None):
    """Loss and accuracy by epoch, train and validation; the best epoch by validation is marked.

    Args:
        history: the table that `fer_keras.train.fit` returns.
    """
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for ax, name in zip(axes, ("loss", "accuracy"), strict=True):
        ax.plot(history["epoch"], history[name], marker=".", label="train")
        ax.plot(history["epoch"], history[f"val_{name}"], marker=".", label="validation")
        best = history[f"val_{name}"].idxmin() if name == "loss" else history[f"val_{name}"].idxmax()
        ax.axvline(history["epoch"][best], color="grey", linewidth=0.8, linestyle=":")
        ax.set(xlabel="epoch", ylabel=name)
        ax.legend(frameon=False)
        sns.despine(ax=ax)
    return axes


def confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str], normalize: bool = False, ax=None):
    """A confusion matrix as a heat map, rows true, columns predicted.

    Args:
        matrix: counts.
        normalize: show shares of each row (in percent) in place of counts; a row without faces stays empty.
    """
    ax = _axes(ax, 5.2, 4.4)
    matrix = np.array(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan if normalize else 0.0), where=totals > 0)
    sns.heatmap(
        shares,
        annot=shares * 100 if normalize else matrix,
        fmt=".0f" if normalize else "d",
        xticklabels=class_names,
        yticklabels=class_names,
        vmin=0,
        vmax=1,
        cmap="Blues",
        cbar=False,
        square=True,
        annot_kws={"size": 8},
        ax=ax,
    )
    ax.set(xlabel="predicted", ylabel="true", title="per cent of the true class" if normalize else "faces")
    ax.tick_params(axis="x", rotation=45)
    ax.tick_params(axis="y", rotation=0)
    return ax


def confusion_matrices(matrix: Sequence[Sequence[int]], class_names: Sequence[str]):
    """Counts and row-normalised confusion matrix side by side; returns the figure."""
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.8), layout="constrained")
    confusion_matrix(matrix, class_names, ax=axes[0])
    confusion_matrix(matrix, class_names, normalize=True, ax=axes[1])
    return figure


def intervals(names: Sequence[str], values: Sequence[float], bounds: Sequence[Sequence[float]], label="", ax=None):
    """Points with 95 % intervals, one line for each name.

    Args:
        values: shares, 0–1.
        bounds: low and high of each, 0–1.
    """
    ax = _axes(ax, 7, 0.6 + 0.4 * len(names))
    values, bounds = np.array(values) * 100, np.array(bounds) * 100
    at = np.arange(len(names))[::-1]
    errors = np.abs(bounds.T - values)
    ax.errorbar(values, at, xerr=errors, fmt="o", capsize=3, color=sns.color_palette("colorblind")[0], label=label)
    ax.set_yticks(at, names)
    ax.set_xlabel("top-1, % (95 % interval)")
    ax.grid(axis="x", linewidth=0.4)
    sns.despine(ax=ax)
    return ax


def recalls(table, ax=None):
    """Recall of each class, one line of points for each run.

    Args:
        table: pandas table, classes by runs, per cent, as from `fer_keras.report.recalls`.
    """
    ax = _axes(ax, 8, 3.6)
    palette = sns.color_palette("colorblind", table.shape[1])
    for number, (name, column) in enumerate(table.items()):
        at = np.arange(len(table)) + (number - (table.shape[1] - 1) / 2) * 0.09
        ax.plot(at, column, "o", markersize=5, color=palette[number], label=name)
    ax.set_xticks(range(len(table)), table.index)
    ax.set_ylabel("recall, %")
    ax.grid(axis="y", linewidth=0.4)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(ax=ax)
    return ax
