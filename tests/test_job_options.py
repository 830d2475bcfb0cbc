"""A job does what its owner chose, costs what that looks at, and shows it ever after."""

import json
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.services import log_in
from billing.selectors import balance_hundredths
from datasets.models import MediaFile
from inference import services, submission
from inference.models import Job, JobFile, ModelVersion
from inference.pipeline.options import DEFAULT_IMAGE_SIZE, DetectionOptions
from inference.planning import InvalidOptionsError, PrecisionNotAvailableError
from tests.factories import PASSWORD, add_media_file, dataset_id_of, make_dataset, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_broker")]
MODEL = {"model_id": "YOLO8", "model_version": "YOLO8s_FSR"}


@pytest.fixture
def dataset(user):
    """An image and a video of ten frames: 1.5 + 10 tokens."""
    dataset = make_dataset(user)
    add_media_file(dataset, name="a.jpg")
    add_media_file(dataset, name="b.mp4", media_type="video", frame_count=10)
    return dataset


@pytest.fixture
def post(user, dataset):
    """Submits a job with options over the API."""
    client = APIClient()
    tokens = log_in(email=user.email, password=PASSWORD, access_lifetime=timedelta(minutes=5))
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens.access}")

    def submit(options=None, kind="json"):
        body = {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR"}
        if options is not None:
            body["options"] = options
        return client.post("/api/v1/jobs/", body, format=kind)

    return submit


def faults(answer):
    assert answer.status_code == 400
    assert not Job.objects.exists()
    return [(one["field"], one["code"]) for one in answer.json()["errors"]]


def submit(user, **options):
    return submission.submit_job(
        user=user, dataset_id=dataset_id_of(user), **MODEL, options=options
    )


def beat(*precisions):
    services.record_heartbeat(
        worker_name="w", loaded_weights=["0" * 64], device="cpu", precisions=precisions
    )


def test_job_shows_what_was_chosen_and_the_defaults_of_the_rest(post, settings):
    settings.NETWORK_IMAGE_SIZE = 640
    chosen = {"tiling": {"tile": 512}, "confidence_floor": 0.2, "tracking": True}
    shown = post(chosen).json()["options"]
    assert shown == {
        **DetectionOptions().as_json(),
        "image_size": 640,
        "tiling": {"tile": 512, "overlap": 0.2},
        "confidence_floor": 0.2,
        "tracking": True,
    }


def test_job_without_options_gets_those_of_the_model_version(post):
    assert post().json()["options"] == DetectionOptions().as_json()
    assert DetectionOptions.parse(Job.objects.get().options) == DetectionOptions()


def test_form_gives_its_options_as_json_text(post):
    assert post('{"iou": 0.7}', kind="multipart").json()["options"]["iou"] == 0.7


@pytest.mark.parametrize("options", ["iou=1", "[]", "[" * 10_000, [], 5, None])
def test_options_that_are_no_object_are_refused(post, options):
    kind = "multipart" if isinstance(options, str) else "json"
    answer = post({"a": 1} if options is None else options, kind=kind)
    expected = ("options.a", "unknown") if options is None else ("options", "invalid")
    assert faults(answer) == [expected]


def test_every_option_at_fault_is_named_by_its_field(post):
    answer = post({"image_size": 650, "tiling": {"tile": 7}})
    assert faults(answer) == [("options.image_size", "invalid"), ("options.tiling", "invalid")]
    assert "multiple of 32" in answer.json()["detail"]


def test_option_at_fault_is_named_to_who_submits_without_the_api_too(user, dataset):
    with pytest.raises(InvalidOptionsError, match="iou must lie above 0") as refusal:
        submit(user, iou=7, image_size=650)
    named = {(one.field, one.code) for one in refusal.value.errors}
    assert named == {("options.iou", "invalid"), ("options.image_size", "invalid")}
    assert not Job.objects.exists()


def test_image_size_beyond_a_fixed_input_is_refused_and_just_as_large_is_not(post):
    ModelVersion.objects.filter(version="YOLO8s_FSR").update(image_size=640)
    answer = post({"image_size": 672})
    assert faults(answer) == [("options.image_size", "too_large")]
    assert "takes pictures of 640 pixels at most." in answer.json()["detail"]
    assert post({"image_size": 640}).json()["options"]["image_size"] == 640
    assert post().json()["options"]["image_size"] == 640


def test_every_third_frame_is_quoted_and_held(user, post):
    answer = post({"frame_stride": 3}).json()
    assert (answer["quoted_tokens"], answer["frame_count"]) == (5.5, 5)  # 0, 3, 6, 9, the image
    assert balance_hundredths(user=user) == 100_000 - 550
    assert list(JobFile.objects.values_list("frame_count", flat=True)) == [1, 4]


def test_quote_says_what_submission_holds_and_writes_nothing(user, dataset):
    quote = submission.quote_job(
        user=user, dataset_id=dataset_id_of(user), **MODEL, options={"frame_stride": 4}
    )
    assert (quote.image_count, quote.video_frame_count, quote.quoted_hundredths) == (1, 3, 450)
    assert quote.options.frame_stride == 4
    assert not Job.objects.exists()
    assert submit(user, frame_stride=4).quoted_hundredths == 450


def test_class_that_the_model_does_not_know_is_refused_with_those_it_knows(user, dataset):
    classes = "knows no tram; its classes are car, truck"
    with pytest.raises(InvalidOptionsError, match=classes) as refusal:
        submit(user, class_names=["car", "tram"])
    (error,) = refusal.value.errors
    assert (error.field, error.code) == ("options.class_names", "unknown_class")
    assert submit(user, class_names=["bus"]).options["class_names"] == ["bus"]


def test_precision_is_refused_until_a_worker_offers_it(user, post):
    answer = post({"precision": "bf16"})
    assert answer.json()["code"] == "precision_not_available"
    assert faults(answer) == [("options.precision", "precision_not_available")]
    assert "but in auto, fp32." in answer.json()["detail"]
    beat("fp32", "bf16")
    assert post({"precision": "bf16"}).json()["options"]["precision"] == "bf16"


def test_worker_that_went_silent_offers_nothing(user, dataset):
    beat("fp32", "fp16")
    assert submit(user, precision="fp16").options["precision"] == "fp16"
    long_ago = timezone.now() - timedelta(hours=1)
    services.WorkerHeartbeat.objects.update(last_seen_at=long_ago)
    with pytest.raises(PrecisionNotAvailableError):
        submit(user, precision="fp16")


def test_smallest_tiles_of_a_huge_picture_are_refused_with_its_name(dataset, post):
    huge = MediaFile.objects.filter(dataset=dataset, name="a.jpg")
    huge.update(width=16_000, height=12_000)
    answer = post({"tiling": {"tile": 160, "overlap": 0.5}})
    assert answer.json()["code"] == "too_many_tiles"
    assert faults(answer) == [("options.tiling", "too_many_tiles")]
    assert (
        "a.jpg has 16000 x 12000 pixels and would be cut into 29,652 parts"
        in (answer.json()["detail"])
    )
    assert post({"tiling": {"tile": 640}}).status_code == 202
    assert post({"tiling": "auto"}).status_code == 202


@pytest.mark.parametrize("image_size", [160, DEFAULT_IMAGE_SIZE])
def test_picture_may_be_cut_into_so_many_parts_and_not_one_more(dataset, post, image_size):
    """Itself whole is one of them."""
    picture = MediaFile.objects.filter(dataset=dataset, name="a.jpg")
    options = {"tiling": {"tile": 160, "overlap": 0.0}, "image_size": image_size}
    picture.update(width=32 * 160, height=32 * 160)
    answer = post(options)
    assert faults(answer) == [("options.tiling", "too_many_tiles")]
    assert (
        "would be cut into 1,025 parts; choose tiles so large that no picture has more than 1,024."
    ) in answer.json()["detail"]
    picture.update(width=33 * 160, height=31 * 160)
    answer = post({**options, "image_size": 2048})
    assert "would be cut into 1,024 parts of 2048 x 2048 pixels" in answer.json()["detail"]
    assert post(options).status_code == 202


def test_larger_inputs_leave_room_for_fewer_tiles(dataset, post):
    """What a picture costs the network is bounded: it has one price."""
    picture = MediaFile.objects.filter(dataset=dataset, name="a.jpg")
    picture.update(width=14_000, height=14_000)
    tiles = {"tiling": {"tile": 590}}
    answer = post({**tiles, "image_size": 2048})
    assert answer.json()["code"] == "too_many_tiles"
    assert faults(answer) == [("options.tiling", "too_many_tiles")]
    assert (
        "would be cut into 901 parts of 2048 x 2048 pixels for the network; choose tiles so large "
        "that no picture has more than 144 of them, or a smaller image_size."
    ) in answer.json()["detail"]
    assert post(tiles).status_code == 202


def test_smaller_image_size_leaves_no_room_for_more_tiles_of_a_fixed_input(dataset, post):
    ModelVersion.objects.filter(version="YOLO8s_FSR").update(image_size=1280)
    picture = MediaFile.objects.filter(dataset=dataset, name="a.jpg")
    picture.update(width=4800, height=4800)
    answer = post({"tiling": {"tile": 160, "overlap": 0.0}, "image_size": 160})
    assert faults(answer) == [("options.tiling", "too_many_tiles")]
    assert (
        "would be cut into 901 parts of 1280 x 1280 pixels for the network; choose tiles so "
        "large that no picture has more than 368 of them."
    ) in answer.json()["detail"]
    assert post({"tiling": {"tile": 320, "overlap": 0.0}, "image_size": 160}).status_code == 202


@pytest.mark.parametrize(
    ("size_wh", "options"),
    [
        ((7680, 4320), {"tiling": "auto", "image_size": 768}),
        ((12_000, 8333), {"tiling": {"tile": 640}}),
        ((14_000, 14_000), {"tiling": "auto", "image_size": 2048}),
    ],
    ids=["8K", "100 megapixels", "auto"],
)
def test_large_photographs_may_be_tiled(dataset, post, size_wh, options):
    picture = MediaFile.objects.filter(dataset=dataset, name="a.jpg")
    picture.update(width=size_wh[0], height=size_wh[1])
    assert post(options).status_code == 202


def test_int8_takes_calibrated_weights_and_a_worker_that_runs_them(user, dataset):
    version = ModelVersion.objects.get(version="YOLO8s_FSR")
    assert "int8" in version.precisions  # the package has a twin of these weights
    version.precisions.remove("int8")
    version.save()
    beat("fp32", "int8")
    with pytest.raises(PrecisionNotAvailableError):
        submit(user, precision="int8")
    version.precisions.append("int8")
    version.save()
    assert submit(user, precision="int8").options["precision"] == "int8"
    beat("fp32", "fp16")
    with pytest.raises(PrecisionNotAvailableError):
        submit(user, precision="int8")


def test_job_that_is_run_again_keeps_its_options(user, dataset, settings):
    job = submit(user, frame_stride=5, iou=0.7)
    services.abort_job(job_id=job.pk)
    settings.NETWORK_IMAGE_SIZE = 320  # what was default then stays chosen
    again = submission.rerun_job(job_id=job.pk)
    assert again.options == job.options
    assert again.quoted_hundredths == job.quoted_hundredths == 350


def test_contract_route_uses_the_defaults(user, dataset):
    job = submission.submit_job(user=user, dataset_id=dataset_id_of(user), **MODEL)
    assert job.options == DetectionOptions().as_json()


def test_administrator_sees_the_options_of_a_job(user, dataset, client):
    job = submit(user, frame_stride=5, tiling={"tile": 512})
    client.force_login(make_user(staff=True))
    page = client.get(f"/admin/inference/job/{job.pk}/change/").content.decode()
    assert "frame_stride = 5<br>" in page
    assert "tiling = {&quot;tile&quot;: 512, &quot;overlap&quot;: 0.2}<br>" in page


def test_document_of_the_api_describes_every_option(tmp_path):
    call_command("spectacular", format="openapi-json", file=str(tmp_path / "api.json"))
    described = json.loads((tmp_path / "api.json").read_text())["components"]["schemas"]
    assert set(described["DetectionOptions"]["properties"]) == set(DetectionOptions().as_json())
    for option in described["DetectionOptions"]["properties"].values():
        assert "." in option["description"]
