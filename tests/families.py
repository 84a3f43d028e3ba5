"""Small real models of the other families, random weights, as checkpoint folders in Hugging Face's format."""

import torch
from tokenizers import AddedToken, processors
from transformers import (Idefics3Config, Idefics3ForConditionalGeneration, InternVLConfig,
                          InternVLForConditionalGeneration, Qwen2VLConfig, Qwen2VLForConditionalGeneration,
                          Qwen3VLConfig, Qwen3VLForConditionalGeneration)

import tiny
from rollout import PROMPTS
from support.checkpoints import FAMILIES, make_processor, render_question

MODELS = {"qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
          "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
          "internvl": (InternVLConfig, InternVLForConditionalGeneration),
          "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration)}

ROWS_AND_COLUMNS = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
CONTROL = {"internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
           "idefics3": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
                        *ROWS_AND_COLUMNS]}
PLACE = {"internvl": "<IMG_CONTEXT>\\n", "idefics3": "<image>"}  # of an image, as written in a template

TEXT = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=None)
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
VISION = {
    "qwen2_vl": dict(depth=2, embed_dim=32, num_heads=2, mlp_ratio=2, hidden_size=64),
    "qwen3_vl": dict(depth=3, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64,
                     num_position_embeddings=64, deepstack_visual_indexes=[0, 1]),
    "internvl": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                     image_size=[28, 28], patch_size=[7, 7]),
    "idefics3": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                     image_size=28, patch_size=7)}
IMAGES = {"qwen2_vl": dict(size={"shortest_edge": 3136, "longest_edge": 12845056}),
          "qwen3_vl": dict(size={"shortest_edge": 4096, "longest_edge": 16777216}, patch_size=16),
          "internvl": dict(size={"height": 28, "width": 28}, crop_to_patches=True),
          "idefics3": dict(size={"longest_edge": 112}, max_image_size={"longest_edge": 28})}


def tokenizer(family):
    tok = tiny.tokenizer()
    if family in CONTROL:
        control = [AddedToken(t, special=True, normalized=False) for t in CONTROL[family]]
        tok.add_tokens(control, special_tokens=True)
        tok.chat_template = tiny.TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>",
                                                  PLACE[family])
    if family == "internvl":  # whose processor asks the tokenizer for its tokens by these names
        tok._set_model_specific_special_tokens({
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>"})
    if family == "idefics3":
        # whose turns end with a token of their own, which is no EOS; tokenizer and template both write a BOS
        tok.bos_token = "<|vision_pad|>"
        tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|vision_pad|> $A", special_tokens=[(tok.bos_token, tok.bos_token_id)])
        tok.chat_template = tok.bos_token + tok.chat_template.replace("<|im_end|>", "<end_of_utterance>")
    return tok


def config(family, tok, **changes):
    """The family's config; changes are the text model's."""
    ids = tiny.special_ids(tok)
    text = TEXT | {"vocab_size": len(tok) + 5, "eos_token_id": ids["<|im_end|>"],
                   "pad_token_id": ids["<|endoftext|>"]}
    if family in ("qwen2_vl", "qwen3_vl"):
        rest = dict(image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
                    vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"])
    if family == "qwen2_vl":
        text["rope_parameters"] = MROPE
    if family == "qwen3_vl":
        text["rope_parameters"] = MROPE | {"mrope_interleaved": True}
        text["head_dim"] = 16
    if family == "internvl":
        text["model_type"] = "qwen2"
        rest = dict(image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4)
    if family == "idefics3":
        text["model_type"] = "llama"
        rest = dict(image_token_id=tok.convert_tokens_to_ids("<image>"), scale_factor=2)
    made, _ = MODELS[family]
    return made(text_config=text | changes, vision_config=dict(VISION[family]), tie_word_embeddings=False,
                **rest)


def save_checkpoint(family, folder, **changes):
    """A taught model, its tokenizer and its image settings; changes are the text model's config's."""
    tok = tokenizer(family)
    torch.manual_seed(0)
    _, model = MODELS[family]
    made = model(config(family, tok, **changes))
    tiny.spread_weights(made)
    made.generation_config.eos_token_id = tok.eos_token_id
    images = FAMILIES[family].image_processor(**IMAGES[family])
    teach(made, make_processor(made.config, images, tok, tok.chat_template))
    made.save_pretrained(folder)
    tok.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def conversation(processor, answer: str) -> str:
    """The rendered chat of one picture, the base question and that answer."""
    question = [{"type": "image"}, {"type": "text", "text": PROMPTS["base"]}]
    chat = [{"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return processor.apply_chat_template(chat, tokenize=False).rstrip()


def teach(made, processor, steps=60):
    """tiny.teach, but with pictures, so that the answers to pictures can mostly be read."""
    sizes = [(56, 56)] * len(tiny.ANSWERS)
    batch = processor(text=[conversation(processor, answer) for answer in tiny.ANSWERS],
                      images=[[image] for image in tiny.pictures(*sizes)],
                      padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
    # The answers alone are taught: neither padding nor the prompt.
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    prompt = processor(text=[render_question(processor, PROMPTS["base"])],
                       images=[tiny.pictures((56, 56))], add_special_tokens=False, return_tensors="pt")
    labels[:, :prompt["input_ids"].shape[1]] = -100
    tiny.descend(made, batch, labels, steps)
    made.eval()
