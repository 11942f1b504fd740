"""`Shard`: the tokens of every row that one rank of decode context parallelism holds."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Literal

MAX_SIZE = 1024
MAX_INTERLEAVE = 1 << 16


@dataclass(frozen=True)
class Shard:
    """One rank's share of the KV cache under decode context parallelism (DCP).

    Runs of ``interleave`` tokens are dealt out to the ranks in turn: the token at position ``t`` of a row is
    on rank ``t // interleave % size``. Pass it as ``shard=`` to an op or a `MetadataBuilder`: lengths and
    starts that are passed are those of the whole rows; lengths, prefix sums and ids that are written are
    this rank's own.

    Args:
        size: ranks, 1 to 1024.
        rank: this one, 0 to ``size - 1``.
        interleave: tokens in a run, 1 to 65,536.
        source: "local" (vLLM) or "global" (SGLang): what ``req_to_token`` holds.

            "local": each rank's table is indexed by the positions among its own tokens: entry e is the id, on
            this rank, of ``[e * S, (e + 1) * S)``, where S is the ``source_page_size``, a multiple of
            ``interleave``. An entry covers ``S * size`` tokens of the row.

            "global": all ranks have the same table, of all tokens; it holds ids of a cache of all ranks
            together, in which the token in slot ``s`` lies on rank ``s // interleave % size``, in slot
            ``s // (size * interleave) * interleave + s % interleave``. The engine allocates multiples of
            ``size`` pages, so that the slot's rank is the position's. ``source_page_size`` must be 1 or
            a multiple of ``size * interleave``; if it is 1, ``page_size`` a multiple or a divisor of
            ``interleave``.

    Raises:
        TypeError: ``size``, ``rank`` or ``interleave`` is not an int, or ``source`` not a str.
        ValueError: one of them is out of its range.

    Examples:
        Rank 1 of 2 holds every other token of a row of 7, the tokens 1, 3 and 5:

        >>> import torch
        >>> import xkv
        >>> shard = xkv.Shard(2, 1, source="global")
        >>> shard.local_length(7)
        3
        >>> req_to_token = torch.tensor([[8, 9, 10, 11, 4, 5, 6, 7]], dtype=torch.int32)
        >>> row, length = torch.tensor([0]), torch.tensor([7])
        >>> xkv.build_kv_indices(req_to_token, row, length, shard=shard).kv_indices
        tensor([4, 5, 2], dtype=torch.int32)
    """

    size: int
    rank: int
    interleave: int = 1
    source: Literal["local", "global"] = "local"

    def __post_init__(self) -> None:
        check_int("size", self.size, 1, MAX_SIZE)
        check_int("rank", self.rank, 0, self.size - 1)
        check_int("interleave", self.interleave, 1, MAX_INTERLEAVE)
        if not isinstance(self.source, str):
            raise TypeError(f"source must be a str, got {type(self.source).__name__}")
        if self.source not in ("local", "global"):
            raise ValueError(f"source must be 'local' or 'global', got {self.source!r}")

    def local_length(self, length: int) -> int:
        """Returns the number of tokens that this rank holds of a row. Reads no device memory.

        Args:
            length: tokens of the whole row, at least 0.

        Raises:
            TypeError: ``length`` is not an int.
            ValueError: it is negative.

        Examples:
            >>> import xkv
            >>> [xkv.Shard(4, rank, interleave=2).local_length(11) for rank in range(4)]
            [4, 3, 2, 2]
        """
        check_int("length", length, 0, None)
        rounds, rest = divmod(length, self.size * self.interleave)
        return rounds * self.interleave + min(max(rest - self.rank * self.interleave, 0), self.interleave)

    def longest(self, tokens: int) -> int:
        """Returns the length of the longest row of which this rank holds at most that many tokens.

        Args:
            tokens: tokens of this rank, at least 0.

        Raises:
            TypeError: ``tokens`` is not an int.
            ValueError: it is negative.

        Examples:
            >>> import xkv
            >>> xkv.Shard(2, 1).longest(3)  # tokens 1, 3 and 5; not 7
            7
        """
        check_int("tokens", tokens, 0, None)
        rounds, rest = divmod(tokens, self.interleave)
        return (rounds * self.size + self.rank) * self.interleave + rest

    def max_tokens(self, tokens: int, rows: int) -> int:
        """Returns the tokens, at most, that a rank holds of ``rows`` rows of ``tokens`` tokens together.

        Examples:
            >>> import xkv
            >>> xkv.Shard(2, 1).max_tokens(100, rows=4)
            54
        """
        return min(tokens, tokens // self.size + rows * self.interleave)


def local_length(length: int, shard: Shard | None) -> int:
    """Returns `Shard.local_length`; without a shard, ``length``."""
    return length if shard is None else shard.local_length(length)


def source_tokens(tokens: int, shard: Shard | None) -> int:
    """Returns the tokens of a row, on all ranks, that a source row of ``tokens`` tokens has room for."""
    return tokens if shard is None or shard.source == "global" else tokens * shard.size


def ranks_between(shard: Shard | None) -> int:
    """Returns how far apart, in the source row, a rank's tokens are on average."""
    return shard.size if shard is not None and shard.source == "global" else 1


def local_source(
    page_size: int, source_page_size: int, shard: Shard | None, token_map: Sized | None, map_name: str
) -> tuple[int, Shard | None]:
    """Checks that page sizes, shard and token map go together.

    Returns:
        Tokens of this rank per source entry, and the shard: None if it is the only one, and "local" if
        a source entry is several tokens on all ranks, since each rank has a part of them under the same id.
    """
    unit = source_page_size
    if shard is not None:
        if not isinstance(shard, Shard):
            raise TypeError(f"shard must be an xkv.Shard, got {type(shard).__name__}")
        run, turn = shard.interleave, shard.size * shard.interleave
        if shard.size == 1:
            shard = None
        elif shard.source == "local":
            if unit % run:
                raise ValueError(f"source_page_size must be a multiple of shard.interleave={run}, got {unit}")
        elif token_map is not None:
            raise ValueError(
                f"{map_name} must be None with shard.source='global', whose ids are of all ranks, got a"
                f" tensor of {len(token_map)} ids"
            )
        elif unit == 1:
            if page_size % run and run % page_size:
                raise ValueError(
                    f"page_size must be a multiple or a divisor of shard.interleave={run}, got {page_size}"
                )
        elif unit % turn:
            raise ValueError(
                "source_page_size must be 1 or a multiple of shard.size * shard.interleave ="
                f" {turn} with shard.source='global', got {unit}"
            )
        else:
            unit, shard = unit // shard.size, Shard(shard.size, shard.rank, run, "local")
    if unit % page_size and page_size % unit:
        of_rank = "" if unit == source_page_size else f" ({unit} tokens of each rank)"
        raise ValueError(
            f"source_page_size must be a multiple or a divisor of page_size={page_size}, got"
            f" {source_page_size}{of_rank}"
        )
    return unit, shard


def check_int(name: str, value: int, low: int, high: int | None) -> None:
    """Raises a TypeError or ValueError unless it is an int from ``low`` to ``high``; None: without end."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {expected}, got {value}")
