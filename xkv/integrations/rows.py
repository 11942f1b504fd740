"""Row numbers on the device, for tables whose row b is request b's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..params import MAX_BATCH

_every: dict[torch.device, Tensor] = {}


def every_row(device: torch.device) -> Tensor | None:
    """Returns 0, 1, 2, ... up to the largest batch; None: a capture, in which they cannot be put there."""
    found = _every.get(device)
    if found is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        found = _every[device] = torch.arange(MAX_BATCH, dtype=torch.int32).to(device)
    return found
