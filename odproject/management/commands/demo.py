"""`manage.py demo [FOLDER]`: the main job from registration to annotated video."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from odproject.demo import DemoError, run_demo


class Command(BaseCommand):
    """A tour of the service, on drawn street scenes or on files of your own."""

    help = "Starts a service in a throw-away folder, does the main job as a client, and stops it."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The folder with the user's own files, and where annotated files go."""
        parser.add_argument("media", nargs="?", type=Path, help="a folder with images and videos")
        parser.add_argument("--output", type=Path, default=Path("demo-output"))

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the tour; exits with 1 and the reason when something does not work."""
        media: Path | None = options["media"]
        if media is not None and not media.is_dir():
            raise CommandError(f"{media} is not a folder.")
        try:
            run_demo(media_folder=media, output_folder=options["output"])
        except DemoError as error:
            raise CommandError(str(error)) from error
