"""Tuning rows of gfx942 (MI300) and gfx950 (MI350).

Derived from sm90's rows, not measured. Tiles are as large as registers allow: a mask takes a pair of scalar
registers per item of a lane, of about 100. Wavefronts are twice as wide as warps, so that a small tile needs
half as many. There are 304 (MI300X) or 256 (MI355X) compute units instead of sm90's 132, so each gets half
the programs. Where counting instructions, bytes and waves separates rows by 5 % and more on either arch, and
orders sm90's rows as they were measured, the row is one that it prefers: ci/model.py, docs/counting.md.
"""

from ..platforms.tuning import ChosenTuning, Tuning

_REASONED = "untuned, compile-checked; reasoned from sm90's row by wavefront width and compute units"
_MODELLED = "untuned, compile-checked; modelled: ci/model.py, at most {} of the best, the row before {}"

_CDNA = (
    Tuning("strided_far", 16, 256, 2, 1, 2, 1, 256, 1, 2, 16, False, _REASONED),
    Tuning("strided_far", None, 256, 2, 4, 4, 2, 256, 1, 2, 256, False, _REASONED),
    Tuning("strided_near", 16, 256, 2, 1, 2, 1, 256, 1, 2, 16, False, _REASONED),
    Tuning("strided_near", None, 512, 4, 4, 4, 2, 512, 1, 2, 256, False, _REASONED),
    Tuning("contiguous", 16, 2048, 8, 1, 2, 1, 2048, 1, 2, 16, False, _REASONED),
    Tuning("contiguous", None, 2048, 8, 4, 4, 2, 2048, 1, 2, 256, False, _REASONED),
    Tuning("ragged", 16, 2048, 8, 1, 2, 1, 2048, 2, 2, 16, False, _REASONED),
    Tuning("ragged", None, 2048, 8, 4, 4, 2, 2048, 1, 2, 256, False, _MODELLED.format("1.04", "1.10")),
    Tuning("expand", 16, 2048, 8, 1, 2, 1, 2048, 2, 2, 16, False, _REASONED),
    Tuning("expand", None, 2048, 8, 4, 4, 2, 2048, 1, 2, 256, False, _MODELLED.format("1.04", "1.10")),
    Tuning("mapped", 16, 256, 2, 1, 2, 1, 256, 1, 2, 16, False, _REASONED),
    Tuning("mapped", None, 512, 4, 4, 4, 2, 512, 1, 2, 256, False, _REASONED),
    Tuning("query_tokens", None, 128, 2, 2, 1, 2, 128, 1, 2, 256, False, _REASONED),
    Tuning("extension", None, 512, 4, 1, 4, 1, 512, 1, 1, 256, False, _REASONED),
)

TUNING = {"gfx942": _CDNA, "gfx950": _CDNA}

_CDNA_CHOSEN = (
    ChosenTuning(16, False, 256, 2, 2, 1, False, 256, False, _REASONED),
    ChosenTuning(None, False, 1024, 4, 2, 1, True, 256, False, _REASONED),
    ChosenTuning(None, True, 2048, 8, 2, 4, True, 256, False, _REASONED),
)
CHOSEN = {"gfx942": _CDNA_CHOSEN, "gfx950": _CDNA_CHOSEN}

DEFAULT_ARCH = "gfx942"


def family(arch: str) -> str | None:
    """Returns the arch whose rows serve others of its family, or None: "gfx940" -> "gfx942"."""
    return {"gfx94": "gfx942", "gfx95": "gfx950"}.get(arch[:5])
