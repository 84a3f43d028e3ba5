"""A text file of captions, one a line, embedded once and kept; and the captions nearest to a picture.

    index = open_index(Path("captions.txt"), Path("captions.index"), clip)
    places = index.nearest(clip.embed_images(images), k=10)                    # (B, k)
    index.texts(places[0].tolist())

The file may hold millions of lines: it is read line by line, and no more than a block of captions or
embeddings is in memory at a time. The folder holds

    embeddings.f16    float16, (M, D), rows of length 1, in the order of the file
    offsets.i64       the byte of the file that each caption begins at, (M,)
    index.json        whose embeddings these are, and how many are on disk

Blocks are appended, and count once they are on disk and index.json says so. What a kill leaves of another is
cut off, and embedded again in the same batches: the files of a killed command that went on are those of one
that was not, bit for bit.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from baselines.clip import Clip
from support.files import cannot_write, write_json
from support.lock import Lock

EMBEDDINGS = "embeddings.f16"
OFFSETS = "offsets.i64"
PROGRESS = "index.json"

BLOCK = 8192              # captions embedded between two notes of progress
ROWS_PER_READ = 16384     # embeddings in memory at a time in a search
LONGEST_CAPTION = 100_000  # bytes

# ------------------------------------------------------------------------------------------------------------
# The captions


def lines_of(file: Path) -> Iterator[tuple[int, bytes]]:
    """(byte, line) of each line. Raises ValueError for what is no text, and for a line that no caption is as
    long as; OSError."""
    byte = 0
    with file.open("rb") as lines:
        while True:
            line = lines.readline(LONGEST_CAPTION + 1)
            if not line:
                return
            if len(line) > LONGEST_CAPTION:
                raise ValueError(f"{file} holds a line of over {LONGEST_CAPTION} bytes: expected a caption "
                                 "a line")
            if b"\0" in line:
                raise ValueError(f"{file} is no text in UTF-8: byte {byte + line.index(0)} is zero")
            yield byte, line
            byte += len(line)


def survey(file: Path) -> tuple[str, int]:
    """A hash of the file, and how many captions it holds: lines that aren't empty."""
    digest = hashlib.sha256()
    count = 0
    for _, line in lines_of(file):
        digest.update(line)
        if line.strip():
            count += 1
    return digest.hexdigest()[:16], count


def text_of(line: bytes) -> str:
    """A line's caption. Bytes that are not UTF-8 become the sign for that, which is part of no word."""
    return line.decode("utf-8", "replace").removeprefix("\ufeff").strip()


# ------------------------------------------------------------------------------------------------------------
# The index


@dataclass
class CaptionIndex:
    captions: Path
    folder: Path
    digest: str       # a hash of the captions
    count: int        # M
    dimensions: int   # D

    def texts(self, places: Iterable[int]) -> list[str]:
        """The captions at these places."""
        offsets = np.memmap(self.folder / OFFSETS, "<i8", "r")                  # (M,)
        texts = []
        with self.captions.open("rb") as lines:
            for place in places:
                lines.seek(int(offsets[place]))
                texts.append(text_of(lines.readline()))
        return texts

    def embeddings(self, start: int, stop: int) -> Tensor:
        """(stop - start, D) float32. What is mapped is let go of, so that a search through a file of any size
        holds one block of it."""
        mapped = np.memmap(self.folder / EMBEDDINGS, np.float16, "r", offset=start * self.bytes_per_row(),
                           shape=(stop - start, self.dimensions))
        return torch.from_numpy(mapped.astype(np.float32))

    def embeddings_at(self, places: Tensor) -> Tensor:
        """places: any shape (...). Returns (..., D) float32."""
        mapped = np.memmap(self.folder / EMBEDDINGS, np.float16, "r", shape=(self.count, self.dimensions))
        return torch.from_numpy(mapped[places.numpy()].astype(np.float32))

    def bytes_per_row(self) -> int:
        return self.dimensions * np.dtype(np.float16).itemsize

    def nearest(self, vectors: Tensor, k: int, device="cpu") -> Tensor:
        """The places of the k captions (all, if there are fewer) of the largest cosine to each vector, the
        nearest first. vectors: (Q, D) of length 1. Returns (Q, k)."""
        vectors = vectors.to(device)
        best_cosines = torch.empty(len(vectors), 0, device=device)
        best_places = torch.empty(len(vectors), 0, dtype=torch.long, device=device)
        for start in range(0, self.count, ROWS_PER_READ):
            stop = min(start + ROWS_PER_READ, self.count)
            rows = self.embeddings(start, stop).to(device)                      # (R, D)

            # The nearest of this block, beside the nearest so far.
            cosines, places = (vectors @ rows.T).topk(min(k, stop - start))     # (Q, k)
            cosines = torch.cat([best_cosines, cosines], dim=1)                 # (Q, 2 k)
            places = torch.cat([best_places, start + places], dim=1)

            best_cosines, order = cosines.topk(min(k, cosines.shape[1]))        # (Q, k)
            best_places = places.gather(1, order)
        return best_places.cpu()


