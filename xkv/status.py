"""The device status word: builds report rows that they cut to it; the host reads it on request."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

_CLEAN = (1 << 63) - 1


class Reason(IntEnum):
    """Why a row was cut. If a row has several reasons, the smallest is reported.

    Examples:
        >>> import xkv
        >>> xkv.Reason(2).name
        'BAD_LENGTH'
        >>> print(xkv.Violation(3, xkv.Reason.TRUNCATED))
        row 3: TRUNCATED: the output has no room for all of it; the row was truncated
    """

    BAD_ROW = 1
    BAD_LENGTH = 2
    BAD_START = 3
    BAD_QUERY = 4
    TRUNCATED = 5
    BAD_ID = 6
    BAD_MAP = 7
    OVERFLOW = 8
    UNALIGNED_START = 9


_MEANING = {
    Reason.BAD_ROW: "its req_pool_indices entry lies outside req_to_token; it was taken as empty",
    Reason.BAD_LENGTH: "its length is negative, or beyond req_to_token's width or the host's bound"
    " (max_context_len, max_seq_len); it was clipped",
    Reason.BAD_START: "its kv_start is negative or beyond its length; it was clipped",
    Reason.BAD_QUERY: "its query length is negative and was taken as 0, or in a slot mapping a query token's"
    " position is outside the row: such tokens have no slot",
    Reason.TRUNCATED: "the output has no room for all of it; the row was truncated",
    Reason.BAD_ID: "a live token has no id, or one that the output dtype cannot hold",
    Reason.BAD_MAP: "an id is outside token_map or page_map; missing_id was written",
    Reason.OVERFLOW: "a prefix sum passes 2**31 - 1; it stops there",
    Reason.UNALIGNED_START: "its kv_start is inside a page, and the backend cannot skip the tokens of that"
    " page before it; they are shown",
}


class Violation(NamedTuple):
    """The first row of the batch that was cut, and the reason.

    Attributes:
        row: index in the batch.
        reason: the smallest reason of that row.

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> status = xkv.Status("cpu")
        >>> lens = torch.tensor([7, 9])  # the table has room for 8 tokens
        >>> table = xkv.build_page_table(req_to_token, torch.tensor([1, 0]), lens, page_size=4, status=status)
        >>> status.read()
        Violation(row=1, reason=<Reason.BAD_LENGTH: 2>)
    """

    row: int
    reason: Reason

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason.name}: {_MEANING[self.reason]}"


class StatusError(RuntimeError):
    """Raised by `Status.check`; ``violation`` has the row and the reason.

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> status = xkv.Status("cpu")
        >>> rows = torch.tensor([1, 5])  # the table has 2 rows
        >>> table = xkv.build_page_table(req_to_token, rows, torch.tensor([7, 3]), page_size=4, status=status)
        >>> try:
        ...     status.check()
        ... except xkv.StatusError as error:
        ...     print(error.violation.row, error.violation.reason.name)
        1 BAD_ROW
    """

    def __init__(self, violation: Violation) -> None:
        super().__init__(f"xkv: {violation}")
        self.violation = violation


class Status:
    """A word on the device that builds report cut rows to. It keeps a report until it is cleared.

    Pass it as ``status=`` to any op. Of all builds since it was cleared it keeps the smallest row, and the
    smallest reason of that row. Safe in CUDA and HIP graphs.

    Args:
        device: the device of the builds.

    Attributes:
        word: ``[1]`` int64 on ``device``.

    Examples:
        >>> import torch
        >>> import xkv
        >>> req_to_token = torch.tensor(
        ...     [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]], dtype=torch.int32
        ... )
        >>> status = xkv.Status("cpu")
        >>> rows, lens = torch.tensor([1, 0]), torch.tensor([7, 3])
        >>> table = xkv.build_page_table(req_to_token, rows, lens, page_size=4, status=status)
        >>> status.check()  # nothing was cut
        >>> print(status.read())
        None
    """

    def __init__(self, device: torch.device | str | int) -> None:
        import torch

        try:
            where = torch.device(device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"device must be a torch device, got {device!r}") from error
        if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device must be one of {torch.cuda.device_count()} GPU(s), got {where}")
        self.word = torch.full((1,), _CLEAN, dtype=torch.int64, device=where)

    @classmethod
    def of(cls, word: torch.Tensor) -> Status:
        """Returns a status with this word."""
        status = cls.__new__(cls)
        status.word = word
        return status

    def clear(self) -> None:
        """Clears the word. Does not sync; safe in a CUDA or HIP graph."""
        self.word.fill_(_CLEAN)

    def read(self) -> Violation | None:
        """Returns the first violation since the last clear, or None. Syncs; not for capture."""
        word = int(self.word.item())
        return None if word == _CLEAN else Violation(word // 256, Reason(word % 256))

    def check(self) -> None:
        """Raises if a row was reported since the last clear, and clears the word. Syncs; not for capture.

        Raises:
            StatusError: a row was cut, or a live token has no id.
        """
        violation = self.read()
        if violation is not None:
            self.clear()
            raise StatusError(violation)
