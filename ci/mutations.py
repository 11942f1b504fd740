"""The faults that `ci/mutate.py` plants, as data: each must make a CPU tier fail."""

from __future__ import annotations

from typing import NamedTuple

ROWS = "xkv/kernel/rows.py"
SHARDS = "xkv/kernel/shards.py"
TILES = "xkv/kernel/tiles.py"
IDS = "xkv/kernel/ids.py"
SCHEDULER = "xkv/kernel/scheduler.py"
VLLM = "xkv/integrations/vllm/kernels.py"
KERNEL = "xkv/kernel/entry.py"
SUMS = "xkv/kernel/prefix_sums.py"
TOKENS = "xkv/kernel/query_tokens.py"
REPORTS = "xkv/kernel/reports.py"
GROUP = "xkv/kernel/group.py"
CHOSEN, CHOSEN_TILES = "xkv/kernel/chosen.py", "xkv/kernel/chosen_tiles.py"
EXPANDED = "xkv/kernel/expanded.py"
EXTENSION = "xkv/kernel/extension.py"


class Mutation(NamedTuple):
    """One fault.

    Attributes:
        name: what it is called in the table and after ``--only``.
        file: where it is planted.
        old: the text there, found exactly once.
        new: what it becomes.
        why: what would go wrong for a user.
        first: of the kernel's tests, what pytest's ``-k`` takes: those that see it soonest.
        where: the file of those tests; "" for the first ones of the tier.
        tier: "interpreter"; "compile" where the interpreter cannot see it.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    first: str
    where: str = ""
    tier: str = "interpreter"


HOSTILE = "tests/kernel/test_hostile.py"
CHOSEN_TESTS = "tests/kernel/test_chosen.py"
EXPANDED_TESTS = "tests/kernel/test_expanded.py"
GROUP_TESTS = "tests/kernel/test_group.py"
EXTENSION_TESTS = "tests/kernel/test_extension.py"
REFERENCE = "tests/kernel/test_reference.py"
ENGINE_BUILDS = "tests/kernel/test_engine_builds.py"
CHECK = "xkv/cli/check"


MUTATIONS = [
    Mutation(
        "query tokens of a row before", TOKENS, "begin <= t, first + half, first)",
        "begin < t, first + half, first)", "a row's first token of a prefill has no slot",
        "slots and positions",
        HOSTILE,
    ),
    Mutation(
        "every query token's row guessed", TOKENS, "b = tl.where(is_found, b, first)", "b = b + 0",
        "in a prefill most tokens have no slot", "slots and positions", HOSTILE,
    ),
    Mutation(
        "query tokens that a row has not got", TOKENS,
        "mask = mask & (t >= row.first) & (t < row.first + row.items)",
        "mask = mask & (t >= row.first)", "sums that decrease lead to another request's slots",
        "slots and positions",
        HOSTILE,
    ),
    Mutation(
        "padding and slots in one place", TOKENS, "mask & (t < limit)", "mask",
        "where sums decrease, two programs write one entry: the result is either",
        "slots and positions", HOSTILE,
    ),
    Mutation(
        "uniform tokens at one position", TOKENS, "first = row.first + (t - b * req.query_len) - j",
        "first = row.first - j", "all query tokens of a verify get one slot",
        "every_row",
        "tests/kernel/test_group.py",
    ),
    Mutation(
        "a padded row reported", ROWS, "bad = bad & (length != 0)", "bad = bad & (length > -9)",
        "each replay of a padded graph is reported", "every_row", "tests/kernel/test_group.py",
    ),
    Mutation(
        "query tokens of sums not counted", ROWS,
        "query_len += _load_difference(req.query_start_ptr, b, mask)",
        "query_len += 0", "a window hides keys from the first query tokens", "slots and positions", HOSTILE,
    ),
    Mutation(
        "absolute window from its first page", ROWS, "first = first * 0", "first = first + 0",
        "the entries of a sliding window's group are shifted", "absolute", HOSTILE,
    ),
    Mutation(
        "pages before the window", TILES, "live = live & is_shown",
        "live = live & True",
        "freed blocks are shown", "absolute", HOSTILE,
    ),
    Mutation(
        "all branches at the first one's tokens", ROWS, "branch * pages * C.DRAFT_PAGE_SIZE", "branch * 0",
        "every draft branch attends to the first one's keys", "draft", HOSTILE,
    ),
    Mutation(
        "partial page of a draft branch", ROWS, "remainder(prefix, C.DRAFT_PAGE_SIZE) + C.DRAFT_STEPS",
        "prefix * 0 + C.DRAFT_STEPS", "an illegal address (sglang #15469)", "draft", HOSTILE,
    ),
    Mutation(
        "branches without room among those before", SCHEDULER, "last.reason, 0), 0) > 0:",
        "last.reason, 0), 0) > 1 << 20:", "ids of later requests lie where nobody looks for them",
        "branches_begin", GROUP_TESTS,
    ),
    Mutation(
        "branches before a row", SCHEDULER, "items = last.items * C.TOPK", "items = last.items",
        "rows of draft branches overwrite each other", "branches_begin", GROUP_TESTS,
    ),
    Mutation(
        "branches of the row's own request", SCHEDULER, "first = requests * C.TOPK", "first = end",
        "rows of draft branches overwrite each other", "branches_begin", GROUP_TESTS,
    ),
    Mutation(
        "a branch past the row's end", ROWS, "fits = length.to(tl.int64) + branch_shift <= req.src_tokens",
        "fits = length <= req.src_tokens", "the next request's tokens are read", "draft", HOSTILE,
    ),
    Mutation(
        "sinks shown twice", ROWS, "is_apart = first > sink_end", "is_apart = first > -1",
        "a short row has its first pages twice", "sinks", HOSTILE,
    ),
    Mutation(
        "window behind the sinks", TILES, "behind = row.first + (item - row.sink_items) * C.PAGE_SIZE",
        "behind = row.first + item * C.PAGE_SIZE", "pages of the window are skipped", "sinks", HOSTILE,
    ),
    Mutation(
        "lengths of query tokens without themselves", TILES, "local_length(at + 1, req, C)",
        "local_length(at, req, C)", "a query token does not see itself", "lengths", HOSTILE,
    ),
    Mutation(
        "another part's arguments", GROUP, "words = words_ptr + part * NUM_FIELDS", "words = words_ptr + 0",
        "every group of a hybrid model gets the first one's table", "equals", "tests/kernel/test_group.py",
    ),
    Mutation(
        "slots of the first part", GROUP, "words += tl.num_programs(2) * NUM_FIELDS",
        "words = words_ptr + tl.num_programs(2) * NUM_FIELDS", "slots go to another group's buffer", "equals",
        "tests/kernel/test_group.py",
    ),
    Mutation(
        "window of one query token", GROUP, "window += tl.maximum(launch.query_len, 1) - 1", "window += 0",
        "of a verify, the first tokens lose keys", "equals", "tests/kernel/test_group.py",
    ),
    Mutation(
        "leftover tiles of slots", "xkv/launch/grid.py",
        "in_rows = part.rows(batch) + part.leftover_rows(programs, units)",
        "in_rows = part.rows(batch) + 0", "long prefills keep the slots of the step before", "leftover",
        "tests/host/test_tuning.py",
    ),
    Mutation(
        "a group that does not wait", GROUP, "if _uses_pdl(PARTS):", "if False:",
        "on a stream it reads lengths that are not there yet", "waits", "tests/kernel/test_compile.py",
        "compile",
    ),
    Mutation(
        "last source page of which a part fits", IDS, "(unit <= INT32_MAX % UNITS)", "(unit >= 0)",
        "of a source page of no power of two, ids past 2**31 - 1 wrap in an int32 table", "larger_pages",
    ),
    Mutation(
        "shard rank dropped", SHARDS, "remainder(length, ROUND) - req.shard_rank * C.SHARD_INTERLEAVE",
        "remainder(length, ROUND)", "every rank takes the length of rank 0", "curated and shard",
    ),
    Mutation(
        "shard run not clipped", SHARDS, "+ clip(rest, 0, C.SHARD_INTERLEAVE)", "+ tl.maximum(rest, 0)",
        "the next ranks' tokens of the last round are shown too", "curated and shard",
    ),
    Mutation(
        "start of whole rows", ROWS, "start, end = local_length(start, req, C), local_length(end, req, C)",
        "end = local_length(end, req, C)", "a chunk or window begins where the whole row's would",
        "curated and shard",
    ),
    Mutation(
        "slots of other ranks", TILES, ", C.SHARD_SIZE) == req.shard_rank)", ", C.SHARD_SIZE) >= 0)",
        "a rank writes other ranks' tokens over its own", "curated and shard",
    ),
    Mutation(
        "shard's first position dropped", SHARDS, "first = req.shard_rank * C.SHARD_INTERLEAVE", "first = 0",
        "every rank reads the ids of rank 0's tokens", "curated and shard",
    ),
    Mutation(
        "positions of another tile", TILES, "req.positions_stride, token, live)",
        "req.positions_stride, token - pos, live)", "each tile reads the first positions",
        "curated and slots",
    ),
    Mutation(
        "drafts past the longest context", ROWS, "end = tl.minimum(end, req.max_position)", "end = end",
        "they overwrite another request's page (vllm #32628)", "curated and slots",
    ),
    Mutation(
        "drafts past the longest context reported", TILES, "misplaced = misplaced & (at < req.max_position)",
        "pass", "a step that is right is reported", "curated and slots",
    ),
    Mutation(
        "positions out of the row not reported", TILES, "bad = bad | misplaced", "bad = bad",
        "a token without a slot goes unnoticed", "curated and slots",
    ),
    Mutation(
        "a row of padding reported", ROWS, "is_padding = (row == -1) & (high == -1)",
        "is_padding = row > row",
        "every step in a graph of vLLM's is reported", "curated and slots",
    ),
    Mutation(
        "more query tokens than positions", ROWS, "room = tl.minimum(view.capacity, req.positions_len)",
        "room = view.capacity + 0", "positions are read past their end", "curated and slots",
    ),
    Mutation(
        "padding from the sum of the rows", KERNEL, "total = tl.maximum(tl.load(view.indptr_ptr + req.batch)",
        "total = tl.maximum(tl.load(view.indptr_ptr)", "slots are overwritten with padding",
        "curated and slots",
    ),
    Mutation(
        "slots at whole positions", SHARDS,
        "at = quotient(at, ROUND) * C.SHARD_INTERLEAVE + remainder(at, C.SHARD_INTERLEAVE)", "at = at + 0",
        "a local source is read at positions of the whole row, past its end", "curated and shard",
    ),
    Mutation(
        "global ids in the table", IDS, "page = quotient(entry, C.PAGE_SIZE * C.SHARD_SIZE)",
        "page = quotient(entry, C.PAGE_SIZE)", "ids of all ranks' cache are out of a rank's",
        "curated and shard",
    ),
    Mutation(
        "global slot of a run", SHARDS,
        "return quotient(slot, ROUND) * C.SHARD_INTERLEAVE + remainder(slot, C.SHARD_INTERLEAVE)",
        "return quotient(slot, ROUND) * C.SHARD_INTERLEAVE", "all tokens of a run are its first",
        "curated and shard",
    ),
    Mutation(
        "mask of empty rows inverted", SUMS, "(rows.start >= rows.end).to(tl.int32)",
        "(rows.start < rows.end).to(tl.int32)", "the rows to drop are kept, all others dropped",
        "curated and shard",
    ),
    Mutation(
        "row bound dropped", ROWS, "is_index(row, req.src_rows)", "(row >= 0)",
        "a stale row index reads another tensor's memory", "curated and unknown",
    ),
    Mutation(
        "row bound <= for <", ROWS, "is_index(row, req.src_rows)", "is_index(row, req.src_rows + 1)",
        "the row past the last is read", "first_row_past",
    ),
    Mutation(
        "row sign dropped", ROWS, "is_index(row, req.src_rows)", "(row < req.src_rows)",
        "an int64 index of 2**31 and more becomes a negative row", "int64_beyond",
    ),
    Mutation(
        "row index wrapped", ROWS, "(high == 0) & is_index", "is_index",
        "the int64 index 2**32 + 1 is taken for row 1", "int64_beyond",
    ),
    Mutation(
        "length wrapped", ROWS, "clip(tl.where(high == sign, low, saturated), -LENGTH_MAX, LENGTH_MAX)",
        "clip(low, -LENGTH_MAX, LENGTH_MAX)",
        "the int64 length 2**32 + 5 is taken for 5", "int64_beyond",
    ),
    Mutation(
        "length not cut", ROWS, "clip(tl.where(high == sign, low, saturated), -LENGTH_MAX, LENGTH_MAX)",
        "tl.where(high == sign, low, saturated)",
        "a length near 2**31 wraps once a delta is added", "int64_beyond",
    ),
    Mutation(
        "delta missing", ROWS, "delta = length * 0 + req.delta\n", "delta = length * 0\n",
        "draft tokens are not there", "curated and delta",
    ),
    Mutation(
        "delta of a row missing", ROWS, "delta += load_int(req.delta_ptr", "load_int(req.delta_ptr",
        "each row's own draft tokens are not there", "curated and delta",
    ),
    Mutation(
        "sign of query lengths ignored", ROWS, "length += query_len * req.query_sign", "length += query_len",
        "query tokens counted where they were asked not to be", "curated and slots",
    ),
    Mutation(
        "end not cut to the source", ROWS, "tl.where(row_exists, clip(length, 0, req.src_tokens), 0)",
        "tl.where(row_exists, tl.maximum(length, 0), 0)",
        "a length past the table reads the next row", "curated and beyond",
    ),
    Mutation(
        "start of a window off by one", ROWS, "tl.maximum(end - window, 0)",
        "tl.maximum(end - window + 1, 0)",
        "a window misses its first token", "curated and window",
    ),
    Mutation(
        "a window forgets its query tokens", ROWS, "window += tl.maximum(span, 1) - 1", "window += span * 0",
        "the first of several query tokens loses keys", "curated and window",
    ),
    Mutation(
        "a window forgets the tokens of a draft extend", ROWS,
        "tl.where(req.query_sign < 0, tl.maximum(query, delta), query)",
        "query", "the first of several query tokens loses keys", "curated and window",
    ),
    Mutation(
        "a window of the prefix grows", ROWS, ") and not C.WINDOW_IS_PREFIX_ONLY:", "):",
        "SGLang's Triton backend sees more than its window",
        "curated and window",
    ),
    Mutation(
        "the host's bound not held", "xkv/launch/compile.py", '"src_tokens": build.max_tokens',
        '"src_tokens": build.source_tokens',
        "lengths beyond max_seq_len reach the backend", "curated and host",
    ),
    Mutation(
        "a start inside a page not reported", ROWS, "(reason == 0) & unaligned, UNALIGNED_START",
        "(reason == 0) & unaligned, 0",
        "a backend that cannot skip tokens shows another's, and nobody knows", "curated and start",
    ),
    Mutation(
        "where a row begins in its page", SUMS, "rows.start - rows.first, 0)",
        "rows.first - rows.start, 0)",
        "a caller skips other tokens than those before the row", "curated and start",
    ),
    Mutation(
        "a negative query length not reported", ROWS, "(reason == 0) & (query_len < 0), BAD_QUERY",
        "(reason == 0) & (query_len < -(1 << 29)), BAD_QUERY",
        "prefix sums leave query tokens out, and nobody knows", "curated and negative and query",
    ),
    Mutation(
        "start not cut", ROWS, "start = clip(kv_start, start, end)", "start = tl.minimum(kv_start, end)",
        "a negative kv_start reads before the row", "curated and start",
    ),
    Mutation(
        "violation of a start off by one", ROWS, "(kv_start > tl.maximum(length, 0))",
        "(kv_start >= tl.maximum(length, 0))",
        "a chunk that begins at the row's end is reported", "curated and start",
    ),
    Mutation(
        "first page not aligned", ROWS, "quotient(start, C.PAGE_SIZE) * C.PAGE_SIZE", "start",
        "lengths are counted from inside of a page", "curated and (start or window)",
    ),
    Mutation(
        "a page too many", ROWS, "items = quotient(kv_len + C.PAGE_SIZE - 1, C.PAGE_SIZE)",
        "items = quotient(kv_len + C.PAGE_SIZE, C.PAGE_SIZE)",
        "a full last page is followed by a stale one", "curated and boundaries",
    ),
    Mutation(
        "table not cut", ROWS, "items = tl.minimum(items, view.capacity)\n            kv_len",
        "kv_len",
        "a long row runs over into the next row of the table", "curated and room",
    ),
    Mutation(
        "cut reported too soon", ROWS,
        "(items > view.capacity), TRUNCATED", "(items >= view.capacity), TRUNCATED",
        "a row that just fits is reported", "curated and (boundaries or token)",
    ),
    Mutation(
        "rows past the batch", ROWS, "row_exists = mask & (high == 0)", "row_exists = (high == 0)",
        "what lies behind the batch's lengths is counted in", "curated and delta",
    ),
    Mutation(
        "least length of rows past the batch", ROWS, "items = tl.where(mask, items, 0)", "items = items + 0",
        "rows that are not there have the least length too", "curated and least",
    ),
    Mutation(
        "empty row without a tile", ROWS, "tl.maximum(items, 1).to(tl.int32) - 1",
        "items.to(tl.int32) - 1", "an empty row's first tile is not filled", "tile_of_one",
    ),
    Mutation(
        "fill past the width", ROWS,
        "tl.minimum(multiples.to(tl.int64) * policy.pad_multiple, view.capacity)",
        "multiples.to(tl.int64) * policy.pad_multiple",
        "padding runs over into the next row", "curated and fill",
    ),
    Mutation(
        "the column of sums has a tile", KERNEL, "has_row = has_row & (idx < stride)", "pass",
        "entries are written by two programs, which do not wait for each other", "curated",
        "tests/kernel/test_kernel.py",
    ),
    Mutation(
        "no batch beside a column of sums", KERNEL, "has_row = has_row & (idx < stride)",
        "has_row = idx < stride",
        "the length of a request that is not there is read", "build_kv_indices", HOSTILE,
    ),
    Mutation(
        "rows before: the row itself", SCHEDULER, "load_row(i, i < end, req", "load_row(i, i <= end, req",
        "every row of a stream is one row too far", "curated and odd",
    ),
    Mutation(
        "int32 for int64: items before a row", SCHEDULER, "policy, C).items.to(tl.int64), 0)",
        "policy, C).items, 0)",
        "past 2**31 entries a row is written before the stream", "stream_beyond_31_bits",
    ),
    Mutation(
        "map bound <= for <", IDS, "inside = valid & (at < map_len)",
        "inside = valid & (at <= map_len)",
        "the entry past a map is taken for a page", "id_just_past or curated and map",
    ),
    Mutation(
        "negative target of a map", IDS, "found = target >= 0",
        "found = inside", "a missing page becomes a wrong one", "curated and map",
    ),
    Mutation(
        "huge target of a map", IDS, "found = found & (target < ID_MAX)",
        "pass", "a target's token wraps in int64", "huge_ids",
    ),
    Mutation(
        "place in a map's page lost", IDS, "C.MAP_PAGE_SIZE + place",
        "C.MAP_PAGE_SIZE + place * 0", "a token's place in its page is lost",
        "huge_ids",
    ),
    Mutation(
        "int32 for int64: source row", TILES, "row.source.to(tl.int64) * req.src_stride",
        "row.source * req.src_stride.to(tl.int32)",
        "past 2**31 entries the source is read before its beginning", "strides_beyond_31_bits",
    ),
    Mutation(
        "int32 for int64: table row", TILES, "tile.b * view.out_stride.to(tl.int64)",
        "tile.b * view.out_stride.to(tl.int32)",
        "past 2**31 entries a table is written before its beginning", "strides_beyond_31_bits",
    ),
    Mutation(
        "tile off by one", TILES, "pos = row.first + tile_start * C.PAGE_SIZE",
        "pos = row.first + (tile_start + 1) * C.PAGE_SIZE",
        "a request reads the page after its own", "curated and odd",
    ),
    Mutation(
        "live <= for <", TILES, "    live = j < row.items - tile_start\n    token = pos",
        "    live = j <= row.items - tile_start\n    token = pos",
        "the entry past a row's last is read", "curated and fill",
    ),
    Mutation(
        "tokens that the row lacks", TILES, "& (token < row.end)", "",
        "a padded row shows a stale page", "curated and (least or slots)",
    ),
    Mutation(
        "stream not cut", TILES, "items = clip(view.capacity - tile.row_offset, 0, items).to(tl.int32)",
        "items = items.to(tl.int32)", "a stream without room overruns its buffer", "curated and room",
    ),
    Mutation(
        "negative indptr", TILES, "items = tl.where(tile.row_offset < 0, 0, items)", "pass",
        "a negative kv_indptr of the engine's writes ids before the buffer",
        "test_hostile and create_flashinfer", HOSTILE,
    ),
    Mutation(
        "indptr past the stream", TILES,
        "items = clip(view.capacity - tile.row_offset, 0, items).to(tl.int32)",
        "items = tl.where(C.INDPTR_IS_INPUT, items, clip(view.capacity - tile.row_offset, 0, items))"
        ".to(tl.int32)",
        "a kv_indptr of the engine's that is past the buffer writes ids behind it",
        "test_hostile and create_flashinfer", HOSTILE,
    ),
    Mutation(
        "int32 for int64: indptr", SCHEDULER,
        "total += tl.load(view.indptr_ptr + b, mask=b < req.batch, other=0)",
        "total += tl.load(view.indptr_ptr + b, mask=b < req.batch, other=0).to(tl.int32)",
        "a kv_indptr of 2**32 + 5 is taken for 5: ids of one request are written over another's",
        "test_hostile and create_flashinfer", HOSTILE,
    ),
    Mutation(
        "falling indptr", ROWS, "end = tl.where(row_exists, clip(length, 0, req.src_tokens), 0)",
        "end = tl.where(row_exists, tl.minimum(tl.where(length < 0, -length, length), req.src_tokens), 0)",
        "where an engine's sums fall, a row of a negative length has as many ids",
        "test_hostile and expand_page_indices", HOSTILE,
    ),
    Mutation(
        "indptr summed, not read", SCHEDULER,
        "    if C.INDPTR_IS_INPUT:\n        offset = row_offset(b, req, view, policy, C)\n    elif C.FORM",
        "    if C.FORM",
        "every row of an engine's stream that is shared out begins at 0", "indptr_is_input and stream",
        "tests/kernel/test_indptr_is_input.py",
    ),
    Mutation(
        "zero of an input indptr written", SUMS,
        "    if not C.INDPTR_IS_INPUT:\n        tl.store(ptr + i, i * 0, mask=i == 0)",
        "    tl.store(ptr + i, i * 0, mask=i == 0)",
        "the 0 before an engine's sums is written, which is the engine's", "test_hostile and update_trtllm",
        HOSTILE,
    ),
    Mutation(
        "negative start of slots", VLLM,
        "first = _inside(tl.load(starts_ptr + b).to(tl.int64), capacity)\n    end",
        "first = tl.minimum(tl.load(starts_ptr + b).to(tl.int64), capacity)\n    end",
        "a negative query_start_loc of vLLM's writes slots before the buffer", "just_before",
        "tests/engines/test_vllm_hostile.py",
    ),
    Mutation(
        "negative start of padding", VLLM,
        "first = _inside(pad_from, capacity)", "first = tl.minimum(pad_from, capacity)",
        "a negative end of vLLM's tokens writes padding before the buffer", "just_before",
        "tests/engines/test_vllm_hostile.py",
    ),
    Mutation(
        "end of page indices", VLLM,
        "end = _inside(tl.load(sums_ptr + b + 1).to(tl.int64), capacity)",
        "end = tl.load(sums_ptr + b + 1).to(tl.int64)",
        "sums of vLLM's past the page indices write after the buffer", "copy_page_indices",
        "tests/engines/test_vllm_hostile.py",
    ),
    Mutation(
        "start of page indices", VLLM,
        "count = tl.where(row_start < 0, 0, tl.minimum(end - begin, width))",
        "count = tl.minimum(end - begin, width)",
        "a row that begins before the page indices is written from their first on", "copy_page_indices",
        "tests/engines/test_vllm_hostile.py",
    ),
    Mutation(
        "width of page indices", VLLM,
        "count = tl.where(row_start < 0, 0, tl.minimum(end - begin, width))",
        "count = tl.where(row_start < 0, 0, end - begin)",
        "a row of page indices takes the next request's blocks", "copy_page_indices",
        "tests/engines/test_vllm_hostile.py",
    ),
    Mutation(
        "vLLM's freed blocks", VLLM,
        "tl.store(dst + column, tl.where(column >= first, ids, 0), mask=column < end)",
        "tl.store(dst + column, ids, mask=column < end)",
        "blocks below a window, which may be another request's, are in a row's first entries", "gather",
        "tests/engines/test_vllm_hostile.py",
    ),
    Mutation(
        "vLLM's padding of one launch", VLLM,
        "_pad(part, token_parts, out, tl.load(starts_ptr + b).to(tl.int64), capacity",
        "_pad(part, token_parts, out, tl.load(starts_ptr + b).to(tl.int64) + 1, capacity",
        "the first token of padding keeps the slot of a step before", "one_launch",
        "tests/engines/test_vllm_hostile.py",
    ),
    Mutation(
        "id 0 lost", IDS, "valid = entry >= 0", "valid = entry > 0", "page 0 is taken for none",
        "int64_beyond",
    ),
    Mutation(
        "huge id of the source", IDS, "(entry < ID_MAX)\n    if C.SOURCE",
        "(entry >= 0)\n    if C.SOURCE",
        "an id's token wraps in int64", "huge_ids",
    ),
    Mutation(
        "huge id of the source, int64 outputs", IDS,
        "valid = valid & (entry < ID_MAX)  #", "valid = valid  #",
        "what is no id is written as one", "huge_ids",
    ),
    Mutation(
        "place in a source page lost", IDS,
        "C.SOURCE_PAGE_SIZE + _place_in_page(at, row, req, C)", "C.SOURCE_PAGE_SIZE",
        "a small page of a large source page is the first one always", "page_id_source",
    ),
    Mutation(
        "page of a larger page too wide", IDS, "(entry <= INT32_MAX // UNITS)", "(entry <= INT32_MAX)",
        "a page id that does not fit in int32 wraps into another one", "larger_pages",
    ),
    Mutation(
        "huge id of a larger page", IDS, "valid = valid & (entry < ID_MAX)\n    return",
        "valid = valid & (entry >= 0)\n    return",
        "an id that is none becomes a page", "larger_pages",
    ),
    Mutation(
        "place in a larger page", IDS, "unit = quotient(_place_in_page(at, row, req, C)",
        "unit = quotient(_place_in_page(at - at, row, req, C)",
        "a tile that begins inside a larger page shows its first tokens", "page_id or slots",
    ),
    Mutation(
        "id too wide for the output", TILES, "valid = valid & (page <= INT32_MAX)", "valid = valid",
        "an id past 2**31 - 1 wraps to another page", "huge_ids",
    ),
    Mutation(
        "violation of a map hidden", TILES,
        "(outside | (policy.report_missing != 0))", "(policy.report_missing != 0)",
        "a map that is too short is not reported", "id_just_past",
    ),
    Mutation(
        "missing_id past the row", TILES, "tl.where(j < items - tile_start, fallback, policy.pad_value)",
        "fallback",
        "the padding holds missing_id", "curated and fill",
    ),
    Mutation(
        "store mask <= for <", TILES, "store_mask = j < num_written - tile_start",
        "store_mask = j <= num_written - tile_start",
        "the entry past a row is overwritten", "curated and odd",
    ),
    Mutation(
        "full tile one short", TILES, "if (num_written - tile_start >= C.NUM_PAGE_PER_BLOCK) &",
        "if (num_written - tile_start >= C.NUM_PAGE_PER_BLOCK - 1) &",
        "the entry past a row is overwritten", "whole and tiles",
    ),
    Mutation(
        "full tile unaligned", TILES, "& (out.to(tl.int64) % WIDTH == 0)", "",
        "16 bytes are written where a GPU faults", "whole and tiles",
    ),
    Mutation(
        "full tile read unaligned", TILES, "full_tile & (begin.to(tl.int64) % WIDTH == 0)", "full_tile",
        "16 bytes are read where a GPU faults", "whole and tiles",
    ),
    Mutation(
        "full tile past the row's end", TILES,
        "full_tile = full_tile & (pos >= 0) & (pos + (C.NUM_PAGE_PER_BLOCK - 1) * C.PAGE_SIZE < row.end)",
        "pass",
        "a token that the row lacks is read", "whole and tiles",
    ),
    Mutation(
        "violation of nothing", REPORTS, "mask = mask & (reason > 0)", "mask = mask",
        "rows that are right are reported", "curated and odd",
    ),
    Mutation(
        "least report lost", TILES,
        "tl.where(bad, tl.minimum(first_error, tile.b * 256 + reason), first_error)",
        "tl.where(bad, tile.b * 256 + reason, first_error)",
        "on AMD a later violation hides the first", "least_violation",
    ),
    Mutation(
        "leftover tile of the wrong row", SCHEDULER, "is_before = tile_ends <= tile_idx",
        "is_before = tile_ends < tile_idx",
        "a tile of a long row is written to its neighbour", "curated and skewed",
    ),
    Mutation(
        "leftover tiles end too soon", SCHEDULER,
        "    for first_row in range(C.BATCH_BLOCK, req.batch, C.BATCH_BLOCK):",
        "    for first_row in range(C.BATCH_BLOCK, req.batch - C.BATCH_BLOCK, C.BATCH_BLOCK):",
        "the last rows of a large batch are not finished", "every_chunk",
    ),
    Mutation(
        "leftover tiles of the first rows alone", SCHEDULER,
        "while (tile_idx >= chunk.end) & (chunk.first_row + C.BATCH_BLOCK < req.batch):",
        "while (tile_idx >= chunk.end) & (chunk.first_row < 0):",
        "the last rows of a large batch are not finished", "every_chunk",
    ),
    Mutation(
        "share of a stream too small", SCHEDULER,
        "return tile_idx, tile_idx + per_program + (pid < remainder).to(tl.int32)",
        "return tile_idx, tile_idx + per_program",
        "the tiles that do not divide evenly are never written", "curated and skewed",
    ),
    Mutation(
        "share runs past its row", KERNEL,
        "end = tl.minimum(idx + tile_end - tile_idx, end).to(tl.int32)",
        "end = (idx + tile_end - tile_idx).to(tl.int32)",
        "a row after a long one is not finished", "curated and skewed",
    ),
    Mutation(
        "sums' programs take a row", KERNEL, "(b >= 0) & (b < req.batch)", "b < req.batch",
        "padding is written before the table", "curated and padding",
    ),
    Mutation(
        "leftover tiles dealt to programs that are not there", KERNEL,
        "(grid.num_x - HAS_SUMS - req.batch)", "(grid.num_x - req.batch)",
        "leftover tiles are never written", "curated and skewed",
    ),
    Mutation(
        "first leftover tiles skipped", KERNEL, "pid = (b - req.batch) * stride + idx",
        "pid = (b - req.batch + 1) * stride + idx",
        "leftover tiles are never written", "curated and skewed",
    ),
    # The next two leave every result as it is: the interpreter's memory checker alone sees them.
    Mutation(
        "tile ranges overlap", SCHEDULER,
        "return tile_idx, tile_idx + per_program + (pid < remainder).to(tl.int32)",
        "return tile_idx, tile_idx + per_program + 1",
        "two programs write the same words", "curated and skewed",
    ),
    Mutation(
        "high half of an int32", ROWS, "mask=mask & (stride == 2), other=0)", "mask=mask, other=0)",
        "the word past a vector's last is read", "curated and skewed",
    ),
    Mutation(
        "entries past a row's end read", TILES, "return tl.load(source, mask=live)", "return tl.load(source)",
        "memory past the source's last row is read", "curated and skewed",
    ),
    Mutation(
        "row offset of a leftover tile", SCHEDULER,
        "offset += tl.sum(tl.where(is_before, chunk.items, 0).to(tl.int64), 0)",
        "offset += tl.sum(chunk.items.to(tl.int64), 0)",
        "a leftover tile is written further on in the stream", "curated and skewed",
    ),
    Mutation(
        "own tiles skipped", TILES, "while idx < end:", "while idx < end - 1:",
        "a row's last tile is never written", "curated and (skewed or odd) or any_tile_size",
    ),
    Mutation(
        "prefix sums without their 0", SUMS, "tl.store(ptr + i, i * 0, mask=i == 0)", "pass",
        "the first row begins anywhere", "curated and token",
    ),
    Mutation(
        "prefix sum not cut", SUMS, "tl.minimum(inclusive_sum, limit).to(tl.int32)",
        "inclusive_sum.to(tl.int32)",
        "an indptr points past the stream", "curated and room",
    ),
    Mutation(
        "empty batch", SUMS, "for chunk in range(first_chunk, tl.maximum(req.batch, 1), step):",
        "for chunk in range(first_chunk, req.batch, step):",
        "the prefix sums of nothing are stale", "curated and empty",
    ),
    Mutation(
        "room of a row", SUMS, "clip(view.capacity - (inclusive_sum - items), 0, items)",
        "clip(view.capacity - inclusive_sum, 0, items)",
        "the last row that fits has a length of 0", "curated and room",
    ),
    Mutation(
        "cut of a stream reported too soon", SUMS, "(items > 0) & (inclusive_sum > view.capacity)",
        "(items > 0) & (inclusive_sum >= view.capacity)",
        "a stream that just fits is reported", "stream_that_just_fits",
    ),
    Mutation(
        "least last page", SUMS, "                last = tl.maximum(last, policy.min_last)\n", "",
        "a padded row has a last page of no tokens", "least_last_page",
    ),
    Mutation(
        "sums of a chunk lost", SUMS, "                item_sum += tl.sum(items, 0)\n",
        "                item_sum = tl.sum(items, 0)\n",
        "rows past the first BATCH_BLOCK begin too early", "curated and many",
    ),
    Mutation(
        "padding of a stream off by one", KERNEL, "padding, mask=o < end)", "padding, mask=o <= end)",
        "the entry past a stream is overwritten", "curated and (fill or padding)",
    ),
    Mutation(
        "second view as the first", KERNEL,
        "            out2_ptr, out_stride2, capacity2,", "            out2_ptr, out_stride2, capacity,",
        "a narrow window is written past its width", "second_view",
    ),
    Mutation(
        "no wait for the kernel before", KERNEL, "        tl.extra.cuda.gdc_wait()\n", "        pass\n",
        "lengths are read before the engine's kernel has written them",
        "waits_for", tier="compile",
    ),
    Mutation(
        "a number specialised", KERNEL, "do_not_specialize=ARGUMENTS",
        "do_not_specialize=ARGUMENTS[:8]", "serving compiles a kernel for a batch of 1",
        "specialised", tier="compile",
    ),
    Mutation(
        "local lengths from the row's first token", ROWS,
        "length = whole_length(length, tl.maximum(before, 0), req, C)",
        "length = whole_length(length, before * 0, req, C)", "a rank's tokens behind a prefix are cut off",
        "kernel and local_lengths", ENGINE_BUILDS,
    ),
    Mutation(
        "what the start skips not added", SHARDS,
        "tl.minimum(length + local_length(start, req, C), local_length(req.src_tokens, req, C) + 1)",
        "tl.minimum(length, local_length(req.src_tokens, req, C) + 1)",
        "a rank's tokens behind a prefix are cut off", "kernel and local_lengths", ENGINE_BUILDS,
    ),
    Mutation(
        "a rank's length not cut to the source", SHARDS,
        "tl.minimum(length + local_length(start, req, C), local_length(req.src_tokens, req, C) + 1)",
        "length + local_length(start, req, C)", "a length past int32 on all ranks is that of an empty row",
        "kernel and local_lengths", ENGINE_BUILDS,
    ),
    Mutation(
        "a rank's length cut to the source without a word", SHARDS,
        "local_length(req.src_tokens, req, C) + 1)", "local_length(req.src_tokens, req, C))",
        "a row that is cut goes unnoticed", "kernel and local_lengths", ENGINE_BUILDS,
    ),
    Mutation(
        "a rank's length past the source", ROWS, "clip(given_local, 0, local_length(req.src_tokens, req, C))",
        "tl.maximum(given_local, 0)", "a rank's table shows what is past the source's row",
        "kernel and local_lengths", ENGINE_BUILDS,
    ),
    Mutation(
        "a rank's length of no row", ROWS, "tl.where(row_exists, clip(given_local,",
        "tl.where(mask, clip(given_local,",
        "the table of a row that is not there has what is past the source", "kernel and local_lengths",
        ENGINE_BUILDS,
    ),
    Mutation(
        "whole rows end on rank 0", SHARDS,
        "end = quotient(last, C.SHARD_INTERLEAVE) * ROUND + req.shard_rank * C.SHARD_INTERLEAVE",
        "end = quotient(last, C.SHARD_INTERLEAVE) * ROUND", "all ranks but the first lose their last token",
        "kernel and local_lengths", ENGINE_BUILDS,
    ),
    Mutation(
        "whole rows end with their last token's run", SHARDS,
        "end += remainder(last, C.SHARD_INTERLEAVE) + 1", "end += 1",
        "where runs are longer than a token a rank loses the rest of the last one",
        "kernel and local_lengths", ENGINE_BUILDS,
    ),
    Mutation(
        "an empty row on a rank has a token", SHARDS,
        "return tl.where(length > 0, tl.maximum(end, start), tl.minimum(length, 0) + start)",
        "return tl.maximum(end, start)", "rows of padding show a token",
        "kernel and local_lengths", ENGINE_BUILDS,
    ),
    Mutation(
        "a tail as long as the row", ROWS,
        "items = tl.maximum(_load_difference(view.indptr_ptr, b, mask), 0)",
        "items = tl.maximum(items, 0)", "what a kernel reads past a row's end is left from another step",
        "test_hostile and clamp_tail", HOSTILE,
    ),
    Mutation(
        "a tail that begins late", TILES, "token = tl.where(token < row.end, token, 0)",
        "token = tl.where(token <= row.end, token, 0)", "the first entry past a row's end is shown",
        "kernel and clamped_tail", ENGINE_BUILDS,
    ),
    Mutation(
        "a tail of the row's own tokens", TILES, "token = tl.where(token < row.end, token, 0)",
        "token = token + 0", "stale slots, and memory past the table, are shown",
        "test_hostile and clamp_tail", HOSTILE,
    ),
    Mutation(
        "a tail of no row", ROWS, "row = tl.where(row_exists, row, -1)", "row = row + 0",
        "memory past the source is read", "kernel and clamped_tail", ENGINE_BUILDS,
    ),
    Mutation(
        "an empty row without a tail", TILES,
        "live = live & (row.source >= 0) & (req.src_tokens > 0)",
        "live = live & (row.source >= 0) & (row.end > 0)", "a row of padding has slots that are none",
        "test_hostile and clamp_tail", HOSTILE,
    ),
    Mutation(
        "no zeros behind the new tokens' slots", TILES,
        "slot = tl.where(is_given, tl.maximum(slot, -1), 0)",
        "slot = tl.maximum(slot, -1)", "padding of a graph has no slot in the window's pool",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    Mutation(
        "negative slots of a map", TILES, "slot = tl.where(is_given, tl.maximum(slot, -1), 0)",
        "slot = tl.where(is_given, slot, 0)", "keys are written in front of the window's pool",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    Mutation(
        "new tokens' slots past the map", TILES,
        "inside = is_index(slot, view.token_map_len)", "inside = slot >= 0",
        "memory past the map is taken for slots",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    Mutation(
        "a new token's slot at the map's end", TILES, "is_index(slot, view.token_map_len)",
        "is_index(slot, view.token_map_len + 1)", "the entry past the map is taken for a slot",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    Mutation(
        "new tokens without a slot", TILES, "inside = is_index(slot, view.token_map_len)",
        "inside = slot < view.token_map_len", "memory in front of the map is taken for slots",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    Mutation(
        "new tokens past the map on page 0", TILES, "view.token_map_ptr + slot, mask=inside, other=-1)",
        "view.token_map_ptr + slot, mask=inside, other=0)", "their keys overwrite slot 0",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    Mutation(
        "new tokens' slots past the buffer", TILES, "mask=i < req.loc_out_len)",
        "mask=i < req.loc_out_len + 9)",
        "what lies behind the buffer is overwritten",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    Mutation(
        "lengths cut to a table that is not there", ROWS, "if C.FORM == TABLE and C.WRITES_IDS:",
        "if C.FORM == TABLE:", "all lengths are 0 where a step writes no table",
        "test_hostile and skip_tables", HOSTILE,
    ),
    Mutation(
        "ids of a table that is not there", KERNEL, "    if not C.WRITES_IDS:\n", "    if False:\n",
        "a step that writes no table does not compile", "engines_need and alone", tier="compile",
    ),
    Mutation(
        "new tokens' slots by both views", KERNEL, "if req.loc_ptr is not None and IS_LAST:",
        "if req.loc_ptr is not None:", "a map that is not there is read",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    Mutation(
        "new tokens' slots by no view", KERNEL, "build_view(grid, req, view2, policy, True, C)",
        "build_view(grid, req, view2, policy, False, C)", "keys go to the slots of the step before",
        "kernel_and_slots", ENGINE_BUILDS,
    ),
    # The next ones are faults of what checks the kernel.
    Mutation(
        "guard words not compared", f"{CHECK}/case.py", "        got = memory.receive()\n",
        "        got = memory.receive()\n"
        "        got = torch.where(memory.image == -1234567, memory.image, got)\n",
        "a write out of bounds passes `xkv check`", "every_word_outside", HOSTILE,
    ),
    Mutation(
        "the oracle ignores windows", f"{CHECK}/oracle.py", "if view.window is not None:", "if False:",
        "a wrong window passes `xkv check`", "oracle_equals_loop", REFERENCE,
    ),
    Mutation(
        "the oracle ignores starts", f"{CHECK}/oracle.py", "start = min(max(start, wanted), end)", "pass",
        "a wrong start passes `xkv check`", "oracle_equals_loop", REFERENCE,
    ),
    Mutation(
        "the oracle knows one of several rows", f"{CHECK}/oracle.py",
        "out[at] = either(out[at], value) if at in out else value", "out[at] = value",
        "a right launch on an engine's sums fails `xkv check`", "every_hostile_sum", HOSTILE,
    ),
    Mutation(
        "no negative length is tried", f"{CHECK}/values.py", "    return rng.choice(odd)\n",
        "    return max(rng.choice(odd), 0)\n",
        "a kernel that wraps them passes `xkv check`", "every_hostile_value", HOSTILE,
    ),
    Mutation(
        "no length past 31 bits is tried", f"{CHECK}/values.py",
        "    if dtype == torch.int64:\n        # sane low", "    if False:\n        # sane low",
        "a kernel that reads a half of them passes `xkv check`", "every_hostile_value", HOSTILE,
    ),
    Mutation(
        "no hostile id is tried", f"{CHECK}/values.py",
        "for _ in range(rng.choice([1, 3, count // 9 + 1, count // 3 + 1])):", "for _ in range(0):",
        "a kernel that wraps them passes `xkv check`", "every_hostile_value", HOSTILE,
    ),
    Mutation(
        "no hostile sum is tried", f"{CHECK}/values.py", "heat_of_sums = rng.choice([0, 0.3, 0.6, 1])",
        "heat_of_sums = 0", "a kernel that trusts an engine's sums passes `xkv check`", "every_hostile_sum",
        HOSTILE,
    ),
    Mutation(
        "chosen position behind its row", CHOSEN_TILES,
        "live = position < ((length + C.UNIT - 1) // C.UNIT).to(tl.uint32)", "live = inside",
        "attention reads the keys of tokens that are not there", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "chosen position behind the table", CHOSEN_TILES,
        "inside = position < ((c.src_tokens + C.UNIT - 1) // C.UNIT).to(tl.uint32)",
        "inside = position < (1 << 31)", "an indexer's wild position reads another request's slots",
        "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "chosen position of another rank", CHOSEN_TILES,
        "inside, live = inside & is_own, live & is_own", "pass",
        "each rank attends to what all have", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "chosen positions of a wide dtype wrap", CHOSEN_TILES,
        "tl.where((position >= 0) & (position <= INT32_MAX), position, -1).to(tl.int32)",
        "position.to(tl.int32)", "2**40 is taken as position 0", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "padding tokens of the last request", CHOSEN_TILES, "req = tl.where(req < c.batch, req, -1)",
        "req = tl.minimum(req, c.batch - 1)", "a graph's padding has slots", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "padding tokens of the first request", CHOSEN_TILES, "req = tl.where(begin <= token, req, -1)",
        "req = req + 0", "tokens before the first request have its slots", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "offset of a block that lies apart", CHOSEN_TILES,
        "UNITS: tl.constexpr = C.BLOCK_STRIDE // C.PAGE_SIZE",
        "UNITS: tl.constexpr = C.SOURCE_PAGE_SIZE // C.PAGE_SIZE", "slots of another layer's pages",
        "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "request of a wide number", CHOSEN_TILES, "tl.where(high < 0, -1, INT32_MAX)", "low",
        "a query token of request 2**32 + 1 attends to that of request 1", "chosen or translate or expand",
        HOSTILE,
    ),
    Mutation(
        "packed ids begin anew", CHOSEN, "num_found = count + tl.cumsum(found, 0)",
        "num_found = tl.cumsum(found, 0)", "a second tile's ids overwrite the first one's",
        "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "entries behind packed ids", CHOSEN, "tl.where(valid, -1, c.k - 1 - j)",
        "tl.where(valid, -1, c.k - 2 - j)",
        "stale ids behind a row's own", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "dummy of a row with ids", CHOSEN, "tl.where(place == 0, c.dummy", "tl.where(place < 8, c.dummy",
        "an id that is not chosen among those behind the row's own", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "no row indices", ROWS, "        low = i\n", "        low = i * 0\n",
        "every request shows the first row's pages", "no_row_indices", "tests/kernel/test_kernel_edges.py",
    ),
    Mutation(
        "all tiles full", "xkv/launch/chosen.py", "build.k % block_of(build, tuning) == 0", "build.k > 0",
        "positions of the next query token are read, and its ids are overwritten", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "count by each tile", CHOSEN, "(c.k + C.BLOCK - 1) // C.BLOCK * C.BLOCK) - 1",
        "at + C.BLOCK) - 1", "one word is stored once a tile", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "count of no lane", CHOSEN, "if not C.VEC_16B:  # the last", "if C.VEC_16B:  # the last",
        "rows without vectors have no count", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "dummy not counted", CHOSEN, "count = tl.maximum(count, 1)", "count = count + 0",
        "a kernel that crashes on empty rows gets one", "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "lost slots not reported", CHOSEN_TILES, "missing = tl.max(bad.to(tl.int32), 0) > 0",
        "missing = tl.max(bad.to(tl.int32), 0) > 1", "a freed slot that is attended to is not noticed",
        "as_defined", CHOSEN_TESTS,
    ),
    Mutation(
        "query tokens of requests that begin later", EXPANDED, "at <= t, first + half, first)",
        "at < t, first + half, first)",
        "a prefill's first token is the request's before it", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "query tokens guessed unchecked", EXPANDED, "is_found = (begin <= t) & (t < end)",
        "is_found = begin <= t",
        "tokens of a prefill have no request", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "query tokens before the first request", EXPANDED, "(begin >= 0) & (begin <= t) & (t < end)",
        "(begin >= 0) & (t < end)",
        "tokens of no request get one", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "query token sees itself not", EXPANDED, "length = tl.maximum(position + 1, 0)",
        "length = tl.maximum(position, 0)",
        "attention leaves the newest token out", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "query tokens before a row", EXPANDED, "value = tl.maximum(position, 0).to",
        "value = position.to",
        "a position of -1 for a table of rotations", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "lengths of query tokens not clipped", EXPANDED,
        "load_int(q.lens_ptr, q.lens_stride, b, live), 0, LENGTH_MAX - 1)",
        "load_int(q.lens_ptr, q.lens_stride, b, live), -9, LENGTH_MAX)",
        "rows longer than attention can index", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "query tokens' lengths of all ranks", EXPANDED, "local_length(tl.where(live, length, 0), q, C)",
        "tl.where(live, length, 0)",
        "a rank attends to what it has not", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "page table of padding tokens", EXPANDED, "mask=live[:, None] & (j < width), other=0",
        "mask=(j < width) & (t < q.num_tokens)[:, None], other=0",
        "padding reads a request's pages", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "page table's last columns", EXPANDED, "width = width // 4 * 4  #",
        "width = width // 8 * 8  #",
        "the last pages of a row are stale", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "requests that are not checked", EXPANDED, "pid * C.BATCH_BLOCK, q.batch, num_programs",
        "pid * C.BATCH_BLOCK, q.batch, 2 * num_programs",
        "a violation without a report", "without_query_tokens", EXPANDED_TESTS,
    ),
    Mutation(
        "requests that end too late", EXPANDED, "end > q.num_tokens, TRUNCATED",
        "end > q.num_tokens + 1, TRUNCATED",
        "query tokens are lost without a report", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "more query tokens than tokens", EXPANDED, "(end - begin > length) & (length > 0)",
        "(end - begin > length + 1) & (length > 0)",
        "positions before the row without a report", "as_defined", EXPANDED_TESTS,
    ),
    Mutation(
        "an extension of another row", EXTENSION,
        "(source == row.source) & ",
        "",
        "another request's pages are kept", "does_not_fit",
        EXTENSION_TESTS,
    ),
    Mutation(
        "an extension of a longer past", EXTENSION,
        " & (past <= row.past)",
        "",
        "a shorter row keeps what may be another's", "does_not_fit",
        EXTENSION_TESTS,
    ),
    Mutation(
        "an extension of a row that no build wrote", EXTENSION,
        "(b < num_rows) & ",
        "",
        "a finished request's pages are kept", "older_build",
        EXTENSION_TESTS,
    ),
    Mutation(
        "an extension keeps its query tokens", ROWS,
        "past = clip(tl.minimum(given_length, length - newest), 0, end)",
        "past = clip(length, 0, end)",
        "slots of rejected drafts are kept", "rejected",
        EXTENSION_TESTS,
    ),
    Mutation(
        "a past with draft tokens", ROWS,
        "tl.minimum(given_length, length - newest)",
        "length - newest",
        "slots of rejected drafts are kept", "equals_a_build or rejected",
        EXTENSION_TESTS,
    ),
    Mutation(
        "a past with query tokens", ROWS,
        "tl.minimum(given_length, length - newest)",
        "given_length",
        "slots of rejected drafts are kept", "rejected",
        EXTENSION_TESTS,
    ),
    Mutation(
        "an extension of a moved window", EXTENSION,
        "        fits = fits & (shown == now_shown)\n",
        "        fits = fits\n",
        "a window's table shows the tokens before it", "equals_a_build",
        EXTENSION_TESTS,
    ),
    Mutation(
        "an extension of an absolute window", EXTENSION,
        "known = tl.where(shown == now_shown, known, tl.minimum(known, changed))",
        "known = known",
        "pages that left the window are still named", "equals_a_build",
        EXTENSION_TESTS,
    ),
    Mutation(
        "a draft's own pages are kept", EXTENSION,
        "        end = tl.minimum(end, row.branch_start)\n",
        "        end = end\n",
        "branches read pages of the step before", "own_pages_move",
        EXTENSION_TESTS,
    ),
    Mutation(
        "last entries that begin too late", EXTENSION,
        "_settled(row.past, row, req, C) - LAST_TOKENS",
        "_settled(row.past, row, req, C) + LAST_TOKENS",
        "entries of other requests in the newest pages", "broken_promise",
        EXTENSION_TESTS,
    ),
    Mutation(
        "more last entries than lanes", EXTENSION,
        "row.items - LAST_ENTRIES)",
        "row.items - LAST_ENTRIES - 1)",
        "a row's last page is never written", "equals_a_build or rejected",
        EXTENSION_TESTS,
    ),
    Mutation(
        "a row that lacks entries is left so", EXTENSION,
        "    lacks = known < first\n",
        "    lacks = known < first - 1\n",
        "an entry is stale", "does_not_fit or equals_a_build",
        EXTENSION_TESTS,
    ),
    Mutation(
        "lacking rows of a program but the first", EXTENSION,
        "is_row = j == n\n",
        "is_row = j == 0\n",
        "rows that do not fit are stale", "does_not_fit",
        EXTENSION_TESTS,
    ),
    Mutation(
        "no program reads the last rows' records", "xkv/launch/grid.py",
        "return 2 * -(-batch // tuning.tiles_per_program) if",
        "return 2 * -(-batch // tuning.tiles_per_program) - 1 if",
        "rows that do not fit are stale", "does_not_fit",
        EXTENSION_TESTS,
    ),
    Mutation(
        "sinks of an extension", EXTENSION,
        "tl.maximum(tl.maximum(entry, row.sink_items), row.items - LAST_ENTRIES)",
        "tl.maximum(entry, row.items - LAST_ENTRIES)",
        "a window's first pages are those of its sinks", "sinks_stay",
        EXTENSION_TESTS,
    ),
    Mutation(
        "padding of an extension", EXTENSION,
        "is_there = (items >= 0) & (items <= end) &",
        "is_there = (items >= 0) &",
        "ids of rejected tokens in the padding", "padding_is",
        EXTENSION_TESTS,
    ),
    Mutation(
        "padding that an extension lacks", EXTENSION,
        "& (padded_end(items, view, policy) >= padding_end)",
        "",
        "the tile behind a row is stale", "padding_is",
        EXTENSION_TESTS,
    ),
    Mutation(
        "records read after they are replaced", EXTENSION,
        "    tl.debug_barrier()  #",
        "    # tl.debug_barrier()  #",
        "a row that does not fit is kept by half of a program's threads", "barrier",
        "tests/kernel/test_compile.py", "compile",
    ),
    Mutation(
        "sums of many requests in an extension", SUMS,
        "if chunk + step < req.batch:",
        "if chunk + 2 * step < req.batch:",
        "sums of a batch's last requests begin too early", "curated and many",
    ),
]  # fmt: skip
