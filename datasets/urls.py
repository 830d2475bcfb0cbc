from django.urls import re_path

from datasets import v1, v1_resumable, views

DATASET = r"^api/v1/datasets/(?P<dataset_id>[0-9]{1,18})"
RESUMABLE = rf"{DATASET}/resumable-uploads"
MEDIA_FILE = r"^api/v1/media-files/(?P<media_file_id>[0-9]{1,18})"

urlpatterns = [
    re_path(r"^datasets/?$", views.DatasetsView.as_view()),
    re_path(r"^upload/?$", views.UploadView.as_view()),
    re_path(r"^api/v1/datasets/?$", v1.DatasetsView.as_view()),
    re_path(rf"{DATASET}/?$", v1.DatasetView.as_view()),
    re_path(rf"{DATASET}/media-files/?$", v1.MediaFilesView.as_view()),
    re_path(rf"{DATASET}/uploads/?$", v1.UploadsView.as_view()),
    re_path(rf"{DATASET}/uploads/(?P<upload_id>[0-9]{{1,18}})/?$", v1.UploadView.as_view()),
    re_path(rf"{RESUMABLE}/?$", v1_resumable.ResumableUploadsView.as_view()),
    re_path(
        rf"{RESUMABLE}/(?P<resumable_upload_id>[0-9]{{1,18}})/?$",
        v1_resumable.ResumableUploadView.as_view(),
    ),
    re_path(rf"{MEDIA_FILE}/?$", v1.MediaFileView.as_view()),
    re_path(rf"{MEDIA_FILE}/content/?$", v1.MediaContentView.as_view()),
    re_path(rf"{MEDIA_FILE}/thumbnail/?$", v1.ThumbnailView.as_view()),
]
