"""Model versions from the package and from uploads, until they are retired."""

import contextlib
import errno
import hashlib
import io
import json
import os
import resource
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import Permission
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from inference import confined, model_checks, queue, registry, submission, try_outs, weights_store
from inference.models import Job, ModelVersion, WorkUnit
from inference.networks import Detectors
from inference.pipeline.errors import DeviceUnavailableError, WeightsError
from inference.pipeline.weights_file import WeightsFacts
from inference.registry import (
    InvalidDefaultsError,
    ModelStateError,
    ModelVersionExistsError,
    UnacceptableWeightsError,
    UnknownModelError,
    activate_model,
    register_package_models,
    request_test,
    retire_model,
    upload_model,
)
from inference.try_outs import run_test
from inference.worker import run_unit
from odproject.core.files import StorageFullError
from tests.children import take_over
from tests.clients import client_of
from tests.factories import add_media_file, dataset_id_of, make_dataset, make_user
from tests.mediafiles import write_image
from tests.pipeline_fakes import real_detector
from tests.weights_makers import Evil, onnx_model, tiny_model, write_checkpoint, write_onnx

pytestmark = pytest.mark.django_db

FACTS = WeightsFacts("pt", ("car", "boat"), None, 1000)
CONTENT = b"weights of a boat finder"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def sent(monkeypatch) -> list[int]:
    """The hints that were sent for test runs."""
    hints: list[int] = []
    monkeypatch.setattr(queue, "send_model_test", lambda version_id: not hints.append(version_id))
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    return hints


@pytest.fixture
def believed(monkeypatch) -> None:
    """The confined process is not started: every file is what FACTS says."""
    monkeypatch.setattr(registry, "read_facts", lambda path, limits: FACTS)


@pytest.fixture
def admin():
    return make_user("root@example.org", staff=True)


def stored(name: str) -> bytes:
    with default_storage.open(name) as content:
        return content.read()


def upload(admin, content=CONTENT, version="boats-1", **arguments) -> ModelVersion:
    return upload_model(
        actor=admin,
        model_id="YOLO8",
        version=version,
        content=SimpleUploadedFile("boats.pt", content),
        **arguments,
    )


def post_upload(client, content=CONTENT, **fields):
    keys = {"version": "boats-1", "file": SimpleUploadedFile("boats.pt", content), **fields}
    return client.post("/api/v1/models/", keys, format="multipart")


def tried_out(version: ModelVersion, monkeypatch, *, error: str = "") -> ModelVersion:
    """The test run of a version, without the network."""

    def fake(path, *, sha256, options, limits):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        if error:
            raise WeightsError("weights_unreadable", error)
        figures = {"vehicles": 30, "found": 28, "false": 1, "by_class": {"car": 29}}
        figures["milliseconds_per_picture"] = 40
        return model_checks.TryOutReport(figures, b"\xff\xd8 picture")

    monkeypatch.setattr(try_outs, "try_out", fake)
    assert run_test(version_id=version.pk)
    version.refresh_from_db()
    return version


def submit(user, version="YOLO8s_FSR") -> Job:
    return submission.submit_job(
        user=user, dataset_id=dataset_id_of(user), model_id="YOLO8", model_version=version
    )


@pytest.fixture
def owner(tmp_path):
    user = make_user("owner@example.org")
    dataset = make_dataset(user)
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    return user


# -- the package's models ------------------------------------------------------------------------


@pytest.fixture
def package(settings, tmp_path):
    """A package with one model, whose weights a release may replace."""
    folder = settings.PACKAGE_WEIGHTS_DIR = tmp_path / "weights"
    folder.mkdir()
    entry = {"model_id": "YOLO8", "version": "small", "file": "small.pt"}
    entry |= {"class_names": ["car"], "default_options": {"image_size": 640}}
    (folder / "models.json").write_text(json.dumps([entry]))
    (folder / "small.pt").write_bytes(b"first weights")
    return folder


def test_versions_of_the_package_are_offered_with_the_digest_of_their_files():
    offered = ModelVersion.objects.filter(state="active").order_by("pk")
    assert [(one.model_id, one.version) for one in offered] == [
        ("YOLO8", "YOLO8s_FSR"),
        ("YOLO8", "YOLO8m_FSR"),
    ]
    for one in offered:
        path = weights_store.local_weights(one.weights_sha256)
        assert path.name == f"{one.version}.pt"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == one.weights_sha256
        assert not default_storage.exists(weights_store.stored_name(one.weights_sha256, "pt"))
    assert tuple(offered[0].class_names) == real_detector().class_names


