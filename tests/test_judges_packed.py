"""PackedJudge: pairs side by side score as the plain judge scores them one by one."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from judge import LLMJudge, open_judge
from judges.packed import PackedJudge, can_pack, row_mask, tokens_a_row
from reward import Category
from words import PAIRS, chat_model, chat_tokenizer, close, naive


def plain(judge, pairs):
    """What the plain judge says with the same model and prompt."""
    other = LLMJudge(judge.model, judge.tokenizer)
    other.prompt = judge.prompt
    return other.logprobs(pairs)


def test_a_rows_mask_against_a_hand_written_one():
    """Pairs of two and one tokens behind a shared prompt of three."""
    mask, place = row_mask(torch.tensor([2, 1]), past=3, dtype=torch.float32)
    no = torch.finfo(torch.float32).min
    assert mask.tolist() == [[0, 0, 0, 0, no, no], [0, 0, 0, 0, 0, no], [0, 0, 0, no, no, 0]]
    assert place.tolist() == [0, 1, 0]


def test_how_long_a_row_is():
    """By the device, and never with a mask of more than 256 MB, here 2^28 bytes."""
    cpu = torch.device("cpu")
    gpu = torch.device("cuda")
    assert tokens_a_row(cpu, past=500, itemsize=4) == 1024
    assert tokens_a_row(gpu, past=500, itemsize=2) == 4096
    # float32, 2^26 numbers: 4096 x (12288 + 4096), and 2048 x (30720 + 2048).
    assert tokens_a_row(gpu, past=12288, itemsize=4) == 4096
    assert tokens_a_row(gpu, past=12289, itemsize=4) == 4095
    assert tokens_a_row(gpu, past=30720, itemsize=4) == 2048
    assert tokens_a_row(gpu, past=30721, itemsize=4) == 2047
    # bfloat16, 2^27 numbers: 4096 x (28672 + 4096).
    assert tokens_a_row(gpu, past=28672, itemsize=2) == 4096
    assert tokens_a_row(gpu, past=28673, itemsize=2) == 4095
    # The CPU's too: 512 x (130560 + 512) numbers of 4 bytes.
    assert tokens_a_row(cpu, past=130560, itemsize=4) == 512


def test_a_row_is_as_long_as_tokens_a_row_says_unless_told_otherwise(tok, monkeypatch):
    model = chat_model("llama", tok)
    asked = []

    def about_a_hundred(*args):
        asked.append(args)
        return 100

    monkeypatch.setattr("judges.packed.tokens_a_row", about_a_hundred)
    judge = PackedJudge(model, tok)
    told = PackedJudge(model, tok, row_tokens=1024)
    close(judge.logprobs(PAIRS), told.logprobs(PAIRS))
    assert asked == [(torch.device("cpu"), len(judge.prefix), 4)]  # told did not ask

    widths = []
    model.register_forward_pre_hook(
        lambda model, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    judge.logprobs(PAIRS)
    assert len(widths) > 1 and max(widths) <= 100
    widths.clear()
    told.logprobs(PAIRS)
    assert len(widths) == 1 and widths[0] > 100


def test_logprobs_equal_the_plain_judges_in_any_packing_order_and_company(model, tok):
    judge = PackedJudge(model, tok)
    want = LLMJudge(model, tok).logprobs(PAIRS)
    close(want, naive(judge, PAIRS))
    assert (want.std(0) > .05).any()  # the pairs differ, so a mix-up would show
    for row_tokens in (1, 60, 150, 1024, None):
        judge.row_tokens = row_tokens
        close(judge.logprobs(PAIRS), want)
    order = [3, 0, 6, 5, 2, 4, 1]
    close(judge.logprobs([PAIRS[i] for i in order]), want[order])
    for i in (4, 0):
        close(judge.logprobs([PAIRS[i]]), want[i:i + 1])
        close(judge.logprobs([PAIRS[i]] * 3), want[[i] * 3])
    assert judge(PAIRS) == LLMJudge(model, tok)(PAIRS) == [Category(k) for k in want.argmax(1).tolist()]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_prefix_is_encoded_once_and_left_unchanged(tok, kind):
    judge = PackedJudge(chat_model(kind, tok), tok)
    judge.logprobs(PAIRS[:2])
    before = [layer.keys.clone() for layer in judge.cache.layers]
    prefix = list(judge.prefix)
    widths = []
    judge.model.register_forward_pre_hook(
        lambda model, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    judge.logprobs(PAIRS)
    assert judge.prefix == prefix and len(prefix) > 300
    assert len(widths) == 1 and widths[0] < len(prefix)  # one packed row, no new prefix
    assert all(torch.equal(keys, layer.keys) for keys, layer in zip(before, judge.cache.layers, strict=True))


def test_the_prefix_follows_a_prompt_that_changes_and_needs_no_second_pair(tok):
    """A template may write the date: after midnight another prompt is shared, and again in full."""
    judge = PackedJudge(chat_model("llama", tok), tok)
    instructions, examples = judge.prompt
    for day in ("Monday", "Monday", "Tuesday"):
        judge.prompt = (f"{day}. {instructions}", examples)
        lengths = set()
        for pairs in ([("gull gull", "gull a")], [("gull gull", "gull b")], [("robin", "x")], PAIRS[:3]):
            close(judge.logprobs(pairs), plain(judge, pairs))
            lengths.add(len(judge.prefix))
        assert len(lengths) == 1 and lengths.pop() == judge.cache.get_seq_length() > 300


def test_no_shared_prefix_at_all():
    tok = chat_tokenizer("{{ messages[-1].content.split('True label: ')[-1] }} assistant:")
    judge = PackedJudge(chat_model("llama", tok), tok)
    pairs = [("robin", "x"), ("gull", "x"), ("robin", "x")]
    want = plain(judge, pairs)
    for _ in range(2):
        close(judge.logprobs(pairs), want)
        assert judge.prefix == []


def test_a_failed_forward_leaves_no_torn_cache(tok, monkeypatch):
    judge = PackedJudge(chat_model("llama", tok), tok)
    want = plain(judge, PAIRS)
    attention = judge.model.model.layers[1].self_attn

    def fails(*args, **kwargs):
        raise ZeroDivisionError

    with monkeypatch.context() as m:
        m.setattr(attention, "forward", fails)  # while the prefix is encoded; layer 0 has cached its keys
        with pytest.raises(ZeroDivisionError):
            judge.logprobs(PAIRS)
    close(judge.logprobs(PAIRS), want)
    with monkeypatch.context() as m:
        m.setattr(attention, "forward", fails)  # while a row is scored
        with pytest.raises(ZeroDivisionError):
            judge.logprobs(PAIRS)
    close(judge.logprobs(PAIRS), want)


SLIDING = {
    "mistral": dict(sliding_window=64), "gemma3_text": dict(sliding_window=64, head_dim=8),
    "gemma2": dict(sliding_window=64, head_dim=8), "qwen3": dict(head_dim=8), "phi3": dict(sliding_window=64),
    "qwen3_next": dict(head_dim=8, num_hidden_layers=4, num_experts=4, num_experts_per_tok=2,
                       moe_intermediate_size=16, shared_expert_intermediate_size=16, linear_num_key_heads=2,
                       linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)}


@pytest.mark.parametrize("kind", SLIDING)
def test_windows_that_slide_and_states_that_run_through_the_row(tok, kind):
    """A window shorter than the prompt, a recurrent state: still the plain forward of each pair, alone and in
    company."""
    settings = dict(vocab_size=len(tok) + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
                    pad_token_id=0)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings | SLIDING[kind], attn_implementation="sdpa")
    model = AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        p.data.mul_(5 if p.dim() > 1 else 1)  # far enough apart for equality to mean something
    assert can_pack(model) == (kind == "qwen3")
    judge = PackedJudge(model, tok)
    want = naive(judge, PAIRS)
    close(judge.logprobs(PAIRS), want)
    close(judge.logprobs(PAIRS[2:3]), want[2:3])
    close(LLMJudge(model, tok).logprobs(PAIRS), want)


def test_a_chat_model_is_opened_packed(judge_folder):
    judge = open_judge(str(judge_folder))
    assert isinstance(judge, PackedJudge) and judge.packs
    assert PackedJudge.load(str(judge_folder), row_tokens=200).row_tokens == 200
    assert judge.key == LLMJudge.load(str(judge_folder)).key  # they share their remembered verdicts
