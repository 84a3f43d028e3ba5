"""Checkpoints: the known families of vision-language models, their processors, chat templates and tokens.

    model, processor = load_checkpoint("Qwen/Qwen2.5-VL-7B-Instruct", "cuda", torch.bfloat16)
    eos_ids = end_of_sequence_ids(model, processor)
    banned = banned_tokens(model.config, processor.tokenizer, eos_ids)

Each function returns a part. policy.py puts the parts together. Checkpoints are in Hugging Face's own format.

Where this departs from the usual stack: there is no torchvision here. Images are always prepared by the PIL
image processor, so numbers don't depend on what happens to be installed. (AutoProcessor without torchvision
silently returns the tokenizer alone.)
"""

import json
import math
import re
import sys
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file, logging


class Family(NamedTuple):
    """The two classes that turn images and chats into a model's inputs."""
    image_processor: type  # on PIL
    processor: type


FAMILIES = {  # by the model_type of a checkpoint's config
    "qwen2_vl": Family(Qwen2VLImageProcessorPil, Qwen2VLProcessor),
    "qwen2_5_vl": Family(Qwen2VLImageProcessorPil, Qwen2_5_VLProcessor),
    "qwen3_vl": Family(Qwen2VLImageProcessorPil, Qwen3VLProcessor),
    "internvl": Family(GotOcr2ImageProcessorPil, InternVLProcessor),
    "idefics3": Family(Idefics3ImageProcessorPil, Idefics3Processor),
}

LFS_POINTER = b"version https://git-lfs"  # how a file begins that a clone without Git LFS leaves
JSON_FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
              "tokenizer.json", "tokenizer_config.json", "chat_template.json", "model.safetensors.index.json")
LONGEST_REASON = 300  # letters

# ------------------------------------------------------------------------------------------------------------
# From a folder or the hub to a model and its processor


def load_checkpoint(name: str, device, dtype) -> tuple[nn.Module, ProcessorMixin]:
    """Model and processor of a folder or hub repository, with every weight read from there. Code that lies
    beside a checkpoint is never run. Raises ValueError or OSError, in one line, for what is no whole
    checkpoint of one of FAMILIES."""
    config = read_config(name)
    try:
        model = load_model(name, device, dtype)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        check_tokenizer(tokenizer)
        image_processor = FAMILIES[config.model_type].image_processor.from_pretrained(name)
        chat_template = read_chat_template(name, tokenizer)
        processor = make_processor(config, image_processor, tokenizer, chat_template)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as e:  # a broken file makes transformers raise anything
        raise OSError(f"cannot load the checkpoint {name!r}: {one_line(e)}") from None
    return model, processor


def one_line(error: Exception) -> str:
    """What a library says, in one line that can be read."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"there is no {text} in one of its files"
    if isinstance(error, SafetensorError):
        text = f"a file of weights is cut off or damaged ({text})"
    return text[:LONGEST_REASON]


def read_config(name: str):
    """The checkpoint's config. Raises OSError where there is none, ValueError where it is broken or no family
    is known."""
    check_files(name)
    try:
        settings, _ = PreTrainedConfig.get_config_dict(name)
    except Exception as e:  # OSError for what is not there, whatever the hub's client raises for odd names
        raise OSError(f"no model at {name!r}: neither a folder with a config.json nor a name the hub gives "
                      f"({one_line(e)})") from None

    # The settings are read before any class is chosen by them: they may ask for their authors' own code.
    model_type = settings.get("model_type")
    if model_type is None:
        raise OSError(f"no model at {name!r}: there is no config.json that names a model_type")
    if model_type not in FAMILIES:
        raise ValueError(unknown_family(name, model_type, "auto_map" in settings))
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as e:  # a setting of a wrong kind makes transformers raise anything
        raise ValueError(f"the config.json of {name!r} is broken: {one_line(e)}") from None


def unknown_family(name: str, model_type, has_code: bool) -> str:
    """Why a checkpoint of that model_type can't be used, and which one can. has_code: it needs its authors'
    own code."""
    if model_type == "internvl_chat":
        return (f"{name} is InternVL in its authors' own format, whose code is never run here: take the "
                f"repository in Hugging Face's format, {internvl_twin(name)}")
    known = ", ".join(FAMILIES)
    message = f"{name} is a {model_type} model: choose a checkpoint of {known}"
    if has_code:
        message += "; code that lies beside a checkpoint is never run here"
    return message


def internvl_twin(name: str) -> str:
    """The repository that holds the same InternVL in Hugging Face's own format."""
    model = Path(name).name.removesuffix("-Instruct")
    if model.startswith("InternVL3_5"):
        return f"OpenGVLab/{model}-HF"
    # Of 2.5 there are only the ones tuned on preferences.
    if model.startswith("InternVL2_5"):
        return f"OpenGVLab/{model.removesuffix('-MPO')}-MPO-hf"
    return f"OpenGVLab/{model}-hf"


