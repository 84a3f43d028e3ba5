"""Small real models of the other families, random weights, as checkpoint folders in Hugging Face's format."""

import torch
from tokenizers import AddedToken, processors
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

import tiny
from rollout import PROMPTS
from support import checkpoints
from support.checkpoints import FAMILIES, make_processor

CONTROL = {"internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
           "idefics3": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
                        *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))]}
PLACE = {"internvl": "<IMG_CONTEXT>\n", "idefics3": "<image>"}
TEXT = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=None)
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
MODELS = {"qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
          "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
          "internvl": (InternVLConfig, InternVLForConditionalGeneration),
          "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration)}


def tokenizer(family):
    tok = tiny.tokenizer()
    if family in CONTROL:
        tok.add_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL[family]],
                       special_tokens=True)
        tok.chat_template = tiny.TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>",
                                                  PLACE[family].replace("\n", "\\n"))
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


def config(family, tok, **text):
    ids = dict(zip(tiny.SPECIALS, tok.convert_tokens_to_ids(tiny.SPECIALS)))
    text = TEXT | {"vocab_size": len(tok) + 5, "eos_token_id": ids["<|im_end|>"],
                   "pad_token_id": ids["<|endoftext|>"]} | text
    qwen = dict(image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
                vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"])
    parts = {
        "qwen2_vl": lambda: dict(
            text_config=text | {"rope_parameters": MROPE}, **qwen,
            vision_config=dict(depth=2, embed_dim=32, num_heads=2, mlp_ratio=2, hidden_size=64)),
        "qwen3_vl": lambda: dict(
            text_config=text | {"rope_parameters": MROPE | {"mrope_interleaved": True}, "head_dim": 16},
            **qwen, vision_config=dict(
                depth=3, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64,
                num_position_embeddings=64, deepstack_visual_indexes=[0, 1])),
        "internvl": lambda: dict(
            text_config=text | {"model_type": "qwen2"}, image_seq_length=4,
            image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"), vision_config=dict(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                image_size=[28, 28], patch_size=[7, 7])),
        "idefics3": lambda: dict(
            text_config=text | {"model_type": "llama"}, image_token_id=tok.convert_tokens_to_ids("<image>"),
            scale_factor=2, vision_config=dict(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                image_size=28, patch_size=7))}[family]()
    return MODELS[family][0](**parts, tie_word_embeddings=False)


IMAGES = {"qwen2_vl": dict(size={"shortest_edge": 3136, "longest_edge": 12845056}),
          "qwen3_vl": dict(size={"shortest_edge": 4096, "longest_edge": 16777216}, patch_size=16),
          "internvl": dict(size={"height": 28, "width": 28}, crop_to_patches=True),
          "idefics3": dict(size={"longest_edge": 112}, max_image_size={"longest_edge": 28})}


def save_checkpoint(family, folder, **text):
    tok = tokenizer(family)
    torch.manual_seed(0)
    made = MODELS[family][1](config(family, tok, **text))
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.08)
    made.generation_config.eos_token_id = tok.eos_token_id
    images = FAMILIES[family][0](**IMAGES[family])
    teach(made, make_processor(made.config, images, tok, tok.chat_template))
    made.save_pretrained(folder)
    tok.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def teach(made, processor, steps=60):
    """tiny.teach, but with pictures, so that the answers to pictures can mostly be read."""
    turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPTS["base"]}]},
              {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
             for answer in tiny.ANSWERS]
    batch = processor(text=[processor.apply_chat_template(t, tokenize=False).rstrip() for t in turns],
                      images=[[image] for image in tiny.pictures(*[(56, 56)] * len(turns))], padding=True,
                      padding_side="right", add_special_tokens=False, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    opening = checkpoints.render_question(processor, PROMPTS["base"])
    length = processor(text=[opening], images=[tiny.pictures((56, 56))], add_special_tokens=False,
                       return_tensors="pt")["input_ids"].shape[1]
    labels[:, :length] = -100
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for _ in range(steps):
        made(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    made.eval()
