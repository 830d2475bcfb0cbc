from django.apps import AppConfig


class DatasetsConfig(AppConfig):
    """Datasets and their media files."""

    name = "datasets"
    verbose_name = "Datasets"
