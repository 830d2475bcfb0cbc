from django.urls import re_path

from billing import v1, views

urlpatterns = [
    re_path(r"^token/?$", views.TokenView.as_view()),
    re_path(r"^api/v1/balance/?$", v1.BalanceView.as_view()),
    re_path(r"^api/v1/ledger/?$", v1.LedgerView.as_view()),
    re_path(r"^api/v1/statements/?$", v1.StatementsView.as_view()),
    re_path(r"^api/v1/statements/(?P<month>[0-9]{4}-[0-9]{2})/?$", v1.StatementView.as_view()),
    re_path(
        r"^api/v1/statements/(?P<month>[0-9]{4}-[0-9]{2})/csv/?$", v1.StatementCsvView.as_view()
    ),
    re_path(r"^api/v1/top-ups/?$", v1.TopUpsView.as_view()),
    re_path(r"^api/v1/prices/?$", v1.PricesView.as_view()),
]
