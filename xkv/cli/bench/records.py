"""What was measured, and what follows from it: ratios, means and the reason for a gap."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

SEED = "seed"
SERIAL = "serial"
READ_TABLE = "read_table"
TOKENS = "flashinfer"
BLOCKS = "fi_blocks"
OURS = "xkv"
AGAIN = "again"  # the section's baseline, measured a second time
EMPTY = "empty"
CHAIN = "chain"

NEAR = 1.6  # times the floor; a row above it gets a reason

NOTES = {
    SEED: "SGLang 0.5.23's create_flashmla_kv_indices_triton, grid by the table's width",
    SERIAL: "SGLang 0.5.12's, before PR #27320: one program a request",
    READ_TABLE: "SGLang 0.5.23's build_kv_read_table (csr: _packed), through a map of the pool's pages",
    TOKENS: "SGLang 0.5.23's create_flashinfer_kv_indices_triton, one program a request",
    BLOCKS: "the same with TOKEN_BLOCK_PARALLEL, programs by kv_indices_num_token_blocks",
}


class Section(NamedTuple):
    """One of the tables.

    Attributes:
        name: "table" or "csr".
        title: for the reader.
        baseline: whom all ratios are to.
        peers: who else there is, the baseline included.
        sizes: page sizes that it is measured at; None: all that were asked for.
        note: what else a reader should know.
    """

    name: str
    title: str
    baseline: str
    peers: tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    note: str = ""


SECTIONS = (
    Section("table", "page tables", SEED, (SEED, SERIAL, READ_TABLE)),
    Section(
        "csr", "CSR indices, prefix sums and last page lengths", TOKENS, (TOKENS, BLOCKS, READ_TABLE),
        (64, 1),
        "theirs: torch ops for the sums (and, at page 64, the last page lengths), then one kernel, for a"
        " stream of single tokens: what SGLang gives these backends at any page size",
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """One row of a table.

    Attributes:
        section: the section's name.
        workload: the workload's name.
        page_size: tokens of a page.
        batch: requests.
        capacity: tokens that a row has room for.
        entries: live entries of what is built.
        sets: sets of source rows that the launches of a graph took in turn.
        bytes_us: what reading and writing those entries takes at the speed of a large copy.
        us: by contender, microseconds on the GPU, the median over rounds.
    """

    section: str
    workload: str
    page_size: int
    batch: int
    capacity: int
    entries: int
    sets: int
    bytes_us: float
    us: dict[str, float]

    @property
    def name(self) -> str:
        """What tells it from the others of its section."""
        return f"{self.workload}, page {self.page_size}"

    @property
    def floor_us(self) -> float:
        """An empty kernel, and the bytes at the speed of a copy."""
        return self.us[EMPTY] + self.bytes_us

    @property
    def over_floor(self) -> float:
        """Ours, in floors."""
        return self.us[OURS] / self.floor_us

    @property
    def reason(self) -> str:
        """Where ours is not near the floor, what the most of the time there must go to."""
        if self.over_floor <= NEAR:
            return ""
        if self.us[CHAIN] - self.us[EMPTY] > self.bytes_us:
            return f"latency: chain {self.us[CHAIN]:.1f} us of it"
        return f"bytes: {self.bytes_us:.1f} us of it"

    def over(self, section: Section) -> float | None:
        """How many times as long the baseline takes; None: it is not there."""
        base = self.us.get(section.baseline)
        return None if base is None else base / self.us[OURS]

    def over_best(self, section: Section) -> float | None:
        """How many times as long the fastest peer takes; None: there is none."""
        peers = [self.us[name] for name in section.peers if name in self.us]
        return min(peers) / self.us[OURS] if peers else None


def bytes_moved(entries: int, page_size: int) -> int:
    """The least that DRAM moves: a 64-byte piece a page, or a token's id, and an id written."""
    return entries * (min(64, 4 * page_size) + 4)


def median_us(rounds: dict[str, list[float]]) -> dict[str, float]:
    """The median of each, to a nanosecond."""
    return {name: round(statistics.median(values), 3) for name, values in rounds.items()}


def of_section(report: dict[str, Any], section: Section) -> list[Point]:
    """The section's points in a report."""
    points = [Point(**each) for each in report["points"]]
    return [point for point in points if point.section == section.name]


def geomean(values: Iterable[float]) -> float:
    """Their geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def summary(section: Section, points: list[Point]) -> list[str]:
    """What a section comes to, in lines; none where there are no points."""
    if not points:
        return []
    lines = []
    ratios: tuple[tuple[str, Callable[[Point], float | None]], ...] = (
        (f"over {section.baseline}", lambda point: point.over(section)),
        ("over the best peer", lambda point: point.over_best(section)),
    )
    for label, ratio in ratios:
        found = [(value, point.name) for point in points if (value := ratio(point)) is not None]
        if found:
            least, where = min(found)
            mean = geomean(value for value, _ in found)
            lines.append(f"{label}: geometric mean {mean:.2f}x, least {least:.2f}x ({where})")
    most, where = max((point.over_floor, point.name) for point in points)
    mean = geomean(point.over_floor for point in points)
    lines.append(f"times the floor: geometric mean {mean:.2f}, most {most:.2f} ({where})")
    twice = [p.us[AGAIN] / p.us[section.baseline] for p in points if AGAIN in p.us]
    if twice:
        lines.append(
            f"{section.baseline} again over itself: geometric mean {geomean(twice):.3f},"
            f" {min(twice):.3f} to {max(twice):.3f}"
        )
    return lines
