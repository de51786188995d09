"""The zoo: trained networks under a name, each with its file's size and SHA-256 and a card that says what it is worth.

Cards are JSON files in `fer_keras/weights/`, made by `add` from a finished run, and beside each lies the same for
readers, as Markdown. A small network's file lies there, too, so that pictures can be analysed right after installation;
a larger one is a file for a release page, loaded from a path or URL, and trusted only if its checksum is the card's.
The files are ONNX, which holds no code.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fer_keras import __version__, storage

FOLDER = Path(__file__).parent / "weights"
# What comes with the package, in bytes.
LARGEST_SHIPPED = 6_000_000
USE = (
    "Research and teaching on facial expression recognition, and trying the methods of fer-keras: it names the "
    "expression that people would be likeliest to read in a cropped, roughly frontal face."
)
LIMITS = (
    "What a face shows is not what a person feels, and the labels are partly wrong. Age, sex, skin colour and culture "
    "of the faces that trained and tested are unknown, so nothing is known about who is recognised worse. Rare "
    "expressions are, as the table shows. Not for decisions about people."
)
LICENCES = {
    "fer2013": (
        "FER2013's faces (Goodfellow et al. 2013, arXiv 1307.0414) were found for a research contest by searching the "
        "web for words of emotion, and carry no licence of their own that we know of; none of them is part of this "
        "file. Whether weights trained on them may be used for more than research is for you to check."
    ),
    "drawn": "The faces are drawn by fer-keras itself (MIT licence): this network is for trying the software alone.",
}
OTHER_LICENCE = "The network was trained on {data}, whose owners' terms apply."


class ZooError(ValueError):
    """A network that the zoo does not have, or a file that is not the one its card describes."""


# --- Loading --------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The networks that have a card."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def card(name: str) -> dict:
    """What is known about a network: see `add`.

    Raises:
        ZooError: if the zoo does not have it.
    """
    try:
        return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = f"has only {', '.join(names())}" if names() else "is still empty"
        raise ZooError(
            f"The zoo has no network {name!r}: it {there}. Make one from a finished run: fer-keras zoo add RUN --name "
            f"{name}"
        ) from None


def is_shipped(name: str) -> bool:
    """Whether a network's file came with the package."""
    return name in names() and (FOLDER / card(name)["file"]).exists()


def load(name: str, source: str | Path = "") -> dict:
    """A network's card, and the path of its file, checked.

    Args:
        name: one of `names`.
        source: the path of the file, or of a folder that holds it, or a URL. By default it is the file that came with
            the package, or one that was downloaded before, or what the card's URL gives. A download is kept in the
            user's cache folder.

    Returns:
        The card, see `add`, with `path` as a `Path`. `ExpressionClassifier(name)` uses it.

    Raises:
        ZooError: if the zoo does not have the network, the file is not there, cannot be downloaded, is truncated or has
            another checksum.
    """
    found = card(name)
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fer_keras", found["sha256"], found["file"])
    source = str(source)
    if not source:
        source = next((str(path) for path in (FOLDER / found["file"], kept) if path.exists()), found.get("url", ""))
    if not source:
        raise ZooError(
            f"The file of {name!r} does not come with fer-keras: get {found['file']} ({found['size']:,} bytes, SHA-256 "
            f"{found['sha256'][:12]}…) and give its path, --model PATH, or in Python zoo.load({name!r}, PATH_OR_URL)."
        )
    if "://" in source:
        path = _download(source, kept, found)
    else:
        path = Path(source).expanduser()
        path = path / found["file"] if path.is_dir() else path
        if not path.is_file():
            raise ZooError(f"There is no file {str(path)!r} for the network {name!r}.")
        check(path, found, str(path))
    return found | {"path": path}


def check(path: Path, expected: Mapping, called: str) -> None:
    """Compare a file with what a card says about it.

    Args:
        called: what to call the file in the error.

    Raises:
        ZooError: if its size or its SHA-256 differs.
    """
    size = path.stat().st_size
    if size < expected["size"]:
        raise ZooError(
            f"{called} is truncated: it has {size:,} of {expected['size']:,} bytes. Download or copy it again."
        )
    digest = storage.file_hash(path)
    if digest != expected["sha256"]:
        raise ZooError(
            f"{called} is not the file of {expected['name']!r}: its SHA-256 is {digest[:12]}…, expected "
            f"{expected['sha256'][:12]}…. Download it again, or give the file that the card describes."
        )