def test_registering_again_changes_nothing(package):
    assert register_package_models() == 1
    before = ModelVersion.objects.filter(version="small").values().get()
    assert before["weights_sha256"] == hashlib.sha256(b"first weights").hexdigest()
    assert (before["state"], before["precisions"]) == ("active", ["auto", "fp32", "bf16", "fp16"])
    assert register_package_models() == 0
    assert ModelVersion.objects.filter(version="small").values().get() == before


def test_release_with_other_weights_leaves_old_jobs_their_digest(package, owner):
    register_package_models()
    job = submit(owner, "small")
    (package / "small.pt").write_bytes(b"second weights, better ones")
    (package / "small.int8.xml").write_text("<net/>")
    assert register_package_models() == 1
    row = ModelVersion.objects.get(version="small")
    assert row.weights_sha256 == hashlib.sha256(b"second weights, better ones").hexdigest()
    assert row.precisions == ["auto", "fp32", "bf16", "fp16", "int8"]
    job.refresh_from_db()
    assert job.weights_sha256 == hashlib.sha256(b"first weights").hexdigest()
    assert submit(owner, "small").weights_sha256 == row.weights_sha256


def test_jobs_that_wait_find_their_weights_after_a_release_with_others(package):
    (package / "small.int8.xml").write_text("<net/>")
    (package / "small.int8.bin").write_bytes(b"numbers")
    call_command("register_models", stdout=io.StringIO())
    first = ModelVersion.objects.get(version="small").weights_sha256
    (package / "small.pt").write_bytes(b"second weights, better ones")
    (package / "small.int8.xml").write_text("<other/>")
    call_command("register_models", stdout=io.StringIO())
    kept = weights_store.local_weights(first)
    assert kept.read_bytes() == b"first weights"
    assert kept.with_suffix(".int8.xml").read_text() == "<net/>"
    assert kept.with_suffix(".int8.bin").read_bytes() == b"numbers"
    second = ModelVersion.objects.get(version="small").weights_sha256
    assert weights_store.local_weights(second) == package / "small.pt"


def test_copy_of_weights_that_broke_off_is_made_again(package):
    register_package_models()
    digest = ModelVersion.objects.get(version="small").weights_sha256
    name = weights_store.stored_name(digest, "pt")
    default_storage.save(name, ContentFile(b"first wei"))
    assert weights_store.keep_package_weights() == 1
    assert stored(name) == b"first weights"
    assert weights_store.keep_package_weights() == 0


