"""Users, datasets and jobs for tests, made by the services that make them for people."""

import itertools
from pathlib import Path
from typing import Any

from django.contrib.auth.models import Group
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from accounts.models import User
from accounts.services import register_user
from datasets.models import Dataset, MediaFile, Upload
from datasets.selectors import live_dataset
from datasets.services import create_dataset

PASSWORD = "correct horse battery"
_numbers = itertools.count(1)


def make_user(email: str = "", *, staff: bool = False, role: str = "") -> User:
    """A registered user; `staff` makes an administrator with every permission.

    `role` makes one with the permissions of that group only, "none" one without any.
    """
    email = email or f"user{next(_numbers)}@example.org"
    user = register_user(email=email, password=PASSWORD, confirm_password=PASSWORD)
    if staff:
        User.objects.filter(pk=user.pk).update(is_staff=True, is_superuser=True)
        user.refresh_from_db()
    if role:
        User.objects.filter(pk=user.pk).update(is_staff=True)
        user.refresh_from_db()
        user.groups.set(Group.objects.filter(name=role))
    return user


def make_dataset(user: User, name: str = "street") -> Dataset:
    """An empty dataset."""
    return create_dataset(user=user, name=name, tags=[])


def dataset_id_of(user: User, name: str = "street") -> int:
    """The number of the user's live dataset of this name."""
    return live_dataset(user=user, name=name).pk


def add_media_file(
    dataset: Dataset,
    *,
    name: str = "a.jpg",
    content: bytes | Path = b"",
    media_type: str = "image",
    frame_count: int = 1,
    image_format: str = "jpeg",
    seek_plan: dict[str, Any] | None = None,
) -> MediaFile:
    """A media file whose upload was paid for elsewhere."""
    data = content.read_bytes() if isinstance(content, Path) else content
    stored = default_storage.save(f"uploads/test.{image_format}", ContentFile(data))
    return MediaFile.objects.create(
        dataset=dataset,
        upload=Upload.objects.create(dataset=dataset, file_name=name),
        name=name,
        content=stored,
        media_type=media_type,
        format=image_format,
        size_bytes=len(data),
        width=640,
        height=480,
        frame_count=frame_count,
        seek_plan=seek_plan,
        cost_hundredths=0,
    )
