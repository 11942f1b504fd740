"""A run on a GPU: checks every provider, measures those that are right, and keeps the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from ... import dispatch
from . import compiles, least, machine, oracle, providers, timing
from .cases import LEAST, OURS, Case
from .inputs import Inputs, make_inputs, make_sources
from .predecessor import PREDECESSORS
from .providers import Provider
from .records import SHORTEST, Column, Point, Record, Setting, median_us
from .sglang import Plugin, SGLang
from .workloads import Workload

_LEAST_ROUNDS = 3
_COMPILE_LOAD = Workload("256 x 4K in 128K", (4096,) * 256, 1 << 17)
_COMPILE_CASE = Case("table", 64)

Measured = Mapping[str, Mapping[Column, float]]


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        points: what is built, for which workload.
        sglang: the kernels of SGLang's that were found.
        plugin: the same, replaced by the plugin's.
        rounds: timed replays of each graph, and repeats of each host time.
        widths: table widths that the compiles are counted over; 0: they are not.
        steps: steps of a server that they are counted over.
        device: where it runs.
        cold: whether L2 is overwritten before each replay.
        predecessor: the kernel before: a name of `predecessor.PREDECESSORS`.
        stream: whether calls are issued on a stream instead of from a graph; needs ``cold``.
    """

    points: Sequence[tuple[Case, Workload]]
    sglang: SGLang
    plugin: Plugin
    rounds: int
    widths: int
    steps: int
    device: str = "cuda"
    cold: bool = True
    predecessor: Literal["add", "early"] = "add"
    stream: bool = False


def _launches(plan: Plan, at: Inputs, those: dict[str, Provider]) -> Measured:
    return {name: {"launches": timing.launches(each.call, at.steps[0])} for name, each in those.items()}


def _device(plan: Plan, at: Inputs, those: dict[str, Provider], rounds: int = 0) -> Measured:
    """In place; without those whose time is lost in the noise of the kernel before."""
    calls, before = {name: each.call for name, each in those.items()}, PREDECESSORS[plan.predecessor]
    found = timing.in_place(
        calls, lambda step: before(step.lens), at.launches, [at.index, at.lens], rounds or plan.rounds,
        plan.cold, plan.stream,
    )  # fmt: skip
    medians = {name: median_us(each) for name, each in found.items()}
    return {name: {"device_us": us} for name, us in medians.items() if us >= SHORTEST}


def _back(plan: Plan, at: Inputs, those: dict[str, Provider]) -> Measured:
    calls = {name: each.call for name, each in those.items()}
    warm = [at.index, at.lens]
    found = timing.back_to_back(calls, at.launches, warm, plan.rounds, plan.cold, plan.stream)
    return {name: {"back_us": median_us(rounds)} for name, rounds in found.items()}


def _host(plan: Plan, at: Inputs, those: dict[str, Provider]) -> Measured:
    found = timing.host_rounds({name: each.call for name, each in those.items()}, at.steps, plan.rounds)
    return {
        name: {"host_us": median_us(rounds), "host_min_us": round(min(rounds), 3)}
        for name, rounds in found.items()
    }


MEASURES: dict[str, Callable[[Plan, Inputs, dict[str, Provider]], Measured]] = {
    "launches": _launches,
    "device_us": _device,
    "back_us": _back,
    "host_us": _host,
}
"""What is measured of a provider, all of them against each other."""


