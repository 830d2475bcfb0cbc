"""Batches in an order that the seed decides: batch n is the same however the run came to it."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from inference.training.augment import Mix, Sample, draw_sample
from inference.training.data import Sources

_AHEAD = 3


@dataclass(frozen=True)
class BatchPlan:
    """Sides of crops in pixels with the number of crops, taken in turn."""

    sizes: tuple[tuple[int, int], ...] = ((320, 16), (320, 16), (320, 16), (576, 5))
    mix: Mix = field(default_factory=Mix)
    # Of each batch's crops, the share that comes at twice the size, too: the first ones.
    detailed_share: float = 0.0


def make_batch(sources: Sources, plan: BatchPlan, seed: int, step: int) -> dict[str, Any]:
    """Batch number `step` as Ultralytics' loss takes it.

    `img` uint8 (n, 3, size, size), `batch_idx` (m,), `cls` (m, 1), `bboxes` (m, 4) as centre and
    size relative to the crop, and `detailed` uint8 (k, 3, 2 size, 2 size) of the first k crops or
    None.
    """
    size, count = plan.sizes[step % len(plan.sizes)]
    detailed_count = math.ceil(plan.detailed_share * count)
    samples = [
        draw_sample(
            np.random.default_rng((seed, step, position)),
            sources,
            size,
            plan.mix,
            detailed=position < detailed_count,
        )
        for position in range(count)
    ]
    return _collated(samples, size)


def iter_batches(
    sources: Sources, plan: BatchPlan, seed: int, start: int, stop: int
) -> Generator[dict[str, Any]]:
    """Batches `start` to `stop - 1`, made ahead by one thread while the network works."""
    made: queue.Queue[Any] = queue.Queue(_AHEAD)
    ended = threading.Event()

    def work() -> None:
        for step in range(start, stop):
            try:
                item: Any = make_batch(sources, plan, seed, step)
            except Exception as error:  # raised again where the batch is awaited
                item = error
            while not ended.is_set():
                try:
                    made.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if ended.is_set() or isinstance(item, Exception):
                return

    worker = threading.Thread(target=work, name="batches", daemon=True)
    worker.start()
    try:
        for _ in range(start, stop):
            item = made.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        ended.set()
        worker.join()


def _collated(samples: list[Sample], size: int) -> dict[str, Any]:
    owners = [np.full(len(s.boxes_xyxy), index) for index, s in enumerate(samples)]
    boxes = np.concatenate([s.boxes_xyxy for s in samples]) / size
    relative = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
    classes = np.concatenate([s.class_ids for s in samples])
    detailed = [s.detailed for s in samples if s.detailed is not None]
    return {
        "img": _stacked([s.image for s in samples]),
        "batch_idx": torch.from_numpy(np.concatenate(owners)).float(),
        "cls": torch.from_numpy(classes).float().view(-1, 1),
        "bboxes": torch.from_numpy(relative).float(),
        "detailed": _stacked(detailed) if detailed else None,
    }


def _stacked(images: list[Any]) -> torch.Tensor:
    # NHWC seen as NCHW is exactly channels_last.
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
