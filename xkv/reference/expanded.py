"""The rows of query tokens in plain torch: the oracle in tests, and the path for CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..expanded import Expansion
from ..params import ROW_MAX
from ..status import Reason
from .rows import find_rows, local_lengths, to_int64


def expand(build: Expansion) -> None:
    """Writes the outputs of a checked build."""
    with torch.inference_mode():
        _expand(build)


def _expand(build: Expansion) -> None:
    tokens, device = build.num_tokens, build.seq_lens.device
    starts, given = to_int64(build.query_start_loc), to_int64(build.seq_lens)
    length = given.clamp(0, ROW_MAX)
    if build.status is not None:
        _report(build, starts, given, length)
    if not build.batch:  # one request without query tokens
        starts, length = starts.repeat(2), starts * 0
    t = torch.arange(tokens, device=device)
    req = find_rows(starts, t)
    begin, end = starts[req], starts[req + 1]
    live = (begin >= 0) & (begin <= t) & (t < end) & (t < starts[-1])
    position = torch.where(live, length[req] - (end - t), -1)
    seen = (position + 1).clamp(min=0) if build.causal else torch.where(live, length[req], 0)

    def write(out: Tensor | None, value: Tensor) -> None:
        if out is not None:
            out[:tokens] = value.to(out.dtype)

    write(build.out.token_to_req, torch.where(live, req, build.pad_req))
    write(build.out.positions, position.clamp(min=0))
    write(build.out.seq_lens, local_lengths(seen, build.shard))
    if build.page_table is not None and build.out.out_page_table is not None:
        table = build.out.out_page_table[:tokens]
        table.zero_()
        table[live] = build.page_table[req[live], : build.columns]


def _report(build: Expansion, starts: Tensor, given: Tensor, length: Tensor) -> None:
    begin, end = starts[:-1], starts[1:]
    is_bad = (begin < 0) | (end < begin) | ((end - begin > length) & (length > 0))
    reason = torch.where(end > build.num_tokens, int(Reason.TRUNCATED), 0)
    reason[is_bad] = int(Reason.BAD_QUERY)
    reason[given != length] = int(Reason.BAD_LENGTH)
    words = torch.arange(build.batch, device=reason.device) * 256 + reason
    assert build.status is not None  # the caller has looked
    build.status.copy_(torch.cat([build.status, words[reason > 0]]).min())
