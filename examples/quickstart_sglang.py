"""A few decode steps on SGLang's memory pool, with metadata by xkv. Runs on a GPU or a CPU.

python examples/quickstart_sglang.py
"""

import torch

import xkv

PAGE, MAX_REQUESTS, CONTEXT = 64, 4, 256
device = "cuda" if torch.cuda.is_available() else "cpu"

# SGLang's ReqToTokenPool: the cache slot of every token. Row 0 is the padding row.
req_to_token = torch.zeros(MAX_REQUESTS + 1, CONTEXT + 4, dtype=torch.int32, device=device)
free_pages = [5, 2, 7, 3, 1, 6, 4]


def give_slots(row: int, begin: int, end: int) -> None:
    """Allocates as SGLang does: the slots of a page are consecutive, pages may be anywhere."""
    for token in range(begin, end):
        new_page = token % PAGE == 0
        req_to_token[row, token] = free_pages.pop(0) * PAGE if new_page else req_to_token[row, token - 1] + 1


# Once: allocate the buffers of one backend, and compile everything that a step can need.
names = {spec.name for spec in xkv.backends(device)}
backend = "flash_attention" if "flash_attention" in names else "aiter_unified"
builder = xkv.MetadataBuilder(
    backend, req_to_token, max_batch_size=MAX_REQUESTS, max_context_len=CONTEXT, page_size=PAGE
)
builder.warmup()

# The batch, as in SGLang's ForwardBatch: int64 rows and lengths. Prompts of 126 and 10 tokens.
req_pool_indices = torch.tensor([3, 1], device=device)
seq_lens = torch.tensor([126, 10], device=device)
for row, length in zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True):
    give_slots(row, 0, length)

out_cache_loc = torch.empty(2, dtype=torch.int64, device=device)
new_tokens = torch.ones_like(seq_lens)
for step in range(4):
    seq_lens += 1  # each step writes one token of every request into the cache, then attends
    for row, length in zip(req_pool_indices.tolist(), seq_lens.tolist(), strict=True):
        give_slots(row, length - 1, length)

    xkv.build_slot_mapping(req_to_token, req_pool_indices, seq_lens, new_tokens, out=out_cache_loc)
    meta = builder.build(req_pool_indices, seq_lens)  # one launch, no sync

    assert meta.page_table is not None
    assert meta.cache_seqlens is not None
    print(f"step {step}: lengths {meta.cache_seqlens.tolist()}, new slots {out_cache_loc.tolist()}")
    for row, length, pages in zip(
        req_pool_indices.tolist(), seq_lens.tolist(), meta.page_table.tolist(), strict=True
    ):
        live = pages[: -(-length // PAGE)]
        print(f"    pages {live}")
        assert live == [slot // PAGE for slot in req_to_token[row, :length:PAGE].tolist()]
builder.check()  # syncs; raises if a row had invalid data
