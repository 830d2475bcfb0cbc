"""Jobs, frame results and annotated files in /api/v1/."""

from collections.abc import Collection
from typing import Any, cast

import django_filters
from django.db.models import QuerySet
from django.http import FileResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from billing.idempotency import answered_once
from billing.prices import tokens
from datasets.models import MediaFile
from inference import results, selectors, services, submission
from inference.crops import crops
from inference.exports import EXPORTS
from inference.models import FrameResult, Job, JobFile, progress_percent
from inference.pipeline.options import DISPLAY_CONFIDENCE
from inference.serializers import DetectionOptionsSerializer
from inference.waiting import wait_of
from odproject.core.api import StrictSerializer, validated, validated_query
from odproject.core.errors import ConflictError, NotFoundError
from odproject.core.files import spooled_response, stored_file_response
from odproject.core.listing import (
    LARGEST_ID,
    ChoiceInFilter,
    NewestFirst,
    Pages,
    StrictFilters,
    StrictFilterSet,
    StrictOrdering,
    WholeNumberFilter,
)
from odproject.core.schema import IDEMPOTENCY_KEY, MEDIA


class AnnotatedFileNotFoundError(NotFoundError):
    """The job has no annotated file of this number."""

    code = "annotated_file_not_found"
    title = "Annotated file not found"


class JobNotFinishedError(ConflictError):
    """The job goes on, so what is asked for is not all there."""

    code = "job_not_finished"
    title = "The job has not ended"


class JobFileSerializer(serializers.ModelSerializer[JobFile]):
    """One file of a job: how far it is, what it cost, where its annotated copy is."""

    filename = serializers.CharField(source="media_file.name", read_only=True)
    type = serializers.CharField(source="media_file.media_type", read_only=True)
    frames_done = serializers.IntegerField(
        read_only=True, help_text="Images and video frames that have a result."
    )
    warning = serializers.CharField(
        source="media_file.warning",
        read_only=True,
        help_text="What is wrong with the file although it was accepted; empty if nothing is.",
    )
    charged_tokens = serializers.SerializerMethodField()
    annotated_url = serializers.SerializerMethodField()

    class Meta:
        model = JobFile
        fields = (
            "media_file_id",
            "filename",
            "type",
            "state",
            "frames_done",
            "frame_count",
            "charged_tokens",
            "error",
            "warning",
            "annotated_url",
        )
        read_only_fields = fields

    def get_charged_tokens(self, file: JobFile) -> float | None:
        """Known when the job has ended."""
        if file.job.finished_at is None:
            return None
        return tokens(cast(Any, file).frames_done * file.frame_price_hundredths)

    def get_annotated_url(self, file: JobFile) -> str | None:
        """Where its owner gets the annotated copy."""
        if not file.annotated:
            return None
        return f"/api/v1/jobs/{file.job_id}/annotated-files/{file.pk}/"


class JobSerializer(serializers.ModelSerializer[Job]):
    """A job."""

    dataset_name = serializers.CharField(
        source="dataset.name", read_only=True, help_text="Also of a dataset deleted since."
    )
    model_version = serializers.CharField(source="model_version.version", read_only=True)
    options = DetectionOptionsSerializer(read_only=True)
    frames_done = serializers.SerializerMethodField()
    progress_percent = serializers.SerializerMethodField()
    quoted_tokens = serializers.SerializerMethodField(help_text="Held at submission.")
    charged_tokens = serializers.SerializerMethodField(help_text="Known when it has ended.")
    rerun_of_id = serializers.IntegerField(
        read_only=True,
        allow_null=True,
        help_text="The job whose files it looks at again; null of one that is none.",
    )

    class Meta:
        model = Job
        fields = (
            "id",
            "state",
            "dataset_id",
            "dataset_name",
            "model_version",
            "options",
            "frame_count",
            "frames_done",
            "progress_percent",
            "quoted_tokens",
            "charged_tokens",
            "error",
            "weights_sha256",
            "rerun_of_id",
            "created_at",
            "deadline_at",
            "started_at",
            "finished_at",
        )
        read_only_fields = fields

    def get_frames_done(self, job: Job) -> int:
        """Images and video frames that have a result."""
        return int(cast(Any, job).frames_done)

    def get_progress_percent(self, job: Job) -> float:
        """Of all its frames."""
        return progress_percent(frames_done=self.get_frames_done(job), frame_count=job.frame_count)

    def get_quoted_tokens(self, job: Job) -> float:
        """The most that it costs."""
        return tokens(job.quoted_hundredths)

    def get_charged_tokens(self, job: Job) -> float | None:
        """What it cost."""
        return None if job.charged_hundredths is None else tokens(job.charged_hundredths)