def _download(url: str, kept: Path, expected: Mapping) -> Path:
    import http.client
    import urllib.request

    with storage.replacing(kept) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, open(temporary, "wb") as file:
                # One byte more than expected shows that it is another file; no more of it is of interest.
                left = expected["size"] + 1
                while left > 0 and (block := answer.read(min(left, 2**20))):
                    file.write(block)
                    left -= len(block)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ZooError(
                f"The file of {expected['name']!r} could not be downloaded from {url}: {reason}. Download it by hand "
                "and give its path."
            ) from None
        check(temporary, expected, url)
    return kept


# --- Adding ---------------------------------------------------------------------------------------------------------


def add(
    run_folder: str | Path,
    name: str,
    file: str | Path | None = None,
    url: str = "",
    float16: bool = False,
    replace: bool = False,
) -> dict:
    """Make a network of the zoo from a finished run.

    The run's model is exported to ONNX as it was scored, compared with Keras, and described by the run's own files.

    Args:
        run_folder: of the run.
        name: what `load` shall know it by.
        file: where to write the file; by default it comes with the package, which needs it to be small.
        url: from where others can download the file.
        float16: see `fer_keras.export.export`.
        replace: an entry of that name, if there is one.

    Returns:
        The card: name, file, size, sha256, url, format; class_names, image_size, channels, weights (their number),
        answer (what one answer is the mean of), largest_difference (from Keras); run (suite, experiment, seed, data,
        protocol, key, git_commit, model_sha256, and where it has them: labels, others than the data's own, and the
        auxiliary data sets that trained it or a run that it comes from); chosen_by; test (n, top1 and balanced_accuracy
        with intervals, per class recall, its interval and n); audit, use, limits, licence, in sentences.

    Raises:
        ZooError: if there is a network of that name, the run was scored by ten crops or under `study`, its test faces
            chose it, a run that it comes from is not there, its classes are not FER2013's in their order, or the file
            is too large to come with the package.
        ExportError: see `fer_keras.export.export`.
    """
    from fer_keras import export, run

    _check_name(name)
    if name in names() and not replace:
        raise ZooError(
            f"The zoo has a network {name!r} already: `fer-keras zoo show {name}`. Give another --name, or --replace."
        )
    folder = Path(run_folder).expanduser()
    about = export.describe(folder)
    if about["tta"] == "ten_crop":
        raise ZooError(
            f"{folder} was scored over ten crops, and a file of the zoo answers for one view or two. Score it anew, "
            "which trains nothing: the same command with `-p tta flip` or `-p tta none`."
        )
    if about["protocol"] == "study":
        raise ZooError(
            f"{folder} is a run under `study`, whose test faces train, too: its scores say nothing about new faces. "
            "Add a run under `official` or `clean`."
        )
    if run.read_metrics(folder)["chosen_by"].get("role") == "test":
        raise ZooError(
            f"{folder} was chosen by its test faces, as published checkpoints are: its scores say nothing about new "
            "faces. Add a run that the validation faces chose."
        )
    _check_classes(about["class_names"], folder)
    worth = _worth(folder, about)
    path = Path(file).expanduser() if file else FOLDER / f"{name}.onnx"
    network = run.load_model(folder)
    with storage.replacing(path) as temporary:
        _, agreement = export.export(folder, temporary, "onnx", float16=float16)
        size = temporary.stat().st_size
        if not file and size > LARGEST_SHIPPED:
            raise ZooError(
                f"The file of {folder} has {size / 1e6:.1f} MB, and what comes with the package may have "
                f"{LARGEST_SHIPPED / 1e6:.0f} MB. Write it elsewhere, --file {name}.onnx, and say where others get it, "
                "--url URL."
            )
        height, width, channels = network.inputs[0].shape[1:]
        made = {
            "name": name,
            "file": path.name,
            "size": size,
            "sha256": storage.file_hash(temporary),
            "url": url,
            "format": f"onnx, weights in {'float16' if float16 else 'float32'}",
            "class_names": about["class_names"],
            "image_size": [height, width],
            "channels": channels,
            "weights": network.count_params(),
            "answer": "the mean over the face and its mirror image" if about["tta"] == "flip" else "of the face",
            "largest_difference": agreement["largest"],
            "fer_keras": __version__,
        } | worth
    if path.resolve() != (FOLDER / f"{name}.onnx").resolve():
        (FOLDER / f"{name}.onnx").unlink(missing_ok=True)  # of the entry that this one replaces
    storage.write_json(FOLDER / f"{name}.json", made)
    storage.write_text(FOLDER / f"{name}.md", markdown(made))
    return made


def _check_name(name: str) -> None:
    import re

    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ZooError(f"A network's name must be of small letters, digits and dashes. Received: {name!r}")


def _check_classes(class_names, folder) -> None:
    from fer_keras.data import CLASS_NAMES

    known = (list(CLASS_NAMES), [*CLASS_NAMES, "contempt"])
    if class_names not in known:
        raise ZooError(
            f"The classes of {folder} are {', '.join(class_names)}; those of the zoo are {', '.join(CLASS_NAMES)}, in "
            "this order, and possibly contempt."
        )


