"""Which network interface the workers of a training meet on: the loopback, or that of their machine's address in the
cluster.

Gloo would take the address that the machine's own name stands for, and on many machines that is 127.0.0.1: workers of
several machines would each wait for the others at home.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import MutableMapping

GLOO = "GLOO_SOCKET_IFNAME"
_LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915
_ADDRESS = slice(20, 24)
"""Where `struct ifreq` has it."""


def interface_of(address: str) -> str | None:
    """The name of the interface that has an IPv4 address; None where none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, asked)
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[_ADDRESS]) == address:
                return name
    return None


def meet_on(address: str, environ: MutableMapping[str, str]) -> None:
    """Have gloo listen on the interface of an address, unless the user has named one or none has it."""
    if GLOO not in environ and (name := interface_of(address)) is not None:
        environ[GLOO] = name


def meet_in_cluster() -> None:
    """In a worker of Ray, before its process group is set up."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    # Not `ray.util.get_node_ip_address`, which guesses. A Ray that was told 127.0.0.1 has the machine's own address.
    own = ray.get_runtime_context().get_node_id()
    (address,) = [node["NodeManagerAddress"] for node in nodes if node["NodeID"] == own]
    meet_on(_LOOPBACK if len(nodes) == 1 else address, os.environ)
