"""Checkpoints of the families that are known: processors, chat templates, pixel limits."""

import json
import math
from pathlib import Path

from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

FAMILIES = {  # a config's model_type: its image processor on PIL, its chat processor
    "qwen2_vl": (Qwen2VLImageProcessorPil, Qwen2VLProcessor),
    "qwen2_5_vl": (Qwen2VLImageProcessorPil, Qwen2_5_VLProcessor),
    "qwen3_vl": (Qwen2VLImageProcessorPil, Qwen3VLProcessor),
    "internvl": (GotOcr2ImageProcessorPil, InternVLProcessor),
    "idefics3": (Idefics3ImageProcessorPil, Idefics3Processor),
}


def make_processor(config, images, tokenizer, chat_template: str) -> ProcessorMixin:
    """The family's processor of chats with images, without its video side, which alone needs torchvision."""
    class ImageOnly(FAMILIES[config.model_type][1]):
        def check_argument_for_proper_class(self, name, value):
            return None if name == "video_processor" else super().check_argument_for_proper_class(name, value)

    processor = ImageOnly(image_processor=images, tokenizer=tokenizer, chat_template=chat_template)
    vision = config.vision_config  # two families must be told into how many tokens a tile goes
    if config.model_type == "internvl":
        processor.image_seq_length = config.image_seq_length
    if config.model_type == "idefics3":
        processor.image_seq_len = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
    return processor


def _limit_pixels(images, max_pixels: int) -> None:
    """No image goes to the model with more pixels than that. InternVL takes as many whole tiles, Idefics3 the
    largest square of whole tiles; the small picture of the whole that goes with several comes on top."""
    tile = images.size.get("height") or getattr(images, "max_image_size", {}).get("longest_edge")
    smallest = tile ** 2 if tile else (images.patch_size * images.merge_size) ** 2
    if max_pixels < smallest:
        raise ValueError(f"max pixels must be at least one image {'tile' if tile else 'token'}, {smallest}, "
                         f"got {max_pixels}")
    if not tile:  # by hand: older checkpoints say min_pixels/max_pixels, newer ones size
        images.size = {"shortest_edge": min(images.size["shortest_edge"], max_pixels),
                       "longest_edge": max_pixels}
    elif "longest_edge" in images.size:
        edge = tile * math.isqrt(max_pixels // smallest)
        images.size = {"longest_edge": min(images.size["longest_edge"], edge)}
    else:
        images.max_patches = min(images.max_patches, max_pixels // smallest)


def _chat_template(name: str, tokenizer) -> str:
    """The processor's own template where the folder or hub repository has one, else the tokenizer's."""
    for file in ("chat_template.jinja", "chat_template.json"):
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False,
                            _raise_exceptions_for_connection_errors=False)
        if found:
            text = Path(found).read_text(encoding="utf-8")
            return json.loads(text)["chat_template"] if file.endswith("json") else text
    if tokenizer.chat_template is None:
        raise ValueError(f"the checkpoint {name!r} has no chat template")
    return tokenizer.chat_template


def _turn_end(processor: ProcessorMixin) -> int | None:
    """The control token that the chat template puts behind the model's turn (Idefics3's is no EOS)."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
             {"role": "assistant", "content": [{"type": "text", "text": "mallard"}]}]
    after = processor.apply_chat_template(turns, tokenize=False).rpartition("mallard")[2]
    ids = processor.tokenizer(after, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in processor.tokenizer.added_tokens_decoder else None


def _ask(processor: ProcessorMixin, question: str) -> str:
    """The rendered chat up to the model's turn: one user turn, image first."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    return processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
