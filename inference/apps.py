from django.apps import AppConfig


class InferenceConfig(AppConfig):
    """Models, jobs and detections."""

    name = "inference"
    verbose_name = "Detection"
