"""Says how a Ray cluster is, as one JSON object a line: ``ray_view.py HOST PORT PATIENCE [EVERY]``.

Runs on the head with the environment's own Python and asks the GCS itself: Ray's summaries lag behind it, and its
dashboard need not run. Waits at most PATIENCE seconds for the first answer. With EVERY it goes on, one line each so
many seconds, until its standard input ends or the GCS is gone.
"""

import json
import os
import select
import socket
import sys
import time

HIDDEN = ("node:", "object_store_memory", "accelerator_type:")
MOST = 500  # nodes; Ray remembers up to a thousand dead ones


def reach(host, port, until):
    """Return once somebody listens. Ray itself would go on trying for over half a minute."""
    while True:
        try:
            return socket.create_connection((host, port), 1).close()
        except OSError as error:
            if time.monotonic() > until:
                sys.exit(f"Ray does not listen on {host}:{port} yet: {error}")
        time.sleep(0.1)


def plain(resources):
    return {name: value for name, value in resources.items() if not name.startswith(HIDDEN)}


def used(total, free):
    return {name: round(total[name] - free.get(name, 0.0), 4) for name in total}


def node(row, totals, free):
    total = plain(totals.get(row["NodeID"]) or row["Resources"])
    return {
        "ip": row["NodeManagerAddress"],
        "head": "node:__internal_head__" in row["Resources"],
        "alive": row["Alive"],
        "why": row["DeathReasonMessage"][:500],
        "total": total,
        "used": used(total, plain(free.get(row["NodeID"], total))) if row["Alive"] else {},
    }


def newest(rows):
    """One row an address: the living one, else any. Who came back is not also dead."""
    found = {}
    for row in rows:
        if row["Alive"] or row["NodeManagerAddress"] not in found:
            found[row["NodeManagerAddress"]] = row
    return sorted(found.values(), key=lambda row: not row["Alive"])[:MOST]


def view(state, versions):
    totals, free = state.total_resources_per_node(), state.available_resources_per_node()
    groups = state.placement_group_table().values()
    return {
        "t": time.time(),
        **versions,
        "nodes": [node(row, totals, free) for row in newest(state.node_table())],
        "waiting": sum(group["state"] in ("PENDING", "RESCHEDULING") for group in groups),
    }


def connected(address):
    """Ray's global state, and the versions it was started with."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClient, GcsClientOptions

    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    told = json.loads(GcsClient(address=address).internal_kv_get(b"CLUSTER_METADATA", b"cluster") or b"{}")
    return state, {"ray": told.get("ray_version", ""), "python": told.get("python_version", "")}


def main():
    host, port, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    every = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    if every:
        os.nice(10)  # loading Ray takes seconds of a processor, which an engine that starts beside it needs more
    until = time.monotonic() + patience
    reach(host, port, until)
    state, versions = connected(f"{host}:{port}")
    while True:
        seen = view(state, versions)
        if any(one["alive"] for one in seen["nodes"]):
            print(json.dumps(seen), flush=True)
        elif time.monotonic() > until and not every:
            sys.exit("Ray listens but has no node yet.")
        else:
            time.sleep(0.1)
            continue
        if not every:
            return
        if select.select([sys.stdin], [], [], every)[0] and not sys.stdin.read(1):
            return


main()
