import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fer_keras import ferplus
from fer_keras.data import CLASS_NAMES
from fer_keras.duplicates import rows_hash

HEADER = ["Usage", "Image name", *ferplus.VOTES]


@pytest.fixture
def few(faces, monkeypatch):
    """Six faces that pass for all of FER2013."""
    few = faces.take(slice(0, 6))
    monkeypatch.setattr(ferplus, "FER2013_ROWS", rows_hash(few))
    return few


@pytest.fixture
def lines(few):
    """FER+ lines: each face's own label has six votes, `unknown` four; the image numbers skip the third face."""
    table = pd.DataFrame(0, index=range(6), columns=HEADER).astype({"Usage": object, "Image name": object})
    table["Usage"] = few.usage
    table["Image name"] = ["fer0.png", "fer1.png", None, "fer3.png", "fer4.png", "fer5.png"]
    own = [name for label in few.labels for name, ours in ferplus.VOTES.items() if ours == CLASS_NAMES[label]]
    for row, name in enumerate(own):
        table.loc[row, name] = 6
    table["unknown"] = 4
    return table


def written(tmp_path, table):
    path = tmp_path / "fer2013new.csv"
    table.to_csv(path, index=False)
    return path


def test_votes_come_by_order_whatever_the_image_numbers(few, lines, tmp_path):
    votes = ferplus.load_votes(written(tmp_path, lines), few)
    assert votes.shape == (6, 10) and votes.dtype == "int64" and set(votes.sum(axis=1)) == {10}
    assert ferplus.majority(votes).tolist() == [CLASS_NAMES[label] for label in few.labels]


def test_a_tie_is_no_majority():
    votes = np.zeros((3, 10), int)
    votes[0, [1, 4]] = 5
    votes[1, 9] = 10
    votes[2, [1, 4, 8]] = 4, 3, 3
    assert ferplus.majority(votes).tolist() == ["no majority", "not a face", "happy"]


