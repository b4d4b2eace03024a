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
        from nodes import mesh, preparation, removal, wheelhouse  # noqa: F401
        from nodes.clusters import care as clusters_care  # noqa: F401
        from nodes.clusters import stories as clusters  # noqa: F401