class JobDetailSerializer(JobSerializer):
    """A job with its first files in upload order."""

    file_count = serializers.IntegerField(read_only=True)
    files = JobFileSerializer(
        many=True,
        read_only=True,
        source="first_files",
        help_text=f"The first {selectors.FIRST_FILES}; all of them are at `files/`, in pages.",
    )
    queue_position = serializers.SerializerMethodField(
        help_text="Of a pending job, of which turn it is now: 1 is the next one; users take turns. "
        "Null once it has begun."
    )
    seconds_to_start = serializers.SerializerMethodField(
        help_text="Of a pending job, roughly; null once it has begun, or when nobody can say."
    )

    class Meta(JobSerializer.Meta):
        fields: tuple[str, ...] = (  # type: ignore[assignment]
            *JobSerializer.Meta.fields,
            "queue_position",
            "seconds_to_start",
            "file_count",
            "files",
        )
        read_only_fields = fields  # type: ignore[assignment]

    def get_queue_position(self, job: Job) -> int | None:
        """How many turns others have before, and one."""
        wait = cast(Any, job).wait
        return None if wait is None else wait.turns_ahead + 1

    def get_seconds_to_start(self, job: Job) -> float | None:
        """At the pace of the last jobs."""
        wait = cast(Any, job).wait
        return None if wait is None else wait.seconds


class JobChoiceSerializer(StrictSerializer):
    """What decides what a job does, and so what it costs."""

    dataset_id = serializers.IntegerField(min_value=1, max_value=LARGEST_ID)
    model_version = serializers.CharField(max_length=40)
    model_id = serializers.CharField(max_length=40, default="YOLO8")
    options = DetectionOptionsSerializer(required=False)


class JobTermsSerializer(StrictSerializer):
    """How much a job may cost, and how long it may take."""

    maximum_tokens = serializers.DecimalField(
        max_digits=14,
        decimal_places=2,
        min_value=0,
        required=False,
        help_text="A quote that was seen: a job that would cost more is refused (409).",
    )
    deadline_seconds = serializers.IntegerField(
        min_value=submission.MIN_DEADLINE_SECONDS,
        max_value=submission.MAX_DEADLINE_SECONDS,
        required=False,
        help_text="From now: a job that has not ended by then is aborted, and what is done by then "
        "is charged. Without it there is no deadline.",
    )


class SubmitJobSerializer(JobTermsSerializer, JobChoiceSerializer):
    """What a job needs."""


class BoxSerializer(serializers.Serializer[Any]):
    """A box in pixels of the upright original."""

    x1 = serializers.FloatField()
    y1 = serializers.FloatField()
    x2 = serializers.FloatField()
    y2 = serializers.FloatField()


DetectionSerializer = type(
    "DetectionSerializer",
    (serializers.Serializer,),
    {
        "__doc__": "A detection.",
        "name": serializers.CharField(),
        "class": serializers.IntegerField(),
        "confidence": serializers.FloatField(),
        "box": BoxSerializer(),
        "track_id": serializers.IntegerField(
            required=False,
            allow_null=True,
            help_text="Of jobs with tracking: the object of the video; null for a doubtful box.",
        ),
    },
)


