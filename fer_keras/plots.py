"""Pictures: each takes numbers, draws on `ax` (or on a new figure), and returns the axes.

Colours are chosen to stay apart for colour-blind readers and in print.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from fer_keras.data import Faces

# Published results and the protocols, the same in every picture, in the order of legends.
PROTOCOL_COLOURS = dict(
    zip(
        ("published", "study", "official", "clean"),
        ("0.45", *(sns.color_palette("colorblind")[i] for i in (3, 0, 2))),
        strict=True,
    )
)


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


def changed(originals: Faces, faces: Faces, count: int = 14, random_state: int = 0):
    """Random faces of an augmented subset, each below its original; returns the figure.

    Args:
        originals: the faces before they were changed, in the same order.
        faces: those of the subset, with `changes`.
    """
    rng = np.random.default_rng(random_state)
    chosen = np.sort(rng.choice(len(faces), min(count, len(faces)), replace=False))
    titles = []
    for flip, rotation, noise, _ in faces.changes[chosen]:
        done = ["mirrored"] * bool(flip) + [f"{rotation:+.0f}°"] * bool(rotation) + [f"noise {noise:.0f}"] * bool(noise)
        titles.append("\n".join(done) or "unchanged")
    both = np.concatenate([originals.images[chosen], faces.images[chosen]], axis=1)
    return faces_grid(both, titles)


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


def reliability(table, ax=None, label=""):
    """Accuracy against confidence, the area of a point being its faces; on the diagonal a model knows what it knows.

    Args:
        table: from `fer_keras.evaluate.reliability`.
    """
    ax = _axes(ax, 4.4, 4.2)
    ax.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    sizes = 12 + 300 * table["n"] / table["n"].sum()
    ax.plot(table["confidence"], table["accuracy"], linewidth=1, color=sns.color_palette("colorblind")[0])
    ax.scatter(table["confidence"], table["accuracy"], s=sizes, color=sns.color_palette("colorblind")[0])
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=label)
    sns.despine(ax=ax)
    return ax


def protocols(table, ax=None):
    """Top-1 of each experiment under each protocol, with 95 % intervals where there are any.

    Args:
        table: pandas table, one row a point: experiment, protocol, top1, low, high (per cent; low and high may be
            missing, as of published results).
    """
    names = list(dict.fromkeys(table["experiment"]))
    ax = _axes(ax, 8, 0.9 + 0.62 * len(names))
    kinds = [kind for kind in PROTOCOL_COLOURS if kind in set(table["protocol"])]
    for number, kind in enumerate(kinds):
        part = table[table["protocol"] == kind]
        below = (number - (len(kinds) - 1) / 2) * 0.17
        at = [len(names) - 1 - names.index(name) - below for name in part["experiment"]]
        errors = np.nan_to_num(np.abs(part[["low", "high"]].to_numpy(float).T - part["top1"].to_numpy()))
        marker, colour = "D" if kind == "published" else "o", PROTOCOL_COLOURS[kind]
        ax.errorbar(part["top1"], at, xerr=errors, fmt=marker, markersize=5, capsize=2.5, color=colour, label=kind)
    ax.set_yticks(range(len(names)), names[::-1])
    for edge in np.arange(len(names) - 1) + 0.5:
        ax.axhline(edge, color="0.92", linewidth=0.8, zorder=0)
    ax.set_xlabel("top-1 on the protocol's own test faces, % (95 % interval)")
    ax.grid(axis="x", linewidth=0.4)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(kinds))
    sns.despine(ax=ax)
    return ax


def touched(rows: Mapping[str, Mapping[str, tuple[int, float]]], ax=None):
    """Of which faces a score is made: one bar a run, its parts as wide as their share, each with its top-1.

    Args:
        rows: by run, by part: faces and top-1 (0–1). All rows have the same parts, in the order in which to draw them;
            a part may be empty.
    """
    ax = _axes(ax, 9, 1.1 + 0.5 * len(rows))
    names = list(next(iter(rows.values())))
    palette = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    for at, parts in enumerate(reversed(rows.values())):
        total, left = sum(n for n, _ in parts.values()), 0.0
        for name, (n, top1) in parts.items():
            width = 100 * n / total
            ax.barh(at, width, left=left, color=palette[name], height=0.72, edgecolor="white")
            if width >= 6:
                ax.text(left + width / 2, at, f"{100 * top1:.0f}", ha="center", va="center", fontsize=9, color="black")
            left += width
    ax.set_yticks(range(len(rows)), list(rows)[::-1])
    ax.set(xlim=(0, 100), xlabel="share of the test faces, %; in each part, the top-1 on it, %")
    shown = [name for name in names if any(parts[name][0] for parts in rows.values())]
    handles = [plt.Rectangle((0, 0), 1, 1, color=palette[name]) for name in shown]
    ax.legend(handles, shown, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    sns.despine(ax=ax, left=True)
    return ax


def pairs(first: Faces, second: Faces, table, columns: int = 4):
    """Pairs of faces side by side, with kind, similarity and both labels; returns the figure.

    Args:
        table: rows of `fer_keras.duplicates.find(first, second)`.
    """
    names = first.class_names
    rows = max(1, -(-len(table) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 2.4, rows * 1.75), layout="constrained")
    for ax in np.atleast_1d(axes).ravel():
        ax.axis("off")
    for ax, pair in zip(np.atleast_1d(axes).ravel(), table.itertuples(), strict=False):
        left, right = first.images[pair.first], second.images[pair.second]
        gap = np.full((left.shape[0], 3, left.shape[2]), 255, "uint8")
        ax.imshow(np.concatenate([left, gap, right], axis=1).squeeze(), cmap="gray", vmin=0, vmax=255)
        ax.set_title(
            f"{pair.kind} {pair.similarity:.3f}\n{names[pair.first_label]} | {names[pair.second_label]}", fontsize=8
        )
    return figure


def validation_curves(groups: Mapping[str, Mapping[str, object]], highlight: Sequence[str] = (), columns: int = 3):
    """Accuracy on the validation faces by epoch, one panel for each group, the highlighted runs in colour.

    Args:
        groups: by group, by run, tables with `epoch` and `val_accuracy`, as from `fer_keras.tuning.curves`.
        highlight: names of runs, in the order of their colours.

    Returns:
        The figure.
    """
    rows = max(1, -(-len(groups) // columns))
    wide = min(columns, len(groups))
    figure, axes = plt.subplots(
        rows, wide, figsize=(3.6 * wide, 2.8 * rows), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    colours = dict(zip(highlight, sns.color_palette("colorblind"), strict=False))
    for ax in axes.ravel()[len(groups) :]:
        ax.axis("off")
    for ax, (group, runs) in zip(axes.ravel(), groups.items(), strict=False):
        for name, history in sorted(runs.items(), key=lambda item: item[0] in colours):  # colours above the others
            style = {"color": colours[name], "linewidth": 1.8, "label": name} if name in colours else {"color": "0.75"}
            ax.plot(history["epoch"], 100 * history["val_accuracy"], **({"linewidth": 0.9, "marker": "."} | style))
        ax.set_title(group, fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if any(name in colours for name in runs):
            ax.legend(frameon=False, fontsize=7, loc="lower right")
        sns.despine(ax=ax)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("top-1 on the validation faces, %", fontsize=9)
    return figure


def marginals(table, columns: int = 3):
    """The best top-1 on the validation faces for each value of each parameter; returns the figure.

    Args:
        table: from `fer_keras.tuning.marginals`.
    """
    parts = dict(list(table.groupby("parameter", sort=False)))
    rows, wide = max(1, -(-len(parts) // columns)), min(columns, max(1, len(parts)))
    figure, axes = plt.subplots(
        rows, wide, figsize=(3.6 * wide, 2.6 * rows), layout="constrained", sharey=True, squeeze=False
    )
    for ax in axes.ravel()[len(parts) :]:
        ax.axis("off")
    for ax, (parameter, part) in zip(axes.ravel(), parts.items(), strict=False):
        values = [f"{value:g}" if isinstance(value, float) else str(value) for value in part["value"]]
        best = part["validation"].to_numpy().argmax()
        colours = [sns.color_palette("colorblind")[0] if at == best else "0.65" for at in range(len(part))]
        ax.scatter(range(len(part)), 100 * part["validation"], c=colours, zorder=3)
        ax.set_xticks(range(len(part)), values, rotation=45 if max(map(len, values)) > 5 else 0)
        ax.set_xlim(-0.5, len(part) - 0.5)
        ax.grid(axis="y", linewidth=0.4)
        ax.set_title(parameter, fontsize=9)
        sns.despine(ax=ax)
    figure.supylabel("best top-1 on validation, %", fontsize=9)
    return figure


def points_tried(table, ax=None):
    """What a choice by test reports and what a choice by validation gives, against the number of points tried.

    Args:
        table: from `fer_keras.tuning.by_number_of_points`.
    """
    ax = _axes(ax, 6.5, 3.4)
    for colour, style, (name, column) in zip((3, 0), ("-", "--"), table.items(), strict=True):
        ax.plot(table.index, 100 * column, style, marker=".", color=sns.color_palette("colorblind")[colour], label=name)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.fill_between(table.index, *(100 * table[name] for name in table), color="0.9", zorder=0)
    ax.set(xlabel="points tried", ylabel="top-1 on the test faces, %")
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    return ax


def trials(table, ax=None):
    """Trials of a search in their order: complete ones by their validation top-1, pruned ones by their last one.

    Args:
        table: from `fer_keras.search.trials`, with `state` and `validation` (0–1).
    """
    ax = _axes(ax, 7.5, 3.4)
    for state, marker, colour in (("complete", "o", sns.color_palette("colorblind")[0]), ("pruned", "x", "0.6")):
        part = table[table["state"] == state]
        ax.scatter(part.index, 100 * part["validation"], marker=marker, color=colour, label=state, zorder=3)
    done = table[table["state"] == "complete"]["validation"]
    ax.step(done.index, 100 * done.cummax(), where="post", color="0.3", linewidth=1, label="best so far")
    ax.set(xlabel="trial", ylabel="top-1 on the validation faces, %")
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    return ax
