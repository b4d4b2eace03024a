from django.urls import path

from deployments.playground import api
from deployments.playground.views import playground

urlpatterns = [
    path("", playground, name="playground"),
    path("conversations/", api.conversations, name="conversations"),
    path("conversations/<int:pk>/", api.conversation, name="conversation"),
    path("conversations/<int:pk>/messages/", api.messages, name="conversation-messages"),
]
