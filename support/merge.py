"""Merges an adapter into its base: a checkpoint of its own, for whatever opens no adapters.

    python -m support.merge runs/cub-speciarl-seed0 --out merged
    python -m support.merge ADAPTER --model Qwen/Qwen2.5-VL-7B-Instruct --out merged

W + scale * B A is added up in float32 and saved in the base's dtype, beside the base's own files (tokenizer,
image processor, chat template). The sum must give the logits of base and adapter, of one picture and
question. What is written is opened again and must give the same, or it is thrown away. It needs the model
twice, in float32: the 7B 60 GB.

In a bfloat16 base the sum is rounded once more than base and adapter apart. How far that moves the logits is
printed.
"""

import argparse
import shutil
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import cached_file

import policy as policies
from lora import adapter_config, load_adapter, lora_layers
from support.command_line import one_line_errors
from support.opening import adapter_folder
from support.checkpoints import render_question

WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf",
           ".h5")
MOST_DIFFERENCE = 1e-5  # of logits in float32, for each 1 of the largest


@torch.no_grad()
def logits_of(policy: policies.Policy) -> Tensor:
    """(P, V) float32: the model's logits behind a picture and a question, by its own forward."""
    text = render_question(policy.processor, "what is it?")
    picture = Image.linear_gradient("L").resize((112, 84)).convert("RGB")
    inputs = policy.processor(text=[text], images=[picture], return_tensors="pt")
    return policy.model(**inputs.to(policy.device)).logits[0].float()


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Puts W + scale * B A in the place of every LoRALinear, in W's dtype."""
    for name, layer in lora_layers(model).items():
        layer.base.weight += layer.scale * (layer.lora_B @ layer.lora_A)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)


def dtype_of(model: str) -> torch.dtype:
    """A checkpoint's own dtype."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return config.dtype or config.get_text_config().dtype or torch.float32


def copy_other_files(model: str, folder: Path) -> None:
    """A checkpoint's files but its weights: what they say is as it was."""
    source = Path(cached_file(model, "config.json")).parent
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, folder / file.name)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Of two models' logits, as a share of the largest."""
    return float((a - b).abs().max() / b.abs().max())


def refuse_other_logits(found: Tensor, expected: Tensor, what: str) -> None:
    difference = largest_difference(found, expected)
    if not difference <= MOST_DIFFERENCE:
        raise OSError(f"{what} ({difference:.1e} of the largest): they are not kept")


def write_merged(adapter: str, model: str, folder: Path) -> float:
    """Writes the merged checkpoint into the folder. Returns how far its logits are from those of base and
    adapter, as a share of the largest. Raises OSError where what is written is not what was in memory."""
    policy = policies.load(model)  # in float32
    load_adapter(policy.model, adapter)
    apart = logits_of(policy)
    merge_adapters(policy.model)
    together = logits_of(policy)
    refuse_other_logits(together, apart, "the merged weights give other logits than base and adapter")

    # Rounded as it will be saved, and computed with in float32 as before. One dtype for all: a base of
    # several is saved in that of its config.
    dtype = dtype_of(model)
    for parameter in policy.model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    in_memory = logits_of(policy)
    policy.model.to(dtype).save_pretrained(folder)
    copy_other_files(model, folder)
    del policy

    read_again = logits_of(policies.load(str(folder)))
    refuse_other_logits(read_again, in_memory, "the merged checkpoint gives other logits than were in memory")
    return largest_difference(read_again, apart)


def merge(adapter: str, model: str | None, out: Path) -> float:
    """write_merged, into a folder that is there only once it is whole. Raises ValueError or OSError."""
    adapter = adapter_folder(adapter)
    model = model or adapter_config(adapter).get("base_model_name_or_path")
    if not model:
        raise ValueError(f"the adapter {adapter} does not name its base: --model does")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is there already")
    temporary = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        difference = write_merged(adapter, model, temporary)
        temporary.rename(out)  # an empty folder is replaced
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return difference


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("adapter", help="a run's folder, or an adapter's")
    p.add_argument("--model", help="its base, folder or hub name (default: what the adapter names)")
    p.add_argument("--out", required=True, help="folder of the merged checkpoint, which must not be there")
    args = p.parse_args(argv)
    with one_line_errors("merge.py"):
        difference = merge(args.adapter, args.model, Path(args.out))
    print(f"{args.out}: its logits are within {difference:.1e} of base and adapter (of the largest)")


if __name__ == "__main__":
    main()
