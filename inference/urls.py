from django.urls import re_path

from inference import v1, v1_comparison, v1_models, v1_quotes, v1_retries, views

# Eighteen digits at most: what fits the database's integers, or simply matches no job.
JOB = r"(?P<job_id>[0-9]{1,18})"
FILE = r"(?P<file_id>[0-9]{1,18})"
EXPORT = r"(?P<export_format>[a-z]{1,10})"

urlpatterns = [
    re_path(r"^inference/?$", views.InferenceView.as_view()),
    re_path(r"^inference/state/?$", views.JobStateView.as_view()),
    re_path(r"^inference/result/?$", views.JobResultView.as_view()),
    re_path(rf"^inference/content/{JOB}/?$", views.AnnotatedZipView.as_view()),
    re_path(r"^api/v1/models/?$", v1_models.ModelsView.as_view()),
    re_path(r"^api/v1/models/(?P<version_id>[0-9]{1,18})/?$", v1_models.ModelView.as_view()),
    re_path(r"^api/v1/quotes/?$", v1_quotes.QuotesView.as_view()),
    re_path(r"^api/v1/jobs/?$", v1.JobsView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/?$", v1.JobView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/files/?$", v1.JobFilesView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/abort/?$", v1.AbortView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/retry/?$", v1_retries.RetryView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/comparison/?$", v1_comparison.ComparisonView.as_view()),
    re_path(
        rf"^api/v1/jobs/{JOB}/comparison/picture/?$",
        v1_comparison.ComparisonPictureView.as_view(),
    ),
    re_path(rf"^api/v1/jobs/{JOB}/frame-results/?$", v1.FrameResultsView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/annotated-files/{FILE}/?$", v1.AnnotatedFileView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/annotated-zip/?$", v1.AnnotatedZipView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/exports/crops/?$", v1.CropsView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/exports/{EXPORT}/?$", v1.ExportView.as_view()),
]
