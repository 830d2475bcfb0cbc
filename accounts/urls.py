from django.urls import re_path

from accounts import views

urlpatterns = [
    re_path(r"^user/registration/?$", views.RegistrationView.as_view()),
    re_path(r"^user/?$", views.LoginView.as_view()),
    re_path(r"^api/v1/websocket-tickets/?$", views.WebsocketTicketView.as_view()),
]