def test_full_disk_keeps_no_weights_and_nobody_from_starting(package, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(default_storage, "save", full)
    call_command("register_models", stdout=io.StringIO())
    assert ModelVersion.objects.filter(version="small", state="active").exists()


def test_release_does_not_offer_again_what_was_retired(package):
    register_package_models()
    row = ModelVersion.objects.get(version="small")
    retire_model(version_id=row.pk)
    (package / "small.pt").write_bytes(b"second weights")
    register_package_models()
    row.refresh_from_db()
    assert row.state == "retired"
    assert row.weights_sha256 == hashlib.sha256(b"second weights").hexdigest()


def test_release_leaves_an_uploaded_version_of_the_same_name_alone(package, admin, believed):
    mine = upload(admin, version="small")
    assert register_package_models() == 0
    mine.refresh_from_db()
    assert (mine.weights_sha256, mine.state) == (DIGEST, "draft")


def test_package_without_weights_registers_nothing(settings, tmp_path):
    settings.PACKAGE_WEIGHTS_DIR = tmp_path
    assert register_package_models() == 0
    (tmp_path / "models.json").write_text(
        '[{"model_id": "a", "version": "b", "file": "c.pt", "class_names": [], '
        '"default_options": {}}]'
    )
    assert register_package_models() == 0


def test_database_refuses_to_offer_a_version_without_weights():
    with (
        pytest.raises(IntegrityError, match="offered_model_version_has_weights"),
        transaction.atomic(),
    ):
        ModelVersion.objects.create(model_id="a", version="b", state="active")


# -- who may bring weights -----------------------------------------------------------------------


def staff_with(*codenames):
    user = make_user(role="none")
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return user


class TestWhoMayUpload:
    """Administrators with the permission, and nobody else: a checkpoint is code."""

    @pytest.mark.parametrize("role", ["", "Support", "Moderators", "none"])
    def test_others_are_refused_and_nothing_is_kept(self, role, believed, sent, media_root):
        answer = post_upload(client_of(make_user(role=role)))
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert not ModelVersion.objects.filter(version="boats-1").exists()
        assert not (media_root / "models").exists()
        assert sent == []

    def test_user_with_the_permission_who_is_no_administrator_is_refused(self, believed):
        user = make_user()
        user.user_permissions.set(Permission.objects.filter(codename="add_modelversion"))
        assert post_upload(client_of(user)).status_code == 403

    def test_anonymous_is_not_let_in(self, believed):
        assert post_upload(APIClient()).status_code == 401
        assert APIClient().get("/api/v1/models/").status_code == 401
        assert APIClient().get("/api/v1/models/1/").status_code == 401

    @pytest.mark.parametrize(
        "make", [lambda: make_user(staff=True), lambda: staff_with("add_modelversion")]
    )
    def test_administrators_with_the_permission_may(
        self, make, believed, sent, django_capture_on_commit_callbacks
    ):
        user = make()
        with django_capture_on_commit_callbacks(execute=True):
            answer = post_upload(
                client_of(user), notes="finds boats", default_options='{"image_size": 1024}'
            )
        assert answer.status_code == 201, answer.content
        row = ModelVersion.objects.get(version="boats-1")
        assert answer["Location"] == f"/api/v1/models/{row.pk}/"
        document = answer.json()
        assert document["state"] == "draft"
        assert document["class_names"] == ["car", "boat"]
        assert document["image_size"] == 1024
        assert (row.uploaded_by, row.weights_sha256, row.notes) == (user, DIGEST, "finds boats")
        assert stored(f"models/{DIGEST}.pt") == CONTENT
        assert sent == [row.pk]


def test_list_tells_what_a_user_needs_to_choose(owner, admin, believed):
    upload(admin)
    document = client_of(owner).get("/api/v1/models/").json()
    assert [one["version"] for one in document["results"]] == ["YOLO8s_FSR", "YOLO8m_FSR"]
    row = ModelVersion.objects.get(version="YOLO8s_FSR")
    one = document["results"][0]
    assert one.pop("created_at")
    options = one.pop("default_options")
    assert (options["confidence_floor"], options["tiling"], options["image_size"]) == (
        0.05,
        "off",
        768,
    )
    assert one == {
        "id": row.pk,
        "model_id": "YOLO8",
        "version": "YOLO8s_FSR",
        "class_names": ["car", "truck", "bus", "minibus"],
        "image_size": 768,
        "format": "pt",
        "weights_sha256": row.weights_sha256,
        "precisions": ["auto", "fp32"],  # no worker is there to offer more
        "notes": "",
    }


def test_draft_is_shown_to_administrators_and_does_not_exist_for_users(owner, admin, believed):
    draft = upload(admin)
    page = f"/api/v1/models/{draft.pk}/"
    assert client_of(owner).get(page).json()["code"] == "model_not_found"
    assert client_of(make_user(role="Moderators")).get(page).status_code == 404
    assert client_of(make_user(role="Support")).get(page).json()["state"] == "draft"
    active = ModelVersion.objects.get(version="YOLO8s_FSR")
    assert client_of(owner).get(f"/api/v1/models/{active.pk}").json()["state"] == "active"
    assert client_of(owner).get(f"/api/v1/models/{10**17}/").status_code == 404


# -- uploads that are refused --------------------------------------------------------------------


class TestRefusedUploads:
    """A refusal leaves neither a row nor a file."""

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, media_root):
        rows = set(ModelVersion.objects.values_list("pk", flat=True))
        yield
        assert set(ModelVersion.objects.values_list("pk", flat=True)) == rows
        assert not list(media_root.glob("models/*"))

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"version": "../boats"}, "version"),
            ({"version": ""}, "version"),
            ({"version": "x" * 41}, "version"),
            ({"model_id": "YOLO 8"}, "model_id"),
            ({"default_options": "[1]"}, "default_options"),
            ({"default_options": "{"}, "default_options"),
            ({"default_options": '{"image_size": 100}'}, "default_options.image_size"),
            ({"default_options": '{"precision": "int8"}'}, "default_options.precision"),
            ({"default_options": '{"size": 1}'}, "default_options.size"),
            ({"file": "text"}, "file"),
        ],
    )
    def test_fields_that_make_no_sense(self, fields, field, admin, believed):
        answer = post_upload(client_of(admin), **fields)
        assert answer.status_code == 400
        assert [one["field"] for one in answer.json()["errors"]] == [field]

    def test_empty_and_too_large_files(self, admin, believed, settings):
        assert post_upload(client_of(admin), b"").status_code == 400
        settings.MAX_WEIGHTS_BYTES = len(CONTENT) - 1
        answer = post_upload(client_of(admin))
        assert (answer.status_code, answer.json()["code"]) == (413, "weights_too_large")

    def test_name_that_is_taken(self, admin, believed):
        answer = post_upload(client_of(admin), version="YOLO8s_FSR")
        assert (answer.status_code, answer.json()["code"]) == (409, "model_version_exists")

    def test_name_that_somebody_else_took_meanwhile(self, admin, believed, monkeypatch):
        check, calls = registry._check_name_is_free, []

        def too_early(*names):
            calls.append(names)
            if len(calls) > 1:
                check(*names)

        monkeypatch.setattr(registry, "_check_name_is_free", too_early)
        with pytest.raises(ModelVersionExistsError):
            upload(admin, version="YOLO8s_FSR")

    def test_input_of_a_fixed_size_can_have_no_other_default(self, admin, monkeypatch):
        fixed = WeightsFacts("onnx", ("car",), 640, 1)
        monkeypatch.setattr(registry, "read_facts", lambda path, limits: fixed)
        with pytest.raises(InvalidDefaultsError, match="take pictures of 640 pixels at most"):
            upload(admin, default_options={"image_size": 768})

    def test_export_whose_input_no_job_could_ask_for(self, admin, tmp_path, sent):
        path = write_onnx(tmp_path / "large.onnx", onnx_model(input_shape=[1, 3, 2560, 2560]))
        answer = post_upload(client_of(admin), path.read_bytes())
        assert (answer.status_code, answer.json()["reason"]) == (422, "not_a_detector")
        assert "it must have 160 to 2048" in answer.json()["detail"]
        assert sent == []

    def test_export_for_any_size_that_answers_with_merged_boxes(self, admin, tmp_path, sent):
        model = onnx_model(
            input_shape=["batch", 3, "height", "width"],
            output_shape=["batch", "boxes", "numbers"],
            answer_shape=[1, 300, 6],
        )
        content = write_onnx(tmp_path / "merged.onnx", model).read_bytes()
        answer = post_upload(client_of(admin), content)
        assert (answer.status_code, answer.json()["reason"]) == (422, "not_a_detector")
        assert answer.json()["detail"] == (
            "The model's output is [1, 300, 6], not (1, 6, cells) as of a YOLOv8 detector of 2 "
            "classes."
        )
        assert sent == []

    def test_pickle_that_means_harm_is_never_executed(self, admin, tmp_path, sent):
        marker = tmp_path / "it-was-executed"
        path = write_checkpoint(tmp_path / "evil.pt", Evil(marker))
        answer = post_upload(client_of(admin), path.read_bytes())
        assert answer.status_code == 422, answer.content
        assert answer.json()["code"] == "unacceptable_weights"
        assert answer.json()["reason"] == "weights_unreadable"
        assert answer.json()["detail"] == "weights.pt is no readable checkpoint."
        assert not marker.exists()
        assert sent == []


