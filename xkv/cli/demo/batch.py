"""What a step of the engine hands out, and what the engine counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DecodeBatch:
    """What one step hands to metadata building; empty while nothing decodes.

    Attributes:
        req_pool_indices: int64 [b] on the engine's device: the batch's rows of req_to_token.
        seq_lens: int64 [b] on the engine's device, in tokens, this step's included.
        host_rows, host_lens: The same two as lists.
        sum_seq_lens, max_seq_len: Their sum and the largest, in tokens; 0 for an empty batch.
        live_tokens: Tokens of every admitted request, those still in prefill included.
        extends: Whether the requests are those of the last step, in their rows: none was admitted to the
            batch, finished or preempted.
    """

    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    host_rows: list[int]
    host_lens: list[int]
    sum_seq_lens: int
    max_seq_len: int
    live_tokens: int
    extends: bool = False


@dataclass
class EngineStats:
    """Counts since the engine was made, of requests and of tokens."""

    admitted: int = 0
    finished: int = 0
    preempted: int = 0
    prefilled_tokens: int = 0
    shared_tokens: int = 0  # prompt tokens that a cached prefix spared
    decoded_tokens: int = 0
