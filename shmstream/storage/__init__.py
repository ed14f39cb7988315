"""The folder of a store: where each file lies, what is wrong with it, what may be removed from it.

layout      paths, keys and records
journal     what lets a download go on after a restart
check       finds whatever is not as it should be
gc          removes what dead processes left
eviction    keeps the folder within its limit
permits     limits how many downloads are in progress
flights     lists the downloads that are in progress
"""
