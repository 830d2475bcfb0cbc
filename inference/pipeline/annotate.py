"""Writes an annotated video frame by frame, on the planes of the decoded pictures where it can."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from datasets.media.video import VideoFrame
from inference.pipeline.draw import draw, draw_on_planes
from inference.pipeline.encode import VideoWriter
from inference.pipeline.types import Detections


class AnnotatedVideo:
    """Draws and encodes frames in constant memory; use it as a context manager.

    The file has the colours and the pixel aspect of the video, so that what that says of its
    numbers stays true and most pictures are never turned into RGB. It appears under its
    name only when the block ends well.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self._path = path
        self._class_names = class_names
        self._stack = ExitStack()
        self._writer: VideoWriter | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, frame: VideoFrame, detections: Detections) -> None:
        """Append a frame with its boxes and labels, at its own time. Raises DrawingError."""
        planes = frame.planes
        writer = self._writer
        if writer is None:
            size_wh = planes.size_wh if planes else (frame.image.shape[1], frame.image.shape[0])
            writer = VideoWriter(
                self._path, size_wh, colours=frame.colours, pixel_aspect=frame.pixel_aspect
            )
            self._writer = self._stack.enter_context(writer)
        if planes is not None and (planes.colours, planes.size_wh) == (
            writer.colours,
            writer.size_wh,
        ):
            canvas, memory = planes.copied()
            draw_on_planes(canvas, detections, self._class_names)
            writer.write_planes(memory, frame.time_seconds)
        else:
            writer.write(draw(frame.image, detections, self._class_names), frame.time_seconds)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
