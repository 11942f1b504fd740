"""The requests: token ids from a seed, the same for every engine and every round."""

from __future__ import annotations

import random

from serve.models import VOCABULARY

REQUESTS, NEW_TOKENS = 64, 128
_LONGEST, _SHARED, _SHORT = 3000, 700, 96


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, VOCABULARY) for _ in range(count)]


def mixed() -> list[list[int]]:
    """Returns prompts of 1 to about 3000 tokens: a third share a prefix, some take many chunks."""
    rng = random.Random(11)
    prefix = _ids(rng, _SHARED)
    prompts = []
    for n in range(REQUESTS):
        if n % 3 == 0:
            prompts.append(prefix + _ids(rng, rng.randrange(1, 400)))
        elif n % 7 == 1:
            prompts.append(_ids(rng, rng.randrange(_LONGEST // 2, _LONGEST)))
        else:
            prompts.append(_ids(rng, rng.randrange(1, _LONGEST // 5)))
    return prompts


def steady() -> list[list[int]]:
    """Returns prompts of equal length: after a few steps, every step is a full batch of decodes."""
    rng = random.Random(5)
    return [_ids(rng, _SHORT) for _ in range(REQUESTS)]
