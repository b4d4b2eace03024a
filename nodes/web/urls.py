from django.urls import path

from nodes.web import prepare_views, registration_views, views

urlpatterns = [
    path("", views.nodes, name="nodes"),
    path("new/", registration_views.new, name="node-new"),
    path("new/understood/", registration_views.understood, name="node-understood"),
    path("approve/<int:pk>/", registration_views.approve, name="node-approve"),
    path("approve/<int:pk>/again/", registration_views.again, name="node-again"),
    # No node can be called "-".
    path("-/prepare/", prepare_views.many, name="nodes-prepare"),
    path("-/how/", prepare_views.how, name="nodes-how"),
    path("-/between/", prepare_views.between, name="nodes-between"),
    path("-/look/", prepare_views.look, name="nodes-look"),
    path("-/measure/", prepare_views.measure, name="nodes-measure"),
    path("<str:name>/", views.node, name="node"),
    path("<str:name>/prepare/", views.prepare, name="node-prepare"),
    path("<str:name>/check/", views.check, name="node-check"),
    path("<str:name>/approve-key/", views.approve_key, name="node-approve-key"),
    path("<str:name>/remove/", views.remove, name="node-remove"),
]
