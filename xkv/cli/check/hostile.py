"""Hostile device data against the definition: nothing else is written, and the report is right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ... import __version__, dispatch
from ...launch import op_calls
from ...launch.verify import WRITTEN
from ...params import CSR
from ...platforms import detect, tuning
from . import engines, naive, wild
from .engines import EngineSetting
from .kinds import Kind, kinds
from .selftest import Checks
from .setting import VECTORS, Setting
from .snippet import program
from .trial import SENTINEL, MismatchError, captured

_CLEAN = (1 << 63) - 1
Shared = dict[str, dict[int, frozenset[int]]]
"""By an output's name, the entries that several rows claim, each with their values."""
_PER_SETTING = 8  # cases that differ in data alone


def groups(count: int, seed: int, device: str, small: bool) -> list[tuple[str, Checks]]:
    """All kinds, by op and backend.

    Args:
        count: cases, at least; every kind has as many.
        seed: decides everything.
        device: "cpu" or "cuda".
        small: sizes for Triton's interpreter.

    Returns:
        For each the cases as (what, check), where a check raises MismatchError.
    """
    found = kinds(detect.platform(device).vendor)
    each = -(-count // len(found))

    def group(title: str) -> Checks:
        for kind in found:
            if kind.group == title:
                yield from checks(kind, each, seed, device, small)

    return [(f"hostile {title}", group(title)) for title in dict.fromkeys(kind.group for kind in found)]


def checks(kind: Kind, count: int, seed: int, device: str, small: bool, apart: bool = False) -> Checks:
    """The cases of one kind; those of its first setting replay a graph on a GPU.

    Args:
        kind: the kind.
        count: how many.
        seed: decides everything.
        device: where they run.
        small: sizes for Triton's interpreter.
        apart: every tensor at the end of an allocation of its own.
    """
    for number in range(-(-count // _PER_SETTING)):
        setting = setting_of(kind, seed, number, device, small, apart)
        # apart there is no cached memory, without which nothing can be captured
        if number == 0 and torch.device(device).type == "cuda" and not apart:
            setting.run = captured(setting.run)
        for case in range(min(_PER_SETTING, count - number * _PER_SETTING)):
            yield f"{setting}, case {case}", partial(check, setting, case)


def setting_of(kind: Kind, seed: int, number: int, device: str, small: bool, apart: bool = False) -> Setting:
    """One of a kind's settings; the arguments are those of `checks` and of `Setting`."""
    return (EngineSetting if kind.call else Setting)(kind, seed, number, device, small, apart)


@contextmanager
def small_blocks() -> Iterator[None]:
    """Within it blocks are so small that small cases cross them, and are dealt out over all programs."""
    row = tuning.Tuning("strided_far", None, 16, 4, 1, 1, 2, 16, 1, 16, False, "xkv check")
    chosen = dispatch.tuning_row
    try:
        dispatch.tuning_row = lambda *_: row
        op_calls.forget()  # a known call has the row that it was made with
        engines.forget()
        yield
    finally:
        dispatch.tuning_row = chosen
        op_calls.forget()
        engines.forget()


def check(setting: Setting, case: int) -> None:
    """One case: the call, and every word of the allocation compared with the definition.

    Args:
        setting: the tensors and the call.
        case: which of the setting's cases.

    Raises:
        MismatchError: a word differs, or the call raised; the message ends with a program that shows it.
    """
    memory = setting.memory
    fill(setting, random.Random(f"{setting}, case {case}"))
    want, shared = wanted(setting)
    memory.send()
    try:
        setting.run()
        got = memory.receive()
    except Exception as error:
        shown = _shown(setting, case, want, shared)
        raise MismatchError(f"{type(error).__name__}: {error}{shown}") from error
    settle(memory.views(want), memory.views(got), shared)
    if torch.equal(got, want):
        return
    wrong = (got != want).nonzero().flatten()
    at = int(wrong[0])
    raise MismatchError(
        f"{memory.named(at)}: word {at} is {int(got[at])}, must be {int(want[at])} ({len(wrong)} words"
        f" differ){_shown(setting, case, want, shared)}"
    )


def settle(want: dict[str, Tensor], got: dict[str, Tensor], shared: Shared) -> None:
    """Wants what is there, wherever several rows claim an entry and it has the value of one of them."""
    for name, entries in shared.items():
        for at, values in entries.items():
            if int(got[name][at]) in values:
                want[name][at] = got[name][at]


def _shown(setting: Setting, case: int, want: Tensor, shared: Shared) -> str:
    outputs = {name for name in setting.memory.places if name.rpartition(".")[2] in (*WRITTEN, "status")}
    title = f"xkv {__version__}, {setting}, case {case}"
    text = program(title, setting.memory, want, outputs, setting.call_text(), setting.device, shared)
    return f"\nTo see it again, run:\n\n{text}"


def fill(setting: Setting, rng: random.Random) -> None:
    """Puts a case's values in the image: some of the tensors hostile, all else sentinels."""
    host, batch = setting.memory.host, setting.batch
    setting.memory.image.fill_(SENTINEL)
    level = rng.choice([0, 0.1, 0.1, 0.3, 1])

    def heat() -> float:
        return level * (rng.random() < 0.7)

    before = rng.randrange(256 * (batch + 1)) if rng.random() < 0.1 else _CLEAN
    if "status" in host:
        host["status"].fill_(before)
    tokens = setting.tokens
    room = tokens - setting.delta if abs(setting.delta) <= tokens else tokens
    lens = wild.vector(rng, [room] * batch, torch.int64, 0, tokens)
    sane = {
        "req_pool_indices": [setting.rows - 1] * batch,
        "seq_lens": lens.tolist(),
        "seq_lens_delta": [4] * batch,
        "query_lens": [min(n, 9) for n in lens.tolist()],
        "kv_start": lens.tolist(),
        "window_kv_start": lens.tolist(),
    }
    for name in ("req_pool_indices", "seq_lens", *VECTORS):
        if name in host:
            edge = setting.rows if name == "req_pool_indices" else tokens + 1
            host[name].copy_(wild.vector(rng, sane[name], host[name].dtype, heat(), edge))
    unit = setting.kind.source_page_size
    mapped = {"token_map", "window_map", "page_map"} & host.keys()
    top = setting.top if mapped or rng.random() < 0.5 else 1 << rng.choice([31, 31, 40])
    if setting.kind.ids == torch.int32:
        top = min(top, 1 << 31)
    # one entry past the map at times, so that its end is met
    tops = {"req_to_token": top // unit + 1, "page_map": setting.top // setting.map_page_size + 1}
    steps = {"req_to_token": max(setting.kind.page_size // unit, 1)}
    for name in ("req_to_token", *sorted(mapped)):
        to = host[name]
        to.copy_(wild.ids(rng, to.shape, to.dtype, tops.get(name, setting.top), heat(), steps.get(name, 1)))
    if isinstance(setting, EngineSetting) and setting.kind.form == CSR:
        setting.fill_sums(rng, rng.choice([0, 0.3, 0.6, 1]))  # of its own: the rows are to have tokens too


def wanted(setting: Setting) -> tuple[Tensor, Shared]:
    """The image that the call must leave, by the definition, and the entries that several rows claim."""
    memory, build = setting.memory, setting.build
    image, shared = memory.image.clone(), Shared()
    tensors = memory.views(image)
    expected, word = naive.build(build)
    for prefix, values in zip(setting.prefixes, expected, strict=True):
        for name, entries in values.items():
            if prefix + name in tensors and entries:
                several = {at: v for at, v in entries.items() if isinstance(v, frozenset)}
                if several:
                    shared[prefix + name] = several
                    entries = entries | {at: min(v) for at, v in several.items()}
                at = torch.tensor(list(entries)).view(len(entries), -1).unbind(1)
                to = tensors[prefix + name]
                to[at] = torch.tensor(list(entries.values()), dtype=to.dtype)
    if word is not None and build.status is not None:
        tensors["status"].clamp_(max=word)
    return image, shared
