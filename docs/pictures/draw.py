"""Draws the pictures of the README and the pages: `python docs/pictures/draw.py` writes the SVG files here.

Each picture has a background of its own and follows the reader's light or dark mode. What it shows is
computed here by the rules of the pages, and compared with xkv's own results by tests/ci/test_pictures.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.code { font: 12px ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace }
.head { font-size: 15px; font-weight: 600 }
.dim { fill: #59636e }
.mid { text-anchor: middle }
.end { text-anchor: end }
.back { fill: #ffffff; stroke: #d1d9e0 }
.box { fill: #f6f8fa; stroke: #818b98 }
.none { fill: none; stroke: #818b98; stroke-dasharray: 3 2 }
.a { fill: #b6d7ff; stroke: #0969da }
.b { fill: #ffd8a8; stroke: #bc4c00 }
.c { fill: #c4e9c8; stroke: #1a7f37 }
.line { fill: none; stroke: #59636e; stroke-width: 1.5 }
.tip { fill: #59636e }
"""
DARK = """
text { fill: #e6edf3 }
.dim { fill: #9198a1 }
.back { fill: #0d1117; stroke: #3d444d }
.box { fill: #212830; stroke: #768390 }
.none { stroke: #768390 }
.a { fill: #12407a; stroke: #4493f8 }
.b { fill: #70350b; stroke: #db6d28 }
.c { fill: #175428; stroke: #3fb950 }
.line { stroke: #9198a1 }
.tip { fill: #9198a1 }
"""


def escaped(text: object) -> str:
    """Escapes text for XML."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Picture:
    """Builds an SVG file."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" role="img">',
            f"<title>{escaped(title)}</title>",
            f"<style>{STYLE}@media (prefers-color-scheme: dark) {{{DARK}}}</style>",
            f'<rect class="back" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        ]

    def text(self, x: float, y: float, text: object, kind: str = "") -> None:
        """Writes text; y is its baseline."""
        self.parts.append(f'<text class="{kind}" x="{x}" y="{y}">{escaped(text)}</text>')

    def heading(self, x: float, y: float, head: str, note: str = "") -> None:
        """Writes a heading and a note after it."""
        spans = [f'<tspan class="head">{escaped(head)}</tspan>']
        if note:
            spans.append(f'<tspan class="dim" dx="10">{escaped(note)}</tspan>')
        self.parts.append(f'<text x="{x}" y="{y}">{"".join(spans)}</text>')

    def box(
        self, x: float, y: float, width: float, height: float, kind: str = "box", text: object = ""
    ) -> None:
        """Draws a box with centred text of one or more lines."""
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="3"/>')
        lines = str(text).split("\n") if text != "" else []
        for n, line in enumerate(lines):
            at = y + height / 2 + 4.5 + 16 * (n - (len(lines) - 1) / 2)
            self.text(x + width / 2, at, line, "code mid" if width < 60 else "mid")

    def cells(self, x: float, y: float, width: float, height: float, cells: list[tuple[object, str]]) -> None:
        """Draws boxes side by side, from (text, kind) pairs."""
        for n, (text, kind) in enumerate(cells):
            self.box(x + n * width, y, width, height, kind, text)

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draws a line through the points, with a tip at the last; the last segment is level or upright."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(f'<polyline class="line" points="{path}"/>')
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        tip = [(x, y), (x - 9 * dx - 5 * dy, y - 9 * dy - 5 * dx), (x - 9 * dx + 5 * dy, y - 9 * dy + 5 * dx)]
        self.parts.append('<polygon class="tip" points="{}"/>'.format(" ".join(f"{x},{y}" for x, y in tip)))

    def brace(self, x0: float, x1: float, y: float, text: str, kind: str = "dim") -> None:
        """Draws a bracket under a range, with text below it."""
        self.parts.append(f'<path class="line" d="M{x0} {y}v6H{x1}v-6"/>')
        self.text((x0 + x1) / 2, y + 22, text, f"{kind} mid")

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>\n"])


