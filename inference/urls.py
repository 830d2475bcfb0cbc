from django.urls import re_path

from inference import views

# Nineteen digits at most: what fits the database's integers, or simply matches no job.
JOB = r"(?P<job_id>[0-9]{1,18})"

urlpatterns = [
    re_path(r"^inference/?$", views.InferenceView.as_view()),
    re_path(r"^inference/state/?$", views.JobStateView.as_view()),
    re_path(r"^inference/result/?$", views.JobResultView.as_view()),
    re_path(rf"^inference/content/{JOB}/?$", views.AnnotatedZipView.as_view()),
    re_path(rf"^api/v1/jobs/{JOB}/?$", views.JobView.as_view()),
    re_path(
        rf"^api/v1/jobs/{JOB}/annotated-files/(?P<unit_id>[0-9]{{1,18}})/?$",
        views.AnnotatedFileView.as_view(),
    ),
]
