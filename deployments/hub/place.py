"""Where a hub is reached: apart from its client, so that the models do without an HTTP library."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.secrets import NO_SECRET, Secret


@dataclass(frozen=True)
class Access:
    """Where a hub or its mirror is, and the token to show it. ``endpoint`` has no slash at its end."""

    endpoint: str
    token: Secret = NO_SECRET

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.reveal()}"} if self.token else {}
