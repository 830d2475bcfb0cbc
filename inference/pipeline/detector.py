"""Finds objects in images: parts are batched across images, run in lanes, merged per image."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from inference.pipeline.heads import MAX_CANDIDATES, Candidates
from inference.pipeline.layout import View
from inference.pipeline.letterbox import Letterbox, clipped, has_area
from inference.pipeline.merge import are_fragments, merge
from inference.pipeline.options import DetectionOptions, FieldFault, OptionsError
from inference.pipeline.tiles import Part, plan
from inference.pipeline.types import Detections, Image

if TYPE_CHECKING:
    from inference.pipeline.network import Network

Item = TypeVar("Item")

HELD_BYTES = 512 * 1024**2
"""Of images that wait for results; one image may be larger than that."""
# A graphics card's batches are larger, and so is the memory beside it.
_HELD_BYTES_BESIDE_A_CARD = 3 * 1024**3


class Detector(Protocol):
    """Finds objects in images; tests pass a fake, the workers a `YoloDetector`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names behind the class ids, in their order."""

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One `Detections` per image, in order.

        `images`: RGB uint8 of any sizes, also mixed; boxes come back in the pixels of each.
        """

    def stream(
        self,
        items: Iterable[Item],
        image_of: Callable[[Item], Image | None],
        *,
        on_progress: Callable[[], None] = lambda: None,
    ) -> Generator[tuple[Item, Detections], None, None]:
        """Each item with what its image shows, in order, while later ones are under way.

        An item without an image shows nothing. Closing the iterator ends the work. What `items`
        raises passes through. `on_progress` is called when a part of the work is done, often
        within a large image; what it raises ends the work.
        """


