"""`shmstream::` in a URL of fsspec: each file is downloaded once per host, and read as it arrives.

system      `ShmstreamFileSystem`, which reads through a store and leaves the rest to its target
delegation  methods that the target has
options     what each option may be
ranges      parts of a blob
identity    which content a file of the target has now, and the key of its blob
file        what `open` gives
target      the source that a leader asks: the target's file, as long as it is that content

`pip install 'shmstream[fsspec]'` registers the protocol. Without an installed package, call
`fsspec.register_implementation("shmstream", ShmstreamFileSystem)`.
"""

from shmstream.filesystem.file import BlobFile
from shmstream.filesystem.system import ShmstreamFileSystem

__all__ = ["BlobFile", "ShmstreamFileSystem"]
