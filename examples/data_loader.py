"""The spawned workers of a data loader read shards while these arrive, each shard once per host.

    pip install 'shmstream[http]' torch
    python data_loader.py https://host/shard-0.tar https://host/shard-1.tar

Without torch the same data set is read by processes of `multiprocessing`.
"""

import sys
import tarfile
from collections.abc import Iterator
from multiprocessing import get_context

from shmstream import Store


class Shards:
    """A data set that can be pickled: each worker opens the store for itself."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls

    def __len__(self) -> int:
        return len(self.urls)

    def __getitem__(self, index: int) -> list[tuple[str, int]]:
        return list(self.samples(self.urls[index]))

    def samples(self, url: str) -> Iterator[tuple[str, int]]:
        """Name and size of each sample, as soon as its bytes are there."""
        with Store().open(url, url) as blob, tarfile.open(fileobj=blob, mode="r|*") as shard:
            for member in shard:
                file = shard.extractfile(member)
                if file is not None:
                    yield member.name, len(file.read())


def main(urls: list[str]) -> None:
    """Read all shards in two workers, twice: two epochs, and one download."""
    shards = Shards(urls)
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        with get_context("spawn").Pool(2) as pool:
            epochs = [pool.map(shards.__getitem__, range(len(shards))) for _ in range(2)]
            pool.close()
            pool.join()  # else a worker may be terminated before the blob it leads is complete
    else:
        loader = DataLoader(shards, batch_size=None, num_workers=2, multiprocessing_context="spawn")
        epochs = [list(loader) for _ in range(2)]
    for epoch in epochs:
        print(sum(len(shard) for shard in epoch), "samples")


if __name__ == "__main__":
    main(sys.argv[1:])
