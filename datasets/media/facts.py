"""What the inspection of one file finds out; imports no decoder."""

import base64
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class MediaFacts:
    """An image or a video that decodes.

    `size_wh` is the upright size in pixels. An image has one frame and none of the members from
    `duration_seconds` on. `rotation_degrees` is how far a stored video is turned clockwise.
    `warning` says what is damaged in a file that is accepted all the same; `seek_plan` is
    `datasets.media.seeking.SeekPlan` as JSON. `thumbnail_jpeg` is a small
    upright picture of the image or of the video's first frame.
    """

    kind: Literal["image", "video"]
    format: str
    size_wh: tuple[int, int]
    frame_count: int
    duration_seconds: float | None = None
    average_rate_fps: float | None = None
    codec: str | None = None
    rotation_degrees: int | None = None
    has_audio: bool | None = None
    warning: str = ""
    seek_plan: dict[str, Any] | None = field(default=None, compare=False)
    thumbnail_jpeg: bytes | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can carry; `from_dict` reads them back."""
        values = asdict(self)
        if self.thumbnail_jpeg is not None:
            values["thumbnail_jpeg"] = base64.b64encode(self.thumbnail_jpeg).decode()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MediaFacts":
        """Rebuild what `to_dict` gave. Raises TypeError, KeyError or ValueError on nonsense."""
        width, height = values["size_wh"]
        encoded = values["thumbnail_jpeg"]
        thumbnail = None if encoded is None else base64.b64decode(encoded, validate=True)
        changed = {"size_wh": (int(width), int(height)), "thumbnail_jpeg": thumbnail}
        return cls(**{**values, **changed})
