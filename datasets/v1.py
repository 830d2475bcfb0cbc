"""Datasets, uploads and media files in /api/v1/."""

from typing import Any, cast

import django_filters
from django.db.models import QuerySet
from django.http import FileResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from billing.idempotency import kept_by_act
from billing.prices import inference_price_hundredths, tokens
from billing.selectors import current_prices
from datasets import selectors, services
from datasets.models import Dataset, MediaFile, Upload
from datasets.serializers import NameField, UploadedFileField, refuse_several_files
from datasets.uploading import upload_content
from odproject.core.api import validated
from odproject.core.files import stored_file_response
from odproject.core.listing import (
    Pages,
    StrictFilters,
    StrictFilterSet,
    StrictOrdering,
    WholeNumberFilter,
)
from odproject.core.schema import IDEMPOTENCY_KEY, MEDIA
from odproject.core.text import readable

CONTENT_TYPES = {
    "jpeg": "image/jpeg",
    "mpo": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "webm": "video/webm",
}


class DatasetSerializer(serializers.ModelSerializer[Dataset]):
    """A dataset and how much is in it."""

    tags = serializers.ListField(child=serializers.CharField(), read_only=True)
    image_count = serializers.IntegerField(read_only=True)
    frame_count = serializers.IntegerField(read_only=True, help_text="Of videos.")
    inference_cost_tokens = serializers.SerializerMethodField(
        help_text="What detection on everything in it costs now."
    )
    is_blocked = serializers.SerializerMethodField()

    class Meta:
        model = Dataset
        fields = (
            "id",
            "name",
            "tags",
            "image_count",
            "frame_count",
            "inference_cost_tokens",
            "is_blocked",
            "block_reason",
            "created_at",
        )
        read_only_fields = fields

    def get_inference_cost_tokens(self, dataset: Dataset) -> float:
        """The price at the current list."""
        prices = self.context.get("prices") or current_prices()
        counts = cast(Any, dataset)
        return tokens(
            inference_price_hundredths(prices, images=counts.image_count, frames=counts.frame_count)
        )

    def get_is_blocked(self, dataset: Dataset) -> bool:
        """Whether an administrator has blocked it; `block_reason` says why."""
        return dataset.blocked_at is not None


class TagListField(serializers.ListField):
    """Words that a dataset is found by."""

    child = serializers.CharField(max_length=100, validators=[readable])

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=100, **options)


class WriteDatasetSerializer(serializers.Serializer[Any]):
    """Name and tags of a dataset."""

    name = NameField()
    tags = TagListField(required=False)


class ChangeDatasetSerializer(serializers.Serializer[Any]):
    """What may change of a dataset."""

    name = NameField(required=False)
    tags = TagListField(required=False)


class MediaFileSerializer(serializers.ModelSerializer[MediaFile]):
    """An image or a video."""

    content_url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()
    cost_tokens = serializers.SerializerMethodField(help_text="What its upload cost.")

    class Meta:
        model = MediaFile
        fields = (
            "id",
            "dataset_id",
            "upload_id",
            "name",
            "media_type",
            "format",
            "size_bytes",
            "width",
            "height",
            "frame_count",
            "duration_seconds",
            "warning",
            "cost_tokens",
            "content_url",
            "thumbnail_url",
            "created_at",
            "deleted_at",
        )
        read_only_fields = fields

    def get_content_url(self, media_file: MediaFile) -> str:
        """Where its owner gets it as it was uploaded."""
        return f"/api/v1/media-files/{media_file.pk}/content/"

    def get_thumbnail_url(self, media_file: MediaFile) -> str | None:
        """Where its owner gets a small picture of it, if there is one."""
        if not media_file.thumbnail:
            return None
        return f"/api/v1/media-files/{media_file.pk}/thumbnail/"

    def get_cost_tokens(self, media_file: MediaFile) -> float:
        """Its price at the time."""
        return tokens(media_file.cost_hundredths)


class RefusedFileSerializer(serializers.Serializer[Any]):
    """A file of an archive that was not taken, and why."""

    filename = serializers.CharField()
    code = serializers.CharField()
    error = serializers.CharField()


