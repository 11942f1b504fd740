"""A pool of KV-cache pages with shared prefixes, and the table that says who has which.

There are no keys or values here, only ids. Pages count from 1: page 0 is for the padding of a
captured graph, as in the engines, and is never handed out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch

from .traces import HASH_BLOCK, Request


@dataclass(eq=False, repr=False)
class PrefixNode:
    """One shareable stretch of a prompt, and the pages that hold it."""

    parent: PrefixNode | None
    key: tuple[int, ...]
    pages: torch.Tensor
    children: dict[tuple[int, ...], PrefixNode] = field(default_factory=dict)
    users: int = 0  # running requests; those of a child use its parent too


class PagedKVCache:
    """Pages with reference counts, and the finished prefixes that are kept until pages run out.

    A stretch of max(HASH_BLOCK, page_size) tokens is the unit of sharing, so that only whole pages
    and whole hashed blocks are shared. It is found by the chain of hashes from the prompt's start.

    Attributes:
        refcounts: int32 [num_pages + 1]: the requests that hold a page, plus 1 if it is cached.
        evicted_pages: How many cached pages were given up so far.
    """

    def __init__(self, num_pages: int, page_size: int, seed: int) -> None:
        """Makes an empty pool.

        Args:
            num_pages: Pages to hand out, >= 1.
            page_size: Tokens a page, a power of two in 1..1024.
            seed: Order of the free list: pages are scattered, as after hours of serving.

        Raises:
            ValueError: An argument is out of its range, or a slot would not fit int32.
        """
        if page_size not in (1 << k for k in range(11)):
            raise ValueError(f"page_size must be a power of two in 1..1024, not {page_size}")
        if num_pages < 1 or (num_pages + 1) * page_size > 2**31:
            raise ValueError(f"{num_pages} pages of {page_size} tokens: none, or past int32")
        self.page_size, self.num_pages = page_size, num_pages
        self.unit = max(HASH_BLOCK, page_size)
        self.refcounts = torch.zeros(num_pages + 1, dtype=torch.int32)
        self.evicted_pages = 0
        self._free = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)) + 1
        self.num_free = num_pages
        self._root = PrefixNode(None, (), self._free[:0])
        # Least recently used first, and a child always before its parent: it falls idle no later.
        self._idle: OrderedDict[PrefixNode, None] = OrderedDict()

    def num_available(self, besides: list[PrefixNode]) -> int:
        """Counts the pages that alloc could hand out while the nodes `besides` stay cached."""
        idle = len(self._idle) - sum(node.users == 0 for node in besides)
        return self.num_free + idle * (self.unit // self.page_size)

    def alloc(self, n: int) -> torch.Tensor:
        """Takes n pages, evicting cached prefixes where it must.

        Args:
            n: How many pages, >= 0.

        Returns:
            int64 [n] page ids on the CPU, each with a reference count of 1.

        Raises:
            RuntimeError: Even an empty cache would not leave n pages.
        """
        while self.num_free < n and self._idle:
            self._evict_one()
        if self.num_free < n:
            raise RuntimeError(f"{n} pages asked for, {self.num_free} free")
        self.num_free -= n
        pages = self._free[self.num_free : self.num_free + n].clone()
        self.refcounts[pages] = 1
        return pages

    def release(self, pages: torch.Tensor) -> None:
        """Drops one reference of each page; a page without any is free again.

        Args:
            pages: int64 [n], distinct page ids.

        Raises:
            RuntimeError: A page had no reference left.
        """
        counts = self.refcounts[pages] - 1
        if bool((counts < 0).any()):
            raise RuntimeError("a page was released twice")
        self.refcounts[pages] = counts
        freed = pages[counts == 0]
        self._free[self.num_free : self.num_free + len(freed)] = freed
        self.num_free += len(freed)

    def match(self, request: Request) -> list[PrefixNode]:
        """Finds the cached prefix of a prompt, leaving at least its last token to compute."""
        nodes: list[PrefixNode] = []
        node = self._root
        for index in range((request.input_len - 1) // self.unit):
            child = node.children.get(self._key(request, index))
            if child is None:
                break
            nodes.append(node := child)
        return nodes

    def pin(self, nodes: list[PrefixNode]) -> torch.Tensor:
        """Takes a reference to a matched prefix; returns its pages, int64 [n]."""
        for node in nodes:
            node.users += 1
            self._idle.pop(node, None)
        pages = torch.cat([self._root.pages, *(node.pages for node in nodes)])
        self.refcounts[pages] += 1
        return pages

    def insert(self, request: Request, nodes: list[PrefixNode], pages: torch.Tensor, end: int) -> None:
        """Offers the computed units of a running request to others.

        Args:
            request: The request that computed them.
            nodes: The chain that it uses; what is inserted is appended.
            pages: int64 [>= ceil(end / page_size)], the request's pages in order.
            end: How many of the prompt's tokens are computed.
        """
        per_unit = self.unit // self.page_size
        units = end // self.unit if request.block_hashes else 0
        while len(nodes) < units:
            index = len(nodes)
            parent = nodes[-1] if nodes else self._root
            key = self._key(request, index)
            if key in parent.children:  # match left out a prompt's last unit: this is a duplicate
                return
            node = PrefixNode(parent, key, pages[index * per_unit : (index + 1) * per_unit].clone())
            node.users = 1
            parent.children[key] = node
            self.refcounts[node.pages] += 1
            nodes.append(node)

    def retire(self, nodes: list[PrefixNode], pages: torch.Tensor) -> None:
        """Lets go of all that a finished request held; the units it used stay cached."""
        self.release(pages)
        for node in reversed(nodes):
            node.users -= 1
            if node.users == 0:
                self._idle[node] = None

    def clear(self) -> None:
        """Evicts every prefix that no running request uses."""
        while self._idle:
            self._evict_one()

    def _evict_one(self) -> None:
        node, _ = self._idle.popitem(last=False)
        if node.parent is not None:
            del node.parent.children[node.key]
        self.evicted_pages += len(node.pages)
        self.release(node.pages)

    def _key(self, request: Request, index: int) -> tuple[int, ...]:
        """The hashes of one unit, or () past them."""
        blocks = self.unit // HASH_BLOCK
        return request.block_hashes[index * blocks : (index + 1) * blocks]


class ReqToToken:
    """req_to_token on a device and its mirror on the CPU, written together.

    Attributes:
        ids: int32 [rows, width] on the device, slots (page * page_size + offset), 0 at first.
        host_ids: The same on the CPU, in storage of its own, so that a check of what was read from
            `ids` copies nothing large and sees it if something overwrites `ids`.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        """Makes both tables.

        Args:
            rows: Rows, the padding row included.
            width: Entries a row, in tokens.
            device: Where `ids` lies.
        """
        self.host_ids = torch.zeros((rows, width), dtype=torch.int32)
        self.ids = torch.zeros((rows, width), dtype=torch.int32, device=device)
        self._pending: list[torch.Tensor] = []

    def write(self, rows: torch.Tensor, tokens: torch.Tensor, slots: torch.Tensor) -> None:
        """Notes slots to store at the next flush; all int64 [n] on the CPU, no entry twice."""
        self._pending.append(torch.stack([rows * self.ids.shape[1] + tokens, slots]))

    def flush(self) -> None:
        """Stores what was noted: one copy to the device and one scatter, however much it is."""
        if not self._pending:
            return
        packed = torch.cat(self._pending, dim=1)
        self._pending.clear()
        self.host_ids.view(-1)[packed[0]] = packed[1].int()
        packed = packed.to(self.ids.device)
        self.ids.view(-1)[packed[0]] = packed[1].int()
