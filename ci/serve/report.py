"""Builds the report from the results of the processes: equality, served calls, costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Returns median, minimum and maximum; None for no values."""
    if not values:
        return None
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "of": len(values)}


def typical(values: Sequence[float]) -> dict[str, float] | None:
    """Returns the median and the 10th and 90th percentile of calls; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    at = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.1, 0.9)]
    return {"median": statistics.median(ordered), "p10": at[0], "p90": at[1], "of": len(ordered)}


def step(one: dict[str, Any]) -> float | None:
    """Returns the step time of a round in ms: the median after its first quarter, which is prefill."""
    steps = one["steps_ms"][len(one["steps_ms"]) // 4 :]
    return statistics.median(steps) if steps else None


def paired(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the step times of all pairs except the first, off and on, and the ratio within each pair."""
    by_mode: dict[str, dict[int, float]] = {"off": {}, "on": {}}
    for one in rounds:
        time = step(one)
        if one["pair"] > 0 and time is not None:
            by_mode[one["mode"]][one["pair"]] = time
    both = sorted(by_mode["off"].keys() & by_mode["on"].keys())
    return {
        "off": spread([by_mode["off"][n] for n in both]), "on": spread([by_mode["on"][n] for n in both]),
        "on / off": spread([by_mode["on"][n] / by_mode["off"][n] for n in both]),
    }  # fmt: skip


def methods(rounds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns host times of the engine's methods with replaced launches: medians of rounds' medians."""
    found: dict[str, dict[str, list[float]]] = {}
    for one in rounds:
        for name, times in one["method_us"].items():
            if one.get("pair", 1) > 0 and times:
                found.setdefault(name, {}).setdefault(one["mode"], []).append(statistics.median(times))
    return {name: {mode: spread(x) for mode, x in modes.items()} for name, modes in found.items()}


def differing(one: dict[str, Any], other: dict[str, Any], key: str) -> int:
    """Counts the requests that differ in their tokens or log-probabilities."""
    ours, theirs = list(one[key]), list(other[key])
    unequal = [x for x, y in zip(ours, theirs, strict=False) if x != y]
    return len(unequal) + abs(len(ours) - len(theirs))


def totals(rounds: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts the calls of each kernel: served, passed to the original, captured."""
    total: dict[str, dict[str, int]] = {}
    for one in rounds:
        for kernel, counts in one["calls"].items():
            into = total.setdefault(kernel, {})
            for what, count in counts.items():
                into[what] = into.get(what, 0) + count
    return total


def launches(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the host time of a launch of each replaced kernel, off and on, and all device times."""
    rows: dict[str, dict[str, Any]] = {}
    host: dict[tuple[str, str], list[float]] = {}
    for one in result.get("counted", []):
        for kernel, times in one["launch_us"].items():
            side = "off" if one["mode"] == "off+" else "on"
            host.setdefault((kernel, side), []).extend(times)
    for (kernel, side), times in host.items():
        rows.setdefault(kernel, {})[f"host {side}"] = typical(times)
    for side, kernels in (result.get("device") or {}).items():
        for kernel, times in (kernels or {}).items():
            rows.setdefault(kernel, {})[f"device {side}"] = typical(times)
    return rows


def checks(case: Any, on: dict[str, Any], plain: dict[str, Any] | None) -> list[tuple[bool, str]]:
    """Returns the conditions that must hold, and whether they do.

    Args:
        case: its `serve.cases.Case`.
        on: the result of the process with the plugin.
        plain: the result of the process with XKV_DISABLE=1, if there was one.
    """
    about: dict[str, Any] = on["about"]
    mixed: list[dict[str, Any]] = on["mixed"]
    served, off = mixed[:2]
    rows = [(bool(on.get("complete")), "every round was run")]
    said = [x.split("leaves alone")[0] for x in about["said"]]
    named = any("replace" in x and all(k in x for k in case.kernels) for x in said)
    rows.append((named, "the engine's own log names each expected kernel as replaced"))
    rows += _equal(served, off, "off")
    if plain:
        rows += _equal(served, plain["mixed"][0], "XKV_DISABLE=1")
    distinct = len({token for row in served["tokens"] for token in row})
    rows.append((distinct > 30, f"the model says something: {distinct} distinct tokens"))
    steady = [*on.get("steady", []), *on.get("counted", []), *(plain or {}).get("steady", [])]
    wrong = sum(differing(steady[0], one, "tokens") for one in steady)
    rows.append((wrong == 0 and bool(steady), f"the same tokens in all {len(steady)} steady rounds"))
    total = totals([served, *on.get("counted", [])])
    for kernel in sorted({*case.kernels, *total}):
        done, back = (total.get(kernel, {}).get(what, 0) for what in ("served", "handed back"))
        wanted = kernel not in case.kernels or (done > 0 and back == 0)
        rows.append((wanted, f"{kernel}: served {done}, handed back {back}"))
    late, names = about["compiles"]["xkv after"], about["compiles"]["xkv after names"]
    text = (
        f"xkv's kernels compiled after the start: {late['compiled']}, loaded from a cache: {late['loaded']}"
    )
    rows.append((late["compiled"] + late["loaded"] == 0, text + (f": {', '.join(names)}" if names else "")))
    for one in mixed[2:]:
        spoilt = [differing(one, off, key) for key in ("logprobs", "tokens")]
        text = f"log-probabilities of {spoilt[0]} and tokens of {spoilt[1]} requests differ"
        rows.append((spoilt[0] > 0, f"control, an entry of each launch spoilt: {text}"))
    return rows


def _equal(served: dict[str, Any], other: dict[str, Any], what: str) -> list[tuple[bool, str]]:
    rows = []
    for key in ("tokens", "logprobs"):
        count = differing(served, other, key)
        text = f"{key} equal bit for bit, on and {what}: {len(served[key])} requests"
        rows.append((count == 0, text + (f", {count} differ" if count else "")))
    same = all(served[key] == other[key] for key in ("preempted", "cached"))
    text = "; ".join(f"{key} {served[key]} and {other[key]}" for key in ("preempted", "cached"))
    return [*rows, (same, f"the same schedule, on and {what}: {text}")]


def report(case: Any, on: dict[str, Any], plain: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the whole report for JSON; see `checks`."""
    about = on["about"]
    rows = checks(case, on, plain)
    captured = {k: v.get("captured", 0) for k, v in about["start"]["calls"].items() if v.get("captured")}
    steady: list[dict[str, Any]] = on.get("steady", [])
    alone = [x for x in (step(one) for one in (plain or {}).get("steady", [])[1:]) if x is not None]
    return {
        "passed": all(good for good, _ in rows),
        "checks": [{"good": good, "what": what} for good, what in rows],
        "facts": about["facts"], "said": about["said"], "started_s": about["started_s"],
        "compiles": about["compiles"], "at the start": about["start"]["calls"], "captured": captured,
        "step_ms": paired(steady) | {"XKV_DISABLE=1": spread(alone)}, "methods_us": methods(steady),
        "launches_us": launches(on), "arguments": about["arguments"], "profiled": about["profiled"],
    }  # fmt: skip
