from django.urls import re_path

from accounts import v1, v1_keys, v1_webhooks, views

WEBHOOK = r"^api/v1/webhooks/(?P<webhook_id>[0-9]{1,18})"

urlpatterns = [
    re_path(r"^user/registration/?$", views.RegistrationView.as_view()),
    re_path(r"^user/?$", views.LoginView.as_view()),
    re_path(r"^api/v1/users/?$", v1.UsersView.as_view()),
    re_path(r"^api/v1/me/?$", v1.MeView.as_view()),
    re_path(r"^api/v1/tokens/?$", v1.TokensView.as_view()),
    re_path(r"^api/v1/tokens/refresh/?$", v1.RefreshView.as_view()),
    re_path(r"^api/v1/tokens/revoke/?$", v1.RevocationView.as_view()),
    re_path(r"^api/v1/api-keys/?$", v1_keys.ApiKeysView.as_view()),
    re_path(r"^api/v1/api-keys/(?P<key_id>[0-9]{1,18})/?$", v1_keys.ApiKeyView.as_view()),
    re_path(r"^api/v1/events/?$", v1.EventsView.as_view()),
    re_path(r"^api/v1/websocket-tickets/?$", v1.WebsocketTicketsView.as_view()),
    re_path(r"^api/v1/webhooks/?$", v1_webhooks.WebhooksView.as_view()),
    re_path(rf"{WEBHOOK}/?$", v1_webhooks.WebhookView.as_view()),
    re_path(rf"{WEBHOOK}/rotate-secret/?$", v1_webhooks.RotateSecretView.as_view()),
    re_path(rf"{WEBHOOK}/test/?$", v1_webhooks.TestView.as_view()),
]
