"""Runs a detector over an image or a video, stores results as they come and draws them.

A video passes through three threads with short queues between them: one decodes ahead, the
caller's runs the network, one draws and encodes. Memory is bounded by the queues, whatever the
length of the video.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from datasets.media.errors import MediaError
from datasets.media.images import read_image
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits
from datasets.media.video import VideoFrame, iter_frames
from inference.pipeline.channel import Channel, ChannelClosedError
from inference.pipeline.detector import Detector
from inference.pipeline.draw import draw
from inference.pipeline.encode import VideoWriter, write_image
from inference.pipeline.types import Detections, FrameDetections, Image, MediaSummary

FRAME_MEMORY_BYTES = 2 * 1024**3  # of decoded frames that wait for a step of the pipeline

OnFrames = Callable[[list[FrameDetections]], None]


def process_image(
    source: Path,
    detector: Detector,
    *,
    annotated: Path | None,
    on_frames: OnFrames,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> MediaSummary:
    """Detects in an image, hands the result to `on_frames` once, then writes the drawn copy.

    `annotated`: where the drawn copy goes, in the format that its name ends with; None for no
    copy. What `on_frames` raises passes through, and nothing is written then. Raises MediaError
    for a file that is no sound image, DrawingError when the copy cannot be written.
    """
    image = read_image(source, limits=limits)
    detections = detector.detect([image])[0]
    on_frames([FrameDetections(0, 0.0, detections)])
    if annotated is not None:
        write_image(annotated, draw(image, detections, detector.class_names))
    return MediaSummary(1, (image.shape[1], image.shape[0]), annotated is not None)


def process_video(
    source: Path,
    detector: Detector,
    *,
    annotated: Path | None,
    on_frames: OnFrames,
    first_frame_index: int = 0,
    max_frames: int | None = None,
    batch_size: int | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> MediaSummary:
    """Detects in every frame of a video, batch by batch, and writes the drawn copy as MP4.

    `on_frames` is called in the caller's thread after each batch, in the order of the frames;
    what it raises ends the work at once: threads are joined, no annotated file is left.
    `first_frame_index` and `max_frames` choose a range; `batch_size` is the detector's preferred
    one by default. Raises MediaError for a file that is no sound video or has no frame in the
    range, DrawingError when the copy cannot be written.
    """
    frames = iter_frames(
        source, first_frame_index=first_frame_index, max_frames=max_frames, limits=limits
    )
    return process_frames(
        frames, detector, annotated=annotated, on_frames=on_frames, batch_size=batch_size
    )


def process_frames(
    frames: Iterator[VideoFrame],
    detector: Detector,
    *,
    annotated: Path | None,
    on_frames: OnFrames,
    batch_size: int | None = None,
) -> MediaSummary:
    """As `process_video`, over frames from anywhere; closes `frames` when it can be closed.

    At most four batches and a few frames are held at any time; batches of very large frames are
    made smaller, so that this stays within FRAME_MEMORY_BYTES where a frame allows it.
    """
    frame_count = 0
    with contextlib.ExitStack() as stack:
        stack.callback(getattr(frames, "close", lambda: None))
        first = next(frames, None)
        if first is None:
            raise MediaError("no_frames", "Not a single frame of the video could be decoded.", 422)
        affordable = FRAME_MEMORY_BYTES // (4 * first.image.nbytes)
        size = max(1, min(batch_size or detector.preferred_batch_size, affordable))
        ahead = iter(stack.enter_context(_decoded_ahead(frames, 2 * size)))
        size_wh = first.image.shape[1], first.image.shape[0]
        painter = None
        if annotated is not None:
            painter = stack.enter_context(
                _Painter(annotated, size_wh, detector.class_names, capacity=size)
            )
        remaining = chain([first], ahead)
        del first  # a frame lives only as long as its batch
        while batch := list(islice(remaining, size)):
            detections = detector.detect([frame.image for frame in batch])
            on_frames(_results(batch, detections))
            frame_count += len(batch)
            while batch:
                if painter is not None:
                    painter.put(batch[0], detections[0])
                del batch[0], detections[0]
    return MediaSummary(frame_count, size_wh, annotated is not None)


def _results(
    batch: Sequence[VideoFrame], detections: Sequence[Detections]
) -> list[FrameDetections]:
    return [
        FrameDetections(frame.frame_index, frame.time_seconds, found)
        for frame, found in zip(batch, detections, strict=True)
    ]


@contextlib.contextmanager
def _decoded_ahead(frames: Iterable[VideoFrame], capacity: int) -> Iterator[Iterable[VideoFrame]]:
    """The same frames, decoded by a thread that is at most `capacity` ahead."""
    channel: Channel[VideoFrame] = Channel(capacity)

    def decode() -> None:
        try:
            for frame in frames:
                channel.put(frame)
                del frame
        except ChannelClosedError:
            pass
        except BaseException as error:
            channel.finish(error)
        else:
            channel.finish()
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=decode, name="decode", daemon=True)
    thread.start()
    try:
        yield channel
    finally:
        channel.abandon()
        thread.join()


class _Painter:
    """Draws and encodes in a thread of its own; leaving the block waits for the last frame."""

    def __init__(
        self,
        path: Path,
        size_wh: tuple[int, int],
        class_names: Sequence[str],
        *,
        capacity: int,
    ) -> None:
        self._path = path
        self._size_wh = size_wh
        self._class_names = class_names
        self._channel: Channel[tuple[Image, float, Detections]] = Channel(capacity)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._paint, name="paint", daemon=True)

    def __enter__(self) -> _Painter:
        self._thread.start()
        return self

    def put(self, frame: VideoFrame, detections: Detections) -> None:
        """Queues a frame; raises what the drawing thread failed with."""
        try:
            self._channel.put((frame.image, frame.time_seconds, detections))
        except ChannelClosedError:
            self._thread.join()
            raise self._error or RuntimeError("the drawing thread has ended") from None

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        # With an error under way the writer is told, so that it leaves no file behind.
        if kind is None:
            self._channel.finish()
        else:
            self._channel.stop(_StoppedError())
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _paint(self) -> None:
        try:
            with VideoWriter(self._path, self._size_wh) as writer:
                for image, time_seconds, detections in self._channel:
                    writer.write(draw(image, detections, self._class_names), time_seconds)
                    del image, detections
        except _StoppedError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._channel.abandon()


class _StoppedError(Exception):
    """The work was ended from outside, so the file is not to be kept."""