def check_files(name: str) -> None:
    """Raises OSError where the files of a folder are not what their names say: pointers left by Git LFS, or
    JSON that is none (some of which transformers passes over without a word)."""
    folder = Path(name)
    if not folder.is_dir():
        return
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        with file.open("rb") as opened:
            begin = opened.read(len(LFS_POINTER))
        if begin == LFS_POINTER:
            raise OSError(f"{file} is a pointer of Git LFS, not the file itself: git lfs pull fetches it")
        if file.name in JSON_FILES and not holds_json_object(file):
            raise OSError(f"{file} is broken: it holds no JSON object")


def holds_json_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def load_model(name: str, device, dtype, auto_class=AutoModelForImageTextToText) -> nn.Module:
    """The model with all its weights from the files. auto_class: transformers' for its kind. Raises
    ValueError where one is missing or of another shape, which transformers would draw at random and go on, or
    not finite."""
    # Its report of such weights, a table, would stand before our line.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, found = auto_class.from_pretrained(
            name, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False, output_loading_info=True,
            ignore_mismatched_sizes=True)
    finally:
        logging.set_verbosity(verbosity)

    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, the first is {missing[0]}")
    for key, in_file, in_model in sorted(found["mismatched_keys"]):
        raise ValueError(f"{key} is {tuple(in_file)} in its file, {tuple(in_model)} by its config.json")

    model = model.to(device)
    for key, weight in model.named_parameters():
        is_quantised = not weight.is_floating_point() or weight.element_size() == 1
        if not is_quantised and not weight.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinity")

    unused = sorted(found["unexpected_keys"])
    if unused:
        print(f"warning: {len(unused)} of {name}'s weights have no place in the model, the first is "
              f"{unused[0]}", file=sys.stderr)
    return model


def check_tokenizer(tokenizer) -> None:
    """Raises ValueError for a tokenizer without words: where its files are missing, transformers makes one of
    control tokens alone."""
    words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    if not words - added:
        raise ValueError("its tokenizer's files are missing: there is no tokenizer.json")


def read_chat_template(name: str, tokenizer) -> str:
    """The processor's own template where the folder or hub repository has one, else the tokenizer's."""
    for file in ("chat_template.jinja", "chat_template.json"):
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False,
                            _raise_exceptions_for_connection_errors=False)
        if not found:
            continue
        text = Path(found).read_text(encoding="utf-8")
        if file.endswith("json"):
            text = json.loads(text)["chat_template"]
        return text
    if tokenizer.chat_template is None:
        raise ValueError("it has no chat template")
    return tokenizer.chat_template


def make_processor(config, image_processor, tokenizer, chat_template: str) -> ProcessorMixin:
    """The family's processor of chats with images, without its video side, which alone needs torchvision."""

    class ImageOnly(FAMILIES[config.model_type].processor):
        def check_argument_for_proper_class(self, name, value):
            if name == "video_processor":
                return None
            return super().check_argument_for_proper_class(name, value)

        def save_pretrained(self, folder, **kwargs):
            """Its parts, as a checkpoint's folder holds them: a trainer saves them beside its adapter."""
            self.tokenizer.save_pretrained(folder)
            self.image_processor.save_pretrained(folder)

    processor = ImageOnly(image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template)

    # Two families must be told into how many tokens a tile goes.
    if config.model_type == "internvl":
        processor.image_seq_length = config.image_seq_length
    if config.model_type == "idefics3":
        vision = config.vision_config
        tokens_a_side = vision.image_size // vision.patch_size // config.scale_factor
        processor.image_seq_len = tokens_a_side ** 2
    return processor


def limit_pixels(image_processor, max_pixels: int) -> None:
    """From here on no image goes to the model with more pixels than that. A limit only lowers what the
    checkpoint has. InternVL takes as many whole tiles, Idefics3 the largest square of whole tiles; the small
    picture of the whole that goes with several tiles comes on top. Raises ValueError where nothing fits."""
    if isinstance(image_processor, GotOcr2ImageProcessorPil):  # InternVL
        tile = image_processor.size["height"]
        check_fits(tile, max_pixels, "tile")
        tiles = max_pixels // tile ** 2
        image_processor.max_patches = min(image_processor.max_patches, tiles)
    elif isinstance(image_processor, Idefics3ImageProcessorPil):
        tile = image_processor.max_image_size["longest_edge"]
        check_fits(tile, max_pixels, "tile")
        tiles = max_pixels // tile ** 2
        edge = tile * math.isqrt(tiles)
        image_processor.size = {"longest_edge": min(image_processor.size["longest_edge"], edge)}
    else:  # Qwen, whose two "edges" are the least and the most pixels of an image
        token = image_processor.patch_size * image_processor.merge_size
        check_fits(token, max_pixels, "token")
        # By hand: older checkpoints say min_pixels and max_pixels, newer ones size.
        least = min(image_processor.size["shortest_edge"], max_pixels)
        image_processor.size = {"shortest_edge": least, "longest_edge": max_pixels}


