"""The status word: what it keeps, how it is read, what it says."""

from __future__ import annotations

import pytest
import torch

import xkv
from xkv import Reason, Status, StatusError, Violation


def build(status: Status, rows: list[int], lens: list[int], width: int = 4) -> None:
    """A table of a source of 2 rows of 4 tokens, id 5 missing."""
    device = status.word.device
    xkv.build_page_table(
        torch.tensor([[1, 2, 3, 4], [8, -1, 6, 7]], device=device),
        torch.tensor(rows, device=device), torch.tensor(lens, device=device),
        page_size=1, out=torch.empty(len(rows), width, dtype=torch.int32, device=device),
        status=status,
    )  # fmt: skip


def test_clean_until_a_build_reports(device: str) -> None:
    status = Status(device)
    assert (status.word.dtype, tuple(status.word.shape)) == (torch.int64, (1,))
    assert status.read() is None
    build(status, [0, 1], [4, 1])
    assert status.read() is None
    status.check()
    build(status, [0, 1], [4, 2])
    assert status.read() == Violation(1, Reason.BAD_ID)


def test_keeps_the_smallest_row_over_builds_until_cleared(device: str) -> None:
    status = Status(device)
    build(status, [0, 0, 9], [1, 1, 1])
    assert status.read() == (2, Reason.BAD_ROW)
    build(status, [0, 1, 0, 0], [1, 2, 9, 9])
    assert status.read() == (1, Reason.BAD_ID)
    build(status, [0, 0, 9], [1, 1, 1])
    assert status.read() == (1, Reason.BAD_ID)
    status.clear()
    assert status.read() is None
    build(status, [0, 0, 9], [1, 1, 1])
    assert status.read() == (2, Reason.BAD_ROW)


@pytest.mark.parametrize("first", [0, 1])
def test_smallest_reason_of_a_row_whatever_the_order(first: int, device: str) -> None:
    status = Status(device)
    cases = [([1], [5]), ([1], [4])]  # BAD_LENGTH and BAD_ID; BAD_ID alone
    for rows, lens in (cases[first], cases[1 - first]):
        build(status, rows, lens)
    assert status.read() == (0, Reason.BAD_LENGTH)


def test_rows_beyond_a_byte_keep_their_reasons_apart() -> None:
    status = Status("cpu")
    for row, reason in ((70_000, Reason.OVERFLOW), (257, Reason.BAD_ROW), (0, Reason.TRUNCATED)):
        status.word.fill_(row * 256 + reason)
        assert status.read() == (row, reason)


def test_check_raises_once_and_clears(device: str) -> None:
    status = Status(device)
    build(status, [0, 0], [1, 3], width=2)
    with pytest.raises(StatusError, match=r"^xkv: row 1: TRUNCATED: the output has no room") as info:
        status.check()
    assert info.value.violation == Violation(1, Reason.TRUNCATED)
    assert isinstance(info.value, RuntimeError)
    assert status.read() is None
    status.check()


def test_every_reason_has_words_of_its_own() -> None:
    said = {str(Violation(3, reason)) for reason in Reason}
    assert len(said) == len(Reason)
    for reason in Reason:
        text = str(Violation(3, reason))
        assert text.startswith(f"row 3: {reason.name}: ")
        assert len(text.split(": ", 2)[2]) > 20
    assert 0 < min(Reason) <= max(Reason) < 256  # 0 is none; a reason is a byte of the word


def test_status_lives_where_it_is_told() -> None:
    assert Status("meta").word.device.type == "meta"
    assert Status(torch.device("cpu")).word.device.type == "cpu"
