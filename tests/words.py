"""A small tokenizer and small random chat models for the judge's tests, built in memory."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from judge import EXAMPLES, INSTRUCTIONS

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def chat_tokenizer(template=TEMPLATE, eos="<|im_end|>", cut=pre_tokenizers.ByteLevel(add_prefix_space=False)):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = cut
    tok.decoder = decoders.ByteLevel()
    shots = [f"True label: {t.lower()}\nAnswer: {a}\nassistant {v} user" for t, a, v in EXAMPLES]
    tok.train_from_iterator([INSTRUCTIONS, *shots] * 3, trainers.BpeTrainer(
        vocab_size=600, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=eos, pad_token="<|endoftext|>",
                                   chat_template=template)


def chat_model(kind, tok, attention="sdpa", seed=0):
    """Std .2, not .02: log-probabilities far enough apart for equality to mean something."""
    cls, config = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[kind]
    torch.manual_seed(seed)
    return cls(config(vocab_size=len(tok) + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
                      initializer_range=0.2, attn_implementation=attention)).eval()