class Session:
    """One run.

    Args:
        plan: what is asked for; steps of backends that the platform has not are left out.
        command: the command line, for the record.

    Attributes:
        record: grows with each point.
        points: what is measured, in order.

    Raises:
        MemoryError: not even one batch of a workload fits; the message is for the user.
    """

    def __init__(self, plan: Plan, command: str) -> None:
        self._plan = plan
        here = {"", *(spec.name for spec in dispatch.backends(plan.device))}
        self.points = [(case, load) for case, load in plan.points if case.backend in here]
        compiled = [_COMPILE_LOAD] * bool(plan.widths)
        self._sources = make_sources([*(load for _, load in self.points), *compiled], plan.device)
        self.record = Record(
            Setting(
                **machine.versions(), l2="cold" if plan.cold else "warm", predecessor=plan.predecessor,
                issued="stream" if plan.stream else "graph", rounds=plan.rounds,
                copy_gb_s=round(timing.copy_gb_s(), 1),
                date=datetime.now(timezone.utc).strftime("%Y-%m-%d"), command=command,
            ),
            missing=plan.sglang.missing,
        )  # fmt: skip

    def run(self, bar: Any) -> Iterator[str]:
        """Measures one point after the other. Syncs.

        Args:
            bar: a tqdm bar, or what has its update().

        Yields:
            The name of each section, once it is in the record; "compiles" at the end.
        """
        plan, record = self._plan, self.record
        with compiles.counted() as counts:
            for number, (case, load) in enumerate(self.points):
                self._measure(case, load)
                bar.update()
                if case.section not in {later.section for later, _ in self.points[number + 1 :]}:
                    yield case.section
            record.compiles.update(sorted(counts.items()))
            if plan.widths and not record.wrong:  # nor is what is wrong timed here
                at = make_inputs(_COMPILE_CASE, _COMPILE_LOAD, self._sources[_COMPILE_LOAD.capacity])
                record.widths += compiles.widths(at, plan.sglang, counts, plan.widths)
                record.serving += compiles.serving(at, plan.sglang, counts, plan.steps)
            yield "compiles"

    def _measure(self, case: Case, load: Workload) -> None:
        plan, at = self._plan, make_inputs(case, load, self._sources[load.capacity])
        right: dict[str, Provider] = {}
        for name, make in providers.makers(at, plan.sglang, plan.plugin).items():
            try:
                provider = make()
                wrong = oracle.difference(at, provider)
            except Exception as error:  # whatever another project's kernel raises: it is reported
                said = str(error).partition("\n")[0]
                wrong = f"{type(error).__name__}: {said}"
            if wrong:
                self._say_wrong(case, load, name, wrong)
            else:
                right[name] = provider
        if OURS not in right:
            return
        if not self.record.points:
            # what a process times first reads up to 0.4 us wrong
            _device(plan, at, {name: each for name, each in right.items() if "device_us" in each.measured})
        fastest = self._least(at, right[OURS])
        for provider in fastest.values():
            if wrong := oracle.difference(at, provider):
                self._say_wrong(case, load, LEAST, wrong)
            else:
                right[LEAST] = provider
        right |= providers.references(at, right)
        times: dict[str, dict[Column, int | float]] = {name: {} for name in right}
        for what, measure in MEASURES.items():
            those = {name: each for name, each in right.items() if what in each.measured}
            for each in those.values():
                each.call(at.steps[0])  # compiles what has not been called
            for name, found in measure(plan, at, those).items():
                times[name].update(found)
        self.record.points.append(
            Point(
                section=case.section, workload=load.name, page_size=case.page_size, batch=load.batch,
                capacity=load.capacity, times=times, backend=case.backend, mode=case.mode, note=case.note,
                entries=at.entries, sets=len(at.steps), min_len=int(at.lens.min()),
                max_len=int(at.lens.max()), least="".join(fastest) if LEAST in right else "",
            )
        )  # fmt: skip

    def _least(self, at: Inputs, ours: Provider) -> dict[str, Provider]:
        """By its name, the kernel of `least` that is the fastest in a few rounds; none for whole steps."""
        made = least.candidates(at, ours.results or {})
        for each in made.values():
            each.call(at.steps[0])  # compiles it
        found = _device(self._plan, at, made, _LEAST_ROUNDS) if made else {}
        name = min(found, key=lambda name: found[name]["device_us"], default="")
        return {name: made[name]} if name else {}

    def _say_wrong(self, case: Case, load: Workload, name: str, wrong: str) -> None:
        where = (case.section, load.name, case.backend, f"page {case.page_size}", case.mode)
        self.record.wrong.append(f"{', '.join(filter(None, where))}: {name}: {wrong}")
