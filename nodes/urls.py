from django.urls import path

from nodes import registration_views, views

urlpatterns = [
    path("", views.nodes, name="nodes"),
    path("new/", registration_views.new, name="node-new"),
    path("new/understood/", registration_views.understood, name="node-understood"),
    path("approve/<int:pk>/", registration_views.approve, name="node-approve"),
    path("approve/<int:pk>/again/", registration_views.again, name="node-again"),
    path("<str:name>/", views.node, name="node"),
    path("<str:name>/prepare/", views.prepare, name="node-prepare"),
    path("<str:name>/check/", views.check, name="node-check"),
    path("<str:name>/approve-key/", views.approve_key, name="node-approve-key"),
    path("<str:name>/remove/", views.remove, name="node-remove"),
]
