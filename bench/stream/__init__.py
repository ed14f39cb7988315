"""One writer and many readers, against the raw limit: `python -m bench.stream`."""
