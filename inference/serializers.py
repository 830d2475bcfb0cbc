"""The shapes of requests about jobs."""

from typing import Any

from rest_framework import serializers

from odproject.core.listing import LARGEST_ID


class SubmitJobSerializer(serializers.Serializer[Any]):
    """Keys of POST /inference/."""

    datasetName = serializers.CharField(max_length=200)  # noqa: N815
    modelId = serializers.CharField(max_length=40)  # noqa: N815
    modelVersion = serializers.CharField(max_length=40)  # noqa: N815


class JobIdSerializer(serializers.Serializer[Any]):
    """The key that names a job."""

    jobId = serializers.IntegerField(min_value=0, max_value=LARGEST_ID)  # noqa: N815
