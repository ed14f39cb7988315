"""Mirrors: `shmstream serve` for other things than images, each below a path of its own.

mirrors         all mirrors as one ASGI application, and what an error says
settings        one mirror, as the operator configured it
huggingface     the kind `huggingface`
pypi            the kind `pypi`
index_pages     the pages of a Python package index
kind            what the kinds have in common, and the kind `http`
cache           what is kept of an origin, and when the origin is asked
freshness       what RFC 9111 says of one answer
entry           an answer that is kept: its head, and where its body is
origin          the server that is mirrored
answer_source   the source of a flight whose first answer is there already
replies         how what was found is sent to a client
"""
