"""One download per digest for all hosts: nodes give each other what they have, or have in flight.

cluster      `Cluster`: what a user says of the cluster that a store belongs to
node         what one process has of its node: the directory, the endpoint, the leases
part         a node's part in one flight: decides where the bytes come from
directory    what nodes know of each other, in Redis: calls that never take longer than 1.5 s
scripts      its decisions, as scripts that Redis runs
lease        renews what this process pulls from the upstream
endpoint     gives other nodes what this node has, or has in flight
announcer    has the directory know what is complete here: at the start, and after it was empty
account      what a process tells of its part: parents, children, bytes, calls of the directory
overview     which nodes have which blobs, complete or in flight, for people
peer         asks another node for the rest of a blob
signing      requests of nodes to each other: signed, fresh, never twice

A *node* is a store with an endpoint that other nodes can reach. docs/cluster.md tells how it is
run, and what every failure does.
"""

from shmstream.cluster.cluster import Cluster

__all__ = ["Cluster"]
