"""`shmstream::` beside the caches of fsspec: `python -m bench.fsspec`."""
