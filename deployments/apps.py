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
        from deployments import (  # noqa: F401
            accepted,
            canary,
            care,
            ending,
            exchange,
            measured,
            mending,
            rollout,
            serving,
            steps,
        )
        from deployments.alerts import tasks  # noqa: F401
