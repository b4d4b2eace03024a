from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DeploymentsConfig(AppConfig):
    name = "deployments"
    verbose_name = _("Deployments")

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
