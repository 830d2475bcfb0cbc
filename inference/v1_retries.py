"""Another try at the files that a job has not done, in /api/v1/."""

from typing import Any, cast

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.models import User
from billing.idempotency import answered_once
from inference import submission
from inference.selectors import FIRST_FILES
from inference.v1 import JobDetailSerializer, JobTermsSerializer, submitted
from inference.v1_quotes import QuoteSerializer, quote_members
from odproject.core.api import validated
from odproject.core.schema import IDEMPOTENCY_KEY


class PlannedFileSerializer(serializers.Serializer[Any]):
    """A file that would be looked at again."""

    media_file_id = serializers.IntegerField(source="media_file.pk")
    filename = serializers.CharField(source="media_file.name")
    type = serializers.CharField(source="media_file.media_type")
    frame_count = serializers.IntegerField(help_text="Frames that are looked at.")


class RetryQuoteSerializer(QuoteSerializer):
    """What another try would look at and cost at most."""

    file_count = serializers.IntegerField()
    files = PlannedFileSerializer(many=True, help_text=f"The first {FIRST_FILES}.")


class RetryView(APIView):
    """The files of a job that failed, or were not finished when it was aborted."""

    refusals = (402,)
    refusals_of_reads = (403, 409)

    @extend_schema(responses=RetryQuoteSerializer)
    def get(self, request: Request, job_id: int) -> Response:
        """What another try would cost now, and on which files; nothing is held or written."""
        user = cast(User, request.user)
        plan = submission.quote_retry(user=user, job_id=job_id)
        quote = {
            **quote_members(user, plan),
            "file_count": len(plan.files),
            "files": plan.files[:FIRST_FILES],
        }
        return Response(RetryQuoteSerializer(quote).data)

    @extend_schema(
        parameters=[IDEMPOTENCY_KEY],
        request=JobTermsSerializer,
        responses={202: JobDetailSerializer},
    )
    def post(self, request: Request, job_id: int) -> Response:
        """Run a new job on these files, with the options of the first, at the prices of now.

        Each is looked at from its beginning, and paid for so, also where a part of it was done.
        What a later job with the same version and options has done, or is at, is left out.
        """
        user = cast(User, request.user)
        keys = validated(JobTermsSerializer, request)

        def retry() -> Response:
            return submitted(user, submission.retry_job(user=user, job_id=job_id, **keys))

        return answered_once(request, retry)