class YoloDetector:
    """A network and the options of a detection; cheap to make, networks are shared."""

    def __init__(self, network: Network, options: DetectionOptions) -> None:
        """Raises OptionsError for class names that the network does not know."""
        self.network = network
        self.options = options
        self._wanted_ids = _class_ids(network.class_names, options.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names behind the class ids, in their order."""
        return self.network.class_names

    @property
    def sha256(self) -> str:
        """Of the weights."""
        return self.network.sha256

    @property
    def device(self) -> str:
        """Where the network runs."""
        return self.network.device

    @property
    def precision(self) -> str:
        """Of the network's arithmetic."""
        return self.network.precision

    @property
    def image_size(self) -> int:
        """The longer side of the network's input in pixels."""
        return self.options.image_size

    def warm_up(self, size_wh: tuple[int, int] | None = None) -> None:
        """Lets the network measure its best batch, for images of this size or square ones."""
        size = size_wh or (self.image_size, self.image_size)
        self.network.tune(Letterbox.fit(size, self.image_size).input_wh)

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """See `Detector`. Raises PipelineError (`out_of_memory`)."""
        return [found for _, found in self.stream(images, lambda image: image)]

    def stream(
        self,
        items: Iterable[Item],
        image_of: Callable[[Item], Image | None],
        *,
        on_progress: Callable[[], None] = lambda: None,
    ) -> Generator[tuple[Item, Detections], None, None]:
        """See `Detector`. Raises PipelineError (`out_of_memory`).

        Parts whose input has the same size share batches, across images; at most some
        HELD_BYTES of images are held.
        """
        pool = ThreadPoolExecutor(self.network.lanes, thread_name_prefix="lane")
        try:
            work: _Assembly[Item] = _Assembly(self, pool, on_progress)
            for item in items:
                work.add(item, image_of(item))
                del item
                yield from work.finished()
            work.drain()
            yield from work.finished()
        finally:
            pool.shutdown(cancel_futures=True)

    def placed(self, part: Part, found: Candidates, *, is_tiled: bool) -> Candidates:
        """Candidates of a part as boxes on the image, as far as the part is the one to tell.

        Where the part is the whole image they may reach beyond it.
        """
        if self._wanted_ids is not None:
            found = found.chosen(np.isin(found.class_ids, self._wanted_ids))
        boxes = part.letterbox.to_image(found.boxes_xyxy)
        if not is_tiled:
            return found._replace(boxes_xyxy=boxes, is_cut=np.zeros(len(boxes), np.bool_))
        boxes = clipped(boxes, part.letterbox.size_wh)
        boxes += np.array([*part.left_top, *part.left_top], np.float32)
        # What lies wholly in the grey margin has no area left on the image.
        kept = has_area(boxes) & part.counts(boxes)
        placed = found._replace(boxes_xyxy=boxes, is_cut=part.cuts(boxes))
        return placed.chosen(kept)

    def merged(self, found: Candidates, *, size_wh: tuple[int, int], is_tiled: bool) -> Detections:
        """One box per object, from the placed candidates of all parts of an image.

        Without tiles boxes are clipped to the image after they have suppressed each other, as by
        Ultralytics: cut off at the border they would overlap more than they do.
        """
        one_class = self.options.one_class_per_object
        if is_tiled:
            found = found.chosen(~are_fragments(*found, one_class_per_object=one_class))
        keep, merged_xyxy = merge(
            found.class_ids,
            found.confidences,
            found.boxes_xyxy,
            rule=self.options.applied_rule(is_tiled=is_tiled),
            metric=self.options.metric,
            iou=self.options.iou,
            max_detections=self.options.max_detections,
            one_class_per_object=one_class,
        )
        class_ids, confidences = found.class_ids[keep].astype(np.int16), found.confidences[keep]
        boxes = clipped(merged_xyxy, size_wh)
        seen = has_area(boxes)
        return Detections(class_ids[seen], confidences[seen], boxes[seen])


_NOTHING: Image = np.zeros((0, 0, 3), np.uint8)


@dataclass(eq=False)
class _Slot(Generic[Item]):
    """An image under way."""

    item: Item
    image: Image
    parts: list[Part]
    settled_count: int = 0
    found: Candidates = field(default_factory=Candidates.none)
    _behind: list[Candidates] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return self.settled_count == len(self.parts)

    @property
    def is_tiled(self) -> bool:
        return len(self.parts) > 1

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[0]

    def settle(self, placed: Candidates) -> None:
        """Takes what a part shows. Only the best of all parts are kept: there may be 1,000."""
        self.settled_count += 1
        self._behind.append(placed)
        if self.is_finished or sum(len(one.confidences) for one in self._behind) > MAX_CANDIDATES:
            self.found = Candidates.joined([self.found, *self._behind]).best(MAX_CANDIDATES)
            self._behind.clear()


class _Assembly(Generic[Item]):
    """Collects parts into batches, keeps the lanes busy and hands images back in order."""

    def __init__(
        self, detector: YoloDetector, pool: ThreadPoolExecutor, on_progress: Callable[[], None]
    ) -> None:
        self._detector = detector
        self._on_progress = on_progress
        self._network = detector.network
        self._pool = pool
        self._slots: deque[_Slot[Item]] = deque()
        on_cpu = self._network.device == "cpu"
        self._most_held_bytes = HELD_BYTES if on_cpu else _HELD_BYTES_BESIDE_A_CARD
        self._held_bytes = 0
        self._waiting: dict[tuple[int, int], list[tuple[_Slot[Item], int]]] = {}
        self._running: deque[tuple[Future[list[Candidates]], list[tuple[_Slot[Item], int]]]] = (
            deque()
        )

    def add(self, item: Item, image: Image | None) -> None:
        """Takes an image in; may wait for the lanes."""
        if image is None:
            image = _NOTHING
        slot = _Slot(item, image, [])
        if image.size:
            slot.parts = plan(slot.size_wh, self._detector.options)
        self._slots.append(slot)
        self._held_bytes += image.nbytes
        for position, part in enumerate(slot.parts):
            group = self._waiting.setdefault(part.letterbox.input_wh, [])
            group.append((slot, position))
            if len(group) >= self._batch_size(slot):
                self._start(part.letterbox.input_wh)
        if self._held_bytes > self._most_held_bytes or len(self._slots) > self._most_slots:
            self.drain()

    def finished(self) -> Iterator[tuple[Item, Detections]]:
        """The images at the head that are done."""
        while self._running and self._running[0][0].done():
            self._settle()
        while self._slots and self._slots[0].is_finished:
            slot = self._slots.popleft()
            self._held_bytes -= slot.image.nbytes
            detections = self._detector.merged(
                slot.found, size_wh=slot.size_wh, is_tiled=slot.is_tiled
            )
            item = slot.item
            del slot
            yield item, detections
            del item

    def drain(self) -> None:
        """Runs what waits, short batches too, and waits for all of it."""
        for input_wh in list(self._waiting):
            self._start(input_wh)
        while self._running:
            self._settle()

    def _batch_size(self, slot: _Slot[Item]) -> int:
        """The network's, or less where images are so large that some would have to wait for all."""
        batches = 2 * self._network.lanes + 1  # as many are under way, and one is filling
        image_count = self._most_held_bytes // (batches * max(slot.image.nbytes, 1))
        return min(self._network.batch_size, max(image_count, 1) * len(slot.parts))

    @property
    def _most_slots(self) -> int:
        # Enough for full batches in every lane and as many behind them.
        return 4 * self._network.lanes * self._network.batch_size + 8

    def _start(self, input_wh: tuple[int, int]) -> None:
        batch = self._waiting.pop(input_wh)
        views = [View(slot.image, slot.parts[position]) for slot, position in batch]
        floor = self._detector.options.confidence_floor
        self._running.append((self._pool.submit(self._network.candidates, views, floor), batch))
        while len(self._running) > 2 * self._network.lanes:
            self._settle()

    def _settle(self) -> None:
        future, batch = self._running.popleft()
        for (slot, position), candidates in zip(batch, future.result(), strict=True):
            part = slot.parts[position]
            slot.settle(self._detector.placed(part, candidates, is_tiled=slot.is_tiled))
        self._on_progress()


def _class_ids(
    known: tuple[str, ...], wanted: tuple[str, ...] | None
) -> npt.NDArray[np.int64] | None:
    if wanted is None:
        return None
    unknown = [name for name in wanted if name not in known]
    if unknown:
        detail = f"The model knows no class {', '.join(unknown)}, only {', '.join(known)}."
        raise OptionsError([FieldFault("class_names", "unknown", detail)])
    return np.array([index for index, name in enumerate(known) if name in wanted], np.int64)
