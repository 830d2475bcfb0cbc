"""Which worker process gets which accelerator, and how many cores of the machine."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

_NVIDIA_NODE = re.compile(r"nvidia\d+")


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """The NVIDIA GPUs that this machine's workers may use, as CUDA_VISIBLE_DEVICES names them.

    What the environment names already counts; else the device nodes that the driver makes.
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in {"", "-1"}]
    count = sum(1 for node in devices.glob("nvidia*") if _NVIDIA_NODE.fullmatch(node.name))
    return [str(index) for index in range(count)]


def worker_environment(
    environment: Mapping[str, str], *, index: int, worker_count: int, gpus: list[str]
) -> dict[str, str]:
    """What tells worker `index` (from 0) of `worker_count` which GPU or how many cores are its own.

    Workers take GPUs in turns, one each. Without one the cores are divided, because each network
    would otherwise start a thread for every core; OD_TORCH_THREADS says otherwise.
    """
    if gpus:
        return {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}
    if worker_count > 1 and environment.get("OD_TORCH_THREADS", "0") in {"", "0"}:
        cores = len(os.sched_getaffinity(0))
        return {"OD_TORCH_THREADS": str(max(1, cores // worker_count))}
    return {}
