"""A small real Qwen2.5-VL with random weights, built in memory: what the tests run the real path on."""

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import (LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2_5_VLConfig,
                          Qwen2_5_VLForConditionalGeneration)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rollout import PROMPTS
from support.checkpoints import make_processor

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
            "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n"
            "{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
            "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def tokenizer():
    """A byte-level BPE with Qwen's control tokens. The words of the question and of the answers are a token
    each: prompts and answers are short, and so are the tests."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    words = ["<think> a bird with </think> <answer> red finch </answer> specific generic wrong abstain less "
             "more none Mallard", PROMPTS["base"]] * 4
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(words, trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   extra_special_tokens=SPECIALS[1:2] + SPECIALS[3:], chat_template=TEMPLATE)


def special_ids(tok) -> dict[str, int]:
    return dict(zip(SPECIALS, tok.convert_tokens_to_ids(SPECIALS)))


def config(tok, tie=False, layers=2):
    ids = special_ids(tok)
    text = dict(
        vocab_size=len(tok) + 5, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=tie,
        bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]})
    vision = dict(depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64,
                  patch_size=14, window_size=56, fullatt_block_indexes=[1])
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=tie, attn_implementation="sdpa",
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"])


def spread_weights(model) -> None:
    """std .08 instead of .02, so that logits are far enough apart for equality to mean something."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.08)


def model(tok, seed=0, tie=False):
    """1 M parameters."""
    ids = special_ids(tok)
    torch.manual_seed(seed)
    made = Qwen2_5_VLForConditionalGeneration(config(tok, tie))
    spread_weights(made)
    made.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    made.generation_config.pad_token_id = ids["<|endoftext|>"]
    return made.eval()


def images():
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056})


def processor():
    tok = tokenizer()
    return make_processor(config(tok), images(), tok, TEMPLATE)


def pictures(*sizes, seed=0):
    """PIL images of noise, (width, height) each."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def save_checkpoint(folder, seed=0):
    """The same as a checkpoint folder, as a user would have it on disk."""
    tok = tokenizer()
    teach(model(tok, seed), tok).save_pretrained(folder)
    tok.save_pretrained(folder)
    images().save_pretrained(folder)
    return folder


ANSWERS = ["<think> a bird with </think> <answer> red finch </answer>",
           "<think> a bird </think> <answer> none </answer>", "<answer> bird </answer>",
           "<think> a </think> <answer> Mallard </answer>", "a bird with red"]


def teach(made, tok, steps=120):
    """A few steps on five answers, so that rollouts differ, stop, and most of them can be read."""
    torch.manual_seed(0)
    start = "<|vision_start|><|vision_end|>" + PROMPTS["base"] + "<|im_end|>\n<|im_start|>assistant\n"
    rows = [torch.tensor(tok(start + answer + "<|im_end|>")["input_ids"]) for answer in ANSWERS]
    ids = pad_sequence(rows, batch_first=True, padding_value=tok.pad_token_id)
    labels = pad_sequence(rows, batch_first=True, padding_value=-100)
    descend(made, {"input_ids": ids, "attention_mask": (labels != -100).long()}, labels, steps)
    return made.eval()


def descend(made, batch, labels, steps) -> None:
    """That many steps of Adam on all weights."""
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(steps):
        made(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def save_judge(folder, seed=0):
    """A small causal language model with a chat template, as a judge's checkpoint folder."""
    tok = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192,
                         bos_token_id=None, eos_token_id=tok.eos_token_id)
    LlamaForCausalLM(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
