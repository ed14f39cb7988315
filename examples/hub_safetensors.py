"""A model of the Hugging Face Hub: each file once per host, in a folder with real names.

    pip install 'shmstream[http]' safetensors numpy
    python hub_safetensors.py openai-community/gpt2 gpt2 config.json model.safetensors

However many processes run this at the same time, each file is downloaded once. HF_ENDPOINT and
HF_TOKEN are those of the Hub's own tools.
"""

import os
import sys

from safetensors.numpy import load_file

from shmstream import Store
from shmstream.http_source import HTTPSource

ENDPOINT = os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def source(repository: str, name: str) -> HTTPSource:
    """One file of a repository."""
    url = f"{ENDPOINT}/{repository}/resolve/main/{name}"
    return HTTPSource(url, auth=os.environ.get("HF_TOKEN"))


def main(repository: str, folder: str, *names: str) -> None:
    """Bring the files of a model, and tell what is in them."""
    files = {name: (f"{repository}/{name}", source(repository, name)) for name in names}
    path = Store().snapshot(folder, files, progress=sys.stderr.isatty())
    for name in names:
        if name.endswith(".safetensors"):
            tensors = load_file(os.path.join(path, name))
            print(name, sum(each.size for each in tensors.values()), "parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
