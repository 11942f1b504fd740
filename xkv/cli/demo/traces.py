"""Serving traces: Mooncake's JSON lines, Azure's CSV, and a synthetic load of the same shape."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from os import PathLike
from typing import BinaryIO, NoReturn

HASH_BLOCK = 512
"""Tokens of a prompt that one block hash stands for."""

MAX_TOKENS = 2**24
"""The longest prompt or output that a trace may name, in tokens."""

_MAX_LINE = 1 << 20  # bytes: more than a prompt of MAX_TOKENS needs, and a bound on what is held
_AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
# Azure's seven decimals are one more than datetime.fromisoformat takes on every Python.
_AZURE_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8})(\.[0-9]{1,9})?(\+00:00)?")


@dataclass(frozen=True)
class Request:
    """One request of a trace.

    Attributes:
        arrival_ms: Arrival, in milliseconds from the start of the trace, >= 0.
        input_len: Prompt length in tokens, 1 to MAX_TOKENS.
        output_len: Generated tokens, 0 to MAX_TOKENS; 0 is a request that only prefills.
        block_hashes: One id for each HASH_BLOCK tokens of the prompt, the last one perhaps partial;
            equal ids up to a block mean an equal prefix. Empty where the trace has none.
    """

    arrival_ms: float
    input_len: int
    output_len: int
    block_hashes: tuple[int, ...]


class TraceError(ValueError):
    """A trace that is in neither published format; the message says `file:line: reason`."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        """Builds the message from the file's name, the line (from 1) and what is wrong with it."""
        super().__init__(f"{path}:{line}: {reason}")
        self.path, self.line, self.reason = path, line, reason


class _LineError(ValueError):
    """What is wrong with one line; read_trace adds the file and the line."""


