"""How many inputs a call of the network should bring, found by trying."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import torch

# A batch must be this much faster an image than a smaller one to be worth its memory and delay.
_WORTHWHILE_GAIN = 1.05
_RUNS = 3
# A batch that takes long is not run again and again: what disturbs a run is short beside it, and a
# worker that starts does no other work meanwhile.
_PATIENCE_SECONDS = 1.0


def fastest_batch_size(run: Callable[[int], object], sizes: Sequence[int]) -> int:
    """The batch with the best time an image; `run(n)` runs one of n inputs.

    Sizes are tried in their order until one does not pay any more, or until the memory does not
    suffice for it; an only one is run once and taken. The first run of each pays for what is set up
    once, and of the others, three or as many as begin within a second, the best counts: a moment in
    which the machine was busy must not decide.
    """
    best_size, best_seconds = sizes[0], float("inf")
    if len(sizes) == 1:
        with contextlib.suppress(torch.OutOfMemoryError):  # it will be halved when it is needed
            run(best_size)
        return best_size
    for size in sizes:
        try:
            run(size)
            seconds = _best_seconds_of(run, size) / size
        except torch.OutOfMemoryError:
            break
        if seconds * _WORTHWHILE_GAIN > best_seconds:
            break
        best_size, best_seconds = size, seconds
    return best_size


def _best_seconds_of(run: Callable[[int], object], size: int) -> float:
    best_seconds, spent_seconds = float("inf"), 0.0
    for _ in range(_RUNS):
        start = time.perf_counter()
        run(size)
        seconds = time.perf_counter() - start
        best_seconds = min(best_seconds, seconds)
        spent_seconds += seconds
        if spent_seconds > _PATIENCE_SECONDS:
            break
    return best_seconds
