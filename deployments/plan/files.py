"""Reading what a plan needs from files. The only input and output of the plan."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from django.utils.translation import gettext as _

from deployments.plan.hosts import BadInput, HostSpec
from deployments.plan.model import ModelConfig

_LARGEST_JSON = 64 << 20  # bytes; a config is a few KiB, an index of the largest models a few MiB


class Hosts(NamedTuple):
    """A hosts file. ``network_gbps`` is None where it was not measured."""

    hosts: tuple[HostSpec, ...]
    network_gbps: float | None


def read_model(directory: Path) -> ModelConfig:
    """The model in ``directory``, by its config.json and the size of its tensors. Raises `BadInput`."""
    config = _json(directory / "config.json")
    if not isinstance(config, dict):
        raise BadInput(_("%(path)s holds no JSON object.") % {"path": directory / "config.json"})
    try:
        return ModelConfig.from_config(config, tensor_bytes(directory))
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise BadInput(
            _("%(path)s cannot be understood: %(error)r.") % {"path": directory / "config.json", "error": error}
        ) from error


def read_hosts(path: Path) -> Hosts:
    """The hosts in a hosts.json. Raises `BadInput`."""
    data = _json(path)
    entries = data.get("hosts") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BadInput(_("%(path)s needs a list named hosts with at least one host.") % {"path": path})
    hosts = tuple(HostSpec.from_json(entry) for entry in entries)
    if len({host.name for host in hosts}) < len(hosts):
        raise BadInput(_("%(path)s names a host twice.") % {"path": path})
    gbps = data.get("network_gbps")
    if gbps is not None and (isinstance(gbps, bool) or not isinstance(gbps, int | float) or not 0 < gbps < 1e6):
        raise BadInput(_("network_gbps must be a number above 0, not %(value)r.") % {"value": gbps})
    return Hosts(hosts, gbps)


def tensor_bytes(directory: Path) -> int | None:
    """Exact bytes of a safetensors checkpoint, by its index or the headers of its files; None without any."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        size = _json(index).get("metadata", {}).get("total_size")
        if size:
            return int(size)
    return sum(map(_header_bytes, sorted(directory.glob("*.safetensors")))) or None


def _header_bytes(path: Path) -> int:
    """Sum of the tensors that a safetensors file announces; its data is not read."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else _LARGEST_JSON + 1
        if size > _LARGEST_JSON:
            raise BadInput(_("%(path)s is not a safetensors file.") % {"path": path})
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise BadInput(_("%(path)s is not a safetensors file.") % {"path": path}) from error
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return sum(end - start for start, end in spans)


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise BadInput(_("%(path)s is too large to be read.") % {"path": path})
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            _("%(path)s cannot be read: %(why)s.") % {"path": path, "why": error.strerror or error}
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(_("%(path)s is not valid JSON: %(why)s.") % {"path": path, "why": error}) from error
