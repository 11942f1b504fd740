"""Takes out of Triton's interpreter what it does again and again without effect: more than half of its time.

Nothing that a kernel computes changes, and no check is lost:

* Each call of one jit function by another patches ``triton.language`` again, by some 500 attributes. Within a
  launch it is patched already.
* Each addition, subtraction and product of int32 is computed a second time in int64 to find overflows, for an
  assertion that the interpreter leaves out (its option ``debug`` is off).
* Each value looks its dtype up in a table that is made for it alone.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

POINTER = np.dtype(np.uint64)


def install() -> None:
    """Speeds the interpreter up, for good."""
    patch = interpreter._patch_lang

    def patch_once(fn: Any) -> Any:
        languages = [x for x in fn.__globals__.values() if x is tl or x is tl.core]
        # a patched language prints with Python's own function
        patched = tl.static_print is print and all(x.static_print is print for x in languages)
        return interpreter._LangPatchScope() if patched else patch(fn)

    interpreter._patch_lang = patch_once
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    table = functools.cache(interpreter._get_np_dtype)

    def np_dtype(dtype: Any) -> Any:
        element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        return POINTER if isinstance(element, tl.pointer_type) else table(element)  # a pointer's has no hash

    interpreter._get_np_dtype = np_dtype
