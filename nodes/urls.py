from django.urls import path

from nodes import views

urlpatterns = [
    path("", views.nodes, name="nodes"),
    path("new/", views.new, name="node-new"),
    path("approve/", views.approve, name="node-approve"),
    path("<str:name>/", views.node, name="node"),
    path("<str:name>/prepare/", views.prepare, name="node-prepare"),
    path("<str:name>/check/", views.check, name="node-check"),
    path("<str:name>/approve-key/", views.approve_key, name="node-approve-key"),
    path("<str:name>/remove/", views.remove, name="node-remove"),
]
