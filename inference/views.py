"""The original API's routes for jobs, and what the page needs besides."""

from typing import Any, cast

from django.core.files.storage import default_storage
from django.http import FileResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from billing.prices import tokens
from inference import results, selectors, services
from inference.models import Job, WorkUnit, progress_percent
from inference.serializers import JobIdSerializer, SubmitJobSerializer
from odproject.core.api import validated
from odproject.core.errors import NotFoundError


class AnnotatedFileNotFoundError(NotFoundError):
    """The job has no annotated file of this number."""

    code = "annotated_file_not_found"
    title = "Annotated file not found"


class InferenceView(APIView):
    """POST /inference/."""

    def post(self, request: Request) -> Response:
        """Submit a job."""
        keys = validated(SubmitJobSerializer, request)
        job = services.submit_job(
            user=cast(User, request.user),
            dataset_name=keys["datasetName"],
            model_id=keys["modelId"],
            model_version=keys["modelVersion"],
        )
        return Response({"message": "Process added successfully to the queue", "jobId": job.pk})


class JobStateView(APIView):
    """GET /inference/state."""

    def get(self, request: Request) -> Response:
        """The state of a job."""
        job_id = validated(JobIdSerializer, request)["jobId"]
        job = selectors.user_job(user=cast(User, request.user), job_id=job_id)
        return Response({"jobState": job.state})


class JobResultView(APIView):
    """GET /inference/result."""

    def get(self, request: Request) -> HttpResponseBase:
        """What a completed job found, streamed."""
        job_id = validated(JobIdSerializer, request)["jobId"]
        job = selectors.completed_job(user=cast(User, request.user), job_id=job_id)
        return StreamingHttpResponse(results.result_json(job), content_type="application/json")


class AnnotatedZipView(APIView):
    """GET on the path that `contentURI` names."""

    def get(self, request: Request, job_id: int) -> HttpResponseBase:
        """The annotated files of a completed job, as a zip."""
        job = selectors.completed_job(user=cast(User, request.user), job_id=job_id)
        response = StreamingHttpResponse(results.annotated_zip(job), content_type="application/zip")
        response["Content-Disposition"] = f'attachment; filename="job-{job.pk}.zip"'
        return response


class JobView(APIView):
    """GET /api/v1/jobs/<id>."""

    def get(self, request: Request, job_id: int) -> Response:
        """A job with the state of each of its files."""
        job = selectors.user_job(user=cast(User, request.user), job_id=job_id)
        return Response(job_document(job))


class AnnotatedFileView(APIView):
    """GET /api/v1/jobs/<id>/annotated-files/<unit>."""

    def get(self, request: Request, job_id: int, unit_id: int) -> HttpResponseBase:
        """One annotated file."""
        job = selectors.user_job(user=cast(User, request.user), job_id=job_id)
        unit = selectors.units_with_files(job=job).filter(pk=unit_id).exclude(annotated="").first()
        if unit is None:
            raise AnnotatedFileNotFoundError(f"Job {job_id} has no annotated file {unit_id}.")
        response = FileResponse(
            default_storage.open(str(unit.annotated.name)),
            as_attachment=True,
            filename=results.annotated_name(unit).rpartition("/")[2],
        )
        response["Content-Security-Policy"] = "sandbox; default-src 'none'"
        return response


def job_document(job: Job) -> dict[str, Any]:
    """A job as the page and the demo show it."""
    units = [unit_document(job, unit) for unit in selectors.units_with_files(job=job)]
    frames_done = sum(unit["frames_done"] for unit in units)
    charged = job.charged_hundredths
    return {
        "id": job.pk,
        "state": job.state,
        "dataset_id": job.dataset_id,
        "model_version": job.model_version.version,
        "frame_count": job.frame_count,
        "frames_done": frames_done,
        "progress_percent": progress_percent(frames_done=frames_done, frame_count=job.frame_count),
        "quoted_tokens": tokens(job.quoted_hundredths),
        "charged_tokens": None if charged is None else tokens(charged),
        "error": job.error,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "files": units,
    }


def unit_document(job: Job, unit: WorkUnit) -> dict[str, Any]:
    """One file of a job."""
    price_hundredths = unit.frames_done * unit.frame_price_hundredths
    return {
        "media_file_id": unit.media_file_id,
        "filename": unit.media_file.name,
        "type": unit.media_file.media_type,
        "state": unit.state,
        "frames_done": unit.frames_done,
        "frame_count": unit.frame_count,
        "charged_tokens": tokens(price_hundredths) if job.finished_at else None,
        "error": unit.error,
        "annotated_url": (
            f"/api/v1/jobs/{job.pk}/annotated-files/{unit.pk}" if unit.annotated else None
        ),
    }
