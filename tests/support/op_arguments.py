"""Calls of the public ops into buffers between guard words, and what must come of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import building
import pytest
import torch

import xkv
from xkv import KVIndices, Status, Violation
from xkv.cli.check import oracle
from xkv.cli.check.families import OPS
from xkv.cli.check.memory import guarded, guarded_1d, whole
from xkv.params import Build, View

I32, I64 = torch.int32, torch.int64
TABLE, CSR, SLOTS = OPS
ALL = (TABLE, CSR, SLOTS)
TOKENS = 128  # in a row of the source
ROWS = [3, 0, 2, 2, 1, 4]
LENS = [0, 1, 17, 64, TOKENS, 70]
STARTS = [0, 0, 5, 63, 100, 70]
BATCH = len(LENS)
SIZES = [(1, 1), (16, 1), (64, 1), (16, 16), (64, 16), (16, 64), (1, 16)]  # page, source page
sizes = pytest.mark.parametrize(("P", "S"), SIZES)
every_op = pytest.mark.parametrize("op", ALL)


def ids(S: int, *, rows: int = 5, tokens: int = TOKENS, missing: int = 0) -> list[list[int]]:
    """A source: any ids at all, some of them missing."""
    rng = random.Random(S)
    width = tokens // S
    flat = rng.sample(range(4 * rows * width), rows * width)
    for k in rng.sample(range(len(flat)), missing):
        flat[k] = -1 - k
    return [flat[r * width : (r + 1) * width] for r in range(rows)]


def source_tensor(source: list[list[int]], dtype: torch.dtype, device: str) -> torch.Tensor:
    """The source inside a wider buffer."""
    out = guarded(len(source), len(source[0]), len(source[0]) + 3, dtype, device)
    return out.copy_(torch.tensor(source))


def call(
    op: str, device: str, *, P: int = 1, S: int = 1, room: int = 600, batch: int | None = None,
    source: Any = None, of_source: torch.dtype = I32, of_out: torch.dtype = I32, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of a call; lists become tensors, None is left out.

    Args:
        op: the op's name.
        device: where its tensors lie.
        P: tokens of an output page.
        S: tokens of a source entry.
        room: entries of a table's row or of a stream.
        batch: requests that the outputs have room for; None: two more than there are.
        source: None: `ids`.
        of_source: dtype of the source.
        of_out: dtype of the ids written.
        **options: more arguments.
    """
    given: dict[str, Any] = {"req_pool_indices": ROWS, "seq_lens": LENS, "source_page_size": S}
    if op != SLOTS:
        given["page_size"] = P
    elif "positions" not in options:
        given["query_lens"] = LENS
    given = {k: v for k, v in (given | options).items() if v is not None}
    tensors = {k: torch.tensor(v, device=device) for k, v in given.items() if isinstance(v, list)}
    source = ids(S) if source is None else source
    given |= tensors | {"req_to_token": source_tensor(source, of_source, device), "status": Status(device)}
    rows = len(given["seq_lens"]) + 2 if batch is None else batch
    if op == TABLE:
        out: Any = guarded(rows, room, room + 5, of_out, device)
    else:
        out = guarded_1d(room, of_out, device)
    if op == CSR:
        out = KVIndices(guarded_1d(rows + 1, I32, device), out, guarded_1d(rows, I32, device))
    return given | {"out": out}


def assert_right(op: str, given: dict[str, Any]) -> Violation | None:
    """Makes the call, compares all that it wrote with the oracle, and returns what it reported."""
    get, out, delta = given.get, given["out"], given.get("seq_lens_delta", 0)
    sums = {"kv_indptr": out[0], "kv_last_page_len": out[2]} if op == CSR else {}
    view = View(
        out[1] if op == CSR else out, get("kv_start"), None, get("token_map"), get("page_map"), **sums
    )
    if get("positions") is not None:
        view.kv_indptr = given["query_start_loc"]
    P, missing, per_row = get("page_size", 1), get("missing_id"), isinstance(delta, torch.Tensor)
    build = Build(
        given["req_to_token"], given["req_pool_indices"], given["seq_lens"], OPS[op], P,
        given["source_page_size"], get("map_page_size", P), (view,), max_seq_len=get("max_seq_len"),
        seq_lens_delta=0 if per_row else delta, seq_lens_delta_rows=delta if per_row else None,
        query_lens=get("query_lens"), positions=get("positions"), max_position=get("max_position"),
        indptr_is_input=get("positions") is not None, min_last_page_len=get("min_last_page_len", 0),
        pad_value=get("pad_value"), pad_to_multiple_of=get("pad_to_multiple_of"),
        missing_id=-1 if missing is None else missing, report_missing=missing is None,
        status=given["status"].word,
    )  # fmt: skip
    want = building.twin(build, "cpu")
    oracle.run(want)
    assert getattr(xkv, op)(**given) is out
    building.assert_same(build, want)
    return given["status"].read()


def good(op: str, device: str) -> dict[str, Any]:
    """Arguments of an op that all is well with."""
    options = {"query_lens": [2, 3]} if op == SLOTS else {}
    return call(
        op, device, P=16, room=4 if op == TABLE else 9, batch=2, req_pool_indices=[1, 2], seq_lens=[20, 33],
        of_out=I64 if op == SLOTS else I32, **options,
    )  # fmt: skip


def tensors_in(given: dict[str, Any]) -> list[torch.Tensor]:
    """All tensors among arguments, those of named tuples and of a Status too."""
    found = []
    for value in given.values():
        parts = value if isinstance(value, tuple) else [getattr(value, "word", value)]
        found += [x for x in parts if isinstance(x, torch.Tensor)]
    return found


def contents(x: torch.Tensor) -> list[Any]:
    """The whole buffer, where x has one with something in it."""
    if x.is_meta or x.is_nested or x.layout is not torch.strided or x.numel() == 0:
        return []
    return whole(x).tolist()


def status_with(word: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], Status]:
    """Returns a change of good arguments: of the status, the word becomes this."""

    def make(given: dict[str, Any]) -> Status:
        given["status"].word = word(given["status"].word)
        return given["status"]

    return make
