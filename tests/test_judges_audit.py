"""The audit: figures worked out by hand, and files that are no audit."""

import json

import pytest

from judges.audit import audit, read_audit
from reward import Category

W, A, G, L, S, M = Category


def rows(*categories):
    return [{"ground_truth": f"t{i}", "prediction": f"p{i}", "category": c.label}
            for i, c in enumerate(categories)]


def test_audit_against_hand_worked_numbers():
    """Wrong, Wrong, Generic, Specific judged Wrong, Specific, Generic, nothing."""
    text = audit(rows(W, W, G, S), [W, S, G, None], n=2, draws=4000).splitlines()
    assert text[0] == "4 pairs, 1 without a verdict"
    # right: 2 of 4; F1: Wrong 2/(2+1), Generic 1, Specific 0, mean .556; balanced: (1/2 + 1/2)/2
    assert text[1] == "accuracy 0.500, macro-F1 0.556, balanced wrong-versus-not 0.500"
    table = {line[:23].strip(): [int(k) for k in line[23:].split()] for line in text[4:10]}
    assert table == {"wrong": [1, 0, 0, 0, 1, 0], "abstain": [0] * 6, "generic": [0, 0, 1, 0, 0, 0],
                     "less specific": [0] * 6, "specific": [0] * 6, "more specific": [0] * 6}
    # Groups of two from (W judged W, W judged S, G judged G): the bar moves where W judged S is drawn,
    # 5/9. Of 18 rewards, its own six flip from 0 to 1, and a G beside it falls below the bar (two).
    words = text[11].split()
    assert "groups of 2" in text[11]
    moved, flipped = (float(w.rstrip("%")) / 100 for w in words if w.endswith("%"))
    assert moved == pytest.approx(5 / 9, abs=0.03) and flipped == pytest.approx(8 / 18, abs=0.03)
    assert text[-1] == "  t1 | p1: wrong, judged specific" and len(text) == 15


def test_a_perfect_judge_moves_no_bar_and_a_silent_one_breaks_nothing():
    text = audit(rows(*Category), list(Category))
    assert "accuracy 1.000, macro-F1 1.000, balanced wrong-versus-not 1.000" in text
    assert "the bar moves in 0.0% of the groups and 0.0% of the rewards flip" in text
    assert text.endswith("worst:")
    text = audit(rows(*Category), [None] * 6)
    assert text == "6 pairs, not one verdict"
    assert "accuracy 1.000" in audit(rows(W, W), [W, W])  # one category only
    assert "macro-F1 0.667" in audit(rows(W, W), [W, S])  # the mean over the labelled categories
    worst = audit(rows(W, S, A), [M, L, G]).split("worst:\n")[1].splitlines()
    assert [line.split(" | ")[0].strip() for line in worst] == ["t0", "t1", "t2"]  # widest first


@pytest.mark.parametrize("line", [
    "not json", "", "[]", "7", '{"ground_truth": "a", "prediction": "b"}', '{"category": "wrong"}',
    '{"ground_truth": "a", "prediction": "b", "category": "excellent"}',
    '{"ground_truth": "a", "prediction": null, "category": "wrong"}',
    '{"ground_truth": 7, "prediction": 8, "category": "wrong"}',
    '{"ground_truth": "a", "prediction": "b", "category": ["wrong"]}',
])
def test_a_bad_line_of_an_audit_file_is_named(tmp_path, line):
    file = tmp_path / "pairs.jsonl"
    good = json.dumps(rows(G)[0])
    file.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match="line 2: not JSON with ground_truth"):
        read_audit(file)
    file.write_text(f"{good}\n{good}\n")
    assert read_audit(file) == rows(G) * 2
    odd = json.dumps(rows(G)[0] | {"note": "a\u2028b"}, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + f"{odd}\r\n{odd}\r\n".encode())
    assert [row["category"] for row in read_audit(file)] == ["generic"] * 2
    file.write_bytes(f"{good}\n".encode() + "é".encode("latin-1"))
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_audit(file)
    file.write_text("")
    with pytest.raises(ValueError, match="no pairs"):
        read_audit(file)
