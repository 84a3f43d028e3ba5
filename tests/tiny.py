"""A small real Qwen2.5-VL with random weights, built in memory: what the tests run the real path on."""

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
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
    """A byte-level BPE with Qwen's control tokens."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    words = ["<think> a bird with </think> <answer> red finch </answer> specific generic wrong abstain less "
             "more"] * 4
    tok.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   extra_special_tokens=SPECIALS[1:2] + SPECIALS[3:], chat_template=TEMPLATE)


def config(tok, tie=False):
    ids = dict(zip(SPECIALS, tok.convert_tokens_to_ids(SPECIALS)))
    return Qwen2_5_VLConfig(
        text_config=dict(vocab_size=len(tok) + 5, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
                         tie_word_embeddings=tie, bos_token_id=None, eos_token_id=ids["<|im_end|>"],
                         pad_token_id=ids["<|endoftext|>"],
                         rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                          "mrope_section": [4, 2, 2]}),
        vision_config=dict(depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64,
                           patch_size=14, window_size=56, fullatt_block_indexes=[1]),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tie, attn_implementation="sdpa")


def model(tok, seed=0, tie=False):
    """1 M parameters; std .08 instead of .02, so that logits are far enough apart for equality to mean
    something."""
    ids = dict(zip(SPECIALS, tok.convert_tokens_to_ids(SPECIALS)))
    torch.manual_seed(seed)
    made = Qwen2_5_VLForConditionalGeneration(config(tok, tie))
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.08)
    made.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    made.generation_config.pad_token_id = ids["<|endoftext|>"]
    return made.eval()


def processor():
    tok = tokenizer()
    return make_processor(config(tok), images(), tok, TEMPLATE)


def pictures(*sizes, seed=0):
    """PIL images of noise, (width, height) each."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def images():
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056})


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
    rows = [tok(start + a + "<|im_end|>")["input_ids"] for a in ANSWERS]
    width = max(map(len, rows))
    ids = torch.tensor([r + [tok.pad_token_id] * (width - len(r)) for r in rows])
    seen = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(steps):
        made(input_ids=ids, attention_mask=seen, labels=ids.masked_fill(seen == 0, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return made.eval()


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