def test_agreement_and_confusion_by_hand():
    labels = np.array([3, 3, 0, 6])  # happy, happy, angry, neutral
    votes = np.zeros((4, 10), int)
    votes[0, 1] = 10  # happiness
    votes[1, [1, 3]] = 4, 6  # happiness, sadness
    votes[2, [4, 0]] = 5, 5  # anger, neutral: a tie
    votes[3, 9] = 10  # not a face
    table = ferplus.agreement(labels, votes)
    assert list(table.index) == [*CLASS_NAMES, "all"]
    assert table.loc["happy", ["faces", "agree", "votes", "not a face"]].tolist() == [2, 0.5, 0.7, 0]
    assert table.loc["all", ["faces", "agree", "votes", "not a face"]].tolist() == [4, 0.25, (1 + 0.4 + 0.5) / 4, 1]
    assert table.loc["fear"].isna().all()
    matrix = ferplus.confusion(labels, votes)
    assert matrix.shape == (7, 11) and matrix.to_numpy().sum() == 4
    assert matrix.loc["happy", ["happy", "sad"]].tolist() == [1, 1]
    assert matrix.loc["angry", "no majority"] == matrix.loc["neutral", "not a face"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(index=2), "has 5 lines and there are 6 faces"),
        (lambda t: pd.concat([t, t.tail(1)]), "has 7 lines and there are 6 faces"),
        (lambda t: t.drop(columns=["fear", "NF"]), "has no column fear, NF"),
        (lambda t: t.assign(fear="x"), "must be whole numbers"),
        (lambda t: t.assign(fear=-1), "must be whole numbers"),
        (lambda t: t.assign(Usage=["Test", *t["Usage"][1:]]), "line 2: Usage 'Test', but that face has"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(few, lines, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ferplus.load_votes(written(tmp_path, change(lines)), few)


def test_lines_in_another_order_are_refused(few, lines, tmp_path):
    usage = lines["Usage"].copy()
    swapped = lines.iloc[[1, 0, 2, 3, 4, 5]].assign(Usage=usage.to_numpy())
    with pytest.raises(ValueError, match="not in FER\\+'s order"):
        ferplus.load_votes(written(tmp_path, swapped), few)


def test_other_faces_are_refused(few, lines, tmp_path):
    with pytest.raises(ValueError, match="FER\\+ is about FER2013's faces"):
        ferplus.load_votes(written(tmp_path, lines), few.take([1, 0, 2, 3, 4, 5]))


def test_a_missing_file_is_refused(few, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*votes\.csv"):
        ferplus.load_votes(tmp_path / "votes.csv", few)


def test_the_real_votes_fit_the_real_faces(real_csv):
    from fer_keras.data import load_fer2013

    faces = load_fer2013(real_csv)
    votes = ferplus.load_votes(Path(os.environ["FER_KERAS_TEST_DATA"], "fer2013", "fer2013new.csv"), faces)
    table = ferplus.agreement(faces.labels, votes)
    assert table.loc["all", "not a face"] == 177
    # Happy is the class that people agree on most, as in the paper's examples; joined one row off it would be chance.
    assert table["agree"].idxmax() == "happy" and table.loc["happy", "agree"] > 0.9
    shifted = ferplus.agreement(np.roll(faces.labels, 1), votes)
    assert shifted.loc["all", "agree"] < 0.3
    assert ferplus.confusion(faces.labels, votes).to_numpy().sum() == 35887


# --- Labels to train with ---------------------------------------------------------------------------------------------

# In FER+'s order: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, not a face.
CASES = [
    # votes, what "majority" makes of them, what the distribution is
    ([10, 0, 0, 0, 0, 0, 0, 0, 0, 0], {"neutral": 1}, {"neutral": 1}),
    ([0, 0, 0, 0, 0, 0, 0, 9, 1, 0], {"contempt": 1}, {"contempt": 1}),  # a single vote does not count
    ([5, 4, 1, 0, 0, 0, 0, 0, 0, 0], {"neutral": 1}, {"neutral": 5 / 9, "happy": 4 / 9}),
    ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], {}, {"neutral": 0.5, "happy": 0.5}),  # no one has more than half
    ([4, 2, 2, 2, 0, 0, 0, 0, 0, 0], {}, {}),  # with those that tie, four opinions
    ([4, 3, 0, 3, 0, 0, 0, 0, 0, 0], {}, {"neutral": 0.4, "happy": 0.3, "sad": 0.3}),
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], {}, {}),
    ([3, 0, 0, 0, 0, 0, 0, 0, 7, 0], {}, {}),  # "unknown" comes first
    ([6, 0, 0, 0, 0, 0, 0, 0, 4, 0], {"neutral": 1}, {"neutral": 1}),  # "unknown" comes second and is left out
    ([4, 0, 0, 2, 0, 0, 0, 0, 4, 0], {}, {}),  # as many say "unknown", and the rest is not more than half
    ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], {}, {}),  # nothing but single votes
]


@pytest.mark.parametrize("mode", ferplus.MODES)
@pytest.mark.parametrize(("votes", "majority", "shares"), CASES, ids=str)
def test_votes_become_shares_by_the_papers_rules(votes, majority, shares, mode):
    found = ferplus.distribution(np.array([votes]), mode)
    expected = majority if mode == "majority" else shares
    names = (*CLASS_NAMES, "contempt")
    np.testing.assert_allclose(found[0], [expected.get(name, 0) for name in names], atol=1e-6)


def test_faces_get_ferplus_labels_and_lose_those_without(few, lines, tmp_path):
    lines.loc[0, list(ferplus.VOTES)] = 0
    lines.loc[0, "NF"] = 10
    lines.loc[1, list(ferplus.VOTES)] = 0
    lines.loc[1, ["contempt", "anger"]] = 6, 4
    path = written(tmp_path, lines)
    for mode in ferplus.MODES:
        relabel = ferplus.relabeller(path, few, mode)
        train, test = relabel(few, "train"), relabel(few, "test")
        assert train.rows.tolist() == test.rows.tolist() == [1, 2, 3, 4, 5]
        assert train.labels.tolist() == test.labels.tolist() == [7, *few.labels[2:]]
        assert test.targets is None and (train.targets is None) == (mode == "majority")
        if mode != "majority":
            np.testing.assert_allclose(train.targets[0], [0.4, 0, 0, 0, 0, 0, 0, 0.6], atol=1e-6)
    with pytest.raises(ValueError, match=r"`ferplus_mode` must be one of majority, probability, crossentropy\. Rec"):
        ferplus.relabeller(path, few, "mean")
