"""The translation of chosen positions in plain torch: the oracle in tests, and the path for CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..chosen import ChosenTokens
from ..params import ID_MAX, INT32_MAX
from ..status import Reason
from .rows import to_int64


def translate(build: ChosenTokens) -> None:
    """Writes the outputs of a checked build."""
    with torch.inference_mode():
        _translate(build)


def requests(build: ChosenTokens) -> Tensor:
    """The request of each query token, -1 for none."""
    token = torch.arange(build.num_tokens, device=build.positions.device)
    if build.token_to_req is not None:
        return to_int64(build.token_to_req)
    if build.query_start_loc is None:
        return token
    starts = to_int64(build.query_start_loc)
    req = (starts[1:] <= token[:, None]).sum(1)
    req = torch.where(req < build.batch, req, -1)
    if not build.batch:
        return req
    return torch.where((req >= 0) & (starts[req.clamp(min=0)] <= token), req, -1)


def _translate(build: ChosenTokens) -> None:
    tokens, source = build.num_tokens, build.req_to_token
    req = requests(build)
    is_request = (req >= 0) & (req < build.batch)
    at = req.clamp(0, max(build.batch - 1, 0))
    row = req
    if build.req_pool_indices is not None:
        given = build.req_pool_indices.to(torch.int64)
        row = torch.where(is_request, given[at], 0) if build.batch else torch.zeros_like(req)
    exists = is_request & (row >= 0) & (row < source.shape[0])
    is_padding = (req < 0) | (is_request & (row < 0))
    reason = torch.where(exists | is_padding, 0, int(Reason.BAD_ROW))
    length = torch.full_like(req, build.max_tokens)
    if build.seq_lens is not None and build.batch:
        given = to_int64(build.seq_lens)[at]
        length = given.clamp(0, build.max_tokens)
        reason[(reason == 0) & exists & (given != length)] = int(Reason.BAD_LENGTH)
    length, row = torch.where(exists, length, 0), torch.where(exists, row, 0)

    position = build.positions.to(torch.int64)
    live = (position >= 0) & (position < -(-length // build.unit)[:, None])
    token = torch.where(live, position, 0) * build.unit
    shard, unit = build.shard, build.source_page_size
    if shard is not None:
        turn = shard.size * shard.interleave
        live &= token // shard.interleave % shard.size == shard.rank
        if shard.source == "local":
            token = token // turn * shard.interleave + token % shard.interleave
    b, j = live.nonzero(as_tuple=True)
    token = token[b, j]
    entry = source[row[b], token // unit].to(torch.int64)
    found = (entry >= 0) & (entry < ID_MAX)
    slot = torch.where(found, entry, 0) * build.block_stride + token % unit
    if shard is not None and shard.source == "global":
        slot = slot // turn * shard.interleave + slot % shard.interleave
    page = slot // build.page_size
    if build.out.dtype == torch.int32:
        found &= page <= INT32_MAX
    reason[b[~found & (reason[b] == 0)]] = int(Reason.BAD_ID)
    b, j, page = b[found], j[found], page[found]
    count = torch.bincount(b, minlength=tokens)
    if build.compact:
        j = torch.arange(len(b), device=b.device) - (count.cumsum(0) - count)[b]
    out = build.out[:tokens]
    out.fill_(build.missing_id)
    out[b, j] = page.to(out.dtype)
    if build.dummy is not None and build.k:
        out[count == 0, 0] = build.dummy
        count = count.clamp(min=1)
    if build.counts is not None:
        build.counts[:tokens] = count.to(torch.int32)
    if build.status is not None:
        words = torch.arange(tokens, device=b.device) * 256 + reason
        build.status.copy_(torch.cat([build.status, words[reason > 0]]).min())