class UploadSummarySerializer(serializers.ModelSerializer[Upload]):
    """An upload in a list; its report is its own."""

    cost_tokens = serializers.SerializerMethodField()
    accepted_count = serializers.IntegerField(read_only=True)
    refused_count = serializers.IntegerField(read_only=True)

    class Meta:
        model = Upload
        fields = (
            "id",
            "dataset_id",
            "file_name",
            "cost_tokens",
            "accepted_count",
            "refused_count",
            "created_at",
        )
        read_only_fields = fields

    def get_cost_tokens(self, upload: Upload) -> float:
        """What its accepted files cost together."""
        return tokens(upload.cost_hundredths)


class UploadSerializer(UploadSummarySerializer):
    """An upload with its report."""

    accepted = MediaFileSerializer(source="media_files", many=True, read_only=True)
    refused = RefusedFileSerializer(many=True, read_only=True)

    class Meta(UploadSummarySerializer.Meta):
        fields = (
            "id",
            "dataset_id",
            "file_name",
            "cost_tokens",
            "accepted",
            "refused",
            "created_at",
        )
        read_only_fields = fields


class UploadFileSerializer(serializers.Serializer[Any]):
    """One image, one video, or a zip of them."""

    file = UploadedFileField()


class DatasetFilters(StrictFilterSet):
    """What a list of datasets can be narrowed by."""

    name__icontains = django_filters.CharFilter("name", "icontains")
    tag = django_filters.CharFilter("tags", "contains")

    class Meta:
        model = Dataset
        fields: dict[str, list[str]] = {"name": ["exact"]}


class MediaFileFilters(StrictFilterSet):
    """What a list of media files can be narrowed by."""

    upload_id = WholeNumberFilter("upload_id")

    class Meta:
        model = MediaFile
        fields = {"media_type": ["exact"], "name": ["exact", "icontains"]}


class DatasetsView(generics.ListAPIView[Dataset]):
    """The user's datasets."""

    serializer_class = DatasetSerializer
    pagination_class = Pages
    filter_backends = (StrictFilters, StrictOrdering)
    filterset_class = DatasetFilters
    ordering_fields = ("id", "name", "created_at")
    ordering = ("-id",)
    queryset = Dataset.objects.none()

    def get_queryset(self) -> QuerySet[Dataset]:
        """Live ones, with counts."""
        return selectors.live_datasets_of(user=cast(User, self.request.user))

    def get_serializer_context(self) -> dict[str, Any]:
        """One price list for the whole page."""
        return {**super().get_serializer_context(), "prices": current_prices()}

    @extend_schema(request=WriteDatasetSerializer, responses={201: DatasetSerializer})
    def post(self, request: Request) -> Response:
        """Create a dataset."""
        keys = validated(WriteDatasetSerializer, request)
        user = cast(User, request.user)
        created = services.create_dataset(user=user, name=keys["name"], tags=keys.get("tags", []))
        dataset = selectors.dataset_by_id(user=user, dataset_id=created.pk)
        return Response(
            DatasetSerializer(dataset).data,
            status=201,
            headers={"Location": f"/api/v1/datasets/{dataset.pk}/"},
        )


class DatasetView(APIView):
    """One dataset."""

    @extend_schema(responses=DatasetSerializer)
    def get(self, request: Request, dataset_id: int) -> Response:
        """The dataset and how much is in it."""
        dataset = selectors.dataset_by_id(user=cast(User, request.user), dataset_id=dataset_id)
        return Response(DatasetSerializer(dataset).data)

    @extend_schema(request=ChangeDatasetSerializer, responses=DatasetSerializer)
    def patch(self, request: Request, dataset_id: int) -> Response:
        """Change name, tags or both."""
        user = cast(User, request.user)
        keys = validated(ChangeDatasetSerializer, request)
        dataset = selectors.dataset_by_id(user=user, dataset_id=dataset_id)
        services.change_dataset(
            dataset=dataset, new_name=keys.get("name"), new_tags=keys.get("tags")
        )
        dataset = selectors.dataset_by_id(user=user, dataset_id=dataset_id)
        return Response(DatasetSerializer(dataset).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, dataset_id: int) -> Response:
        """Hide the dataset; its jobs and results stay readable."""
        user = cast(User, request.user)
        services.delete_dataset(user=user, dataset_id=dataset_id)
        return Response(status=204)


