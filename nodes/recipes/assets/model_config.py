"""Says what a model directory is: ``model_config.py DIRECTORY KNOWN``; prints one JSON object.

Runs on the node with any Python 3.8 or newer. Reads config.json and the sizes that the safetensors files
announce, never their data. KNOWN is the mark of an earlier answer: if nothing changed, only the mark comes back.
"""

import json
import struct
import sys
from pathlib import Path

LARGEST = 1 << 20  # bytes of config.json
LARGEST_HEADER = 64 << 20
MOST_FILES = 1000


def tensor_bytes(directory):
    """Bytes of all tensors, by the index or the headers of the files; None where that cannot be said."""
    index = directory / "model.safetensors.index.json"
    if index.exists() and index.stat().st_size < LARGEST_HEADER:
        size = json.loads(index.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        if size:
            return int(size)
    return sum(map(header_bytes, sorted(directory.glob("*.safetensors"))[:MOST_FILES])) or None


def header_bytes(path):
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > LARGEST_HEADER:
            raise ValueError(path)
        header = json.loads(file.read(size))
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    return sum(end - start for start, end in spans)


def main():
    directory, known = Path(sys.argv[1]), sys.argv[2]
    config = directory / "config.json"
    try:
        there = config.stat()
        weights = sorted(directory.glob("*.safetensors"))[:MOST_FILES]
        newest = max([path.stat().st_mtime_ns for path in weights], default=0)
        mark = f"{there.st_mtime_ns}-{there.st_size}-{len(weights)}-{newest}"
        if mark == known:
            return {"mark": mark}
        if there.st_size > LARGEST:
            return {"error": "too large"}
        text = config.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = "no directory" if not directory.is_dir() else getattr(error, "strerror", None) or str(error)
        return {"error": reason}
    try:
        size = tensor_bytes(directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        size = None  # the parameters are counted from the config then
    return {"mark": mark, "config": text, "tensor_bytes": size}


print("\n" + json.dumps(main()))
