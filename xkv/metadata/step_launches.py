"""What launches the steps of a `MetadataBuilder`, and `extend`, its launch of what is new in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..launch.group import GroupInputs
from .buffers import Metadata
from .graph import Capturable
from .parts import GroupLaunches
from .step import Step


class StepLaunches(Capturable[Metadata]):
    """Launches builds and extensions, in a group's kernel if the builder writes more than its views.

    Attributes:
        extends: whether `extend` writes less than a build.
    """

    extends: bool
    _group: GroupLaunches | None
    _recent: dict[bool, Step | None]  # by whether it extends: the last with only ints beside rows and lengths
    _run: Callable[..., tuple[Step, Metadata]]

    def extend(
        self, req_pool_indices: Tensor, seq_lens: Tensor, *, seq_lens_delta: int | Tensor = 0,
        query_lens: int | Tensor = 1, query_lens_sign: int = 0, kv_start: Tensor | None = None,
        window_kv_start: Tensor | None = None, max_tokens: int | None = None,
        positions: Tensor | None = None, query_start_loc: Tensor | None = None,
    ) -> Metadata:  # fmt: skip
        """Writes what new tokens add to the last build's metadata: O(batch), not O(live tokens).

        **The caller promises** that since a row was last built or extended, no row of the source was given to
        another request, and none of a row's past has changed, in the source and in any map. Its past is the
        tokens before that call's new ones: before ``seq_lens`` and before the last ``query_lens`` tokens.
        So call `build` after an admission, a finish, a preemption or any other change of the batch or of a
        row's past, and `extend` otherwise. With XKV_CHECK=1 a broken promise is reported with its row.

        Lengths, prefix sums and slots are all written, and of each row of a table the entries that it does
        not have yet. What the device can see needs no promise: a row that the last build did not write, that
        has another pool index or a shorter past, or whose table begins with another page (a sliding window
        that moved on) is written whole, by one program, in the same launch. So the result is always that of
        `build`, except that ids are missing in the report (see `check`) which an earlier call reported.

        For CSR backends, whose rows move when one before them grows, this is `build`; see ``extends``.

        Args:
            req_pool_indices: as in `build`, as are all others.
            seq_lens: likewise; tokens of each row, new ones included.
            seq_lens_delta: likewise.
            query_lens: likewise.
            query_lens_sign: likewise.
            kv_start: likewise.
            window_kv_start: likewise.
            max_tokens: likewise.
            positions: likewise.
            query_start_loc: likewise.

        Returns:
            As `build`, which it is like: no sync, no allocation, safe in a CUDA or HIP graph.

        Raises:
            TypeError, ValueError, StatusError: as in `build`.
            StaleTableError: with XKV_CHECK=1 (`xkv.launch.verify`), the promise was broken.

        Examples:
            Two decode steps:

            >>> import torch
            >>> import xkv
            >>> req_to_token = torch.arange(64, dtype=torch.int32).view(2, 32)
            >>> sizes = {"max_batch_size": 2, "max_context_len": 32, "page_size": 4}
            >>> builder = xkv.MetadataBuilder("flash_attention", req_to_token, **sizes)
            >>> rows, lens = torch.tensor([1, 0]), torch.tensor([8, 3])
            >>> builder.build(rows, lens).page_table[:, :3]
            tensor([[8, 9, 0],
                    [0, 0, 0]], dtype=torch.int32)
            >>> builder.extend(rows, lens + 1).page_table[:, :3]
            tensor([[ 8,  9, 10],
                    [ 0,  0,  0]], dtype=torch.int32)
        """
        extends, step = self.extends, self._recent[self.extends]
        if (  # as in `build`: written out in both, as one more call takes a 60th of a step's host time
            step is not None and type(seq_lens_delta) is int and type(query_lens) is int
            and type(query_lens_sign) is int and not query_lens_sign and kv_start is None
            and window_kv_start is None and max_tokens is None and positions is None
            and query_start_loc is None
        ):  # fmt: skip
            found = step.launch(req_pool_indices, seq_lens, seq_lens_delta, query_lens)
            if found is not None:
                return found
        inputs: Any = (
            req_pool_indices, seq_lens, seq_lens_delta, query_lens, query_lens_sign, kv_start,
            window_kv_start, positions, query_start_loc,
        )  # fmt: skip
        return self._launch(inputs, max_tokens, extends)

    def _launch(self, inputs: Any, max_tokens: int | None, extends: bool) -> Metadata:
        """Launches a step that is not like the last one; checks what was not checked.

        Args:
            inputs: the arguments of `extend`, in order, without ``max_tokens``.
            max_tokens: likewise.
            extends: whether to write only what is new.
        """
        if self._group is not None:
            if max_tokens is not None:
                raise ValueError(f"max_tokens must be None with a slot mapping, got {max_tokens}")
            return self._group.build(GroupInputs(*inputs), extends)[0]
        *own, positions, query_start_loc = inputs
        if positions is not None or query_start_loc is not None:
            raise ValueError("positions and query_start_loc need a builder with a slot_mapping")
        _, _, delta, query, sign, start, window_start = own
        ints_only = (
            type(delta) is int and type(query) is int and type(sign) is int and not sign
            and start is None and window_start is None
        )  # fmt: skip
        step, metadata = self._run(tuple(own), ints_only, max_tokens, extends)
        if ints_only:
            self._recent[extends] = step
        return metadata
