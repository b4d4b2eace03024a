"""Asks Ray for its state: ``ray_status.py RAY HOST PORT``. Status 0 and a line that sums it up once Ray runs.

Runs on the node. Where nobody listens, `ray status` itself would go on trying for over half a minute.
"""

import pathlib
import re
import socket
import subprocess
import sys

ray, host, port = sys.argv[1:]
try:
    socket.create_connection((host, int(port)), 1).close()
except OSError as error:
    sys.exit(f"Ray does not listen on {host}:{port} yet: {error}")
question = [ray, "status", "--address", f"{host}:{port}"]
asked = subprocess.run(question, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
print(asked.stdout)
nodes = asked.stdout.partition("Active:")[2].partition("Pending:")[0].count("node_")
# Without GPUs Ray is told of one all the same, for vLLM's worker: quarterdeck_cpu_ray.py, which only such a node has.
placeholder = any(pathlib.Path(ray).parents[1].glob("lib/python3*/site-packages/quarterdeck_cpu_ray.py"))
resources = re.findall(r"^ (\S+/\S+ (?:%s))\b" % ("CPU" if placeholder else "GPU|CPU"), asked.stdout, re.MULTILINE)
if asked.returncode or not nodes:
    sys.exit("Ray listens but has no node yet.")
print(f"{nodes} node{'s' * (nodes > 1)}, in use: {', '.join(sorted(resources, reverse=True))}")