class FrameResultSerializer(serializers.ModelSerializer[FrameResult]):
    """What was found in one image or video frame."""

    objects = serializers.SerializerMethodField()
    class_counts = serializers.DictField(
        child=serializers.IntegerField(),
        read_only=True,
        help_text="Detections of confidence 0.25 and above, by class.",
    )

    class Meta:
        model = FrameResult
        fields = (
            "id",
            "media_file_id",
            "frame_index",
            "time_seconds",
            "class_counts",
            "objects",
        )
        read_only_fields = fields

    @extend_schema(responses=DetectionSerializer(many=True))
    def get_objects(self, frame: FrameResult) -> list[dict[str, Any]]:
        """Its detections, the most confident first."""
        return selectors.displayed_objects(
            frame, self.context["job"].class_names, self.context["wanted"]
        )


class JobFilters(StrictFilterSet):
    """What a list of jobs can be narrowed by."""

    dataset_id = WholeNumberFilter("dataset_id")
    model_version = django_filters.CharFilter("model_version__version")
    state__in = ChoiceInFilter("state", choices=Job.State.choices)

    class Meta:
        model = Job
        fields = {"state": ["exact"], "created_at": ["gte", "lt"]}


class JobFileFilters(StrictFilterSet):
    """What the files of a job can be narrowed by."""

    type = django_filters.ChoiceFilter(
        "media_file__media_type", choices=MediaFile.MediaType.choices
    )
    state__in = ChoiceInFilter("state", choices=JobFile.State.choices)

    class Meta:
        model = JobFile
        fields = {"state": ["exact"]}


class FrameFilters(StrictFilterSet):
    """What a list of frame results can be narrowed by, and what is shown of each."""

    minimum_confidence = django_filters.NumberFilter(
        method="kept", min_value=0, max_value=1, help_text="Shows detections from this on."
    )
    class_name = django_filters.CharFilter(method="kept")

    media_file_id = WholeNumberFilter("media_file_id")

    class Meta:
        model = FrameResult
        fields = {"frame_index": ["exact", "gte", "lt"]}

    def kept(self, queryset: QuerySet[FrameResult], name: str, value: Any) -> Any:
        """Every frame stays; the serializer leaves detections out."""
        return queryset


class OldestFirst(NewestFirst):
    """Frame results in the order of their making, which may have 500 detections each.

    While a job runs, what two workers store in the same moment may come behind a cursor that has
    gone by; whoever wants every frame reads once the job has ended.
    """

    ordering = "id"
    max_page_size = 100


class JobsView(generics.ListAPIView[Job]):
    """The user's jobs."""

    refusals = (402,)

    serializer_class = JobSerializer
    pagination_class = Pages
    filter_backends = (StrictFilters, StrictOrdering)
    filterset_class = JobFilters
    ordering_fields = ("id", "created_at", "finished_at", "state")
    ordering = ("-id",)
    queryset = Job.objects.none()

    def get_queryset(self) -> QuerySet[Job]:
        """The user's own."""
        return selectors.jobs_with_progress(user=cast(User, self.request.user))

    @extend_schema(
        parameters=[IDEMPOTENCY_KEY],
        request=SubmitJobSerializer,
        responses={202: JobDetailSerializer},
    )
    def post(self, request: Request) -> Response:
        """Run a model on everything that a dataset holds now; the price is held at once."""
        user = cast(User, request.user)
        keys = validated(SubmitJobSerializer, request)

        def submit() -> Response:
            return submitted(user, submission.submit_job(user=user, **keys))

        return answered_once(request, submit)


def submitted(user: User, job: Job) -> Response:
    """The answer to whoever has submitted a job."""
    place = f"/api/v1/jobs/{job.pk}/"
    return Response(_detail(user, job.pk), status=202, headers={"Location": place})


class JobView(APIView):
    """One job."""

    @extend_schema(responses=JobDetailSerializer)
    def get(self, request: Request, job_id: int) -> Response:
        """The job and how far each of its files is."""
        return Response(_detail(cast(User, request.user), job_id))


