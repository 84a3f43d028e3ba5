"""The cache that a rollout decodes on, and when its rows are thinned."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StoppingCriteria
from transformers.cache_utils import DynamicLayer

DROP = 1 / 8  # share of the rows that must have ended before the others go on without them


class _Layer(DynamicLayer):
    """A cache layer with room kept ahead, in which rows are dropped in place: the parent copies everything
    for every token."""
    room = None  # (2, rows, heads, capacity, dim): keys and values

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:                    # the prompt
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
            return keys, values
        rows, end = len(keys), self.get_seq_length() + keys.shape[2]
        if self.room is None or self.room.shape[3] < end:
            self.room = None
            self.batch_select_indices(torch.arange(rows, device=keys.device))
        self.room[:, :rows, :, end - keys.shape[2]:end] = torch.stack([keys, values])
        self.keys, self.values = self.room[:, :rows, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices):
        rows, length = len(indices), self.get_seq_length()
        if self.room is None or rows > self.room.shape[1]:  # fork, or grow
            both = torch.stack([self.keys[indices], self.values[indices]])
            self.room = F.pad(both, (0, 0, 0, 64))
        else:
            moved = (indices != torch.arange(rows, device=indices.device)).nonzero()[:, 0]
            self.room[:, moved, :, :length] = self.room[:, indices[moved], :, :length]
        self.keys, self.values = self.room[:, :rows, :, :length]


class _Thinned(StoppingCriteria):
    """Ends `generate` once the share DROP of its rows has met an EOS; on the device, without waiting for
    it."""

    def __init__(self, eos: Tensor, rows: int):
        self.eos, self.ended = eos, torch.zeros(rows, dtype=torch.bool, device=eos.device)

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        self.ended = self.ended | torch.isin(input_ids[:, -1], self.eos)
        return self.ended | (self.ended.float().mean() >= DROP)
