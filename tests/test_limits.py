"""docs/limits.md says what the published run says."""

import json
from pathlib import Path

from fer_keras.evaluate import percent
from fer_keras.run import read_predictions

ROOT = Path(__file__).parent.parent


def test_the_page_of_limits_agrees_with_the_published_run():
    text = " ".join((ROOT / "docs" / "limits.md").read_text().split())
    folder = ROOT / "outputs/published/compact-cpu/compact/seed-0"
    test = json.loads((folder / "metrics.json").read_text())["sets"]["test"]
    told = read_predictions(folder)[1]["test"]
    assert f"right in {percent(test['top1'], test['intervals']['top1'])} % of cases" in text
    order = sorted(test["per_class"].items(), key=lambda item: -item[1]["recall"])
    for words in (
        [name for name, _ in order],
        [f"{100 * scores['recall']:.1f}" for _, scores in order],
        [f"{scores['support']:,}" for _, scores in order],
    ):
        assert f" | {' | '.join(words)} |" in text
    assert f"on average {100 * test['calibration_error']:.0f} points" in text
    sure, right = told.probabilities.max(axis=1) > 0.9, told.probabilities.argmax(axis=1) == told.labels
    assert (
        f"of the {sure.sum():,} faces of which it is more than 90 % sure, it has {100 * right[sure].mean():.1f} %"
        in text
    )
