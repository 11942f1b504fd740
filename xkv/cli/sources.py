"""What the measuring tools read from: a req_to_token as an engine's would be, at random."""

from __future__ import annotations

import torch
from torch import Tensor

PAGE = 128  # tokens in one piece: whole pages of every backend's page size


def make_source(rows: int, width: int, pool: int, device: str) -> Tensor:
    """Makes a req_to_token of random pages, each of PAGE tokens in one piece.

    Args:
        rows: requests that it has room for.
        width: tokens, the row stride.
        pool: tokens; every id is below it.
        device: where it lies.

    Returns:
        ``[rows, width]`` int32, token slots.
    """
    source = torch.empty(rows, width, dtype=torch.int32, device=device)
    within = torch.arange(PAGE, dtype=torch.int32, device=device)
    for row in range(0, rows, 64):  # in parts, as the whole may be GiBs
        part = source[row : row + 64]
        shape = len(part), -(-width // PAGE), 1
        pages = torch.randint(pool // PAGE, shape, dtype=torch.int32, device=device)
        part.copy_((pages * PAGE + within).view(len(part), -1)[:, :width])
    return source
