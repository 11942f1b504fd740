"""A run on a GPU: checks every contender, times them against each other, and keeps the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from torch import Tensor

from .. import timing
from . import compiles, contenders, floor, host, oracle, records
from .contenders import Contender, Peers
from .inputs import Inputs, make_inputs, make_sources
from .records import AGAIN, CHAIN, EMPTY, SECTIONS, Point, Section
from .workloads import Workload

_MAKERS: dict[str, Callable[[Inputs, Peers], list[Contender]]] = {
    "table": contenders.table,
    "csr": contenders.csr,
}
_HOST_LOAD = Workload("256 x 4K in 128K", (4096,) * 256, 1 << 17)


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        loads: the workloads.
        sizes: page sizes in tokens.
        peers: what was found of the peers.
        rounds: timed replays of each graph.
        widths: table widths that the compiles are counted over.
        steps: steps of a server that they are counted over.
        device: where it runs.
        warm: whether L2 keeps what the replay before left there.
    """

    loads: Sequence[Workload]
    sizes: Sequence[int]
    peers: Peers
    rounds: int
    widths: int
    steps: int
    device: str = "cuda"
    warm: bool = False


class Session:
    """One run.

    Args:
        plan: what is asked for.
        command: the command line, for the record.

    Attributes:
        report: what goes to --json; grows with each step.
        wrong: what is wrong, a sentence each; nothing of it was timed.

    Raises:
        MemoryError: not even one batch of a workload fits; the message is for the user.
    """

    def __init__(self, plan: Plan, command: str) -> None:
        self._plan = plan
        self.wrong: list[str] = []
        self._sources = make_sources([*plan.loads, _HOST_LOAD], plan.device)
        self._copy_gb_s = timing.copy_gb_s()
        self.report: dict[str, Any] = {
            "setting": {
                **timing.versions(),
                "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
                "command": command,
                "rounds": plan.rounds,
                "l2": "warm" if plan.warm else "cold",
                "copy_gb_s": round(self._copy_gb_s, 1),
            },
            "absent": plan.peers.absent,
            "points": [],
            "host": [],
            "stepless": [],
            "compiles": {},
            "widths": [],
            "serving": [],
            "wrong": self.wrong,
        }

    def run(self, bar: Any) -> Iterator[str]:
        """Measures one part after the other. Syncs.

        Args:
            bar: a tqdm bar, or what has its update().

        Yields:
            The name of each part, a section's or "host", once it is in the report.
        """
        with compiles.counted() as counts:
            for section in SECTIONS:
                for load, size in self._points(section):
                    self._measure(section, load, size)
                    bar.update()
                yield section.name
            at = make_inputs(_HOST_LOAD, 64, self._sources[_HOST_LOAD.capacity])
            self._host(at)
            self.report["compiles"] = dict(sorted(counts.items()))
            self.report["widths"] = compiles.widths(at, self._plan.peers, counts, self._plan.widths)
            self.report["serving"] = compiles.serving(at, self._plan.peers, counts, self._plan.steps)
            bar.update()
            yield "host"

    @property
    def steps(self) -> int:
        """How often `run` updates its bar."""
        return sum(len(list(self._points(section))) for section in SECTIONS) + 1

    def _points(self, section: Section) -> Iterator[tuple[Workload, int]]:
        for size in self._plan.sizes:
            if section.sizes is None or size in section.sizes:
                for load in self._plan.loads:
                    yield load, size

    def _measure(self, section: Section, load: Workload, size: int) -> None:
        at = make_inputs(load, size, self._sources[load.capacity])
        found = _MAKERS[section.name](at, self._plan.peers)
        wrong = oracle.differences(at, found)
        self.wrong += [f"{section.name}, {load.name}, page {size}: {k}: {v}" for k, v in wrong.items()]
        if wrong:
            return
        calls = {each.name: each.call for each in found}
        # a kernel against itself: how far apart equals can be
        if section.baseline in calls:
            calls[AGAIN] = calls[section.baseline]
        calls |= least(at)
        for name in (EMPTY, CHAIN):
            calls[name](at.rows[0])  # compiles
        rounds = timing.replays_us(
            calls, at.launches, [at.index, at.lens], self._plan.rounds, not self._plan.warm
        )
        entries = load.entries(size)
        bytes_us = records.bytes_moved(entries, size) / self._copy_gb_s / 1e3
        point = Point(
            section.name, load.name, size, load.batch, load.capacity, entries, len(at.index),
            round(bytes_us, 3), records.median_us(rounds),
        )  # fmt: skip
        self.report["points"].append(asdict(point))

    def _host(self, at: Inputs) -> None:
        calls, wrong = host.work(at, self._plan.peers)
        self.wrong += [f"host, {what}" for what in wrong]
        self.report["stepless"] = host.left_out(at.source.device)
        if not wrong:
            self.report["host"] = host.rows(calls, self._plan.rounds)


def least(at: Inputs) -> dict[str, Callable[[Tensor], object]]:
    """The kernels of `floor`, on a point's inputs."""
    out = at.ints(16)

    def chain(rows: Tensor) -> None:
        floor.chain[1,](at.source, at.source.stride(0), rows, at.lens, out, num_warps=1)

    return {EMPTY: lambda rows: floor.empty[1,](out), CHAIN: chain}
