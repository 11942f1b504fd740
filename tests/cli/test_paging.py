"""The demo's page pool and table by themselves; test_engine.py has them at work."""

from __future__ import annotations

import pytest
import torch

from xkv.cli.demo.paging import PagedKVCache, ReqToToken


def test_pool_refuses_what_it_has_not() -> None:
    pool = PagedKVCache(4, 16, seed=0)
    pages = pool.alloc(4)
    assert sorted(pages.tolist()) == [1, 2, 3, 4]  # never 0
    with pytest.raises(RuntimeError, match="1 pages asked for, 0 free"):
        pool.alloc(1)
    pool.release(pages[:1])
    with pytest.raises(RuntimeError, match="twice"):
        pool.release(pages[:1])
    assert pool.num_free == 1


def test_pages_are_scattered() -> None:
    pages = PagedKVCache(200, 16, seed=1).alloc(100)
    assert int((pages.diff() == 1).sum()) < 10
    assert pages.tolist() != PagedKVCache(200, 16, seed=2).alloc(100).tolist()


def test_both_tables_are_written_at_the_flush() -> None:
    table = ReqToToken(3, 5, torch.device("cpu"))
    table.write(torch.tensor([1, 2]), torch.tensor([4, 0]), torch.tensor([7, 8]))
    table.write(torch.tensor([2]), torch.tensor([1]), torch.tensor([9]))
    assert not table.ids.any()
    table.flush()
    assert table.ids.tolist() == [[0] * 5, [0, 0, 0, 0, 7], [8, 9, 0, 0, 0]]
    assert torch.equal(table.ids, table.host_ids)
    table.ids[0, 0] = 1
    table.flush()  # nothing is noted any more
    assert table.host_ids[0, 0] == 0
