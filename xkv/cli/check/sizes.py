"""Sizes of a case, drawn from a seed."""

from __future__ import annotations

import random
from typing import Any

from ...draft import DraftTree
from ...params import CSR
from ...shard import source_tokens
from .engine_rows import DECODE, EXTEND, I32, I64, INDICES, OF_RANKS, RAGGED
from .families import Family

_DELTAS = [0, 0, 0, 1, 4, 5, -3, -5, (1 << 28) - 1, 1 - (1 << 28)]


class Sizes:
    """What a case of a family is free in, but for how its tensors lie and what they hold.

    Args:
        family: the family.
        rng: decides everything.
        small: sizes for Triton's interpreter.

    Attributes:
        rows: of the source, each of ``width`` entries, which are ``tokens`` tokens on all ranks.
        batch: requests; the outputs have room for ``max_batch_size``.
        top: token ids in the source are below it, or a little more.
        room: entries of a table's row; ``pages``: those that a plugin may write; ``stream``: of a stream.
        draft: a step of a draft tree.
        topk: rows of the outputs for each request.
        sink: first tokens of each row that a window shows too.
        context: tokens, a host bound, which ``room`` need not have room for.
        gaps: of which each tensor's elements between rows are drawn; ``shifts``: those out of alignment.
        queries: query tokens whose positions are given, at most.
        new: slots of new tokens, of which ``translated`` go to a buffer of ``slot_dtype``; ``spare``: entries
            of both that are not to be touched.
        numbers: an op's arguments that are no tensors, where it is to have them.
    """

    def __init__(self, family: Family, rng: random.Random, small: bool) -> None:
        page_size, unit = family.page_size, family.source_page_size
        span, ranks = max(page_size, unit), 1
        if family.function in OF_RANKS or "clamp_tail" in family.options:
            # a row is more than a few tokens, also of each rank
            ranks = family.shard.size if family.shard else 1
            span = max(span, 16) * ranks
        longest = rng.randint(1, rng.choice([2, 4] if small else [2, 6, 40])) * span + rng.randrange(span)
        self.width = longest // unit + 1
        self.tokens = source_tokens(self.width * unit, family.shard)
        self.rows = rng.randint(1, 6)
        self.batch = rng.randint(0, rng.choice([1, 3, 6] if small else [1, 3, 9, 30]))
        self.map_page_size = rng.choice([1, 16]) if "map_page_size" in family.options else page_size
        self.window = rng.randint(1, self.tokens) if "window" in family.options else None
        self.sink = page_size * (family.shard.size if family.shard else 1) * rng.randint(1, 2)
        self.context = rng.randint(1, self.tokens)
        pages = self.tokens // ranks // page_size
        self.room = rng.choice([pages + 1, rng.randint(0, pages + 2)])
        self.pages = rng.choice([self.room, rng.randint(0, self.room)])
        self.stream = int(rng.choice([1, rng.random()]) * self.room * max(self.batch, 1))
        self.max_batch_size = max(self.batch + rng.choice([0, 1, 3]), 0 if family.form == CSR else 1)
        if family.function and family.form == CSR:  # mostly several rows, and room for some of them
            self.batch = rng.choice([self.batch, *range(2, 7)])
            self.stream = max(self.stream, rng.choice([0, 1, 1, 2]) * self.tokens)
        if family.function == INDICES:  # row b is row b of the table, and no row at all is left to vLLM
            self.batch = max(self.batch, 1)
            self.rows = self.batch + rng.randint(0, 2)
        if family.spec is not None:
            self.max_batch_size = max(self.max_batch_size, 1)
        self.top = self.rows * self.tokens + span
        self.delta = rng.choice(_DELTAS) if not family.function or "delta" in family.options else 0
        steps = rng.randint(1, 5)
        draft_page = page_size if page_size > 1 else rng.choice([1, 4, 16])
        self.draft = DraftTree(rng.randint(1, 3), steps, rng.randint(1, steps), draft_page)
        self.topk = self.draft.topk if "draft_tree" in family.options else 1  # rows for each request
        self.gaps = self.shifts = (0, 0, 1, 5)
        self.query_len = rng.choice([0, 1, 4])
        self.queries = max(self.stream + rng.choice([0, 0, 2, -2]), 0)
        self.max_tokens = rng.randint(1, self.room * page_size * self.max_batch_size + 1)
        if family.function == RAGGED:
            self.query_len = max(self.query_len, 1)
            self.rows = self.batch * self.query_len + rng.randint(0, 2)
        if family.function in (DECODE, EXTEND) or "new_slots" in family.options:
            # of no row at all nothing is launched
            self.batch = max(self.batch, 1)
            self.max_batch_size = max(self.max_batch_size, self.batch)
        if family.function == EXTEND:  # a table without columns is left to the engine
            self.room, self.pages = max(self.room, 1), max(self.pages, 1)
        self.numbers: dict[str, Any] = {
            "min_last_page_len": 1, "missing_id": rng.choice([-1, 0, 7]), "pad_value": rng.choice([0, -1, 5]),
            "pad_to_multiple_of": rng.choice([1, 4, 64]),
            "max_position": rng.choice([self.context, self.tokens]),
            "max_seq_len": min(self.context, self.room * page_size),  # which a table has room for
        }  # fmt: skip
        if "new_slots" in family.options:
            self.new = rng.choice([rng.randint(0, 9), rng.randint(0, 700)])
            self.translated = max(self.new + rng.choice([0, 3, -2]), 0)
            if family.function == EXTEND:
                self.new = self.translated = self.batch * self.query_len
            self.spare = rng.choice([0, 2])
            self.slot_dtype = I64 if family.dtype == I64 else rng.choice([I32, I64])