class MediaFilesView(generics.ListAPIView[MediaFile]):
    """The files of a dataset."""

    serializer_class = MediaFileSerializer
    pagination_class = Pages
    filter_backends = (StrictFilters, StrictOrdering)
    filterset_class = MediaFileFilters
    ordering_fields = ("id", "name", "size_bytes", "created_at")
    ordering = ("id",)
    queryset = MediaFile.objects.none()

    def get_queryset(self) -> QuerySet[MediaFile]:
        """Files of the user's dataset; raises DatasetNotFoundError (404)."""
        if getattr(self, "swagger_fake_view", False):
            return self.queryset
        dataset = selectors.dataset_by_id(
            user=cast(User, self.request.user), dataset_id=self.kwargs["dataset_id"]
        )
        return selectors.live_media_files(dataset=dataset)


class MediaFileView(APIView):
    """One file."""

    @extend_schema(responses=MediaFileSerializer)
    def get(self, request: Request, media_file_id: int) -> Response:
        """What is known about the file."""
        media_file = selectors.media_file_by_id(
            user=cast(User, request.user), media_file_id=media_file_id
        )
        return Response(MediaFileSerializer(media_file).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, media_file_id: int) -> Response:
        """Take the file out of its dataset; what jobs found in it stays readable.

        Its price is not paid back. Until it has left the storage it counts as stored.
        """
        services.delete_media_file(user=cast(User, request.user), media_file_id=media_file_id)
        return Response(status=204)


class MediaContentView(APIView):
    """A file's content."""

    answers_ranges = True

    @extend_schema(responses=MEDIA)
    def get(self, request: Request, media_file_id: int) -> FileResponse | Response:
        """The file as it was uploaded; `Range` asks for a part."""
        media_file = selectors.media_file_by_id(
            user=cast(User, request.user), media_file_id=media_file_id
        )
        return stored_file_response(
            request,
            stored_name=str(media_file.content.name),
            file_name=media_file.name.rpartition("/")[2],
            content_type=CONTENT_TYPES.get(media_file.format, "application/octet-stream"),
        )


class ThumbnailView(APIView):
    """A small picture of a file."""

    answers_ranges = True

    @extend_schema(responses={(200, "image/jpeg"): OpenApiTypes.BINARY})
    def get(self, request: Request, media_file_id: int) -> FileResponse | Response:
        """A JPEG of at most 320 x 320 pixels."""
        media_file = selectors.media_file_by_id(
            user=cast(User, request.user), media_file_id=media_file_id
        )
        if not media_file.thumbnail:
            raise selectors.MediaFileNotFoundError("This file has no thumbnail.")
        return stored_file_response(
            request,
            stored_name=str(media_file.thumbnail.name),
            file_name=f"thumbnail-{media_file.pk}.jpg",
            content_type="image/jpeg",
        )


class UploadsView(generics.ListAPIView[Upload]):
    """Uploads into a dataset."""

    refusals = (402, 507)

    serializer_class = UploadSummarySerializer
    pagination_class = Pages
    filter_backends = (StrictFilters,)
    queryset = Upload.objects.none()

    def get_queryset(self) -> QuerySet[Upload]:
        """Uploads of the user's dataset, newest first; raises DatasetNotFoundError (404)."""
        if getattr(self, "swagger_fake_view", False):
            return self.queryset
        dataset = selectors.dataset_by_id(
            user=cast(User, self.request.user), dataset_id=self.kwargs["dataset_id"]
        )
        return selectors.uploads_with_counts(dataset=dataset).order_by("-id")

    @extend_schema(
        parameters=[IDEMPOTENCY_KEY],
        request={"multipart/form-data": UploadFileSerializer},
        responses={201: UploadSerializer},
    )
    def post(self, request: Request, dataset_id: int) -> Response:
        """Upload one image, one video or a zip; what is accepted is charged."""
        user = cast(User, request.user)
        refuse_several_files(request)
        keys = validated(UploadFileSerializer, request)

        def answer(upload: Upload) -> Response:
            location = f"/api/v1/datasets/{dataset_id}/uploads/{upload.pk}/"
            report = UploadSerializer(upload).data
            return Response(report, status=201, headers={"Location": location})

        return kept_by_act(
            request,
            lambda keep: upload_content(
                user=user,
                dataset_id=dataset_id,
                content=keys["file"],
                answer=lambda upload: keep(answer(upload)),
            ),
        )


class UploadView(APIView):
    """One upload."""

    @extend_schema(responses=UploadSerializer)
    def get(self, request: Request, dataset_id: int, upload_id: int) -> Response:
        """Its report, file by file."""
        upload = selectors.upload_by_id(
            user=cast(User, request.user), dataset_id=dataset_id, upload_id=upload_id
        )
        return Response(UploadSerializer(upload).data)
