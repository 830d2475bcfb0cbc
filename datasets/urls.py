from django.urls import re_path

from datasets import views

urlpatterns = [
    re_path(r"^datasets/?$", views.DatasetsView.as_view()),
    re_path(r"^upload/?$", views.UploadView.as_view()),
]
