"""A database of captions: embedded once by a CLIP, kept on disk, searched by cosine. baselines/cased.py's.

    clip = load_clip("openai/clip-vit-large-patch14", "cuda")
    index = open_index(Path("captions.txt"), clip, Path("captions.index"))
    rows, _ = index.search(embed_images(clip, images), k=10)      # (B, k)
    texts = [index.caption(row) for row in rows[0]]

The captions are a text file, a caption a line; blank lines are passed over. The index is a folder:

    offsets.bin     where each caption begins in the text, int64
    vectors.bin     each caption's embedding, D numbers of float16, of length 1
    index.json      of which text they are, and how many vectors are whole

M captions may be millions: neither they nor their embeddings are ever all in memory. Embedding goes block by
block, and goes on after a kill with the block that was not finished.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, CLIPModel, PreTrainedTokenizerBase
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import data
from support.command_line import first_line
from support.files import replacing, write_json
from support.lock import Lock

BLOCK = 4096        # captions that are embedded between two writes
BATCH = 256         # captions in a forward
SEARCHED = 1 << 16  # captions that are compared at a time

# ------------------------------------------------------------------------------------------------------------
# The CLIP


@dataclass
class Clip:
    model: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: CLIPImageProcessorPil
    name: str


def load_clip(name: str, device="cpu") -> Clip:
    """A CLIP by its folder or hub name, in float32. Raises OSError where there is none, or not all of it."""
    try:
        model_type = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if model_type != "clip":
            raise ValueError(f"it is a {model_type} model")
        model, found = CLIPModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        if found["missing_keys"]:
            raise ValueError(f"{min(found['missing_keys'])} is missing among its weights")
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        image_processor = CLIPImageProcessorPil.from_pretrained(name)
        clip = Clip(model.to(device).eval(), tokenizer, image_processor, name)
        embed_texts(clip, ["a", "a longer text"])  # what does not fit together fails here, not an hour later
    except Exception as error:  # whatever transformers or the model says
        raise OSError(f"cannot load the CLIP {name!r}: {first_line(error)}") from None
    return clip


@torch.inference_mode()
def embed_texts(clip: Clip, texts: list[str]) -> Tensor:
    """(M, D) float32, of length 1. A text is cut off at the CLIP's longest, mostly 77 tokens."""
    longest = clip.model.config.text_config.max_position_embeddings
    batches = []
    for start in range(0, len(texts), BATCH):
        inputs = clip.tokenizer(texts[start:start + BATCH], padding=True, truncation=True, max_length=longest,
                                return_tensors="pt").to(clip.model.device)
        output = clip.model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        batches.append(torch.nn.functional.normalize(output.pooler_output, dim=-1))
    return torch.cat(batches)


@torch.inference_mode()
def embed_images(clip: Clip, images: list) -> Tensor:
    """(B, D) float32, of length 1, of B PIL images."""
    pixels = clip.image_processor(images, return_tensors="pt")["pixel_values"]
    output = clip.model.get_image_features(pixels.to(clip.model.device))
    return torch.nn.functional.normalize(output.pooler_output, dim=-1)


# ------------------------------------------------------------------------------------------------------------
# The index


@dataclass
class Index:
    """M captions and their embeddings, both where they are: on disk."""
    captions: Path
    text_hash: str       # of the captions
    offsets: np.ndarray  # (M,) int64
    vectors: np.ndarray  # (M, D) float16

    def __len__(self) -> int:
        return len(self.offsets)

    def caption(self, row: int) -> str:
        """The caption's text, with the sign for what can't be read in place of what is no UTF-8."""
        with self.captions.open("rb") as file:
            file.seek(int(self.offsets[row]))
            return file.readline().decode(errors="replace").strip()

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Rows of the k captions that are nearest to each query by cosine, the nearest first, and their
        cosines: (B, k) each; fewer where there are not k captions. queries: (B, D), of length 1."""
        best = queries.new_zeros(len(queries), 0)                             # (B, at most k)
        rows = torch.zeros(len(queries), 0, dtype=torch.long, device=queries.device)
        for start in range(0, len(self), SEARCHED):
            block = torch.tensor(self.vectors[start:start + SEARCHED], device=queries.device)
            cosines = queries @ block.to(queries.dtype).T                     # (B, captions of the block)

            # The best so far stand first.
            cosines = torch.cat([best, cosines], dim=1)
            numbers = torch.arange(start, start + len(block), device=queries.device)
            numbers = torch.cat([rows, numbers.expand(len(queries), -1)], dim=1)
            best, places = cosines.topk(min(k, cosines.shape[1]), dim=1)
            rows = numbers.gather(1, places)
        return rows, best


def open_index(captions: Path, clip: Clip, folder: Path) -> Index:
    """The captions' index, which is made, or finished, where it is not there. Raises ValueError where the
    folder holds another's, or there are no captions; OSError."""
    data.refuse_special(captions)
    made_of = {"text": hash_of(captions), "dimension": clip.model.config.projection_dim}
    with Lock(folder / ".lock", folder):
        done = vectors_done(folder, made_of)
        if done is None:
            count = write_offsets(captions, folder / "offsets.bin")
            if count == 0:
                raise ValueError(f"{captions} holds no captions")
            done = 0
            write_json(folder / "index.json", made_of | {"done": done})
        offsets = np.memmap(folder / "offsets.bin", np.int64, "r")
        if done > 0:
            refuse_other_clip(index_of(captions, folder, made_of, offsets, done), clip)
        write_vectors(captions, clip, folder, made_of, len(offsets), done)
    return index_of(captions, folder, made_of, offsets, len(offsets))


