"""What the processor of this machine is good at, asked and measured once a process."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

# x86 names of AVX-512 and AMX, and the ARM name.
_BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
_CHANNELS = 128
_SIDE = 80
_ROUNDS = 6
# Of the time in fp32. Where bf16 gains it takes half or less, where it does not at least as much.
_LARGEST_SHARE = 0.8


@functools.cache
def gains_by_bf16() -> bool:
    """Whether this CPU convolves faster in bf16 than in fp32.

    Instructions alone do not tell. AMX and Zen 4 take a quarter and half of the time; an Intel
    processor with AVX-512's bf16 but no AMX took 1.65 times as long as in fp32. So where there are
    instructions both are timed, in turn because a machine's speed varies: 0.14 s, once.
    """
    if not _BF16_INSTRUCTIONS & _instructions():
        return False
    times_s = _times_of_convolutions(torch.float32, torch.bfloat16)
    return times_s[torch.bfloat16] < _LARGEST_SHARE * times_s[torch.float32]


def _instructions() -> set[str]:
    if platform.system() != "Linux":
        return set()
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def _times_of_convolutions(*types: torch.dtype) -> dict[torch.dtype, float]:
    """The shortest time in seconds of a convolution like those of the network, of each type."""
    convolutions = {one: _convolution(one) for one in types}
    times_s = dict.fromkeys(types, float("inf"))
    for _ in range(_ROUNDS):
        for one, convolve in convolutions.items():
            started = time.perf_counter()
            convolve()
            times_s[one] = min(times_s[one], time.perf_counter() - started)
    return times_s


def _convolution(dtype: torch.dtype) -> Callable[[], object]:
    how = {"dtype": dtype, "memory_format": torch.channels_last}
    maps = torch.zeros(1, _CHANNELS, _SIDE, _SIDE).to(**how)
    weights = torch.zeros(_CHANNELS, _CHANNELS, 3, 3).to(**how)

    @torch.inference_mode()
    def convolve() -> object:
        return functional.conv2d(maps, weights, padding=1)

    return convolve
