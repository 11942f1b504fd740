"""The pictures: the files are what docs/pictures/draw.py draws, and what they show is what xkv gives."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import xkv

PLACE = Path(__file__).resolve().parents[2] / "docs" / "pictures"

pytestmark = pytest.mark.repo


@pytest.fixture(scope="module")
def draw() -> Any:
    spec = importlib.util.spec_from_file_location("draw", PLACE / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_is_drawn(draw: Any) -> None:
    drawn = dict(draw.drawn())
    assert {path: path.read_text() for path in PLACE.glob("*.svg")} == drawn
    for text in drawn.values():
        assert ElementTree.fromstring(text).find("{http://www.w3.org/2000/svg}title") is not None


def test_what_the_overview_shows(draw: Any) -> None:
    source = torch.tensor(draw.REQ_TO_TOKEN, dtype=torch.int32)
    rows, lens = torch.tensor(draw.ROWS), torch.tensor(draw.LENS)
    table = xkv.build_page_table(source, rows, lens, page_size=draw.PAGE)
    csr = xkv.build_kv_indices(source, rows, lens, page_size=draw.PAGE)
    slots = xkv.build_slot_mapping(source, rows, lens, torch.ones_like(lens))
    shown = draw.tables()
    assert [row[: len(pages)] for row, pages in zip(table.tolist(), shown["pages"], strict=True)] == shown[
        "pages"
    ]
    assert csr.kv_indices.tolist() == [page for pages in shown["pages"] for page in pages]
    assert [csr.kv_indptr.tolist()] == shown["kv_indptr"]
    assert [csr.kv_last_page_len.tolist()] == shown["kv_last_page_len"]
    assert [slots.tolist()] == shown["slots"]


def test_what_a_row_shows(draw: Any) -> None:
    source = torch.arange(16, dtype=torch.int32)[None]
    offset = torch.empty(1, dtype=torch.int32)
    row, lens, start = torch.tensor([0]), torch.tensor([draw.LENGTH]), torch.tensor([draw.START])
    csr = xkv.build_kv_indices(
        source, row, lens, page_size=draw.PAGE, kv_start=start, kv_start_offset=offset
    )  # fmt: skip
    builder = xkv.MetadataBuilder(
        "flash_attention", source, max_batch_size=1, max_context_len=16, page_size=draw.PAGE
    )
    lengths = builder.build(row, lens, kv_start=start).cache_seqlens
    assert lengths is not None
    assert draw.shown() == {
        "pages": len(csr.kv_indices),
        "kv_start_offset": int(offset),
        "cache_seqlens": int(lengths),
        "kv_last_page_len": int(csr.kv_last_page_len),
    }


def test_no_program_writes_two_tiles_more_than_another(draw: Any) -> None:
    writers = draw.partition()
    assert [len(row) for row in writers] == draw.TILES
    left = Counter(p for row in writers for p in row[draw.OWN :])
    assert set(left) == set(range(draw.LEFTOVER))
    assert max(left.values()) - min(left.values()) <= 1
