"""Two jobs side by side in /api/v1/."""

from typing import Any, cast

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from inference import comparison
from inference.comparison import LARGEST_FRAME_INDEX, Comparison, FileComparison, Rules, Tally
from inference.models import Job
from odproject.core.api import validated_query
from odproject.core.files import drawn_picture_response
from odproject.core.listing import LARGEST_ID


class ComparisonQuerySerializer(serializers.Serializer[Any]):
    """Which other job, and what counts."""

    minimum_confidence = serializers.FloatField(
        min_value=0,
        max_value=1,
        default=Rules.minimum_confidence,
        help_text="Detections from this on are compared.",
    )
    iou = serializers.FloatField(
        min_value=0.01,
        max_value=1,
        default=Rules.iou,
        help_text="Overlap from which two detections are one object.",
    )

    def get_fields(self) -> dict[str, Any]:
        """With `with`, which is no name in Python."""
        other = serializers.IntegerField(
            min_value=1, max_value=LARGEST_ID, help_text="The other job, on the same dataset."
        )
        return {"with": other, **super().get_fields()}


class PictureQuerySerializer(ComparisonQuerySerializer):
    """Which frame besides."""

    media_file_id = serializers.IntegerField(min_value=1, max_value=LARGEST_ID)
    frame_index = serializers.IntegerField(min_value=0, max_value=LARGEST_FRAME_INDEX, default=0)


class TallySerializer(serializers.Serializer[Tally]):
    """Sums over frames that both jobs looked at."""

    frames = serializers.IntegerField()
    matched = serializers.IntegerField(help_text="Pairs: objects that both found.")
    same_class = serializers.IntegerField(help_text="Pairs that both call by the same name.")
    only_first = serializers.IntegerField()
    only_second = serializers.IntegerField()
    agreement = serializers.FloatField(
        allow_null=True,
        help_text="Detections in pairs, of all detections; null where nothing was found.",
    )
    class_agreement = serializers.FloatField(
        allow_null=True, help_text="Pairs of the same name, of all pairs; null without a pair."
    )


class SideSerializer(serializers.Serializer[Any]):
    """One of the two jobs."""

    job_id = serializers.IntegerField()
    model_version = serializers.CharField()
    weights_sha256 = serializers.CharField()
    class_counts = serializers.DictField(child=serializers.IntegerField())


class FileComparisonSerializer(serializers.Serializer[Any]):
    """One file of both jobs."""

    media_file_id = serializers.IntegerField()
    filename = serializers.CharField()
    type = serializers.CharField()
    totals = TallySerializer()
    most_different_frame_index = serializers.IntegerField()
    picture_url = serializers.CharField(help_text="Of that frame, as JPEG.")


class ComparisonSerializer(serializers.Serializer[Any]):
    """Two jobs side by side."""

    first = SideSerializer()
    second = SideSerializer()
    minimum_confidence = serializers.FloatField()
    iou = serializers.FloatField()
    is_complete = serializers.BooleanField(
        help_text="False when there were too many frames, so that only the first were compared."
    )
    totals = TallySerializer()
    files = FileComparisonSerializer(many=True)


def _parameters(serializer_class: type[serializers.Serializer[Any]]) -> list[OpenApiParameter]:
    fields: dict[str, Any] = serializer_class().get_fields()
    return [
        OpenApiParameter(
            name,
            {
                "type": "number" if isinstance(field, serializers.FloatField) else "integer",
                "minimum": field.min_value,
                "maximum": field.max_value,
                **({} if field.required else {"default": field.default}),
            },
            description=str(field.help_text or ""),
            required=field.required,
        )
        for name, field in fields.items()
    ]


class ComparisonView(APIView):
    """Two jobs of the user on one dataset."""

    refusals = (409,)

    @extend_schema(
        parameters=_parameters(ComparisonQuerySerializer), responses=ComparisonSerializer
    )
    def get(self, request: Request, job_id: int) -> Response:
        """Counts by class, how far the jobs agree, and the differences file by file."""
        keys = validated_query(ComparisonQuerySerializer, request)
        first, second = _pair(request, job_id, keys)
        found = comparison.compare(first, second, rules=_rules(keys))
        return Response(ComparisonSerializer(_document(found)).data)


class ComparisonPictureView(APIView):
    """A frame with what one job found and the other did not."""

    refusals = (409, 422)

    @extend_schema(
        parameters=_parameters(PictureQuerySerializer),
        responses={(200, "image/jpeg"): OpenApiTypes.BINARY},
    )
    def get(self, request: Request, job_id: int) -> HttpResponse:
        """The frame as JPEG."""
        keys = validated_query(PictureQuerySerializer, request)
        first, second = _pair(request, job_id, keys)
        picture = comparison.difference_picture(
            first,
            second,
            media_file_id=keys["media_file_id"],
            frame_index=keys["frame_index"],
            rules=_rules(keys),
        )
        return drawn_picture_response(picture)


def _pair(request: Request, job_id: int, keys: dict[str, Any]) -> tuple[Job, Job]:
    user = cast(User, request.user)
    return comparison.users_pair(user=user, first_id=job_id, second_id=keys["with"])


def _rules(keys: dict[str, Any]) -> Rules:
    return Rules(minimum_confidence=keys["minimum_confidence"], iou=keys["iou"])


def _document(found: Comparison) -> dict[str, Any]:
    return {
        "first": _side(found.first, found.first_counts),
        "second": _side(found.second, found.second_counts),
        "minimum_confidence": found.rules.minimum_confidence,
        "iou": found.rules.iou,
        "is_complete": found.is_complete,
        "totals": found.tally,
        "files": [_file(found, file) for file in found.files],
    }


def _side(job: Job, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "job_id": job.pk,
        "model_version": job.model_version.version,
        "weights_sha256": job.weights_sha256,
        "class_counts": dict(sorted(counts.items())),
    }


def _file(found: Comparison, file: FileComparison) -> dict[str, Any]:
    return {
        "media_file_id": file.media_file.pk,
        "filename": file.media_file.name,
        "type": file.media_file.media_type,
        "totals": file.tally,
        "most_different_frame_index": file.most_different_frame_index,
        "picture_url": (
            f"/api/v1/jobs/{found.first.pk}/comparison/picture/?"
            f"{comparison.picture_query(found, file)}"
        ),
    }
