from django.apps import AppConfig


class BillingConfig(AppConfig):
    """Token ledger and prices."""

    name = "billing"
    verbose_name = "Money"
