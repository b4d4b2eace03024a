from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class Models(AppConfig):
    """The models alone, for the gateway."""

    default = False
    name = "deployments"
    verbose_name = _("Deployments")


class DeploymentsConfig(Models):
    default = True

    def ready(self) -> None:
        # They register steps, stories, tasks and receivers.
        from deployments import accepted, canary, care, mending  # noqa: F401
        from deployments.alerts import tasks  # noqa: F401
        from deployments.rollout import ending, exchange, serving, steps  # noqa: F401
        from deployments.rollout import stories as rollout  # noqa: F401
        from deployments.telemetry import measured  # noqa: F401
