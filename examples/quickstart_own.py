"""A minimal engine: paged cache, scheduler, attention in torch, with metadata by xkv.

python examples/quickstart_own.py
"""

import torch

import xkv

PAGE, PAGES, MAX_REQUESTS, CONTEXT, DIM = 8, 32, 4, 64, 16
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

# The cache, and the table of where each request's tokens are: here one page id for every 8 tokens.
cache = torch.zeros(PAGES, PAGE, DIM, device=device)
table = torch.zeros(MAX_REQUESTS, CONTEXT // PAGE, dtype=torch.int32, device=device)
free_pages, free_rows = list(range(PAGES)), list(range(MAX_REQUESTS))

names = {spec.name for spec in xkv.backends(device)}
builder = xkv.MetadataBuilder(
    "flash_attention" if "flash_attention" in names else "aiter_unified", table, source_page_size=PAGE,
    max_batch_size=MAX_REQUESTS, max_context_len=CONTEXT, page_size=PAGE,
)  # fmt: skip
builder.warmup()  # after this nothing compiles


class Request:
    """A request: its row of the table, and a contiguous copy of all its keys to compare with."""

    def __init__(self, prompt: int, wanted: int) -> None:
        self.row, self.end = free_rows.pop(), prompt + wanted
        self.pages: list[int] = []
        self.dense = torch.empty(0, DIM, device=device)
        self.new = torch.randn(prompt, DIM, device=device)

    def grow(self) -> None:
        """Allocates pages for the new tokens."""
        self.dense = torch.cat([self.dense, self.new])
        while len(self.pages) * PAGE < len(self.dense):
            self.pages.append(free_pages.pop())
            table[self.row, len(self.pages) - 1] = self.pages[-1]

    def finish(self) -> None:
        """Frees pages and row; the stale entries of the table are never read as live."""
        free_pages.extend(self.pages)
        free_rows.append(self.row)


def attend(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Attention of one query over its keys, which are also the values."""
    return (keys @ query / DIM**0.5).softmax(0) @ keys


waiting = [Request(20, 6), Request(3, 9), Request(11, 4)]
running: list[Request] = []
worst, step = 0.0, 0
batch: list[Request] = []  # of the last step
while waiting or running:
    if waiting:  # one prefill a step, together with the decodes
        running.append(waiting.pop())
    for request in running:
        request.grow()
    rows = torch.tensor([request.row for request in running], device=device)
    lens = torch.tensor([len(request.dense) for request in running], device=device)
    new = torch.tensor([len(request.new) for request in running], device=device)

    slots = xkv.build_slot_mapping(table, rows, lens, new, source_page_size=PAGE)
    # one launch, into buffers with fixed addresses; only what is new if the requests are the last step's
    write, batch = builder.extend if running == batch else builder.build, [*running]
    meta = write(rows, lens, query_lens=new)
    assert meta.page_table is not None

    cache.flatten(0, 1)[slots] = torch.cat([request.new for request in running])
    for b, request in enumerate(running):
        query, length = torch.randn(DIM, device=device), len(request.dense)
        paged = cache[meta.page_table[b, : -(-length // PAGE)].long()].flatten(0, 1)[:length]
        worst = max(worst, float((attend(query, paged) - attend(query, request.dense)).abs().max()))
        request.new = torch.randn(1, DIM, device=device)
    for request in [request for request in running if len(request.dense) == request.end]:
        request.finish()
        running.remove(request)
    step += 1
builder.check()  # syncs; raises if a row had invalid data
print(f"{step} steps, all pages back: {len(free_pages) == PAGES}")
print(f"paged and dense attention agree: {worst < 1e-5}")
assert worst < 1e-5