ENDLESS = "dict(format='onnx', class_names=['car'], image_size=1e999, parameter_count=1)"


def test_child_that_hangs_crashes_or_babbles_is_a_refusal(tmp_path, monkeypatch):
    """What the parent makes of a child that a file has taken over."""
    for program, reason in (
        ("import time; time.sleep(60)", "takes longer than allowed"),
        ("import os; os.abort()", "crashed"),
        ("print('{}')", "crashed"),
        ("print('[1]')", "crashed"),
        ("print('x' * 9_000_000)", "crashed"),
        ("print('[' * 100_000)", "crashed"),
        (f"import json; print(json.dumps(dict(facts={ENDLESS})))", "crashed"),
    ):
        seconds = 1.0 if "sleep" in program else 30.0  # in which a busy machine starts a child
        limits = confined.ChildLimits(memory_bytes=10**9, seconds=seconds, cpu_seconds=5)
        with monkeypatch.context() as patch:
            take_over(patch, tmp_path, program)
            with pytest.raises(WeightsError, match=reason):
                model_checks.read_facts(tmp_path / "weights.pt", limits=limits)


def test_child_is_heard_where_a_thousand_connections_are_open(tmp_path):
    """A web process may have many more files open than the 1024 that select() knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this machine lets a process open no more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.enter_context(Path(os.devnull).open("rb"))
        limits = confined.ChildLimits(memory_bytes=4 * 10**9, seconds=60, cpu_seconds=60)
        path = tmp_path / "weights.pt"
        path.write_bytes(b"no weights")
        with pytest.raises(WeightsError, match="is no ONNX model"):
            model_checks.read_facts(path, limits=limits)


# -- the whole life of one version ---------------------------------------------------------------


def test_uploaded_model_is_tested_offered_used_and_retired(
    owner, tmp_path, sent, settings, django_capture_on_commit_callbacks
):
    """With a real network in the real confined process, from the upload to the last job."""
    admin = make_user(staff=True)
    weights = write_checkpoint(tmp_path / "tiny.pt", tiny_model(tmp_path)).read_bytes()
    with django_capture_on_commit_callbacks(execute=True):
        options = '{"image_size": 320}'
        answer = post_upload(client_of(admin), weights, version="tiny", default_options=options)
        assert answer.status_code == 201, answer.content
    version = ModelVersion.objects.get(version="tiny")
    assert (version.class_names, version.format, version.state) == (["car", "boat"], "pt", "draft")
    with pytest.raises(UnknownModelError):
        submit(owner, "tiny")
    with pytest.raises(ModelStateError, match="tiny is draft"):
        activate_model(version_id=version.pk)
    assert sent == [version.pk]
    assert run_test(version_id=version.pk)
    version.refresh_from_db()
    assert (version.state, version.test_error) == ("tested", "")
    assert version.test_figures["vehicles"] == 20
    assert version.test_figures["found"] == 0  # it was never trained
    assert stored(version.test_picture.name)[:2] == b"\xff\xd8"
    with pytest.raises(UnknownModelError):
        submit(owner, "tiny")
    activate_model(version_id=version.pk)
    job = submit(owner, "tiny")
    assert job.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert job.class_names == ["car", "boat"]
    retire_model(version_id=version.pk)
    with pytest.raises(UnknownModelError, match="choose one of YOLO8/YOLO8s_FSR, YOLO8/YOLO8m_FSR"):
        submit(owner, "tiny")
    settings.NETWORK_IMAGE_SIZE = 320
    detectors = Detectors()
    unit = WorkUnit.objects.get(job=job)
    assert run_unit(unit_id=unit.pk, worker_name="w", detector_of=detectors.for_job)
    job.refresh_from_db()
    assert job.state == "Completed"
    assert detectors.loaded_weights == [job.weights_sha256]


def test_contract_maps_onto_the_registry(owner, admin, believed, monkeypatch):
    client = client_of(owner)
    keys = {"datasetName": "street", "modelId": "YOLO8", "modelVersion": "boats-1"}
    version = upload(admin)
    for state in ("draft", "tested", "retired"):
        ModelVersion.objects.filter(pk=version.pk).update(state=state)
        answer = client.post("/inference/", keys)
        assert (answer.status_code, answer.json()["name"]) == (400, "UnknownModelError")
    activate_model(version_id=version.pk)
    assert client.post("/inference/", keys).status_code == 200
    answer = client.post("/inference/", {**keys, "modelId": "YOLO9"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "modelId")
    dataset_id = Job.objects.get().dataset_id
    keys = {"dataset_id": dataset_id, "model_id": "YOLO9", "model_version": "boats-1"}
    answer = client.post("/api/v1/jobs/", keys)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "model_id")
    assert Job.objects.count() == 1


# -- states --------------------------------------------------------------------------------------


def test_each_step_fits_some_states_only(admin, believed):
    version = upload(admin)
    allowed = {
        activate_model: {"tested", "retired"},
        retire_model: {"active", "tested"},
        request_test: {"draft"},
    }
    for step, states in allowed.items():
        for state in ModelVersion.State.values:
            ModelVersion.objects.filter(pk=version.pk).update(state=state, test_requested_at=None)
            if state in states:
                step(version_id=version.pk)
                continue
            with pytest.raises(ModelStateError, match=f"boats-1 is {state}"):
                step(version_id=version.pk)
            version.refresh_from_db()
            assert version.state == state


# -- test runs -----------------------------------------------------------------------------------


class TestTestRuns:
    """The row is the truth: a hint may come twice, late or never, and a worker may die."""

    @pytest.fixture
    def version(self, admin, believed):
        return upload(admin)

    def test_good_run_leaves_figures_and_a_picture(self, version, monkeypatch):
        tried_out(version, monkeypatch)
        assert (version.state, version.test_requested_at) == ("tested", None)
        assert version.test_figures["found"] == 28
        assert stored(version.test_picture.name) == b"\xff\xd8 picture"
        assert run_test(version_id=version.pk) is False

    def test_failed_run_leaves_a_draft_with_the_reason_that_may_be_tested_again(
        self, version, monkeypatch, sent, django_capture_on_commit_callbacks
    ):
        tried_out(version, monkeypatch, error="Loading the weights crashed.")
        assert (version.state, version.test_error) == ("draft", "Loading the weights crashed.")
        with pytest.raises(ModelStateError):
            activate_model(version_id=version.pk)
        with django_capture_on_commit_callbacks(execute=True):
            request_test(version_id=version.pk)
        assert sent == [version.pk]
        tried_out(version, monkeypatch)
        assert (version.state, version.test_error) == ("tested", "")

    def test_defaults_out_of_range_are_a_reason_too(self, version):
        ModelVersion.objects.filter(pk=version.pk).update(image_size=2560)
        assert run_test(version_id=version.pk)
        version.refresh_from_db()
        assert (version.state, version.test_requested_at) == ("draft", None)
        assert version.test_error == (
            "The default options are not valid: image_size must be a multiple of 32 from 160 to "
            "2048."
        )

    def test_two_workers_do_not_both_have_it(self, version):
        first = try_outs._claim_test(version.pk)
        assert (first.version_id, first.attempt) == (version.pk, 1)
        assert try_outs._claim_test(version.pk) is None
        assert run_test(version_id=version.pk) is False

    def test_worker_that_lost_its_lease_writes_nothing(self, version, monkeypatch):
        late = try_outs._claim_test(version.pk)
        ModelVersion.objects.update(test_lease_expires_at=timezone.now() - timedelta(seconds=1))
        tried_out(version, monkeypatch)
        assert not try_outs._end_test(claim=late, error="too late")
        version.refresh_from_db()
        assert (version.state, version.test_error) == ("tested", "")

    def test_run_that_breaks_off_again_and_again_fails(self, version):
        for _ in range(3):
            assert try_outs._claim_test(version.pk)
            ModelVersion.objects.update(test_lease_expires_at=timezone.now() - timedelta(seconds=1))
        assert run_test(version_id=version.pk)
        version.refresh_from_db()
        assert (version.state, version.test_error) == ("draft", "The test run broke off 3 times.")
        assert run_test(version_id=version.pk) is False

    def test_lost_hint_is_repeated_while_the_run_waits(self, version, sent, settings):
        now = timezone.now()
        assert try_outs.enqueue_tests(now=now) == 1
        assert try_outs.enqueue_tests(now=now) == 0
        later = now + timedelta(seconds=settings.UNIT_HINT_SECONDS + 1)
        assert try_outs.enqueue_tests(now=later) == 1
        try_outs._claim_test(version.pk)
        much_later = later + timedelta(seconds=settings.UNIT_HINT_SECONDS + 1)
        assert try_outs.enqueue_tests(now=much_later) == 0  # under way
        assert sent == [version.pk] * 2

    def test_broker_that_is_away_is_asked_again_later(self, version, monkeypatch):
        monkeypatch.setattr(queue, "send_model_test", lambda version_id: False)
        assert try_outs.enqueue_tests() == 0
        version.refresh_from_db()
        assert version.test_enqueued_at is None


# -- weights in the storage and in memory --------------------------------------------------------


def test_same_weights_twice_are_stored_once(admin, believed, media_root):
    first, second = upload(admin), upload(admin, version="boats-2")
    assert first.weights_sha256 == second.weights_sha256
    assert [path.name for path in (media_root / "models").iterdir()] == [f"{DIGEST}.pt"]
    # A refusal of the second does not take the file from the first.
    with pytest.raises(ModelVersionExistsError):
        upload(admin)
    assert default_storage.exists(f"models/{DIGEST}.pt")


def test_upload_that_the_disk_does_not_take_is_a_507_without_a_trace(
    admin, believed, monkeypatch, media_root
):
    def full(name, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(default_storage, "save", full)
    answer = post_upload(client_of(admin))
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert not ModelVersion.objects.filter(version="boats-1").exists()


def test_upload_that_breaks_off_on_the_disk_leaves_no_half_of_it(
    admin, believed, monkeypatch, media_root
):
    def half(name, content):
        (media_root / "models").mkdir(parents=True)
        (media_root / name).write_bytes(CONTENT[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(default_storage, "save", half)
    with pytest.raises(StorageFullError):
        upload(admin)
    assert list((media_root / "models").iterdir()) == []


def test_half_a_file_of_a_save_that_crashed_is_not_taken_for_the_weights(admin, believed):
    default_storage.save(f"models/{DIGEST}.pt", ContentFile(CONTENT[:5]))
    upload(admin)
    assert stored(f"models/{DIGEST}.pt") == CONTENT


class TestUploadsThatFail:
    """They take away what they brought, and nothing that others need."""

    NAME = f"models/{DIGEST}.pt"

    def test_weights_that_were_there_before_stay(self, admin, believed):
        default_storage.save(self.NAME, ContentFile(CONTENT))
        with pytest.raises(ModelVersionExistsError):
            self._upload_under_a_name_that_was_taken(admin)
        assert stored(self.NAME) == CONTENT

    def test_weights_that_only_a_waiting_job_names_stay_even_if_they_had_to_be_stored_again(
        self, admin, believed, owner
    ):
        Job.objects.filter(pk=submit(owner).pk).update(weights_sha256=DIGEST)
        with pytest.raises(ModelVersionExistsError):
            self._upload_under_a_name_that_was_taken(admin)
        assert stored(self.NAME) == CONTENT

    def test_weights_that_nobody_names_go_again(self, admin, believed):
        with pytest.raises(ModelVersionExistsError):
            self._upload_under_a_name_that_was_taken(admin)
        assert not default_storage.exists(self.NAME)

    def _upload_under_a_name_that_was_taken(self, admin):
        """The name is found taken only when the row is written."""
        with pytest.MonkeyPatch.context() as patch:
            check, calls = registry._check_name_is_free, []

            def too_early(*names):
                calls.append(names)
                if len(calls) > 1:
                    check(*names)

            patch.setattr(registry, "_check_name_is_free", too_early)
            upload(admin, version="YOLO8s_FSR")


def test_large_upload_that_arrives_as_a_file_is_taken(admin, believed):
    content = TemporaryUploadedFile("boats.pt", "application/octet-stream", len(CONTENT), None)
    content.write(CONTENT)
    content.seek(0)
    row = upload_model(actor=admin, model_id="YOLO8", version="boats-1", content=content)
    assert row.weights_bytes == len(CONTENT)
    assert weights_store.local_weights(DIGEST).read_bytes() == CONTENT


class Elsewhere:
    """A storage that is no folder, such as a bucket."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.opened: list[str] = []

    def path(self, name):
        raise NotImplementedError

    def exists(self, name):
        return name in self.files

    def open(self, name):
        self.opened.append(name)
        return ContentFile(self.files[name])


