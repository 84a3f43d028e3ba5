"""The cache that a rollout decodes on, and when its rows are thinned.

    cache = new_cache(model.config)            # the prompt's forward fills it
    cache.batch_select_indices(index)          # forks a row into several, or drops rows
    criterion = EndedRows(eos, len(rows))      # ends `generate` once enough rows have ended
    keep = rows_to_keep(criterion.ended)       # who goes on

Completions end at very different lengths, and `generate` runs ended rows on to the end of the longest one.
transformers' own cache copies everything for every token. Neither is needed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria
from transformers.cache_utils import DynamicLayer

DROP = 1 / 8  # share of the rows that must have ended before the others go on without them
ROOM = 64     # tokens of room that are kept ahead


def new_cache(config) -> DynamicCache:
    """An empty cache for that model's config. A layer whose attention slides keeps transformers' own."""
    cache = DynamicCache(config=config.get_text_config())
    layers = []
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer = RoomyLayer()
        layers.append(layer)
    cache.layers = layers
    return cache


class RoomyLayer(DynamicLayer):
    """A cache layer with room kept ahead: new tokens are written into it, and rows are dropped in place.

    keys, values: (rows, heads, length, dim) as in the parent, but views into `room`.
    """
    room: Tensor | None = None  # (2, rows, heads, capacity, dim): keys and values

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of new tokens, (rows, heads, new, dim). Returns all of them."""
        # The prompt is kept as it comes: it has no room yet, since it will be forked.
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys = keys
            self.values = values
            return keys, values

        rows = len(keys)
        start = self.get_seq_length()
        end = start + keys.shape[2]
        if self.room is None or self.room.shape[3] < end:
            self.make_room(torch.arange(rows, device=keys.device))
        self.room[:, :rows, :, start:end] = torch.stack([keys, values])
        self.show(rows, end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row r becomes what row indices[r] was: a fork where an index comes twice, a drop where one is
        missing."""
        rows = len(indices)
        length = self.get_seq_length()
        if self.room is None or rows > self.room.shape[1]:
            self.make_room(indices)
        else:
            # Only the rows that change their place are copied.
            moved = (indices != torch.arange(rows, device=indices.device)).nonzero()[:, 0]
            self.room[:, moved, :, :length] = self.room[:, indices[moved], :, :length]
        self.show(rows, length)

    def make_room(self, indices: Tensor) -> None:
        """Copies those rows into a new room, ROOM tokens longer than they are."""
        length = self.get_seq_length()
        both = torch.stack([self.keys[indices], self.values[indices]])  # (2, rows, heads, length, dim)
        self.room = F.pad(both, (0, 0, 0, ROOM))
        self.show(len(indices), length)

    def show(self, rows: int, length: int) -> None:
        """keys and values are that many rows and tokens of the room."""
        self.keys, self.values = self.room[:, :rows, :, :length]


class EndedRows(StoppingCriteria):
    """Ends `generate` once the share DROP of its rows has met an EOS. It counts on the device, without
    waiting for it. ended: (rows,) bool."""

    def __init__(self, eos: Tensor, rows: int):
        self.eos = eos
        self.ended = torch.zeros(rows, dtype=torch.bool, device=eos.device)

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        self.ended = self.ended | torch.isin(input_ids[:, -1], self.eos)
        enough = self.ended.float().mean() >= DROP
        return self.ended | enough  # (rows,), true: this row is done


def rows_to_keep(ended: Tensor) -> Tensor:
    """The row numbers that go on, in their new order. Who goes on stays in place, or moves into the place of
    a row that has ended: of rows 0 to 3, with 1 and 3 ended, [0, 2]."""
    survivors = (~ended).nonzero()[:, 0]
    count = len(survivors)
    keep = torch.arange(count, device=ended.device)
    # The places that ended rows leave among the first `count`, for the survivors that stand behind those.
    keep[ended[:count]] = survivors[survivors >= count]
    return keep