class AbortView(APIView):
    """The end of a job before its time."""

    @extend_schema(request=None, responses=JobDetailSerializer)
    def post(self, request: Request, job_id: int) -> Response:
        """Abort: frames that are done are charged and stay readable, the rest is released."""
        user = cast(User, request.user)
        job = selectors.user_job(user=user, job_id=job_id)
        services.abort_job(job_id=job.pk, reason="Aborted by its owner.")
        return Response(_detail(user, job_id))


def _detail(user: User, job_id: int) -> dict[str, Any]:
    job = selectors.job_with_files(user=user, job_id=job_id)
    job.wait = wait_of(job)  # type: ignore[attr-defined]
    return dict(JobDetailSerializer(job).data)


class JobFilesView(generics.ListAPIView[JobFile]):
    """The files of a job in upload order: how far each is, what it cost, where its copy is."""

    serializer_class = JobFileSerializer
    pagination_class = Pages
    filter_backends = (StrictFilters,)
    filterset_class = JobFileFilters
    queryset = JobFile.objects.none()

    def get_queryset(self) -> QuerySet[JobFile]:
        """Those of the user's job, also while it runs; raises JobNotFoundError (404)."""
        if getattr(self, "swagger_fake_view", False):
            return self.queryset
        job = selectors.user_job(user=cast(User, self.request.user), job_id=self.kwargs["job_id"])
        return selectors.files_of_job(job=job).select_related("job")


@extend_schema(
    parameters=[
        OpenApiParameter("class_name", str, many=True, description="Shows these classes only.")
    ]
)
class FrameResultsView(generics.ListAPIView[FrameResult]):
    """What a job found, frame by frame: every frame once it has ended, those there are before."""

    serializer_class = FrameResultSerializer
    pagination_class = OldestFirst
    filter_backends = (StrictFilters,)
    filterset_class = FrameFilters
    queryset = FrameResult.objects.none()

    def get_queryset(self) -> QuerySet[FrameResult]:
        """Results of the user's job, also while it runs; raises JobNotFoundError (404)."""
        if getattr(self, "swagger_fake_view", False):
            return self.queryset
        self.job = selectors.user_job(
            user=cast(User, self.request.user), job_id=self.kwargs["job_id"]
        )
        return FrameResult.objects.filter(job=self.job)

    def get_serializer_context(self) -> dict[str, Any]:
        """The job, and which of its detections to show; raises UnknownClassError (400)."""
        context = dict(super().get_serializer_context())
        if getattr(self, "swagger_fake_view", False):
            return context
        query = self.request.query_params
        minimum_confidence = float(query.get("minimum_confidence") or 0)
        wanted = _wanted(self.job, minimum_confidence, query.getlist("class_name"))
        return context | {"job": self.job, "wanted": wanted}


def _wanted(job: Job, minimum_confidence: float, class_names: Collection[str]) -> selectors.Wanted:
    """Which detections of a job were asked for; raises UnknownClassError (400)."""
    class_ids = selectors.class_ids_named(job=job, names=class_names)
    return selectors.Wanted(minimum_confidence, class_ids)


class AnnotatedFileView(APIView):
    """An annotated picture or video."""

    answers_ranges = True

    @extend_schema(responses=MEDIA)
    def get(self, request: Request, job_id: int, file_id: int) -> FileResponse | Response:
        """The annotated copy of one file; `Range` asks for a part."""
        job = selectors.user_job(user=cast(User, request.user), job_id=job_id)
        file = selectors.files_of_job(job=job).filter(pk=file_id).exclude(annotated="").first()
        if file is None:
            raise AnnotatedFileNotFoundError(f"Job {job_id} has no annotated file {file_id}.")
        return stored_file_response(
            request,
            stored_name=str(file.annotated.name),
            file_name=results.annotated_name(file).rpartition("/")[2],
            content_type=results.annotated_content_type(file),
        )