def test_weights_of_a_storage_that_is_no_folder_are_fetched_once(monkeypatch, settings, tmp_path):
    settings.DATA_DIR = tmp_path / "data"
    names = [f"models/{DIGEST}.pt", f"models/{DIGEST}.int8.xml"]
    elsewhere = Elsewhere(dict(zip(names, (CONTENT, b"<net/>"), strict=True)))
    monkeypatch.setattr(weights_store, "default_storage", elsewhere)
    path = weights_store.local_weights(DIGEST)
    assert (path.read_bytes(), path.with_suffix(".int8.xml").read_bytes()) == (CONTENT, b"<net/>")
    assert weights_store.local_weights(DIGEST) == path
    assert elsewhere.opened == names


def test_fetch_that_breaks_off_leaves_nothing_behind(monkeypatch, settings, tmp_path):
    class BreaksOff(ContentFile):
        def read(self, size=None):
            if self.tell():
                raise OSError("the connection was reset")
            return super().read(5)

    settings.DATA_DIR = tmp_path / "data"
    elsewhere = Elsewhere({f"models/{DIGEST}.pt": CONTENT})
    monkeypatch.setattr(elsewhere, "open", lambda name: BreaksOff(CONTENT))
    monkeypatch.setattr(weights_store, "default_storage", elsewhere)
    with pytest.raises(OSError, match="the connection was reset"):
        weights_store.local_weights(DIGEST)
    assert list((tmp_path / "data/models").iterdir()) == []


