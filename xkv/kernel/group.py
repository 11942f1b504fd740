"""The same kernel for a group: several outputs of one batch, of other sources and forms, in one launch.

A part is one view of one source, and the slots that go with it or none. The parts are the third dimension of
the grid, whose last rows write the slots. What a part has of its own, from its source to its outputs, does
not change from step to step. It is in device memory, PART_FIELDS as int64 words, those of the slots behind
those of the views, so that a launch has few arguments however many parts there are. These words are loaded at
the same time as rows and lengths: no program waits for them alone. Parts that are alike share their code.
"""

import triton
import triton.language as tl

from .args import INT32_MAX, SLOTS, Grid, Policy, Request, View
from .entry import build_view
from .parts import NUM_FIELDS

GROUP_ARGUMENTS = (
    "batch", "rows_stride", "rows_ptr", "lens_ptr", "lens_stride", "delta", "words_ptr", "slot_rows",
    "delta_ptr", "delta_stride", "query_ptr", "query_stride", "query_sign", "query_len",
    "positions_ptr", "positions_stride", "positions_len", "query_start_ptr",
    "start_ptr", "start_stride", "window_start_ptr", "window_start_stride",
)  # fmt: skip


@triton.constexpr_function
def _uses_pdl(parts):
    return parts.views.kinds[0].config.USE_PDL


@triton.constexpr_function
def _num_kinds(runs):
    return len(runs.kinds)


@triton.constexpr_function
def _kind(runs, n):
    return runs.kinds[n]


@triton.constexpr_function
def _begin(runs, n):
    return runs.begins[n]


@triton.constexpr_function
def _end(runs, n):
    return runs.ends[n]


@triton.constexpr_function
def _word_of(kind, name):
    return kind.word(name)


@triton.constexpr_function
def _type_of(kind, name):
    return kind.type(name)


@triton.jit
def _load(words, name: tl.constexpr, K: tl.constexpr):
    """Loads an argument of a part's own: a pointer or an integer."""
    return tl.load(words + _word_of(K, name)).to(_type_of(K, name))


@triton.jit
def _load_window(words, launch, K: tl.constexpr):
    """Returns the tokens that a window shows, which grows with the query tokens."""
    window = _load(words, "window", K)
    if launch.query_len is not None and not K.config.WINDOW_IS_PREFIX_ONLY:
        window += tl.maximum(launch.query_len, 1) - 1
    return window


