"""Uploads of the same weights at once, each with its own connection, really committing."""

import hashlib
import threading

from django.core.files.uploadedfile import SimpleUploadedFile

from inference import queue, registry
from inference.models import ModelVersion
from inference.pipeline.weights_file import WeightsFacts
from odproject.core.files import StorageUnavailableError
from tests.factories import make_user
from tests.threads import in_threads

FACTS = WeightsFacts("pt", ("car", "boat"), None, 1000)
CONTENT = b"weights of a boat finder"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_weights_of_an_upload_survive_another_one_of_the_same_that_fails(
    committed_db, monkeypatch, media_root
):
    """Both at once: the one that stored the file fails while the other is about to commit."""
    admin = make_user("root2@example.org", staff=True)
    stored_by_first, second_records, first_ended = (threading.Event() for _ in range(3))
    record = registry._record

    def paused(*, version, **arguments):
        if version == "first":
            stored_by_first.set()
            second_records.wait(0.5)  # it cannot while it must wait for the first one
            raise OSError("the first one breaks off")
        second_records.set()
        first_ended.wait(5)
        return record(version=version, **arguments)

    def upload(version):
        content = SimpleUploadedFile("boats.pt", CONTENT)
        return registry.upload_model(
            actor=admin, model_id="YOLO8", version=version, content=content
        )

    def both(number):
        if number == 1:
            assert stored_by_first.wait(10)
            return upload("second")
        try:
            return upload("first")
        finally:
            first_ended.set()

    monkeypatch.setattr(registry, "read_facts", lambda path, limits: FACTS)
    monkeypatch.setattr(queue, "send_model_test", lambda version_id: True)
    monkeypatch.setattr(registry, "_record", paused)
    first, second = in_threads(2, both)
    assert isinstance(first, StorageUnavailableError)
    assert second.weights_sha256 == DIGEST
    assert not ModelVersion.objects.filter(version="first").exists()
    assert (media_root / f"models/{DIGEST}.pt").read_bytes() == CONTENT