def test_job_whose_weights_are_gone_fails_in_words_and_costs_nothing(owner):
    job = submit(owner)
    Job.objects.filter(pk=job.pk).update(weights_sha256="0" * 64)
    unit = WorkUnit.objects.get(job=job)
    assert run_unit(unit_id=unit.pk, worker_name="w", detector_of=Detectors().for_job)
    job.refresh_from_db()
    assert (job.state, job.charged_hundredths) == ("Failed", 0)
    assert job.error == "The weights 000000000000 are not here any more."


def test_worker_keeps_a_few_networks_and_drops_the_idlest(settings, monkeypatch):
    settings.NETWORKS_IN_MEMORY = 2
    monkeypatch.setattr("inference.networks.local_weights", lambda sha256: sha256)
    loaded = []

    def load(weights, *, sha256, **_):
        loaded.append(sha256)
        facts = {"class_names": ("car",), "device": "cpu", "runtime": "none", "precision": "fp32"}
        return SimpleNamespace(**facts, tune=lambda input_wh, *, batch_size: None)

    detectors = Detectors(load=load)
    first = detectors.load("a")
    detectors.load("b")
    assert detectors.load("a") is first
    detectors.load("c")
    assert (detectors.loaded_weights, detectors.device) == (["a", "c"], "cpu")
    assert detectors.load("a") is first
    detectors.load("b")
    assert loaded == ["a", "b", "c", "b"]


