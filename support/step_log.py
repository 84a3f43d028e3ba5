"""What a step's line holds beside the method's figures: peak memory."""

import sys

import torch

from support.processes import gather


def peak_gb() -> float:
    """Of the process that needs most, since the last call on a GPU, else since its start."""
    return max(gather([_peak_gb()]))


def _peak_gb() -> float:
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak / 1e9
    try:
        import resource
    except ImportError:  # Windows has none
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
