"""The README's main command is a test: the whole method on the embedded world, base policy included."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_python_train_py(readme_run):
    """In domain, validation HM must rise clearly (seen: .10); memory stays under 2 GB; the table is
    printed."""
    process, folder = readme_run
    assert process.wait() == 0, (folder / "stderr").read_text()[-2000:]
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 60 and log[-1]["val/harmonic_mean"] > log[0]["val/harmonic_mean"] + 0.05
    assert max(line["policy/logprob_gap"] for line in log[1:]) < 1e-4
    assert log[-1]["mem/peak_gb"] < 2
    printed = (folder / "stdout").read_text()
    assert "greedy · mean of the unseen" in printed
    assert "temperature 1 · toy-bird (trained on)" in printed
    results = json.loads((folder / "run" / "eval.json").read_text())
    assert {name: r["after"]["n"] for name, r in results["greedy"].items()} == dict.fromkeys(
        ("toy-bird", "toy-flower", "toy-vehicle", "toy-fish"), 300)


def test_readme_shows_what_reward_py_prints():
    printed = subprocess.run([sys.executable, "reward.py"], cwd=ROOT, capture_output=True, text=True).stdout
    assert printed.split("asked for it:\n\n")[1].split("\n\nA group")[0] in (ROOT / "README.md").read_text()