@pytest.mark.parametrize(("precision", "device"), [("auto", "cuda:1"), ("int8", None)])
def test_settings_choose_device_runtime_and_batch_but_int8_is_for_the_processor(
    settings, monkeypatch, precision, device
):
    settings.NETWORK_DEVICE, settings.NETWORK_RUNTIME = "cuda:1", "torch"
    settings.NETWORK_IMAGE_SIZE, settings.NETWORK_BATCH = 640, 24
    monkeypatch.setattr("inference.networks.local_weights", lambda sha256: sha256)
    asked, tuned = {}, []

    def tune(input_wh, *, batch_size):
        tuned.append((input_wh, batch_size))

    def load(weights, **wanted):
        asked.update(wanted)
        facts = {"class_names": ("car",), "device": "-", "runtime": "-", "precision": "-"}
        return SimpleNamespace(**facts, tune=tune)

    Detectors(load=load).load("a", precision=precision)
    assert (asked["device"], asked["runtime"]) == (device, "torch")
    assert tuned == [((640, 640), 24)]


def test_worker_that_is_to_have_a_card_does_not_start_without_one(settings):
    settings.NETWORK_DEVICE = "cuda:99"
    with pytest.raises(DeviceUnavailableError):
        Detectors.check_device()
    settings.NETWORK_DEVICE = "cpu"
    Detectors.check_device()
    settings.NETWORK_DEVICE = ""
    Detectors.check_device()


def test_first_active_version_is_what_a_worker_loads_before_it_is_asked():
    first = ModelVersion.objects.get(version="YOLO8s_FSR")
    assert registry.first_active_weights() == first.weights_sha256
    retire_model(version_id=first.pk)
    assert registry.first_active_weights() != first.weights_sha256
    ModelVersion.objects.update(state="retired")
    assert registry.first_active_weights() == ""


def test_unacceptable_weights_tell_why(admin, monkeypatch):
    def refuse(path, limits):
        raise WeightsError("weights_unsafe", "The checkpoint is compressed.")

    monkeypatch.setattr(registry, "read_facts", refuse)
    with pytest.raises(UnacceptableWeightsError, match=r"The checkpoint is compressed\."):
        upload(admin)
