"""The shapes of requests about datasets."""

from typing import Any

from rest_framework import serializers

SHORTEST_NAME, LONGEST_NAME = 3, 40


class DatasetNameSerializer(serializers.Serializer[Any]):
    """The key that names a dataset to act on."""

    datasetName = serializers.CharField(max_length=200)  # noqa: N815


class CreateDatasetSerializer(serializers.Serializer[Any]):
    """Keys of POST /datasets/."""

    datasetName = serializers.CharField(min_length=SHORTEST_NAME, max_length=LONGEST_NAME)  # noqa: N815
    tags = serializers.CharField(max_length=1000, allow_blank=True, default="")


class ChangeDatasetSerializer(DatasetNameSerializer):
    """Keys of PATCH /datasets/."""

    newDatasetName = serializers.CharField(  # noqa: N815
        required=False, min_length=SHORTEST_NAME, max_length=LONGEST_NAME
    )
    newTags = serializers.CharField(required=False, max_length=1000, allow_blank=True)  # noqa: N815

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuse a change that changes nothing."""
        if "newDatasetName" not in attrs and "newTags" not in attrs:
            raise serializers.ValidationError("Give newDatasetName, newTags or both.")
        return attrs


class UploadSerializer(DatasetNameSerializer):
    """Keys of POST /upload/."""

    file = serializers.FileField(allow_empty_file=True, max_length=None)
