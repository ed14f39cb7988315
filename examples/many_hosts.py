"""Many hosts want the same file: one host downloads it, and the others get the bytes from that one.

    pip install 'shmstream[cluster,http]'
    export CLUSTER=redis://redis:6379 SECRET="$(cat /etc/shmstream/cluster.key)"
    python many_hosts.py 10.0.0.7:5001 sha256:9f86d0... https://host/model.safetensors

Run it on each host, with the address at which the other hosts reach this host. Redis only tells
the hosts of each other: the bytes go from host to host, while they still arrive. A host gives as
long as one of its processes runs. Where a real job works with the file, this one waits for the end
of its standard input.
"""

import hashlib
import os
import sys
from contextlib import closing

from shmstream import Cluster, Event, EventKind, Store


def main(address: str, digest: str, url: str) -> None:
    """Read the file while it arrives, and tell where its bytes came from."""
    came: dict[EventKind, int] = {}

    def note(event: Event) -> None:
        came[event.kind] = came.get(event.kind, 0) + event.count

    cluster = Cluster(os.environ["CLUSTER"], advertise=address, secret=os.environ["SECRET"])
    with closing(Store(cluster=cluster, on_event=note)) as store:
        with store.open(digest, url) as blob:
            read = hashlib.file_digest(blob, "sha256").hexdigest()
            blob.wait()
        from_hosts = came.get(EventKind.FROM_PEER, 0)
        print(read, from_hosts, "bytes from other hosts", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
