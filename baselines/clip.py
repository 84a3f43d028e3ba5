"""A CLIP of transformers: pictures and texts as vectors of one space.

    clip = load_clip("openai/clip-vit-large-patch14", "cpu", batch=64)
    cosines = clip.embed_images(images) @ clip.embed_texts(texts).T            # (B, M)

Any checkpoint with an encoder of pictures and one of texts will do: CLIP, SigLIP, Chinese-CLIP, MetaCLIP.
All is float32, and pictures go through the PIL image processor: no torchvision is needed.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # above it needs torchvision

from support.checkpoints import check_files, check_tokenizer, load_model, one_line


@dataclass
class Clip:
    model: nn.Module
    tokenizer: object
    image_processor: object
    max_tokens: int
    padding: str       # of texts, as the tokenizer calls it
    batch: int         # pictures or texts encoded at a time
    fingerprint: str   # of weights and vocabulary: another's embeddings are others

    @property
    def device(self):
        return self.model.device

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """(B, D) float32 on the CPU, rows of length 1."""
        batches = []
        for start in range(0, len(images), self.batch):
            pixels = self.image_processor(images=images[start:start + self.batch], return_tensors="pt")
            features = self.model.get_image_features(**pixels.to(self.device)).pooler_output
            batches.append(normalize(features, dim=-1).cpu())
        return torch.cat(batches)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """(M, D) float32 on the CPU, rows of length 1. A text that is too long is cut off."""
        batches = []
        for start in range(0, len(texts), self.batch):
            tokens = self.tokenizer(texts[start:start + self.batch], padding=self.padding, truncation=True,
                                    max_length=self.max_tokens, return_tensors="pt")
            features = self.model.get_text_features(**tokens.to(self.device)).pooler_output
            batches.append(normalize(features, dim=-1).cpu())
        return torch.cat(batches)


def load_clip(name: str, device, batch: int) -> Clip:
    """A CLIP from a folder or the hub. Raises OSError, in one line, for what is none."""
    check_files(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        refuse_other_models(config)
        model = load_model(name, device, torch.float32, AutoModel).eval()
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        check_tokenizer(tokenizer)
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
        max_tokens = min(config.text_config.max_position_embeddings, tokenizer.model_max_length)
        clip = Clip(model, tokenizer, image_processor, max_tokens, padding_of(config), batch,
                    fingerprint(model, tokenizer))
        try_out(clip)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a broken file makes transformers raise anything
        raise OSError(f"cannot load the CLIP {name!r}: {one_line(error)}") from None
    return clip


def refuse_other_models(config) -> None:
    """Raises ValueError for a model without the two encoders, before gigabytes of it are read."""
    model_class = MODEL_MAPPING.get(type(config), None)
    if not hasattr(model_class, "get_image_features") or not hasattr(model_class, "get_text_features"):
        raise ValueError(f"a {config.model_type} model doesn't embed both pictures and texts")


def padding_of(config) -> str:
    """SigLIP was trained on texts of one length, and reads what it knows of a text off the last place."""
    return "max_length" if config.model_type.startswith("siglip") else "longest"


def fingerprint(model: nn.Module, tokenizer) -> str:
    """Names a checkpoint by its weights and vocabulary, wherever it lies."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().numpy().tobytes())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def try_out(clip: Clip) -> None:
    """Raises ValueError where pictures and texts do not end in one space."""
    image = clip.embed_images([Image.new("RGB", (8, 8))])
    text = clip.embed_texts(["a"])
    if image.shape != text.shape or image.dim() != 2:
        raise ValueError(f"it embeds a picture as {tuple(image.shape)}, a text as {tuple(text.shape)}")
    if not torch.isfinite(image @ text.T).all():
        raise ValueError("its embeddings hold NaN or infinity")