class ExportNotFoundError(NotFoundError):
    """There is no such format."""

    code = "export_not_found"
    title = "Export not found"


class ExportQuerySerializer(serializers.Serializer[Any]):
    """What an export can be narrowed to."""

    minimum_confidence = serializers.FloatField(
        min_value=0,
        max_value=1,
        default=DISPLAY_CONFIDENCE,
        help_text="Detections from this confidence on; nothing is detected again for it.",
    )
    class_name = serializers.ListField(
        child=serializers.CharField(allow_blank=True),
        default=list,
        help_text="Detections of this class only; given more than once, of these.",
    )


class ExportView(APIView):
    """What a job found, in a format of the trade."""

    refusals = (409, 507)

    @extend_schema(
        parameters=[
            OpenApiParameter("export_format", str, OpenApiParameter.PATH, enum=list(EXPORTS)),
            ExportQuerySerializer,
        ],
        responses={
            (200, "application/json"): OpenApiTypes.OBJECT,
            (200, "application/x-ndjson"): OpenApiTypes.STR,
            (200, "application/zip"): OpenApiTypes.BINARY,
            (200, "text/csv"): OpenApiTypes.STR,
        },
    )
    def get(self, request: Request, job_id: int, export_format: str) -> HttpResponseBase:
        """COCO, YOLO, CSV, JSON lines or (of a job with tracking) MOTChallenge, when it has ended.

        An aborted job gives what was found until then.
        """
        job = _finished_job(request, job_id)
        export = EXPORTS.get(export_format)
        if export is None:
            raise ExportNotFoundError(f"Choose one of {', '.join(EXPORTS)}, crops.")
        keys = validated_query(ExportQuerySerializer, request)
        return spooled_response(
            request,
            export.write(job, _wanted(job, keys["minimum_confidence"], keys["class_name"])),
            content_type=export.content_type,
            file_name=f"job-{job.pk}{export.suffix}",
        )


class CropsQuerySerializer(ExportQuerySerializer):
    """What crops can be narrowed to, and how much lies around an object."""

    padding = serializers.FloatField(
        min_value=0,
        max_value=1,
        default=0.1,
        help_text="The share of its width and height by which a box grows on each side.",
    )


class CropsView(APIView):
    """The objects that a job found, each as a small picture."""

    refusals = (409, 507)

    @extend_schema(
        parameters=[CropsQuerySerializer],
        responses={(200, "application/zip"): OpenApiTypes.BINARY},
    )
    def get(self, request: Request, job_id: int) -> FileResponse:
        """A zip with a folder of JPEGs for each class, and `crops.csv`, when the job has ended.

        The table has a row for every object, with its picture or the problem with its file. More
        than 20,000 objects are refused, if nobody has set another limit.
        """
        job = _finished_job(request, job_id)
        keys = validated_query(CropsQuerySerializer, request)
        wanted = _wanted(job, keys["minimum_confidence"], keys["class_name"])
        return spooled_response(
            request,
            crops(job, wanted, padding=keys["padding"]),
            content_type="application/zip",
            file_name=f"job-{job.pk}.crops.zip",
        )


def _finished_job(request: Request, job_id: int) -> Job:
    """The user's job once it has ended; raises JobNotFoundError and JobNotFinishedError."""
    job = selectors.user_job(user=cast(User, request.user), job_id=job_id)
    if job.finished_at is None:
        raise JobNotFinishedError(f"Job {job_id} is {job.state}.")
    return job


class AnnotatedZipView(APIView):
    """All annotated files of a job at once."""

    refusals = (409, 507)

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    def get(self, request: Request, job_id: int) -> FileResponse:
        """A zip of the annotated files of a job that has ended, aborted and failed ones too."""
        job = _finished_job(request, job_id)
        return spooled_response(
            request,
            results.annotated_zip(job),
            content_type="application/zip",
            file_name=f"job-{job.pk}.zip",
        )
