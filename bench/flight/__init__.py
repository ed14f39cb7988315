"""One key for many processes, against what people do today: `python -m bench.flight`."""
