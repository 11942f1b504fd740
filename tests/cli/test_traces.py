"""Traces: the published files, malformed lines, and the shape of the synthetic load."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from xkv.cli.demo.traces import HASH_BLOCK, MAX_TOKENS, Request, TraceError, read_trace, synthetic_trace

pytestmark = pytest.mark.repo

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE = "2023-11-16 18:15:46.6805900,374,44"


def mooncake(**change: object) -> str:
    """A good line of 600 tokens, with some keys changed, or dropped where the value is ..."""
    row = {"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 9]}
    row.update(change)  # type: ignore[arg-type]
    return json.dumps({key: value for key, value in row.items() if value is not ...})


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines))
    return path


def check(requests: list[Request]) -> None:
    """What holds for every request that is let through."""
    assert requests
    for request in requests:
        assert 0 <= request.arrival_ms <= 2**53
        assert 1 <= request.input_len <= MAX_TOKENS
        assert 0 <= request.output_len <= MAX_TOKENS
        assert type(request.input_len) is type(request.output_len) is int
        if request.block_hashes:
            assert len(request.block_hashes) == -(-request.input_len // HASH_BLOCK)
            assert all(type(value) is int for value in request.block_hashes)
    arrivals = [request.arrival_ms for request in requests]
    assert arrivals == sorted(arrivals)


def published(name: str) -> Path:
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def test_mooncake_file() -> None:
    requests = read_trace(published("mooncake_conversation.jsonl"))
    check(requests)
    assert len(requests) == 12031
    assert requests[0] == Request(0.0, 6758, 500, tuple(range(14)))
    assert max(request.input_len for request in requests) == 126195
    assert all(request.block_hashes for request in requests)


def test_azure_file() -> None:
    requests = read_trace(published("azure_llm_2023_conv.csv"))
    check(requests)
    assert len(requests) == 19366
    assert requests[0] == Request(0.0, 374, 44, ())
    assert requests[1].arrival_ms == pytest.approx(4314.579, abs=1e-3)
    assert requests[-1].input_len == 197
    assert not any(request.block_hashes for request in requests)


def test_format_is_told_from_content(tmp_path: Path) -> None:
    azure = write(tmp_path / "a.jsonl", HEADER, AZURE)
    assert read_trace(azure) == [Request(0.0, 374, 44, ())]
    moon = write(tmp_path / "b.csv", mooncake())
    assert read_trace(moon) == [Request(3000.0, 600, 5, (0, 9))]


def test_line_ends_and_time_zone(tmp_path: Path) -> None:
    """Windows' line ends, no newline at the end, and the +00:00 of Azure's 2024 files."""
    path = tmp_path / "t"
    rows = [HEADER, "2024-05-10 00:00:00.009930+00:00,5,6", "2024-05-10 00:00:01+00:00,7,0"]
    path.write_bytes("\r\n".join(rows).encode())
    first, second = read_trace(path)
    assert (first.input_len, second.output_len) == (5, 0)
    assert second.arrival_ms == pytest.approx(990.07, abs=1e-3)


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "t", mooncake(), mooncake(timestamp=3001), "broken")
    assert [request.arrival_ms for request in read_trace(path, limit=2)] == [3000.0, 3001.0]
    assert len(read_trace(path, limit=1)) == 1
    with pytest.raises(TraceError, match=r":3: "):
        read_trace(path, limit=3)
    with pytest.raises(ValueError, match="limit"):
        read_trace(path, limit=0)


def test_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none")


BAD_MOONCAKE = [
    ("", "blank"),
    ("{", "not JSON"),
    ("[" * 20000, "not JSON"),
    ("[1, 2]", "not a JSON object"),
    (AZURE, "not JSON"),
    (b'{"timestamp": \xff}', "not UTF-8"),
    (b"\0\1\2", "binary"),
    (" " * (1 << 20) + "{}", "longer than"),
    (mooncake(timestamp=...), "'timestamp' is missing"),
    (mooncake(input_length=...), "'input_length' is missing"),
    (mooncake(output_length=...), "'output_length' is missing"),
    (mooncake(hash_ids=...), "'hash_ids' is missing"),
    (mooncake(timestamp="3000"), "'timestamp' is not a number"),
    (mooncake(timestamp=True), "'timestamp' is not a number"),
    (mooncake(timestamp=float("nan")), "NaN"),
    (mooncake(timestamp=float("inf")), "Infinity"),
    (mooncake().replace("3000", "1e999"), "'timestamp' is not in"),
    (mooncake(timestamp=10**400), "'timestamp' is not in"),
    (mooncake().replace("3000", "9" * 5000), ":2: "),  # the reason depends on the Python
    (mooncake(timestamp=-1), "'timestamp' is not in"),
    (mooncake(timestamp=2999), "earlier"),
    (mooncake(input_length=600.0), "'input_length' is not an integer"),
    (mooncake(input_length=True, hash_ids=[0]), "'input_length' is not an integer"),
    (mooncake(output_length=None), "'output_length' is not an integer"),
    (mooncake(output_length=-1), "'output_length' is not in"),
    (mooncake(output_length=MAX_TOKENS + 1), "'output_length' is not in"),
    (mooncake(input_length=0, hash_ids=[]), "'input_length' is not in"),
    (mooncake(input_length=-600), "'input_length' is not in"),
    (mooncake(input_length=MAX_TOKENS + 1), "'input_length' is not in"),
    (mooncake(hash_ids={"0": 9}), "'hash_ids' is not a list"),
    (mooncake(hash_ids=[0, "9"]), "other than integers"),
    (mooncake(hash_ids=[0, False]), "other than integers"),
    (mooncake(hash_ids=[0]), "1 hash_ids, where 600 tokens make 2 blocks"),
    (mooncake(hash_ids=[0, 9, 10]), "3 hash_ids"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_MOONCAKE)
def test_bad_mooncake_line(tmp_path: Path, line: str | bytes, reason: str) -> None:
    path = write(tmp_path / "trace", mooncake(), line, mooncake(timestamp=4000))
    with pytest.raises(TraceError) as info:
        read_trace(path)
    assert str(info.value).startswith(f"{path}:2: ")
    assert reason in str(info.value)
    assert (info.value.path, info.value.line) == (str(path), 2)


BAD_AZURE = [
    ("", "blank"),
    ("2023-11-16 18:15:46.68,374", "2 fields"),
    (AZURE + ",1", "4 fields"),
    (mooncake(), "fields"),
    ("2023-11-16T18:15:46.68,374,44", "'TIMESTAMP'"),
    ("yesterday,374,44", "'TIMESTAMP'"),
    (",374,44", "'TIMESTAMP'"),
    ("2023-02-30 18:15:46,374,44", "'TIMESTAMP'"),
    ("2023-11-16 18:61:46,374,44", "'TIMESTAMP'"),
    ("2023-11-16 18:15:46.68+02:00,374,44", "'TIMESTAMP'"),
    ("2023-11-16 18:15:46.6805899,374,44", "earlier"),
    ("2023-11-16 18:15:47,0,44", "'ContextTokens' is not in"),
    ("2023-11-16 18:15:47,-5,44", "'ContextTokens' is not in"),
    ("2023-11-16 18:15:47,16777217,44", "'ContextTokens' is not in"),
    ("2023-11-16 18:15:47," + "9" * 5000 + ",44", "'ContextTokens' is not an integer"),
    ("2023-11-16 18:15:47,3.5,44", "'ContextTokens' is not an integer"),
    ("2023-11-16 18:15:47,٣,44", "'ContextTokens' is not an integer"),
    ("2023-11-16 18:15:47,NaN,44", "'ContextTokens' is not an integer"),
    ("2023-11-16 18:15:47,374,", "'GeneratedTokens' is not an integer"),
    ("2023-11-16 18:15:47,374,-1", "'GeneratedTokens' is not in"),
    (b"2023-11-16 18:15:47,374,\xe9", "not UTF-8"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_AZURE)
def test_bad_azure_line(tmp_path: Path, line: str | bytes, reason: str) -> None:
    path = write(tmp_path / "trace", HEADER, AZURE, line)
    with pytest.raises(TraceError) as info:
        read_trace(path)
    assert str(info.value).startswith(f"{path}:3: ")
    assert reason in str(info.value)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"", 1, "empty"),
        (b"\n", 1, "blank"),
        (b"\x7fELF\2\1\1\0", 1, "binary"),
        (b"time,in,out\n1,2,3\n", 1, "neither"),
        ("\ufeff".encode() + HEADER.encode(), 1, "neither"),
        (HEADER.encode() + b"\n", 2, "no request"),
    ],
)
def test_bad_file(tmp_path: Path, content: bytes, line: int, reason: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=reason) as info:
        read_trace(path)
    assert info.value.line == line


def test_synthetic_shape() -> None:
    requests = synthetic_trace(4000, seed=1)
    check(requests)
    assert len(requests) == 4000
    inputs = [request.input_len for request in requests]
    assert 6000 < statistics.median(inputs) < 8000
    assert 100_000 < max(inputs) <= 126_000
    assert 200 < statistics.median(r.output_len for r in requests) < 450
    earlier: set[tuple[int, ...]] = set()
    shared = 0
    for request in requests:
        assert len(request.block_hashes) == -(-request.input_len // HASH_BLOCK)
        shared += request.block_hashes[:2] in earlier and len(request.block_hashes) > 1
        earlier.add(request.block_hashes[:2])
    assert 0.3 < shared / len(requests) < 0.5


def test_synthetic_hashes_are_prefix_chains() -> None:
    """An id always follows the same id, and the id of a partial block is nobody else's."""
    before: dict[int, int] = {}
    partial: set[int] = set()
    for request in synthetic_trace(1000, seed=2):
        assert not partial & set(request.block_hashes)
        for parent, block in zip((-1, *request.block_hashes), request.block_hashes, strict=False):
            assert before.setdefault(block, parent) == parent
        if request.input_len % HASH_BLOCK:
            partial.add(request.block_hashes[-1])


def test_synthetic_seed() -> None:
    assert synthetic_trace(50, seed=3) == synthetic_trace(50, seed=3)
    assert synthetic_trace(50, seed=3) != synthetic_trace(50, seed=4)
    with pytest.raises(ValueError, match="n must"):
        synthetic_trace(0, seed=0)
