"""The measurements: run them from the root of the tree, `python -m bench.stream` and so on.

stream/     one writer and many readers, against the raw limit
flight/     one key for many processes, against what people do today
caches/     fsspec's caches, huggingface_hub, pooch, aria2c: what a host's processes do today
peers/      the server, against nginx, Varnish, Squid and Traffic Server

kills.py    workers of the registry are killed: what becomes of their clients

What they share: `crew` (interpreters that start together), `server` (a program that serves a port),
`report` (rows, goals, the machine), `drawing` (charts), `closing`.
"""