def check_fits(edge: int, max_pixels: int, what: str) -> None:
    """Raises ValueError where a square of that edge has more than max_pixels."""
    smallest = edge ** 2
    if max_pixels < smallest:
        raise ValueError(f"max pixels must be at least one image {what}, {smallest}, got {max_pixels}")


# ------------------------------------------------------------------------------------------------------------
# The chat


def render_question(processor: ProcessorMixin, question: str) -> str:
    """The rendered chat up to the model's turn: one user turn, image first."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    settings = {}
    # Only a template that writes the date is given one: others would warn of a name that they don't know.
    if "strftime_now" in str(processor.chat_template):
        settings["strftime_now"] = one_date
    return processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **settings)


def one_date(form: str) -> str:
    """What chat templates are given for today's date: always the same day, or a run that goes on tomorrow
    would ask another question."""
    return date(2026, 1, 1).strftime(form)


def check_chat_template(processor: ProcessorMixin, name: str) -> None:
    """Raises ValueError unless the template puts an image into the question, and one only."""
    try:
        places = render_question(processor, "?").count(processor.image_token)
    except Exception:  # a text model's template, given a list of parts, fails in any way
        places = 0
    if places != 1:
        raise ValueError(f"the chat template of {name!r} has no place for an image")


def end_of_turn_id(processor: ProcessorMixin) -> int | None:
    """The control token that the chat template puts behind the model's turn (Idefics3's is no EOS)."""
    question = [{"type": "image"}, {"type": "text", "text": "?"}]
    answer = [{"type": "text", "text": "mallard"}]
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rendered = processor.apply_chat_template(chat, tokenize=False)
    _, _, behind = rendered.rpartition("mallard")
    ids = processor.tokenizer(behind, add_special_tokens=False)["input_ids"]
    if ids and ids[0] in processor.tokenizer.added_tokens_decoder:
        return ids[0]
    return None


# ------------------------------------------------------------------------------------------------------------
# Tokens: what ends a completion, what pads it, what is never sampled


def end_of_sequence_ids(model: nn.Module, processor: ProcessorMixin, name: str = "") -> list[int]:
    """Every token that ends a completion, the one that a turn is taught to end with first. Raises ValueError
    where a checkpoint names none, or what is no token."""
    candidates = [end_of_turn_id(processor)]
    configured = model.generation_config.eos_token_id  # None, one id or several
    if isinstance(configured, int):
        candidates.append(configured)
    elif configured:
        candidates.extend(configured)
    candidates.append(processor.tokenizer.eos_token_id)

    size = model.config.get_text_config().vocab_size
    eos_ids = []
    for token in candidates:
        if token is None or token in eos_ids:
            continue
        if type(token) is not int or not 0 <= token < size:
            raise ValueError(f"the checkpoint {name!r} ends its answers with {token!r}, which is no token")
        eos_ids.append(token)
    if not eos_ids:
        raise ValueError(f"the checkpoint {name!r} names no end-of-sequence token")
    return eos_ids


def padding_id(tokenizer, eos_ids: list[int]) -> int:
    """The tokenizer's padding token, or an EOS: completions are masked by position, never by token."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return eos_ids[0]


VISION_TOKEN_SETTING = re.compile(r"(image|video|vision).*token_id$")  # image_token_id in a config
VISION_TOKEN = re.compile(r"<\|(image|video|vision)_\w+\|>")           # <|image_pad|> in a vocabulary


def banned_tokens(config, tokenizer, eos_ids: list[int]) -> Tensor:
    """(V,) bool: control tokens, what stands for an image or a video (sampled, it would make the later
    forward look for a picture), and the rows of the embedding that no token has. But no EOS."""
    size = config.get_text_config().vocab_size
    vocabulary = tokenizer.get_vocab()

    special = set(tokenizer.all_special_ids)
    for setting, value in config.to_dict().items():
        if VISION_TOKEN_SETTING.search(setting):
            special.add(value)
    for text, token in vocabulary.items():
        if VISION_TOKEN.fullmatch(text):
            special.add(token)
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special:
            special.add(token)

    # All rows are banned, then those that a token has are not, then the special ones are again. A tokenizer
    # may have more tokens than the model has rows.
    banned = torch.ones(size, dtype=torch.bool)
    banned[[token for token in vocabulary.values() if token < size]] = False
    banned[[token for token in special if token is not None and token < size]] = True
    banned[eos_ids] = False
    return banned
