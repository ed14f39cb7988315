"""The folder of a store: where each file lies, what is wrong with it, what may be removed from it.

folder      makes the folder, or refuses one that is not fit
layout      paths and keys
record      what is known of a blob whose key is no digest
origin      which source a blob came from
placing     gives a blob a second name elsewhere
journal     what lets a download go on after a restart
ahead       bytes that came before their turn, over further connections
permits     limits how many downloads are in progress
turns       one process of the host at a time does something
stock       tells how many complete blobs there are, and which were used last
flights     lists the downloads that are in progress
gc          removes what dead processes left
check       finds everything that is not as it should be
eviction    keeps the folder within its limit
"""
