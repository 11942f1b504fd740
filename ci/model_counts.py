"""What a compiled kernel does for one tile, counted in its assembly: instructions, loads, stores.

Counted is the shortest way through the code that loads and stores: of two forms of a tile, with 16-byte
accesses and without, that with them. What is skipped only where no lane has an entry is not skipped.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from xkv.cli.kernels.resources import cubin_text

_LABEL = {"cuda": re.compile(r"^(\.L_x_\d+):"), "hip": re.compile(r"^(\.LBB\d+_\d+):")}
_INSTRUCTION = {
    "cuda": re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\d\s+)?([A-Z][\w.]+)(.*)"),
    "hip": re.compile(r"^\s+()([a-z]\w+)(.*)"),
}
_TARGET = re.compile(r"(\.L_x_\d+|\.LBB\d+_\d+)")
_LOADS = re.compile(r"LDG|(?:global|buffer|flat)_load")
_STORES = re.compile(r"STG|(?:global|buffer|flat)_store")
_BRANCHES = re.compile(r"BRA|s_c?branch")
_ENDS = re.compile(r"EXIT|RET|s_endpgm")
_ALWAYS = re.compile(r"BRA|EXIT|RET|s_branch|s_endpgm")  # if not guarded


class Counts(NamedTuple):
    """Of one way through the code.

    Attributes:
        instructions: of a warp.
        vector: of these, those that all lanes do; on NVIDIA all.
        loads: of global memory.
        stores: of global memory.
    """

    instructions: int
    vector: int
    loads: int
    stores: int


class Kernel(NamedTuple):
    """Counts of one kernel.

    Attributes:
        before: what comes before the loop over a row's own tiles, loops over the batch left out.
        tile: of one tile in that loop.
    """

    before: Counts
    tile: Counts


class _Block(NamedTuple):
    """Instructions without a branch or a label between them, and the blocks that may come next."""

    names: list[str]
    next: list[int]


_State = tuple[int, bool, bool]  # a block, and whether the way to its end has loaded and stored


def count(kernel: Any, has_tiles: bool = True) -> Kernel:
    """Counts a kernel's instructions.

    Args:
        kernel: a CompiledKernel; need not be loaded.
        has_tiles: whether it has a loop over tiles. False: all that a program does is ``before``.

    Raises:
        ValueError: its assembly has no loop that loads and stores: a compiler newer than this reader.
    """
    vendor = kernel.metadata.target.backend
    text = cubin_text("nvdisasm", "-c", kernel.asm["cubin"]) if vendor == "cuda" else kernel.asm["amdgcn"]
    blocks = _blocks(text, vendor)
    if not has_tiles:
        ends = {n for n, block in enumerate(blocks) if any(map(_ENDS.match, block.names[-1:]))}
        way = _shortest(blocks, {0}, ends, range(len(blocks)), True)
        return Kernel(_counts(blocks, way), Counts(0, 0, 0, 0))
    reached = {0} | _reached(blocks, 0, set(range(len(blocks))))
    found = []
    for header, loop in _tile_loops(blocks, reached, reached):
        before = _shortest(blocks, {0}, {header}, reached, False)
        ends = {block for block in loop if header in blocks[block].next}
        tile = _shortest(blocks, {header}, ends, loop, True)
        found.append(Kernel(_counts(blocks, before[:-1]), _counts(blocks, tile)))
    if not found:
        raise ValueError("the assembly has no loop that loads and stores: newer than ci/model_counts.py?")
    # that of leftover tiles comes after a search for them
    return min(found, key=lambda each: each.before.instructions)


def _blocks(text: str, vendor: str) -> list[_Block]:
    """The blocks of the code, in its order."""
    names: list[list[str]] = [[]]
    ends: list[tuple[str | None, bool]] = []  # where a block branches to, and whether the next one follows
    labels: dict[str, int] = {}

    def end(target: str | None, falls: bool) -> None:
        ends.append((target, falls))
        names.append([])

    for line in text.splitlines():
        if found := _LABEL[vendor].match(line):
            end(None, True)
            labels[found[1]] = len(ends)
        elif found := _INSTRUCTION[vendor].match(line):
            guard, name, rest = found.groups()
            names[-1].append(name)
            target = _TARGET.search(rest) if _BRANCHES.match(name) else None
            if target is not None or _ENDS.match(name):
                # not where lanes are masked: some lane has an entry
                skips = name == "s_cbranch_execz"
                conditional = bool(guard) or not _ALWAYS.match(name) or re.match(r"\s*!?U?P\d", rest)
                end(None if target is None or skips else target[1], bool(conditional))
    ends.append((None, False))
    return [
        _Block(each, ([] if target is None else [labels[target]]) + [n + 1] * falls)
        for n, (each, (target, falls)) in enumerate(zip(names, ends, strict=True))
    ]


def _tile_loops(blocks: list[_Block], among: set[int], reached: set[int]) -> Iterator[tuple[int, set[int]]]:
    """The loops that load and store and have no such loop within, each after its first block."""
    for loop in _components(blocks, among):
        names = [name for block in loop for name in blocks[block].names]
        if any(map(_LOADS.match, names)) and any(map(_STORES.match, names)):
            header = min(after for block in reached - loop for after in blocks[block].next if after in loop)
            yield from list(_tile_loops(blocks, loop - {header}, reached)) or [(header, loop)]


def _components(blocks: list[_Block], kept: set[int]) -> list[set[int]]:
    """Sets of blocks that reach each other, those of one block left out if it does not reach itself."""
    reached = {block: _reached(blocks, block, kept) for block in kept}
    found: list[set[int]] = []
    for block in sorted(kept):
        if block in reached[block] and not any(block in each for each in found):
            found.append({other for other in reached[block] if block in reached[other]})
    return found


def _reached(blocks: list[_Block], begin: int, kept: set[int]) -> set[int]:
    found: set[int] = set()
    todo = [after for after in blocks[begin].next if after in kept]
    while todo:
        block = todo.pop()
        if block not in found:
            found.add(block)
            todo += [after for after in blocks[block].next if after in kept]
    return found


def _shortest(
    blocks: list[_Block], begins: set[int], ends: set[int], among: Collection[int], works: bool
) -> list[int]:
    """The way of fewest instructions from ``begins`` to ``ends``; ``works``: that loads and stores."""
    kept = set(among)
    todo: list[tuple[int, _State, list[int]]] = []
    seen: set[_State] = set()

    def push(length: int, block: int, loads: bool, stores: bool, way: list[int]) -> None:
        names = blocks[block].names
        state = (
            block, loads or any(map(_LOADS.match, names)), stores or any(map(_STORES.match, names))
        )  # fmt: skip
        heapq.heappush(todo, (length + len(names), state, [*way, block]))

    for block in begins:
        push(0, block, False, False, [])
    while todo:
        length, (block, loads, stores), way = heapq.heappop(todo)
        if (block, loads, stores) in seen:
            continue
        seen.add((block, loads, stores))
        if block in ends and (not works or (loads and stores)):
            return way
        for after in blocks[block].next:
            if after in kept and after not in begins:
                push(length, after, loads, stores, way)
    raise ValueError("the assembly's loop cannot be passed with a load and a store")


def _counts(blocks: list[_Block], way: list[int]) -> Counts:
    names = [name for block in way for name in blocks[block].names]
    return Counts(
        len(names),
        sum(not name.startswith("s_") for name in names),
        sum(bool(_LOADS.match(name)) for name in names),
        sum(bool(_STORES.match(name)) for name in names),
    )
