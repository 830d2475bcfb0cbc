"""The shapes of requests about jobs."""

import json
from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from inference.pipeline import options as limits
from inference.pipeline.options import DetectionOptions, OptionsError, Tiling
from odproject.core.listing import LARGEST_ID


class SubmitJobSerializer(serializers.Serializer[Any]):
    """Keys of POST /inference/."""

    datasetName = serializers.CharField(max_length=200)  # noqa: N815
    modelId = serializers.CharField(max_length=40)  # noqa: N815
    modelVersion = serializers.CharField(max_length=40)  # noqa: N815


class JobIdSerializer(serializers.Serializer[Any]):
    """The key that names a job."""

    jobId = serializers.IntegerField(min_value=0, max_value=LARGEST_ID)  # noqa: N815


@extend_schema_field(
    {
        "oneOf": [
            {"type": "string", "enum": ["off", "auto"]},
            {
                "type": "object",
                "properties": {
                    "tile": {
                        "type": "integer",
                        "minimum": limits.MIN_TILE_PIXELS,
                        "maximum": limits.MAX_TILE_PIXELS,
                        "description": "Side of a tile, in pixels of the original.",
                    },
                    "overlap": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": limits.MAX_OVERLAP,
                        "default": Tiling(limits.MIN_TILE_PIXELS).overlap,
                        "description": "Of neighbouring tiles, as a share of their side.",
                    },
                },
                "required": ["tile"],
                "additionalProperties": False,
            },
        ]
    }
)
class TilingField(serializers.JSONField):
    """ "off", "auto" or an object of tile and overlap."""


@extend_schema_field(
    {
        "type": "integer",
        "minimum": limits.MIN_IMAGE_SIZE_PIXELS,
        "maximum": limits.MAX_IMAGE_SIZE_PIXELS,
        "multipleOf": limits.STRIDE_PIXELS,
    }
)
class ImageSizeField(serializers.IntegerField):
    """A side that the network can take."""


@extend_schema_field(
    {
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "exclusiveMaximum": True,
    }
)
class OpenShareField(serializers.FloatField):
    """A number between 0 and 1, neither of them."""


@extend_schema_field({"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1})
class ShareField(serializers.FloatField):
    """A number above 0, at most 1."""


class DetectionOptionsSerializer(serializers.Serializer[Any]):
    """The options of a detection; whatever is left out is as the model version has it.

    The fields say what there is; whether a value fits is `DetectionOptions.parse`'s to say, so
    that the library, the command line and the API refuse the same with the same words.
    """

    confidence_floor = OpenShareField(
        required=False,
        help_text="Detections below are not kept. Results can be filtered above it at any time.",
    )
    iou = ShareField(required=False, help_text="Boxes that overlap by more are one object.")
    merge = serializers.ChoiceField(
        limits.MERGE_RULES,
        required=False,
        help_text="Of boxes of one object, `nms` keeps the most confident; `nmm` lets it grow "
        "around the others; `vote` moves it to the mean of those that agree with it; `auto` is "
        "`vote` for images that are tiled and `nms` for others.",
    )
    metric = serializers.ChoiceField(
        limits.OVERLAP_METRICS,
        required=False,
        help_text="Overlap over the union of two boxes, or over the smaller one.",
    )
    one_class_per_object = serializers.BooleanField(
        required=False,
        help_text="Boxes of different classes may be one object too, that of the more confident "
        "class. False keeps both, as Ultralytics does.",
    )
    image_size = ImageSizeField(
        required=False,
        help_text="Longer side of the network's input in pixels; larger finds smaller objects.",
    )
    class_names = serializers.ListField(
        child=serializers.CharField(max_length=limits.MAX_CLASS_NAME_LETTERS),
        min_length=1,
        max_length=limits.MAX_CLASS_NAMES,
        allow_null=True,
        required=False,
        help_text="Only these classes of the model; null for all. The others are left out before "
        "boxes are merged, so none of them stands in the way of one that is wanted.",
    )
    tiling = TilingField(
        required=False,
        help_text="`auto` cuts large pictures into tiles that show small objects a third larger "
        "and into larger ones for larger objects; an object sets tile and overlap.",
    )
    max_detections = serializers.IntegerField(
        min_value=1,
        max_value=limits.MAX_DETECTIONS_LIMIT,
        required=False,
        help_text="Kept of one image or frame, the most confident.",
    )
    frame_stride = serializers.IntegerField(
        min_value=1,
        max_value=limits.MAX_FRAME_STRIDE,
        required=False,
        help_text="Every n-th frame of a video is looked at, and charged.",
    )
    tracking = serializers.BooleanField(
        required=False, help_text="Objects of a video get the same `track_id` in all its frames."
    )
    precision = serializers.ChoiceField(
        limits.PRECISIONS,
        required=False,
        help_text="Of the network's arithmetic; `auto` is the fastest that costs no accuracy.",
    )

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        """The options as they were sent, once they are known to fit; else ValidationError (400).

        A form has no objects, so there they are a JSON text.
        """
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except (ValueError, RecursionError):
                data = None
        if not isinstance(data, Mapping):
            raise serializers.ValidationError("The options must be an object.", code="invalid")
        try:
            DetectionOptions.parse(data)
        except OptionsError as error:
            raise serializers.ValidationError(
                {
                    fault.field: [serializers.ErrorDetail(fault.detail, fault.code)]
                    for fault in error.faults
                }
            ) from error
        return dict(data)

    def to_representation(self, instance: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a job, every one of them."""
        return dict(instance)
