"""A prefill and decode steps on vLLM's block table, with metadata by xkv. Runs on a GPU or a CPU.

python examples/quickstart_vllm.py
"""

import torch

import xkv

BLOCK, MAX_REQUESTS, CONTEXT = 16, 4, 128
device = "cuda" if torch.cuda.is_available() else "cpu"

# vLLM's BlockTable: an entry is the id of a block of 16 tokens, so source_page_size is 16.
block_table = torch.zeros(MAX_REQUESTS, CONTEXT // BLOCK, dtype=torch.int32, device=device)
free_blocks = [9, 4, 7, 2, 11, 5]


def give_blocks(row: int, begin: int, end: int) -> None:
    """Allocates as vLLM does: one block for every 16 tokens."""
    for block in range(-(-begin // BLOCK), -(-end // BLOCK)):
        block_table[row, block] = free_blocks.pop(0)


# Once: allocate the buffers of one backend, and compile everything that a step can need.
names = {spec.name for spec in xkv.backends(device)}
backend = "flashinfer_mla" if "flashinfer_mla" in names else "aiter_mla"
builder = xkv.MetadataBuilder(
    backend, block_table, source_page_size=BLOCK, max_batch_size=MAX_REQUESTS, max_context_len=CONTEXT,
    page_size=BLOCK if backend == "flashinfer_mla" else 1,
)  # fmt: skip
builder.warmup()

# The batch: the row of each request, its number of tokens, and how many of them are new; int32 in vLLM.
rows = torch.tensor([2, 0], dtype=torch.int32, device=device)
seq_lens = torch.tensor([30, 5], dtype=torch.int32, device=device)
query_lens = seq_lens.clone()  # the first step is the prefill of both
slot_mapping = torch.empty(64, dtype=torch.int64, device=device)  # one buffer for every step
for step in range(4):
    for row, length, new in zip(rows.tolist(), seq_lens.tolist(), query_lens.tolist(), strict=True):
        give_blocks(row, length - new, length)

    # -1 past the last slot, as vLLM pads for its graphs
    xkv.build_slot_mapping(
        block_table, rows, seq_lens, query_lens, source_page_size=BLOCK, out=slot_mapping, pad_value=-1
    )
    meta = builder.build(rows, seq_lens, query_lens=query_lens)  # one launch, no sync

    assert meta.kv_indptr is not None
    assert meta.kv_indices is not None
    assert meta.qo_indptr is not None
    live, new = int(meta.kv_indptr[-1]), int(query_lens.sum())
    print(f"step {step}: qo_indptr {meta.qo_indptr.tolist()}, kv_indptr {meta.kv_indptr.tolist()}")
    print(f"    kv_indices {meta.kv_indices[:live].tolist()}")
    print(f"    last slot of each request {slot_mapping[meta.qo_indptr[1:].long() - 1].tolist()}")
    last = [
        int(block_table[row, (length - 1) // BLOCK]) * BLOCK + (length - 1) % BLOCK
        for row, length in zip(rows.tolist(), seq_lens.tolist(), strict=True)
    ]
    assert last == slot_mapping[meta.qo_indptr[1:].long() - 1].tolist()
    assert (slot_mapping[new:] == -1).all()

    seq_lens += 1  # from now on one token a step
    query_lens.fill_(1)
builder.check()  # syncs; raises if a row had invalid data