def _worth(folder: Path, about: Mapping) -> dict:
    """What a run's files say about its worth."""
    from fer_keras import audit, evaluate, run

    metrics = run.read_metrics(folder)
    test = metrics["sets"]["test"]
    hits = [row[code] for code, row in enumerate(test["confusion_matrix"])]
    per_class = {}
    for (name, scores), hit in zip(test["per_class"].items(), hits, strict=True):
        n = scores["support"]
        per_class[name] = {"n": n} | ({"recall": hit / n, "interval": evaluate.wilson(hit, n)} if n else {})
    kept = ("suite", "experiment", "seed", "data", "protocol", "key", "git_commit", "model_sha256", "labels")
    try:
        trained = [run.read_params(each) for each in run.trainings(folder)]
    except FileNotFoundError as error:
        raise ZooError(
            f"{folder} comes from another run, which is not there: {error.filename}. What trained that belongs on the "
            "card, so leave the two in their folders."
        ) from None
    others = sorted({each["auxiliary"] for each in trained if each.get("auxiliary")})
    owned = [name for name in others if name not in LICENCES]
    licence = LICENCES.get(about["data"], OTHER_LICENCE.format(data=about["data"]))
    return {
        "run": {name: about[name] for name in kept if name in about} | ({"auxiliary": others} if others else {}),
        "chosen_by": metrics["chosen_by"],
        "test": {
            "n": test["n"],
            **{name: test[name] for name in evaluate.MAIN},
            "intervals": {name: test["intervals"][name] for name in evaluate.MAIN},
            "per_class": per_class,
        },
        "audit": audit.sentences(metrics["audit"]) if metrics.get("audit") else "",
        "use": USE,
        "limits": LIMITS,
        "licence": f"{licence} {OTHER_LICENCE.format(data=' and '.join(owned))}" if owned else licence,
    }


def markdown(made: Mapping) -> str:
    """A card for readers."""
    from fer_keras.evaluate import percent

    run, test, chosen = made["run"], made["test"], made["chosen_by"]
    test_name = "PrivateTest" if run["data"] == "fer2013" else "test"
    source = f"{run['suite']}/{run['experiment']}/seed-{run['seed']}"
    height, width = made["image_size"]
    members = len(chosen.get("members", ()))
    network, in_all = (f"mean of {members} VGGNets", " in all") if members else ("VGGNet", "")
    labels = f" with the labels of {run['labels']}" if "labels" in run else ""
    others = f"; {' and '.join(run['auxiliary'])} among what trained" if "auxiliary" in run else ""
    lines = [
        f"# {made['name']}",
        "",
        f"`{made['file']}`, {made['size']:,} bytes, SHA-256 `{made['sha256']}`"
        + (f", from {made['url']}" if made["url"] else "")
        + ".",
        "",
        f"- **Network:** {network} with {made['weights']:,} weights{in_all}; {made['format']}. It takes uint8 faces of "
        f"{width}×{height} pixels with {made['channels']} channel{'s' * (made['channels'] > 1)}, 0–255, and gives the "
        f"probabilities of {', '.join(made['class_names'])}, in this order. An answer is {made['answer']}.",
        f"- **Made by:** the run {source}, commit {str(run['git_commit'])[:12]}, key {run['key'][:12]}; the file's "
        f"probabilities differ from the run's by at most {made['largest_difference']:.1e}.",
        f"- **Data and protocol:** {run['data']}{labels}, `{run['protocol']}`{others}. The epoch was chosen by "
        f"{chosen.get('n', 0):,} faces of role {chosen.get('role', 'unknown')}; the test faces chose nothing.",
        f"- **Worth:** on {test['n']:,} {test_name} faces{labels} top-1 "
        f"{percent(test['top1'], test['intervals']['top1'])} %, balanced accuracy "
        f"{percent(test['balanced_accuracy'], test['intervals']['balanced_accuracy'])} % (95 % intervals).",
        *([f"- **Leaks:** {' '.join(made['audit'].split())}"] if made["audit"] else []),
        f"- **Use:** {made['use']}",
        f"- **Limits:** {made['limits']}",
        f"- **Licence of the data:** {made['licence']}",
        "",
        f"| class | {test_name} faces | recall % (95 % interval) |",
        "|---|---|---|",
    ]
    for name, scores in test["per_class"].items():
        recall = percent(scores["recall"], scores["interval"]) if scores["n"] else "–"
        lines.append(f"| {name} | {scores['n']:,} | {recall} |")
    return "\n".join(lines) + "\n"
