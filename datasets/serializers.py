"""The shapes of requests about datasets."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request

from odproject.core.errors import DomainError
from odproject.core.text import readable

SHORTEST_NAME, LONGEST_NAME = 3, 40
NO_FILE = (
    "The request has no file. It is sent as multipart/form-data, and what stands before the "
    "content of a part, a file's name included, must be UTF-8."
)


class NameField(serializers.CharField):
    """The name of a dataset that is made or renamed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            min_length=SHORTEST_NAME, max_length=LONGEST_NAME, validators=[readable], **options
        )


class TagsField(serializers.CharField):
    """Words separated by commas."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=1000, allow_blank=True, validators=[readable], **options)


class UploadedFileField(serializers.FileField):
    """One image, one video or a zip of them; an empty file is refused later, with its reason."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_empty_file=True,
            error_messages={"required": NO_FILE, "invalid": NO_FILE},
            **options,
        )


class SeveralFilesError(DomainError):
    """More than one file in an upload, of which all but the last would be lost without a word."""

    code = "several_files"
    title = "More than one file"


def refuse_several_files(request: Request) -> None:
    """Raise SeveralFilesError (400) for a request with more than one part named `file`."""
    if len(request.FILES.getlist("file")) > 1:
        detail = "Send one file; several files travel together in a zip."
        raise SeveralFilesError(detail, fields=("file",))


class DatasetNameSerializer(serializers.Serializer[Any]):
    """The key that names a dataset to act on."""

    datasetName = serializers.CharField(max_length=200)  # noqa: N815


class CreateDatasetSerializer(serializers.Serializer[Any]):
    """Keys of POST /datasets/."""

    datasetName = NameField()  # noqa: N815
    tags = TagsField(default="")


class ChangeDatasetSerializer(DatasetNameSerializer):
    """Keys of PATCH /datasets/."""

    newDatasetName = NameField(required=False)  # noqa: N815
    newTags = TagsField(required=False)  # noqa: N815

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuse a change that changes nothing."""
        if "newDatasetName" not in attrs and "newTags" not in attrs:
            raise serializers.ValidationError("Give newDatasetName, newTags or both.")
        return attrs


class UploadSerializer(DatasetNameSerializer):
    """Keys of POST /upload/."""

    file = UploadedFileField()
