"""The settings without django-unfold, to prove that the admin does not need it."""

from odproject.settings import *  # noqa: F403
from odproject.settings import INSTALLED_APPS

INSTALLED_APPS = [name for name in INSTALLED_APPS if name != "unfold"]
