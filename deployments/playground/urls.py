from django.urls import path

from deployments.playground.views import playground

urlpatterns = [path("", playground, name="playground")]