# The example of the README: two requests, one in each row.
REQ_TO_TOKEN = [[8, 9, 10, 11, 4, 5, 6, 7], [16, 17, 18, 19, 0, 1, 2, 3]]
ROWS, LENS, PAGE = [1, 0], [7, 3], 4
KINDS = ["a", "b"]  # of the first request and of the second


def tables() -> dict[str, list[list[int]]]:
    """The outputs for the batch, as the README's picture shows them."""
    pages = [
        [REQ_TO_TOKEN[row][t] // PAGE for t in range(0, n, PAGE)] for row, n in zip(ROWS, LENS, strict=True)
    ]
    indptr = [sum(map(len, pages[:b])) for b in range(len(pages) + 1)]
    return {
        "pages": pages,
        "kv_indptr": [indptr],
        "kv_last_page_len": [[(n - 1) % PAGE + 1 for n in LENS]],
        "slots": [[REQ_TO_TOKEN[row][n - 1] for row, n in zip(ROWS, LENS, strict=True)]],
    }


def overview() -> Picture:
    """Draws req_to_token -> page table, CSR, slots."""
    made = tables()
    draw = Picture(860, 330, "One launch turns req_to_token into a page table, CSR indices and slots")
    draw.heading(20, 34, "req_to_token", "the cache slot of every token")
    for r, row in enumerate(REQ_TO_TOKEN):
        y, request = 50 + 38 * r, ROWS.index(r)
        draw.text(20, y + 20, f"row {r}", "dim")
        cells: list[tuple[object, str]] = [
            (slot, KINDS[request] if t < LENS[request] else "none") for t, slot in enumerate(row)
        ]
        draw.cells(62, y, 34, 30, cells)
    draw.text(62, 146, "dashed: no token yet, or a stale one", "dim")
    draw.heading(20, 196, "the batch")
    for b, (row, n) in enumerate(zip(ROWS, LENS, strict=True)):
        y = 210 + 34 * b
        draw.box(20, y, 26, 26, KINDS[b], b)
        draw.text(56, y + 18, f"req_pool_indices {row},  seq_lens {n}", "code")
    draw.text(20, 304, f"page size {PAGE}: page = slot // {PAGE}", "dim")
    draw.box(366, 130, 104, 60, "c", "xkv\none launch")
    draw.arrow((338, 105), (350, 105), (350, 152), (366, 152))
    draw.arrow((280, 230), (350, 230), (350, 168), (366, 168))
    draw.arrow((470, 148), (490, 148), (490, 72), (516, 72))
    draw.arrow((470, 160), (516, 160))
    draw.arrow((470, 172), (490, 172), (490, 290), (516, 290))
    draw.heading(526, 34, "page table", "FlashAttention, FlashMLA, TRTLLM")
    for b, pages in enumerate(made["pages"]):
        row_cells: list[tuple[object, str]] = [(page, KINDS[b]) for page in pages]
        row_cells += [("", "none")] * (2 - len(pages))
        draw.cells(526, 46 + 28 * b, 34, 26, row_cells)
    draw.heading(526, 134, "CSR", "FlashInfer, Aiter, Triton")
    flat = [(page, KINDS[b]) for b, pages in enumerate(made["pages"]) for page in pages]
    for n, (name, cells) in enumerate(
        [
            ("kv_indptr", [(x, "box") for x in made["kv_indptr"][0]]),
            ("kv_indices", flat),
            ("kv_last_page_len", list(zip(made["kv_last_page_len"][0], KINDS, strict=True))),
        ]
    ):
        draw.text(526, 164 + 32 * n, name, "code")
        draw.cells(654, 146 + 32 * n, 34, 26, [*cells])
    draw.heading(526, 268, "slots", "where each new token is written")
    draw.text(526, 298, "slot_mapping", "code")
    draw.cells(654, 280, 34, 26, [*zip(made["slots"][0], KINDS, strict=True)])
    return draw


# The token range of the row in the second picture.
START, LENGTH = 5, 11


def shown() -> dict[str, int]:
    """The lengths of the row in the second picture."""
    first = START // PAGE * PAGE
    return {
        "pages": (LENGTH - 1) // PAGE + 1 - START // PAGE,
        "kv_start_offset": START - first,
        "cache_seqlens": LENGTH - first,
        "kv_last_page_len": (LENGTH - 1) % PAGE + 1,
    }


def concepts() -> Picture:
    """The cache in slots and pages; one row and the tokens that a view of it covers."""
    draw = Picture(860, 480, "Slots, pages, and the tokens of a row that a view covers")
    draw.heading(
        20,
        32,
        "the KV cache",
        f"a slot holds one token; {PAGE} slots are a page; a request's pages may be anywhere",
    )
    owner = {
        REQ_TO_TOKEN[row][t]: (t, KINDS[b])
        for b, (row, n) in enumerate(zip(ROWS, LENS, strict=True))
        for t in range(n)
    }
    for page in range(5):
        x = 20 + 164 * page
        draw.text(x + 72, 62, f"page {page}", "dim mid")
        for k in range(PAGE):
            token = owner.get(page * PAGE + k)
            text, kind = ("", "none") if token is None else (f"t{token[0]}", token[1])
            draw.box(x + 36 * k, 70, 36, 34, kind, text)
            draw.text(x + 36 * k + 18, 120, page * PAGE + k, "code dim mid")
    draw.text(20, 146, "slot", "dim")
    draw.box(62, 134, 16, 16, "a")
    draw.text(84, 147, "request 0, 7 tokens in pages 4 and 0", "dim")
    draw.box(350, 134, 16, 16, "b")
    draw.text(372, 147, "request 1, 3 tokens in page 2", "dim")

    draw.heading(
        20,
        202,
        "one row of the table",
        f"seq_lens {LENGTH}, kv_start {START}, page size {PAGE}: the tokens [{START}, {LENGTH})",
    )
    step, left = 50, 40
    for t in range(16):
        first = START // PAGE * PAGE
        kind = "a" if START <= t < LENGTH else "box" if first <= t < START else "none"
        draw.box(left + step * t, 222, step, 34, kind, f"t{t}")
    for page in range(4):
        x = left + step * PAGE * page
        live = START // PAGE <= page <= (LENGTH - 1) // PAGE
        draw.box(x + 4, 264, step * PAGE - 8, 28, "box" if live else "none", f"page {page} of the row")
    at = lambda token: left + step * token  # noqa: E731
    told = shown()
    draw.brace(at(4), at(5), 304, f"kv_start_offset {told['kv_start_offset']}")
    draw.brace(at(8), at(11), 304, f"kv_last_page_len {told['kv_last_page_len']}")
    draw.brace(
        at(4), at(11), 344, f"cache_seqlens {told['cache_seqlens']}: from the first page's first token"
    )
    draw.text(
        left, 408, f"The output has {told['pages']} entries for this row: the ids of its pages 1 and 2."
    )
    draw.text(
        left, 430, "Token 4 is in page 1 but not in the range: a reader skips kv_start_offset tokens.", "dim"
    )
    draw.text(left, 452, "Tokens 11 to 15 do not exist: the table's entries for them are not used.", "dim")
    return draw


# The third picture: tiles of each row, the programs of each, its own tiles, and programs for leftover tiles.
TILES, PER_ROW, OWN, LEFTOVER = [2, 18, 1, 6], 2, 2, 10


def partition() -> list[list[int]]:
    """Returns what writes each tile of each row: the number of a row's program, then of a leftover one."""
    left = sum(max(tiles - OWN, 0) for tiles in TILES)
    each, odd = divmod(left, LEFTOVER)
    ends = [(p + 1) * each + min(p + 1, odd) for p in range(LEFTOVER)]
    dealt, writers = 0, []
    for b, tiles in enumerate(TILES):
        writers.append([b * PER_ROW + tile % PER_ROW for tile in range(min(tiles, OWN))])
        for _ in range(tiles - OWN):
            writers[-1].append(next(p for p in range(LEFTOVER) if dealt < ends[p]))
            dealt += 1
    return writers


def tiles() -> Picture:
    """Draws how tiles are distributed over programs."""
    draw = Picture(860, 252, "How the tiles of a batch are distributed over the programs of one launch")
    draw.box(20, 18, 20, 18, "a")
    note = f"each row has {PER_ROW} programs P, which write its first {OWN} tiles"
    draw.heading(50, 32, "own tiles", note)
    draw.box(20, 46, 20, 18, "b")
    note = f"{LEFTOVER} programs L without a row: each takes a contiguous range of what longer rows have left"
    draw.heading(50, 60, "leftover tiles", note)
    for b, writers in enumerate(partition()):
        y = 84 + 34 * b
        draw.text(20, y + 19, f"row {b}", "dim")
        draw.cells(
            70, y, 42, 28,
            [(f"P{p}", "a") if tile < OWN else (f"L{p}", "b") for tile, p in enumerate(writers)],
        )  # fmt: skip
    note = "Two more programs, the first of the grid, write lengths, prefix sums and the status word."
    draw.text(20, 238, note, "dim")
    return draw


def host() -> Picture:
    """Draws what a launch does on the host."""
    draw = Picture(860, 440, "The path of a launch on the host")
    draw.heading(30, 36, "every call")
    draw.heading(330, 36, "the first call of a signature")
    draw.heading(620, 36, "what is not cached")
    fast = [
        "guard: type, dtype, rank,\ninner stride, device",
        "sizes and overlap\nchecked",
        "launch cache: grid and\nkernel for these sizes",
        "pointers and sizes written\ninto the recorded call",
    ]
    slow = [
        "arguments checked in Python,\nerrors name the argument",
        "tuning row and grid for arch,\naccess pattern, batch size",
        "compiled by Triton and loaded\n(or already by warmup)",
        "Triton's call of its\nlauncher recorded once",
    ]
    for n, (left, right) in enumerate(zip(fast, slow, strict=True)):
        y = 54 + 78 * n
        draw.box(30, y, 220, 54, "a", left)
        draw.box(330, y, 220, 54, "b", right)
        if n:
            draw.arrow((140, y - 24), (140, y))
            draw.arrow((440, y - 24), (440, y))
    draw.arrow((250, 81), (330, 81))
    draw.text(290, 74, "refused", "dim mid")
    draw.arrow((330, 315), (292, 315), (292, 237), (250, 237))
    draw.text(298, 276, "kept", "dim")
    draw.box(30, 374, 220, 44, "c", "the driver's launcher")
    draw.arrow((140, 342), (140, 374))
    draw.box(620, 54, 210, 54, "box", "CPU tensors:\nthe torch reference")
    draw.box(620, 132, 210, 54, "box", "torch.compile:\none node in the graph")
    draw.box(620, 210, 210, 54, "box", "a launch hook, a debug knob,\nan unknown Triton")
    for y in (81, 159, 237):
        draw.arrow((550, 81), (585, 81), (585, y), (620, y))
    draw.arrow((725, 264), (725, 374))
    draw.box(620, 374, 210, 44, "box", "Triton's own JITFunction.run")
    draw.arrow((620, 396), (250, 396))
    return draw


PICTURES = {"overview": overview, "concepts": concepts, "tiles": tiles, "host": host}


def drawn() -> Iterator[tuple[Path, str]]:
    """Yields each file and its text."""
    for name, picture in PICTURES.items():
        yield HERE / f"{name}.svg", str(picture())


if __name__ == "__main__":
    for path, text in drawn():
        path.write_text(text)
