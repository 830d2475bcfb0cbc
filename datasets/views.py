"""The original API's routes for datasets and uploads."""

from typing import Any, cast

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from billing.idempotency import Keep, kept_by_act
from billing.prices import inference_price_hundredths, tokens
from billing.selectors import current_prices
from datasets import selectors, services
from datasets.models import Dataset, Upload
from datasets.serializers import (
    ChangeDatasetSerializer,
    CreateDatasetSerializer,
    DatasetNameSerializer,
    UploadSerializer,
    refuse_several_files,
)
from datasets.uploading import upload_content
from odproject.core.api import validated


def file_path(dataset: Dataset) -> str:
    """The opaque place of a dataset, which the original API shows; never a path of the server."""
    return f"datasets/{dataset.pk}"


class DatasetsView(APIView):
    """List, create, delete and change datasets."""

    def get(self, request: Request) -> Response:
        """The user's datasets, with what detection on each costs now."""
        prices = current_prices()
        return Response(
            [
                {
                    "dataset": {
                        "dataset_id": summary.dataset.pk,
                        "file_path": file_path(summary.dataset),
                        "dataset_name": summary.dataset.name,
                        "token_cost": tokens(
                            inference_price_hundredths(
                                prices, images=summary.image_count, frames=summary.frame_count
                            )
                        ),
                        "dataset_tags": summary.dataset.tags,
                    }
                }
                for summary in selectors.live_datasets(user=cast(User, request.user))
            ]
        )

    def post(self, request: Request) -> Response:
        """Create a dataset."""
        keys = validated(CreateDatasetSerializer, request)
        dataset = services.create_dataset(
            user=cast(User, request.user),
            name=keys["datasetName"],
            tags=services.parse_tags(keys["tags"]),
        )
        return Response(
            {
                "message": "Dataset created successfully",
                "dataset": {
                    "dataset_id": dataset.pk,
                    "file_path": file_path(dataset),
                    "dataset_name": dataset.name,
                    "tags": dataset.tags,
                },
            },
            status=201,
        )

    def delete(self, request: Request) -> Response:
        """Hide a dataset."""
        keys = validated(DatasetNameSerializer, request)
        user = cast(User, request.user)
        dataset = selectors.live_dataset(user=user, name=keys["datasetName"])
        services.delete_dataset(user=user, dataset_id=dataset.pk)
        return Response({"message": "Dataset deleted successfully"})

    def patch(self, request: Request) -> Response:
        """Change a dataset's name, tags or both."""
        keys = validated(ChangeDatasetSerializer, request)
        new_tags = keys.get("newTags")
        dataset = selectors.live_dataset(user=cast(User, request.user), name=keys["datasetName"])
        services.change_dataset(
            dataset=dataset,
            new_name=keys.get("newDatasetName"),
            new_tags=None if new_tags is None else services.parse_tags(new_tags),
        )
        changed = [
            word for word, key in (("Name", "newDatasetName"), ("Tags", "newTags")) if key in keys
        ]
        return Response({"message": f"{' and '.join(changed)} correctly updated"})


class UploadView(APIView):
    """Upload an image, a video or a zip."""

    def post(self, request: Request) -> Response:
        """Take in the file and report on every file in it."""
        refuse_several_files(request)
        keys = validated(UploadSerializer, request)
        user = cast(User, request.user)

        def answer(upload: Upload) -> Response:
            body = {"message": "Content uploaded successfully", **upload_report(upload)}
            return Response(body, status=201)

        def take(keep: Keep) -> Response:
            dataset = selectors.live_dataset(user=user, name=keys["datasetName"])
            return upload_content(
                user=user,
                dataset_id=dataset.pk,
                content=keys["file"],
                answer=lambda upload: keep(answer(upload)),
            )

        return kept_by_act(request, take)


def upload_report(upload: Upload) -> dict[str, Any]:
    """What became of every file of an upload."""
    accepted = [
        {
            "filename": media_file.name,
            "accepted": True,
            "media_file_id": media_file.pk,
            "type": media_file.media_type,
            "frame_count": media_file.frame_count,
            "token_cost": tokens(media_file.cost_hundredths),
        }
        for media_file in upload.media_files.all()
    ]
    return {
        "upload_id": upload.pk,
        "token_cost": tokens(upload.cost_hundredths),
        "accepted": len(accepted),
        "refused": len(upload.refused),
        "files": accepted + upload.refused,
    }
