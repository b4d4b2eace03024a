"""bin/lab: the lab for a person to play with. See ``bin/lab --help``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.lab import Lab, Record, records, sweep
from tests.lab.host import Host
from tests.lab.namespaces import ACCOUNTS, NamespaceHost
from tests.lab.records import began


def main() -> int:
    options = _options()
    sweep()
    return int(globals()[f"_{options.act}"](options) or 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/lab", description="Hosts with an OpenSSH server each.")
    acts = parser.add_subparsers(dest="act", required=True)
    up = acts.add_parser("up", help="bring hosts up, and say how to register them")
    up.add_argument("count", type=int, nargs="?", default=4)
    up.add_argument("--disk", default="16g", help="size of each host's own disk (in memory)")
    up.add_argument("--gpus", choices=["a10", "h100x1", "h200x4"], help="what their stand-in nvidia-smi replays")
    up.add_argument("--share", type=Path, action="append", default=[], help="a directory that all of them see")
    acts.add_parser("down", help="take them down; nothing is left")
    acts.add_parser("status", help="which hosts there are, and how they are")
    for name, does in (("cut", "cut a host off the network"), ("restore", "connect it again, at full speed"),
                       ("kill", "pull its plug"), ("boot", "switch it on again"), ("slow", "limit its network")):
        act = acts.add_parser(name, help=does)
        act.add_argument("host")
        if name == "slow":
            act.add_argument("rate", help="as tc has it: 10mbit")
    return parser.parse_args()


def _up(options: argparse.Namespace) -> int:
    if Lab.standing() is not None:
        print("A lab is up already: bin/lab status, or bin/lab down first.", file=sys.stderr)
        return 1
    lab = Lab(options.count, disk=options.disk, share=options.share, kept=True)
    if options.gpus:
        for host in lab.hosts:
            host.gpus(options.gpus)
    _say_how_to_register(lab)
    if not lab.real:
        print("\nWithout root and iproute2 they last as long as this command. Ctrl-C takes them down.")
        signal.sigwait([signal.SIGINT, signal.SIGTERM])
        lab.close()
    return 0


def _say_how_to_register(lab: Lab) -> None:
    print(f"{len(lab.hosts)} hosts are up. Add them in Quarterdeck; the fingerprints to approve are these:\n")
    for host in lab.hosts:
        port = "" if host.port == 22 else f" port {host.port}"
        print(f"  {host.name:5} {host.address}{port}  {host.host_key.fingerprint}")
    first = lab.hosts[0]
    if lab.record is not None:
        last = lab.hosts[-1].address.rpartition(".")[2]
        network, _, start = first.address.rpartition(".")
        print(f"\n  all at once   root@{network}.[{start}-{last}]")
        print(f"  user          root; {', '.join(ACCOUNTS)} are not root (ann and sam have sudo where it is installed)")
        print(f"  password      {first.password}")
        print(f"  private key   {lab.record.folder / 'key'}")
    else:
        print(f"\n  user          {first.user}\n  private key   {first.folder / 'user_key'}")


def _down(options: argparse.Namespace) -> int:
    lab = Lab.standing()
    if lab is None:
        print("No lab is up.")
        return 0
    lab.close()
    print("The lab is down; nothing of it is left.")
    return 0


def _status(options: argparse.Namespace) -> int:
    for record in records():
        print(_about(record))
    standing = Lab.standing()
    for host in standing.hosts if standing else []:
        assert isinstance(host, NamespaceHost)
        print(f"  {host.name:5} {host.address:15} {host.state}")
    return 0


def _about(record: Record) -> str:
    pid, start = record.owner
    whose = "stays until bin/lab down" if record.kept else f"of process {pid}"
    return f"{record.network}.0/24 on {record.bridge}, {whose if record.kept or began(pid) == start else 'abandoned'}"


def _host(options: argparse.Namespace) -> Host:
    lab = Lab.standing()
    names = [host.name for host in lab.hosts] if lab else []
    if lab is None or options.host not in names:
        sys.exit(f"There is no host {options.host}. There are: {', '.join(names) or 'none; bin/lab up first'}.")
    return lab[options.host]


def _cut(options: argparse.Namespace) -> None:
    _host(options).cut()


def _restore(options: argparse.Namespace) -> None:
    _host(options).restore()


def _kill(options: argparse.Namespace) -> None:
    _host(options).kill()


def _boot(options: argparse.Namespace) -> None:
    _host(options).boot()


def _slow(options: argparse.Namespace) -> None:
    _host(options).slow(options.rate)


if __name__ == "__main__":
    sys.exit(main())
