"""`manage.py register_models`: the models that come with the package, as rows."""

from typing import Any

from django.core.management.base import BaseCommand

from inference.registry import register_package_models
from inference.weights_store import keep_package_weights


class Command(BaseCommand):
    """Runs at every start, after the migrations; again does no harm."""

    help = "Bring the rows of the package's models in line with its weights."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Register them."""
        changed = register_package_models()
        keep_package_weights()
        self.stdout.write(f"Registered {changed} new or changed model versions.")