@triton.jit
def _build_part(grid, words, launch, starts, query_start_ptr, K: tl.constexpr):
    """Writes the view or the slots of a part of kind K.

    ``launch`` is the `Request` of all parts, without what a part has of its own.

    Written out here, as a function of Triton 3.6 cannot return a None.
    """
    C: tl.constexpr = K.config
    AT_POSITIONS: tl.constexpr = C.FORM == SLOTS and launch.positions_ptr is not None
    batch = launch.batch
    if C.TOPK > 0:
        batch *= C.TOPK
    req = Request(
        batch, launch.rows_stride, launch.rows_ptr, launch.lens_ptr, launch.lens_stride, launch.delta,
        _load(words, "src_ptr", K), _load(words, "src_stride", K), _load(words, "src_rows", K),
        _load(words, "src_tokens", K),
        launch.delta_ptr, launch.delta_stride, launch.query_ptr, launch.query_stride, launch.query_sign,
        launch.query_len,
        _load(words, "shard_rank", K) if K.shard_rank else None,
        launch.positions_ptr if AT_POSITIONS else None,
        launch.positions_stride if AT_POSITIONS else None,
        launch.positions_len if AT_POSITIONS else None,
        _load(words, "max_position", K) if K.max_position else None,
        None, None, None, None,
        None if AT_POSITIONS else query_start_ptr,
    )  # fmt: skip
    indptr_ptr = _load(words, "indptr_ptr", K) if K.indptr_ptr else None
    view = View(
        starts[0] if K.start == "start" else starts[2] if K.start == "window_start" else None,
        starts[1] if K.start == "start" else starts[3] if K.start == "window_start" else None,
        _load_window(words, launch, K) if K.window else None,
        _load(words, "token_map_ptr", K) if K.token_map_ptr else None,
        _load(words, "token_map_len", K) if K.token_map_len else None,
        _load(words, "page_map_ptr", K) if K.page_map_ptr else None,
        _load(words, "page_map_len", K) if K.page_map_len else None,
        _load(words, "out_ptr", K), _load(words, "out_stride", K), _load(words, "capacity", K),
        _load(words, "seqlens_ptr", K) if K.seqlens_ptr else None,
        _load(words, "cu_k_ptr", K) if K.cu_k_ptr else None,
        query_start_ptr if AT_POSITIONS else indptr_ptr,
        _load(words, "last_ptr", K) if K.last_ptr else None,
        _load(words, "offset_ptr", K) if K.offset_ptr else None,
        _load(words, "empty_ptr", K) if K.empty_ptr else None,
        _load(words, "record_ptr", K) if K.record_ptr else None,
        _load(words, "cu_q_ptr", K) if K.cu_q_ptr else None,
        _load(words, "query_seqlens_ptr", K) if K.query_seqlens_ptr else None,
        _load(words, "sink", K) if K.sink else None,
        _load(words, "draft_step", K) if K.draft_step else None,
    )  # fmt: skip
    own_tiles = launch.batch * 0 + INT32_MAX
    if C.BALANCE:
        own_tiles = grid.num_y * K.own_tiles
    policy = Policy(
        _load(words, "min_len", K) if K.min_len else None,
        _load(words, "min_last", K) if K.min_last else None,
        _load(words, "pad_multiple", K) if K.pad_multiple else None,
        _load(words, "pad_value", K) if K.pad_value else None,
        _load(words, "missing_id", K),
        _load(words, "report_missing", K) if K.report_missing else None,
        _load(words, "status_ptr", K) if K.status_ptr else None,
        own_tiles,
    )  # fmt: skip
    build_view(grid, req, view, policy, True, C)


# Only the last argument is specialized, as in entry.py.
@triton.jit(do_not_specialize=GROUP_ARGUMENTS)
def xkv_build_group(
    batch: "i32", rows_stride: "i32", rows_ptr, lens_ptr, lens_stride: "i32", delta: "i32", words_ptr,
    slot_rows: "i32",
    # without an annotation, as these may be None
    delta_ptr, delta_stride, query_ptr, query_stride, query_sign, query_len,
    positions_ptr, positions_stride, positions_len, query_start_ptr,
    start_ptr, start_stride, window_start_ptr, window_start_stride, PARTS: tl.constexpr,
):  # fmt: skip
    """Grid: (sums, rows, leftover tiles; programs per row; parts). `launch.group` describes the arguments."""
    if _uses_pdl(PARTS):
        tl.extra.cuda.gdc_wait()  # as in entry.py
        tl.extra.cuda.gdc_launch_dependents()
    launch = Request(
        batch, rows_stride, rows_ptr, lens_ptr, lens_stride, delta, None, None, None, None, delta_ptr,
        delta_stride, query_ptr, query_stride, query_sign, query_len, None, positions_ptr, positions_stride,
        positions_len, None, None, None, None, None, None,
    )  # fmt: skip
    VIEWS: tl.constexpr = PARTS.views
    SLOT_VIEWS: tl.constexpr = PARTS.slots
    starts = (start_ptr, start_stride, window_start_ptr, window_start_stride)
    part = tl.program_id(2)
    words = words_ptr + part * NUM_FIELDS
    x, y, num_y = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    view_rows = tl.num_programs(0) - slot_rows
    if x < view_rows:
        grid = Grid(x, y, view_rows, num_y)
        for n in tl.static_range(_num_kinds(VIEWS)):
            if (part >= _begin(VIEWS, n)) & (part < _end(VIEWS, n)):
                _build_part(grid, words, launch, starts, query_start_ptr, _kind(VIEWS, n))
    else:
        grid = Grid(x - view_rows, y, slot_rows, num_y)
        words += tl.num_programs(2) * NUM_FIELDS
        for n in tl.static_range(_num_kinds(SLOT_VIEWS)):
            if (part >= _begin(SLOT_VIEWS, n)) & (part < _end(SLOT_VIEWS, n)):
                _build_part(grid, words, launch, starts, query_start_ptr, _kind(SLOT_VIEWS, n))