def read_trace(path: str | PathLike[str], limit: int | None = None) -> list[Request]:
    """Reads a trace in Mooncake's (JSON lines) or Azure's (CSV) published format.

    The format is told from the first line, whatever the file's name.

    Args:
        path: The trace file.
        limit: How many requests to read at most, >= 1; the lines after them are not looked at.
            None reads all.

    Returns:
        The requests in the file's order, which is the order of arrival; at least one.

    Raises:
        TraceError: A line is malformed, with the file, the line and the reason.
        OSError: The file cannot be read.
        ValueError: limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    requests: list[Request] = []
    number = 1
    try:
        with open(path, "rb") as file:
            lines = _lines(file)
            first = next(lines, None)
            if first is None:
                raise _LineError("the file is empty")
            if first.lstrip().startswith("{"):
                parse: Callable[[str], Request] = _parse_mooncake
                requests.append(parse(first))
            elif first == _AZURE_HEADER:
                parse = _AzureParser()
            else:
                raise _LineError(f"neither a JSON object (Mooncake) nor {_AZURE_HEADER!r} (Azure)")
            while limit is None or len(requests) < limit:
                number += 1
                line = next(lines, None)
                if line is None:
                    break
                request = parse(line)
                if requests and request.arrival_ms < requests[-1].arrival_ms:
                    raise _LineError("the timestamp is earlier than the line before it")
                requests.append(request)
            if not requests:
                raise _LineError("the header is followed by no request")
    except _LineError as error:
        raise TraceError(str(path), number, str(error)) from error
    return requests


def _lines(file: BinaryIO) -> Iterator[str]:
    """Yields the decoded lines without their ends; raises _LineError for what is not text."""
    while raw := file.readline(_MAX_LINE + 1):
        if b"\0" in raw:
            raise _LineError("binary data (a NUL byte)")
        if len(raw) > _MAX_LINE:
            raise _LineError(f"the line is longer than {_MAX_LINE} bytes")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _LineError(f"not UTF-8 ({error.reason} at byte {error.start})") from error
        line = line.removesuffix("\n").removesuffix("\r")
        if not line.strip():
            raise _LineError("the line is blank")
        yield line


def _parse_mooncake(line: str) -> Request:
    """Parses one JSON line; raises _LineError."""
    try:
        row = json.loads(line, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        # RecursionError: ten thousand open brackets are a malformed line too.
        raise _LineError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise _LineError("not a JSON object")
    for key in ("timestamp", "input_length", "output_length", "hash_ids"):
        if key not in row:
            raise _LineError(f"{key!r} is missing")
    timestamp = row["timestamp"]
    if type(timestamp) not in (int, float):  # a bool is an int to isinstance
        raise _LineError("'timestamp' is not a number")
    if not 0 <= timestamp <= 2**53:
        raise _LineError("'timestamp' is not in 0..2**53 ms")
    input_len = _check_tokens("input_length", row["input_length"], 1)
    output_len = _check_tokens("output_length", row["output_length"], 0)
    hashes = row["hash_ids"]
    if not isinstance(hashes, list):
        raise _LineError("'hash_ids' is not a list")
    if any(type(value) is not int for value in hashes):
        raise _LineError("'hash_ids' holds something other than integers")
    blocks = -(-input_len // HASH_BLOCK)
    if len(hashes) != blocks:
        raise _LineError(f"{len(hashes)} hash_ids, where {input_len} tokens make {blocks} blocks")
    return Request(float(timestamp), input_len, output_len, tuple(hashes))


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_tokens(name: str, value: object, least: int) -> int:
    """Returns value if it is an integer in least..MAX_TOKENS; raises _LineError otherwise."""
    if type(value) is not int:
        raise _LineError(f"{name!r} is not an integer")
    if not least <= value <= MAX_TOKENS:
        raise _LineError(f"{name!r} is not in {least}..{MAX_TOKENS}")
    return value


class _AzureParser:
    """Parses Azure's rows; keeps the first row's time, from which the others are counted."""

    def __init__(self) -> None:
        self._start: float | None = None

    def __call__(self, line: str) -> Request:
        """Parses one row; raises _LineError."""
        fields = line.split(",")
        if len(fields) != 3:
            raise _LineError(f"{len(fields)} fields instead of 3")
        now = _azure_ms(fields[0])
        if self._start is None:
            self._start = now
        lengths = []
        for name, text, least in (
            ("ContextTokens", fields[1], 1),
            ("GeneratedTokens", fields[2], 0),
        ):
            if not re.fullmatch("-?[0-9]{1,18}", text):
                raise _LineError(f"{name!r} is not an integer")
            lengths.append(_check_tokens(name, int(text), least))
        return Request(now - self._start, lengths[0], lengths[1], ())


def _azure_ms(text: str) -> float:
    """Returns a TIMESTAMP field (UTC) as milliseconds since 1970; raises _LineError."""
    match = _AZURE_TIME.fullmatch(text)
    if match is None:
        raise _LineError("'TIMESTAMP' is not of the form 2023-11-16 18:15:46.6805900")
    try:
        whole = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S") - datetime(1970, 1, 1)
    except ValueError as error:
        raise _LineError(f"'TIMESTAMP': {error}") from error
    return whole / timedelta(milliseconds=1) + float(match[2] or 0) * 1e3


def synthetic_trace(n: int, seed: int) -> list[Request]:
    """Makes a load with the shape of Mooncake's conversations.

    Prompts are log-normal (a median of about 7 thousand tokens, up to 126 thousand), every prompt
    opens with the same system prompt, two in five go on from a recent one's prefix, and outputs
    take some hundreds of tokens.

    Args:
        n: How many requests, >= 1.
        seed: Equal seeds give equal traces.

    Returns:
        The requests in order of arrival.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    rng = random.Random(seed)
    recent: list[tuple[int, ...]] = []
    requests: list[Request] = []
    fresh, now = 1, 0.0  # block 0 is the system prompt
    for _ in range(n):
        now += rng.expovariate(1 / 300)  # ms; Mooncake: 12,031 requests in an hour
        input_len = min(max(int(rng.lognormvariate(math.log(7000), 1.1)), HASH_BLOCK), 126_000)
        output_len = min(max(int(rng.lognormvariate(math.log(300), 0.7)), 1), 2000)
        blocks = -(-input_len // HASH_BLOCK)
        prefix: tuple[int, ...] = (0,)
        if recent and rng.random() < 0.4:
            earlier = rng.choice(recent)
            # A hash of a partial block stands for no prefix, hence only full blocks of both.
            prefix = earlier[: max(1, min(len(earlier) - 1, input_len // HASH_BLOCK))]
        tail = max(0, blocks - len(prefix))
        hashes = prefix + tuple(range(fresh, fresh + tail))
        fresh += tail
        recent = [*recent[-63:], hashes]
        requests.append(Request(now, input_len, output_len, hashes))
    return requests
