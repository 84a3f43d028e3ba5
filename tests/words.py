"""A small tokenizer, small random chat models and some pairs for the judge's tests, built in memory."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from judge import EXAMPLES, INSTRUCTIONS, chat
from reward import Category

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

PAIRS = [("herring gull", "gull"), ("robin", "bird"), ("robin", "european robin"), ("rose", "i don t know"),
         ("boeing 737-800", "boeing 737-800 of a long name that goes on and on"), ("a", "b"),
         ("rose", "thorn")]


def close(a, b):
    assert torch.allclose(a, b, rtol=0, atol=1e-4), (a - b).abs().max()


def written(judge, pair) -> list[int]:
    """The prompt's tokens as the template itself writes them."""
    prompt = judge.tokenizer.apply_chat_template(chat(judge.prompt, pair), tokenize=False,
                                                 add_generation_prompt=True)
    return judge.tokenizer(prompt, add_special_tokens=False)["input_ids"]


def naive(judge, pairs):
    """(pairs, 6): a forward over the whole prompt of every pair, with nothing left out."""
    first = [judge.tokenizer(category.label)["input_ids"][0] for category in Category]
    with torch.no_grad():
        logits = [judge.model(input_ids=torch.tensor([written(judge, pair)])).logits[0, -1] for pair in pairs]
    return torch.stack(logits).log_softmax(-1)[:, first]


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


class Cut:
    """A tokenizer with a way of its own to cut a text into tokens."""

    def __init__(self, tokenizer, cut):
        self.tokenizer = tokenizer
        self.cut = cut
        self.chat_template = tokenizer.chat_template

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": self.cut(text)}

    def apply_chat_template(self, *args, **kwargs):
        return self.tokenizer.apply_chat_template(*args, **kwargs)


def chat_model(kind, tok, attention="sdpa", seed=0):
    """Std .2, not .02: log-probabilities far enough apart for equality to mean something."""
    model_class, config_class = {"llama": (LlamaForCausalLM, LlamaConfig),
                                 "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[kind]
    torch.manual_seed(seed)
    config = config_class(vocab_size=len(tok) + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                          num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
                          initializer_range=0.2, attn_implementation=attention)
    return model_class(config).eval()
