"""Nodes of a cluster in network namespaces: one pull for all, against each for itself; and deaths.

network      namespaces, a bridge, links with a rate that can be cut
member       the programs that run there: an origin, and the processes of a node
scenarios    what is done to them, and what came of it
charts       the times as a picture
model        what 1,000 and 10,000 nodes would see, on paper
decisions    how long the directory takes for one, with 10,000 members
"""
