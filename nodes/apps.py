from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class Models(AppConfig):
    """The models alone, for the gateway."""

    default = False
    name = "nodes"
    verbose_name = _("Nodes")


class NodesConfig(Models):
    default = True

    def ready(self) -> None:
        # They register their steps, stories and receivers.
        from nodes import clusters, clusters_care, mesh, preparation, removal, wheelhouse  # noqa: F401
