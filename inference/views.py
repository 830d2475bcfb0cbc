"""The original API's routes for jobs."""

from typing import cast

from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from billing.idempotency import answered_once
from datasets.selectors import live_dataset
from inference import results, selectors, submission
from inference.serializers import JobIdSerializer, SubmitJobSerializer
from odproject.core.api import validated
from odproject.core.files import spooled_response


class InferenceView(APIView):
    """POST /inference/."""

    def post(self, request: Request) -> Response:
        """Submit a job."""
        keys = validated(SubmitJobSerializer, request)
        user = cast(User, request.user)

        def submit() -> Response:
            job = submission.submit_job(
                user=user,
                dataset_id=live_dataset(user=user, name=keys["datasetName"]).pk,
                model_id=keys["modelId"],
                model_version=keys["modelVersion"],
            )
            return Response({"message": "Process added successfully to the queue", "jobId": job.pk})

        return answered_once(request, submit)


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
        pieces = (piece.encode() for piece in results.result_json(job))
        return spooled_response(request, pieces, content_type="application/json")


class AnnotatedZipView(APIView):
    """GET on the path that `contentURI` names."""

    def get(self, request: Request, job_id: int) -> HttpResponseBase:
        """The annotated files of a completed job, as a zip."""
        job = selectors.completed_job(user=cast(User, request.user), job_id=job_id)
        return spooled_response(
            request,
            results.annotated_zip(job),
            content_type="application/zip",
            file_name=f"job-{job.pk}.zip",
        )
