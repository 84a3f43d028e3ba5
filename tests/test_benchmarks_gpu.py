"""benchmarks/gpu.py: it runs whole on a CPU, and what it makes of its measurements."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3ForCausalLM

import tiny
import words

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_command_on_a_cpu(gpu, capsys):
    gpu.main("--shape tiny --images 2 --n 2 --tokens 4 --longest 8 --text 40 --peak 1e12".split())
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    seconds = {}
    for line in lines[1:]:  # below the heading
        _, name, figure, _, _, _ = line.split("|")
        seconds[name.strip()] = float(figure)
    names = list(seconds)
    assert names[:-1] == [
        "rollout, 2 rows at a time", "rollout, 4 rows at a time", "of it vision", "judge, 20 pairs",
        "reference", "old log-probs", "update, `--micro-batch 1`", "update, `--micro-batch 2`",
        "update, `--micro-batch 1 --no-checkpointing`", "update, `--micro-batch 2 --no-checkpointing`"]
    assert names[-1].startswith("**step**, `--rows 4 --micro-batch ")

    # The step is the sum of its parts, the fastest update among them.
    updates = [seconds[name] for name in seconds if name.startswith("update")]
    parts = [seconds[name] for name in ("rollout, 4 rows at a time", "judge, 20 pairs", "reference",
                                        "old log-probs")]
    step = seconds[names[-1]]
    assert step == pytest.approx(sum(parts) + min(updates), abs=0.4)  # each is rounded to .1
    run = float(printed.split("165 such steps: ")[1].split(" hours")[0])
    assert run == pytest.approx(165 * step / 3600, abs=0.06)
    assert "row_tokens: 1,024: " in printed and "8,192: " in printed


@pytest.mark.parametrize("wrong", ["--images 1", "--rows 19", "--tokens 600", "--n 0"])
def test_what_can_not_be_measured_ends_in_one_line(gpu, capsys, wrong):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--shape", "tiny", *wrong.split()])
    assert stopped.value.code.startswith("gpu.py: ") and "\n" not in stopped.value.code
    assert capsys.readouterr().out == ""


def test_which_flags_fit_which_card(gpu, capsys):
    """Seconds an image are 1 + 20 / rows; a rollout takes 20 + 2 GB and .10 + .02 GB a row; 2 GB are kept."""
    updates = [gpu.Update("--micro-batch 1", 1.0, 38.0), gpu.Update("--micro-batch 2", 0.8, 58.0),
               gpu.Update("--micro-batch 4", 0.7, None),
               gpu.Update("--micro-batch 1 --no-checkpointing", 1.5, 28.0)]
    few = gpu.Rollout(100, 1.2, 30.0)
    many = gpu.Rollout(200, 1.1, 40.0)
    measured = gpu.Measured(few, many, updates, others_s=20.0, others_gb=23.0, kept_gb=2.0,
                            more_a_row_gb=0.02, images=256)

    # 64 rows take 29.7 GB, but the smallest update 30.
    assert gpu.card_line(measured, 24) == "| 24 GB | does not fit | 30.0 | | |"

    # Of 45.6 GB: 128 rows take 37.4 GB, 256 take 52.7. 256 * (1 + 20 / 128 + 1) + 20 = 572 s.
    assert gpu.card_line(measured, 48) == "| 48 GB | `--rows 128 --micro-batch 1` | 40.0 | 572 | 26.2 |"

    # Of 76 GB: 256 rows. 256 * (1 + 20 / 256 + .8) + 20 = 500.8 s.
    assert gpu.card_line(measured, 80) == "| 80 GB | `--rows 256 --micro-batch 2` | 60.0 | 501 | 23.0 |"

    # Of 134 GB: 512 rows take 83.4. The update that was too large for the measured card is not promised.
    assert gpu.card_line(measured, 141) == "| 141 GB | `--rows 512 --micro-batch 2` | 83.4 | 491 | 22.5 |"

    # All of it as a table, under a line that names the judge's 32 bytes.
    setup = SimpleNamespace(args=SimpleNamespace(n=10, longest=512),
                            judge=SimpleNamespace(model=torch.nn.Linear(8, 1, bias=False)))
    gpu.print_cards(measured, setup, "H100")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-4:] == [gpu.card_line(measured, card) for card in (24, 48, 80, 141)]
    assert all(line.count("|") == 6 for line in printed[-6:])

    measured.updates = [gpu.Update("--micro-batch 1", 1.0, None)]
    assert gpu.card_line(measured, 80) == "| 80 GB | does not fit | more than was there | | |"


def test_shapes_are_the_published_ones(gpu):
    """Parameters of the released checkpoints, counted without making their weights."""
    with torch.device("meta"):
        sizes = {}
        for shape in ("7b", "3b"):
            config = gpu.policy_config(shape, tiny.tokenizer())
            sizes[shape] = Qwen2_5_VLForConditionalGeneration(config).num_parameters()
        judge = Qwen3ForCausalLM(gpu.judge_config("7b", words.chat_tokenizer())).num_parameters()
    assert sizes == {"7b": 8_292_166_656, "3b": 3_754_622_976}
    assert judge == 4_022_468_096


def test_flops_and_bytes_of_the_small_shapes(gpu):
    """Width 64, inner 96, 4 heads and 2 key heads of 16, 2 layers, rank 64. The judge: 32, 48, 4 and 2 of
    8."""
    policy = gpu.build_policy("tiny", "cpu", torch.float32)
    weights = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    adapters = 64 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    linear = 2 * (weights + adapters)
    assert gpu.linear_parameters(policy.model.get_decoder()) == linear
    vocabulary = len(policy.banned)
    args = SimpleNamespace(n=3, tokens=5)
    assert gpu.flops_an_image(policy, 40, args) == 2 * (linear * (40 + 15) + 64 * vocabulary * 15)
    assert gpu.own_token_gb(policy) == 2 * 2 * 2 * 16 * 4 / 1e9  # keys and values, layers, heads, dim, bytes

    judge = gpu.build_judge("tiny", "cpu", torch.float32)
    pairs = gpu.distinct_pairs(2)
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    tokens = sum(len(judge.prompt_tokens(pair)) for pair in pairs)
    judge.own_tokens(pairs)
    tokens -= 2 * len(judge.prefix)
    assert gpu.judge_flops(judge, pairs) == 2 * (linear * tokens + 32 * 1000 * 2)


def test_pictures_and_pairs(gpu):
    sizes = gpu.cub_like_sizes(1000)
    assert sizes == gpu.cub_like_sizes(1000)
    at_500 = [min(size) for size in sizes if max(size) == 500]
    assert len(at_500) > 900
    assert sum(333 <= side <= 400 for side in at_500) > 0.7 * len(at_500)
    assert max(at_500) > 450
    pairs = gpu.distinct_pairs(1500)
    assert len(set(pairs)) == 1500 and all(truth != answer for truth, answer in pairs)


def test_completions_are_lengthened(gpu):
    completions = torch.tensor([[5, 6], [7, 8]])
    group = gpu.rollout.Group("a", None, completions, torch.ones(2, 2, dtype=torch.bool),
                              -completions.float(), ["", ""], [None, None], 0)
    longer = gpu.lengthened(group, 5)
    assert longer.completions.tolist() == [[5, 6, 5, 6, 5], [7, 8, 7, 8, 7]]
    assert longer.logprobs.tolist() == [[-5, -6, -5, -6, -5], [-7, -8, -7, -8, -7]]
    assert longer.mask.all() and longer.mask.shape == (2, 5)
