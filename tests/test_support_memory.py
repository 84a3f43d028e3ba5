"""How many answers a GPU decodes at a time: the arithmetic by hand."""

from types import SimpleNamespace

import pytest
import torch

import policy as policies
import tiny
from lora import add_lora
from support import memory
from support.memory import held_bytes, judge_bytes, rows_at_a_time, rows_that_fit


class Sizes(torch.nn.Module):
    """The 7B's sizes, no weights but one in bfloat16."""
    config = SimpleNamespace(num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                             hidden_size=3584, intermediate_size=18944, vocab_size=152064)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

    def get_decoder(self):
        return self


def test_by_hand():
    """Keys and values of a token are 57,344 bytes. A row of 512 new tokens behind an eighth of a prompt of
    600: 576 + 11 tokens of them, .9 MB of logits, .75 MB of scores."""
    token = 2 * 28 * 4 * 128 * 2
    assert token == 57344
    row = 587 * token + 152064 * 6 + 28 * 1112 * 24
    beside = 256 * 600 * 3584 * 2 + 32 * 600 * 4 * 18944 * 2 + 2 ** 28

    def card(rows):
        """The card that this many rows just fill, with 20 GB of weights on it."""
        return (rows * row + beside + 20e9) / 0.92

    sizes = Sizes()
    arguments = dict(held=20e9, prompt=600, n=8, images=256, max_new_tokens=512)
    assert rows_that_fit(sizes, card(1000) + 1e4, **arguments) == 1000
    assert rows_that_fit(sizes, card(1007) + 1e4, **arguments) == 1000   # whole groups
    assert rows_that_fit(sizes, card(1000) - 1e4, **arguments) == 992
    assert rows_that_fit(sizes, card(10 ** 6), **arguments) == 2048      # there are no more
    assert rows_that_fit(sizes, card(5) + 1e4, **arguments) == 5         # a part of a group
    assert rows_that_fit(sizes, 10e9, **arguments) == 1                  # and then it is tried


def test_weights_that_are_trained_take_more(policy):
    model = tiny.model(tiny.tokenizer())
    frozen = sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)
    assert held_bytes(model) == 4 * frozen
    add_lora(model, 4, 8)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert held_bytes(model) == 4 * frozen + trained * (4 * 4 + 2)
    judge = SimpleNamespace(model=model)
    assert judge_bytes(judge) == judge_bytes(SimpleNamespace(judge=judge)) == held_bytes(model)
    assert judge_bytes(lambda pairs: []) == judge_bytes(SimpleNamespace(model="a name on a server")) == 0


def test_a_cpu_has_a_fixed_number(policy):
    assert rows_at_a_time(policy, None, "what?", 8, 256, 512, None) == 512
    assert rows_at_a_time(policy, None, "what?", 8, 256, 512, None, most=100) == 100


def test_the_longest_prompt_is_not_always_a_squares(policy):
    """Of 112 x 112 pixels a square has 16 tokens; 158 x 79 is 6 x 3 patches of 28, which are 18."""
    square, = policies.encode(policy, tiny.pictures((112, 112)), "what?")
    assert memory.longest_prompt(policy, "what?", 112 * 112) == len(square) + 2


@pytest.mark.parametrize("most, rows", [(None, 304), (400, 304), (100, 100)])
def test_on_a_gpu_what_fits_is_the_ceiling(monkeypatch, most, rows):
    """(.92 x 34 - 16 - 4.28) GB at 35.3 MB a row are 311, so 38 groups of 8. The 16 GB are the policy's and
    the judge's."""
    card = SimpleNamespace(total_memory=34 * 10 ** 9)
    pixels = []

    def longest(policy, question, max_pixels):
        pixels.append(max_pixels)
        return 600

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(memory, "held_bytes", lambda model: 8 * 10 ** 9)
    monkeypatch.setattr(memory, "longest_prompt", longest)
    policy = SimpleNamespace(device=torch.device("cuda"), model=Sizes())
    judge = SimpleNamespace(model=Sizes())
    for max_pixels in (None, 1000):
        assert rows_at_a_time(policy, judge, "what?", 8, 256, 512, max_pixels, most) == rows
    assert pixels == [512 * 28 * 28, 1000] and policy.planned_prompt == 600

    # Another model that stays there takes 8 GB more, the room of 226 rows.
    beside = SimpleNamespace(model=Sizes())
    assert rows_at_a_time(policy, judge, "what?", 8, 256, 512, None, most, beside) == 80


def test_deeper_features_count_as_embeddings_do():
    shallow = Sizes()
    deep = Sizes()
    deep.config = SimpleNamespace(**vars(Sizes.config) | dict(
        vision_config=SimpleNamespace(deepstack_visual_indexes=[0, 1, 2])))
    more = 256 * 600 * 3584 * 2 * 3
    arguments = dict(held=20e9, prompt=600, n=8, images=256, max_new_tokens=512)
    for card in (40e9, 60e9):
        assert (rows_that_fit(deep, card + more / 0.92, **arguments)
                == rows_that_fit(shallow, card, **arguments) > 100)
