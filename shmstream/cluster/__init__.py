"""One download per digest for all hosts: nodes give each other what they have, or have in flight.

directory    what nodes know of each other, in Redis: calls that never take longer than 1.5 s
scripts      its decisions, as scripts that Redis runs

A *node* is a store with an endpoint that other nodes can reach. docs/cluster.md tells how it is
run, and what every failure does.
"""
