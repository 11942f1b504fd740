"""A call on tensors between guard words, and the check that it wrote and reported what it must."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...draft import DraftTree
from ...metadata.options import SlotMapping
from ...params import SLOTS, Build
from ...shard import Shard
from ...status import Status
from . import oracle
from .families import I32, I64, Family
from .memory import Memory, Spec
from .sizes import Sizes

WINDOW_MAPS = {"window_map", "window_page_map"}
VECTORS = ("seq_lens_delta", "query_lens", "kv_start", "window_kv_start")  # beside rows and lengths


class MismatchError(Exception):
    """A call wrote or reported something else than it must; the message says what."""


class Case(ABC):
    """A call of a family on tensors that stay where they are, as in a captured graph.

    Args:
        name: says which case it is, and decides how the tensors lie.
        family: what it calls, with which options.
        sizes: their sizes.
        device: where they lie.
        apart: each at the end of an allocation of its own.

    Attributes:
        memory: the tensors, and their image on the host.
        arguments: of the call; a string names a tensor.
        builds: what the call must write, on the image.
        run: makes the call.
        prefixes: before the names of the outputs of each view.
        slots: the same of each slot mapping beside them.
    """

    def __init__(self, name: str, family: Family, sizes: Sizes, device: str, apart: bool = False) -> None:
        self.name, self.family, self.sizes, self.device = name, family, sizes, device
        two = family.options & {"window", "window_map", "window_page_map"}
        self.prefixes = ("", "window.") if two else ("",)
        self.slots = tuple(
            prefix for prefix, needs in (("slots.", {"slots"}), ("window.slots.", WINDOW_MAPS))
            if "slots" in family.options and needs & family.options
        )  # fmt: skip
        specs = self.specs(random.Random(name))
        self.arguments = self.inputs(specs)
        self.memory = Memory(specs, device, apart)
        self.earlier, self.builds = self.launches_before(self.memory.host), self.launches(self.memory.host)
        self.run: Callable[[], Any] = self.call(self.memory.tensors)

    def __str__(self) -> str:
        return self.name

    @property
    def vectors(self) -> list[str]:
        """The inputs with an entry a request."""
        last_tokens = self.family.form == SLOTS and "positions" not in self.family.options
        options = self.family.options | ({"query_lens"} if last_tokens else set())
        return ["req_pool_indices", "seq_lens", *(name for name in VECTORS if name in options)]

    def specs(self, rng: random.Random) -> dict[str, Spec]:
        """The tensors, in an order, with gaps and dtypes, that are drawn."""
        family, sizes = self.family, self.sizes
        found = {"req_to_token": Spec((sizes.rows, sizes.width), family.ids)} | self.outputs()
        found |= {name: Spec((sizes.batch,), rng.choice([I32, I64])) for name in self.vectors}
        if "positions" in family.options:
            found["positions"] = Spec((sizes.queries,), rng.choice([I32, I64]))
            found["query_start_loc"] = Spec((sizes.batch + 1,), rng.choice([I32, I64]))
        maps = {
            "token_map": 1, "window_map": 1, "page_map": sizes.map_page_size,
            "window_page_map": family.page_size,
        }  # fmt: skip
        for name, size in maps.items():
            if name in family.options:
                found[name] = Spec((max(sizes.top // size - rng.randint(0, 9), 0),), family.dtype)
        if "status" in family.options:
            found["status"] = Spec((1,), I64)
        names = list(found)
        rng.shuffle(names)
        return {
            name: found[name]._replace(gap=rng.choice(sizes.gaps), shift=rng.choice(sizes.shifts))
            for name in names
        }

    @abstractmethod
    def outputs(self) -> dict[str, Spec]:
        """The tensors that are written, and sums that an engine passes."""

    @abstractmethod
    def inputs(self, specs: Mapping[str, Spec]) -> dict[str, Any]:
        """The call's arguments; a string names a tensor."""

    @abstractmethod
    def launch(self, t: Mapping[str, Tensor]) -> Build:
        """The launch that the call must equal, on these tensors, without slots beside other outputs."""

    def launches(self, t: Mapping[str, Tensor]) -> list[Build]:
        """All that the call must write, on these tensors; each view has one of the prefixes, in order."""
        return [self.launch(t)]

    def launches_before(self, t: Mapping[str, Tensor]) -> list[Build]:
        """What the call writes first, if it is of several steps."""
        return []

    def expect(self) -> dict[str, oracle.Shared]:
        """Writes what the call must write in the image; returns what several rows claim, by prefix."""
        for build in self.earlier:
            oracle.run(build)
        found = [shared for build in self.builds for shared in oracle.run(build)]
        return dict(zip((*self.prefixes, *self.slots), found, strict=True))

    @abstractmethod
    def call(self, t: Mapping[str, Tensor]) -> Callable[[], Any]:
        """The call on these tensors."""

    @abstractmethod
    def text(self) -> str:
        """The call as lines of a program, on tensors ``t[name]``."""

    def check(self) -> None:
        """Makes the call; raises a MismatchError where a word of the memory is not the oracle's.

        The image is the oracle's afterwards.
        """
        memory = self.memory
        memory.send()
        shared = self.expect()
        self.run()
        got = memory.receive()
        for prefix, entries in shared.items():
            if not entries:
                continue
            written, want = memory.views(got)[prefix + "out"], memory.host[prefix + "out"]
            for at, values in entries.items():
                if int(written[at]) in values:
                    want[at] = written[at]
        if not torch.equal(got, memory.image):
            wrong = (got != memory.image).nonzero().flatten()
            raise MismatchError(f"{memory.differs(int(wrong[0]), got)} ({len(wrong)} words differ)")


def word_of(status: Status) -> int | None:
    """What a status word says, as an oracle has it: row * 256 + reason, or None. Syncs."""
    found = status.read()
    return None if found is None else found.row * 256 + found.reason


def placed(arguments: Mapping[str, Any], t: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments with the tensors that strings among them name."""
    return {k: t[v] if isinstance(v, str) else v for k, v in arguments.items()}


def call_text(function: str, arguments: Mapping[str, Any], *more: str) -> str:
    """A call as text: names of tensors become ``t[name]``, all else is literal."""
    texts = {k: f"t[{v!r}]" if isinstance(v, str) else v for k, v in arguments.items()}
    parts = [f"{k}={'xkv.' * isinstance(v, (Shard, SlotMapping, DraftTree))}{v}" for k, v in texts.items()]
    return f"{function}({', '.join([*more, *parts])})"


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """Captures a call in a graph, once it has compiled and loaded everything; returns what replays it."""
    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # as it is of a batch of no requests
        with torch.cuda.graph(graph, stream=side):  # torch's own is on the GPU that was captured first
            call()
    return graph.replay
