"""Two processes read one table out of S3: it is downloaded once, and read while it arrives.

    pip install 'shmstream[fsspec]' pandas s3fs
    python pandas_s3.py s3://bucket/table.csv

For another server than Amazon's, set AWS_ENDPOINT_URL_S3, as for every program of S3.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pandas


def rows(url: str) -> int:
    """Read the table. Only `shmstream::` in the URL is new."""
    return len(pandas.read_csv(f"shmstream::{url}"))


if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        print(list(pool.map(rows, [sys.argv[1]] * 2)))
