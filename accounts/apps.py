from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Users, their authentication and their event streams."""

    name = "accounts"
    verbose_name = "Users"