def index_of(captions: Path, folder: Path, made_of: dict, offsets: np.ndarray, count: int) -> Index:
    """The first `count` captions, whose vectors are there."""
    shape = (count, made_of["dimension"])
    vectors = np.memmap(folder / "vectors.bin", np.float16, "r", shape=shape)
    return Index(captions, made_of["text"], offsets[:count], vectors)


def hash_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def vectors_done(folder: Path, made_of: dict) -> int | None:
    """How many vectors a folder holds; None where it holds no index yet. Raises ValueError where it holds
    another's."""
    file = folder / "index.json"
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_text("utf-8"))
        done = stored.pop("done")
        differing = [key for key in made_of if stored[key] != made_of[key]]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{file} is no index of captions: give another --index") from None
    whole = done * made_of["dimension"] * 2  # bytes
    if differing:
        raise ValueError(f"{folder} is of another {differing[0]}: give another --index, or delete it")
    if done > 0 and (folder / "vectors.bin").stat().st_size < whole:
        raise ValueError(f"{folder} lacks some of its vectors: delete it, and it is made again")
    return done


def refuse_other_clip(index: Index, clip: Clip) -> None:
    """Raises ValueError where the first caption's vector is not this CLIP's: whatever their names, other
    weights made it. One that is its own differs by rounding."""
    stored = torch.tensor(index.vectors[0]).float()                           # (D,)
    own = embed_texts(clip, [index.caption(0)])[0].cpu()
    if float(stored @ own) < 0.999:
        folder = Path(index.vectors.filename).parent
        raise ValueError(f"{folder} was made by another CLIP: give another --index, or delete it")


def caption_lines(captions: Path, first: int = 0) -> Iterator[tuple[int, bytes]]:
    """(where it begins, its line) of every caption from byte `first` on."""
    with captions.open("rb") as file:
        file.seek(first)
        offset = first
        for line in file:
            if line.strip():
                yield offset, line
            offset += len(line)


def write_offsets(captions: Path, file: Path) -> int:
    """Writes where each caption begins. Returns how many there are."""
    count = 0
    with replacing(file) as temporary, temporary.open("wb") as offsets:
        for offset, _ in caption_lines(captions):
            offsets.write(np.int64(offset).tobytes())
            count += 1
    return count


def write_vectors(captions: Path, clip: Clip, folder: Path, made_of: dict, count: int, done: int) -> None:
    """Embeds the captions from number `done` on, block by block, and says in index.json how far it is."""
    if done == count:
        return
    offsets = np.memmap(folder / "offsets.bin", np.int64, "r")
    lines = caption_lines(captions, first=int(offsets[done]))
    file = folder / "vectors.bin"
    file.touch()
    progress = tqdm(total=count, initial=done, unit="caption", desc="embed")
    with file.open("r+b") as vectors, progress:
        # What a kill has left of an unfinished block goes.
        vectors.truncate(done * made_of["dimension"] * 2)
        vectors.seek(0, 2)
        while done < count:
            block = []
            for _, line in islice(lines, BLOCK):
                block.append(line.decode(errors="replace").strip())
            if not block:
                raise OSError(f"{captions} has become shorter meanwhile")
            vectors.write(embed_texts(clip, block).cpu().numpy().astype(np.float16).tobytes())

            # The vectors first, and only then the word that they are there.
            vectors.flush()
            os.fsync(vectors.fileno())
            done += len(block)
            write_json(folder / "index.json", made_of | {"done": done})
            progress.update(len(block))
