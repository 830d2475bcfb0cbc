"""What a caller may choose about a detection: validated in one place, stored with every job.

Knows no framework: the API, the command line and a bare GPU machine use the same values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, NamedTuple, Self, get_args

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
AppliedRule = Literal["nms", "nmm", "vote"]
MergeRule = Literal["auto", "nms", "nmm", "vote"]
OverlapMetric = Literal["iou", "ios"]

PRECISIONS: Final = get_args(Precision)
MERGE_RULES: Final = get_args(MergeRule)
OVERLAP_METRICS: Final = get_args(OverlapMetric)

# Measured on the 25 street frames with the first weights: at 640 pixels 72% of the vehicles are
# found, at 768 90%, for 1.4 times the time. Two neighbouring small vehicles seldom overlap, so
# boxes that overlap by half are the same one.
DEFAULT_IMAGE_SIZE = 768
DEFAULT_IOU = 0.5
# Of what results and annotated media show, as the original; what is stored begins lower.
DISPLAY_CONFIDENCE = 0.25

STRIDES = (8, 16, 32)  # of YOLOv8's output cells, in pixels of the input
STRIDE_PIXELS = STRIDES[-1]  # the sides of a network's input are multiples of it
MIN_IMAGE_SIZE_PIXELS, MAX_IMAGE_SIZE_PIXELS = 160, 2048
MIN_TILE_PIXELS, MAX_TILE_PIXELS = 160, 2048
MAX_OVERLAP = 0.5
MAX_FRAME_STRIDE = 10_000
MAX_DETECTIONS_LIMIT = 500
MAX_CLASS_NAMES, MAX_CLASS_NAME_LETTERS = 100, 100


class FieldFault(NamedTuple):
    """One value that cannot be used: which, a stable code, and a sentence for its sender."""

    field: str
    code: str
    detail: str


class OptionsError(ValueError):
    """Options that make no sense; `faults` has one entry per field at fault."""

    def __init__(self, faults: list[FieldFault]) -> None:
        self.faults = tuple(faults)
        super().__init__(" ".join(fault.detail for fault in faults))


@dataclass(frozen=True)
class Tiling:
    """Squares of `tile` pixels of the original that overlap by the fraction `overlap`."""

    tile: int
    overlap: float = 0.2


@dataclass(frozen=True)
class DetectionOptions:
    """The parameters of a detection; raises OptionsError for values out of range.

    `confidence_floor` in (0, 1): what lies below is not kept. `iou`: boxes that overlap by more
    are one object. `merge`: "nms" drops the less confident box, "nmm" lets the kept one grow
    around it, "vote" moves it to the mean of those that agree with it; "auto" is "vote" for an
    image that is tiled and "nms" for one that is not. `metric` of the overlap: over the union, or
    over the smaller box. `one_class_per_object`: boxes of different classes may be one object
    too, that of the more confident class; False keeps both, as Ultralytics does. `image_size`:
    the longer side of the network's input in pixels, a multiple of 32. `class_names`: only these;
    None for all. `tiling`: "off", a `Tiling`, or "auto": tiles that show small objects a third
    larger than they are, and larger tiles for larger objects. `max_detections` per image.
    `frame_stride`: every n-th frame of a video is looked at. `tracking`: boxes of a video get
    track ids. `precision` of the network's arithmetic; "auto" never means int8.
    """

    confidence_floor: float = 0.05
    iou: float = DEFAULT_IOU
    merge: MergeRule = "auto"
    metric: OverlapMetric = "iou"
    one_class_per_object: bool = True
    image_size: int = DEFAULT_IMAGE_SIZE
    class_names: tuple[str, ...] | None = None
    tiling: Literal["off", "auto"] | Tiling = "off"
    max_detections: int = MAX_DETECTIONS_LIMIT
    frame_stride: int = 1
    tracking: bool = False
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise OptionsError(faults)

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, defaults: Self | None = None) -> Self:
        """Options from a JSON object; what it does not name is as in `defaults`.

        Raises OptionsError for unknown names, for wrong types and for values out of range.
        """
        known = {field.name for field in fields(cls)}
        faults = [
            FieldFault(_shown(name), "unknown", f"There is no option {_shown(name)}.")
            for name in raw
            if name not in known
        ]
        if faults:
            raise OptionsError(faults)
        values = dict(raw)
        if isinstance(values.get("class_names"), list):
            values["class_names"] = tuple(values["class_names"])
        if isinstance(values.get("tiling"), Mapping):
            values["tiling"] = _parsed_tiling(values["tiling"])
        return replace(defaults or cls(), **values)

    def applied_rule(self, *, is_tiled: bool) -> AppliedRule:
        """The rule by which the boxes of an image are merged."""
        if self.merge == "auto":
            return "vote" if is_tiled else "nms"
        return self.merge

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object that `parse` reads."""
        values = asdict(self)
        if self.class_names is not None:
            values["class_names"] = list(self.class_names)
        return values


