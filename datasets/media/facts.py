"""What the inspection of one file finds out; imports no decoder."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class MediaFacts:
    """An image or a video that decodes.

    `size_wh` is the upright size in pixels. An image has one frame and none of the members from
    `duration_seconds` on. `rotation_degrees` is how far a stored video is turned clockwise.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can carry; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MediaFacts":
        """Rebuild what `to_dict` gave. Raises TypeError, KeyError or ValueError on nonsense."""
        width, height = values["size_wh"]
        return cls(**{**values, "size_wh": (int(width), int(height))})