def open_index(captions: Path, folder: Path, clip: Clip) -> CaptionIndex:
    """The whole index in a folder. As find_index and complete."""
    index = find_index(captions, folder, clip)
    complete(index, clip)
    return index


def find_index(captions: Path, folder: Path, clip: Clip) -> CaptionIndex:
    """The index in a folder, which may lack embeddings. Raises ValueError where the folder holds another
    index, or the file no captions; OSError."""
    digest, count = survey(captions)
    if count == 0:
        raise ValueError(f"{captions} holds no captions")
    dimensions = clip.embed_texts(["a"]).shape[1]
    index = CaptionIndex(captions, folder, digest, count, dimensions)
    read_progress(index, identity_of(index, clip))
    return index


def identity_of(index: CaptionIndex, clip: Clip) -> dict:
    """Whose embeddings these are."""
    return {"captions": index.digest, "count": index.count, "clip": clip.fingerprint,
            "dimensions": index.dimensions}


def complete(index: CaptionIndex, clip: Clip) -> None:
    """Embeds what the index lacks. Raises ValueError, OSError."""
    identity = identity_of(index, clip)
    # A whole index is only read: several commands may share it.
    if read_progress(index, identity) < index.count:
        with Lock(index.folder / ".lock", index.folder, "--index") as lock:
            begin(index, identity)
            embed_rest(index, identity, clip, lock)


def read_progress(index: CaptionIndex, identity: dict) -> int:
    """How many embeddings are on disk. Raises ValueError where they are others', or a file is broken."""
    file = index.folder / PROGRESS
    way_out = f"delete {index.folder}, or give another --index"
    if not file.exists():
        return 0
    try:
        stored = json.loads(file.read_bytes())
        embedded = stored.pop("embedded")
        is_known = stored.keys() == identity.keys() and type(embedded) is int and 0 <= embedded <= index.count
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{file} is broken: {way_out}") from None

    for key, what in (("captions", "of other captions"), ("clip", "by another CLIP")):
        if stored.get(key) != identity[key]:
            raise ValueError(f"{index.folder} holds embeddings {what}: {way_out}")
    if not is_known or stored != identity:
        raise ValueError(f"{file} is broken: {way_out}")

    sizes = {OFFSETS: 8 * index.count, EMBEDDINGS: embedded * index.bytes_per_row()}
    for name, least in sizes.items():
        part = index.folder / name
        if not part.is_file() or part.stat().st_size < least:
            raise ValueError(f"{part} is cut off: {way_out}")
    return embedded


def begin(index: CaptionIndex, identity: dict) -> None:
    """An index without embeddings, unless one is begun already: where each caption begins."""
    if (index.folder / PROGRESS).exists():
        return
    file = index.folder / OFFSETS
    try:
        with file.open("wb") as offsets:
            for byte, line in lines_of(index.captions):
                if line.strip():
                    offsets.write(struct.pack("<q", byte))
            to_disk(offsets)
        (index.folder / EMBEDDINGS).write_bytes(b"")
    except OSError as error:
        raise cannot_write(file, error) from None
    write_json(index.folder / PROGRESS, identity | {"embedded": 0})


def embed_rest(index: CaptionIndex, identity: dict, clip: Clip, lock: Lock) -> None:
    """Embeds the captions from the first that does not count, block by block."""
    done = read_progress(index, identity)
    file = index.folder / EMBEDDINGS
    os.truncate(file, done * index.bytes_per_row())  # a block that a kill came between
    with tqdm(total=index.count, initial=done, desc="captions", unit="caption", leave=False) as progress:
        while done < index.count:
            stop = min(done + BLOCK, index.count)
            vectors = clip.embed_texts(index.texts(range(done, stop)))          # (BLOCK, D)
            lock.check()
            append_rows(file, vectors.half().numpy())
            write_json(index.folder / PROGRESS, identity | {"embedded": stop})
            progress.update(stop - done)
            done = stop


def append_rows(file: Path, rows: np.ndarray) -> None:
    """They are on disk when it returns. Raises OSError naming the file."""
    try:
        with file.open("ab") as opened:
            opened.write(rows.tobytes())
            to_disk(opened)
    except OSError as error:
        raise cannot_write(file, error) from None


def to_disk(opened) -> None:
    opened.flush()
    os.fsync(opened.fileno())