def _shown(name: object) -> str:
    """A name that may hold anything, half a surrogate pair too, which nobody can encode."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def _parsed_tiling(raw: Mapping[str, Any]) -> Tiling:
    unknown = sorted(set(map(str, raw)) - {"tile", "overlap"})
    if unknown or "tile" not in raw:
        detail = 'tiling must be "off", "auto" or an object of tile and, if wanted, overlap.'
        raise OptionsError([FieldFault("tiling", "invalid", detail)])
    return Tiling(**raw)


def _faults(options: DetectionOptions) -> list[FieldFault]:
    faults: list[FieldFault] = []

    def check(field: str, fine: bool, detail: str) -> None:
        if not fine:
            faults.append(FieldFault(field, "invalid", detail))

    check(
        "confidence_floor",
        _is_number(options.confidence_floor) and 0 < options.confidence_floor < 1,
        "confidence_floor must be a number between 0 and 1.",
    )
    check(
        "iou", _is_number(options.iou) and 0 < options.iou <= 1, "iou must lie above 0, at most 1."
    )
    check("merge", _is_among(options.merge, MERGE_RULES), _one_of("merge", MERGE_RULES))
    check("metric", _is_among(options.metric, OVERLAP_METRICS), _one_of("metric", OVERLAP_METRICS))
    check(
        "image_size",
        _is_whole(options.image_size, MIN_IMAGE_SIZE_PIXELS, MAX_IMAGE_SIZE_PIXELS)
        and options.image_size % STRIDE_PIXELS == 0,
        f"image_size must be a multiple of {STRIDE_PIXELS} from {MIN_IMAGE_SIZE_PIXELS} to "
        f"{MAX_IMAGE_SIZE_PIXELS}.",
    )
    check(
        "class_names",
        options.class_names is None
        or (
            isinstance(options.class_names, tuple)
            and 1 <= len(options.class_names) <= MAX_CLASS_NAMES
            and all(_is_name(name) for name in options.class_names)
        ),
        f"class_names must be a list of 1 to {MAX_CLASS_NAMES} printable names.",
    )
    check("tiling", _is_tiling(options.tiling), _TILING_RULE)
    check(
        "max_detections",
        _is_whole(options.max_detections, 1, MAX_DETECTIONS_LIMIT),
        f"max_detections must be a whole number from 1 to {MAX_DETECTIONS_LIMIT}.",
    )
    check(
        "frame_stride",
        _is_whole(options.frame_stride, 1, MAX_FRAME_STRIDE),
        f"frame_stride must be a whole number from 1 to {MAX_FRAME_STRIDE}.",
    )
    check(
        "one_class_per_object",
        isinstance(options.one_class_per_object, bool),
        "one_class_per_object must be true or false.",
    )
    check("tracking", isinstance(options.tracking, bool), "tracking must be true or false.")
    check("precision", _is_among(options.precision, PRECISIONS), _one_of("precision", PRECISIONS))
    return faults


_TILING_RULE = (
    f'tiling must be "off", "auto", or an object whose tile is a whole number from '
    f"{MIN_TILE_PIXELS} to {MAX_TILE_PIXELS} pixels and whose overlap lies from 0 to {MAX_OVERLAP}."
)


def _is_tiling(value: Any) -> bool:
    if isinstance(value, Tiling):
        return (
            _is_whole(value.tile, MIN_TILE_PIXELS, MAX_TILE_PIXELS)
            and _is_number(value.overlap)
            and 0 <= value.overlap <= MAX_OVERLAP
        )
    return _is_among(value, ("off", "auto"))


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= MAX_CLASS_NAME_LETTERS


def _is_among(value: Any, choices: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in choices


def _one_of(field: str, choices: tuple[str, ...]) -> str:
    return f"{field} must be one of {', '.join(choices)}."
