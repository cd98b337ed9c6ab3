"""The connections between processes of this machine, and their end as a lost network brings it. Linux, as root.

The kernel is asked to destroy a socket (`SOCK_DESTROY` of its sock_diag interface, as `ss -K` does): both ends
see an error at their next word, and nothing else on the machine is touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import JobError

_SOCK_DIAG, _SOCK_DESTROY = 4, 21
_REQUEST_AND_ACKNOWLEDGE = 0x1 | 0x4
_HEADER = struct.Struct("=IHHII")
_ESTABLISHED = 1
_MAPPED = bytes(10) + b"\xff\xff"
_TABLES = ((Path("/proc/net/tcp"), socket.AF_INET), (Path("/proc/net/tcp6"), socket.AF_INET6))


@dataclass(frozen=True)
class Connection:
    """A process's end of a TCP connection."""

    family: int
    source: tuple[bytes, int]
    """Address, in the network's order, and port."""
    peer: tuple[bytes, int]


def between(pids: Iterable[int]) -> list[Connection]:
    """The ends of the connections that these processes have with each other."""
    owners: dict[int, int] = {}
    for pid in pids:
        owners |= dict.fromkeys(_socket_numbers(pid), pid)
    ends = {
        (_plain(found.source), _plain(found.peer)): (owners[number], found)
        for number, found in _table()
        if number in owners
    }
    return [
        found
        for (source, peer), (pid, found) in ends.items()
        if (peer, source) in ends and ends[peer, source][0] != pid
    ]


def destroy(connection: Connection) -> None:
    """End a connection; nothing happens to one that has ended.

    Raises:
        JobError: this process may not, or the kernel cannot.
    """
    (source, source_port), (peer, peer_port) = connection.source, connection.peer
    body = struct.pack("=BBBBI", connection.family, socket.IPPROTO_TCP, 0, 0, 1 << _ESTABLISHED)
    body += struct.pack("!HH16s16s", source_port, peer_port, source, peer)
    body += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    size = _HEADER.size + len(body)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(5.0)
        kernel.send(_HEADER.pack(size, _SOCK_DESTROY, _REQUEST_AND_ACKNOWLEDGE, 1, 0) + body)
        code = -struct.unpack_from("=i", kernel.recv(4096), _HEADER.size)[0]
    if code not in (0, errno.ENOENT):
        raise JobError(
            f"the kernel does not cut connections: {os.strerror(code)}",
            fix="leave out cut-network; it needs root and a kernel with CONFIG_INET_DIAG_DESTROY",
        )


def try_out() -> None:
    """End a connection of this process's own, to see whether that works here.

    Raises:
        JobError: it does not.
    """
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        (source, source_port), (peer, peer_port) = client.getsockname(), client.getpeername()
        own = Connection(socket.AF_INET, (socket.inet_aton(source), source_port), (socket.inet_aton(peer), peer_port))
        destroy(own)


def _socket_numbers(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                target = os.readlink(entry)
                if target.startswith("socket:["):
                    yield int(target[8:-1])


def _table() -> Iterator[tuple[int, Connection]]:
    """The machine's established connections by the number of their socket."""
    for path, family in _TABLES:
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if int(fields[3], 16) == _ESTABLISHED:
                    yield int(fields[9]), Connection(family, _address(fields[1]), _address(fields[2]))


def _plain(address: tuple[bytes, int]) -> tuple[bytes, int]:
    """One end of a connection may name an IPv4 address as IPv6 has it (`::ffff:127.0.0.1`), and the other not."""
    return address[0].removeprefix(_MAPPED), address[1]


def _address(text: str) -> tuple[bytes, int]:
    """`0100007F:1F90` is 127.0.0.1, port 8080: words of four bytes as this machine's numbers."""
    words, _, port = text.partition(":")
    raw = b"".join(struct.pack("!I", socket.ntohl(int(words[at : at + 8], 16))) for at in range(0, len(words), 8))
    return raw, int(port, 16)
