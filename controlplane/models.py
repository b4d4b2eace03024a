from controlplane.lifecycle import Event

__all__ = ["Event"]
