"""One download per key and host: a process leads it, others follow, and one of them takes over.

flight          decides by kernel locks whether this process leads, follows or succeeds
leader          downloads the blob, in one thread
lanes           further connections for one blob, which bring bytes ahead of their turn
pieces          which bytes are here ahead of their turn, and which are being brought
supply          one of the sources that are used at once: how many connections it bears
shares          how the flights of a process share the connections to one server
across          what a download is part of beyond this host: other nodes of a cluster
producer        leads a flight without a source: a program of this process writes the blob
blob_writer     the writable file that such a program is given
inlet           the pipe into a blob, for programs that write to a descriptor
space           takes disk space for a blob while its bytes come
cancelling      ends a flight from any process
progress        a progress bar, for `progress=True`
offers          which sources the readers of a process have, beside the leader's
last_words      how a leader that gives up hands over to a reader with another source
blob            a readable file that goes on when its leader dies
guarded         a reader that gives only bytes of the digest or size that was asked for
described_file  a growing file whose size is what its source says
file_follower   follows a flight by its file, where its shared memory cannot be seen
beside          reads past a leader that makes no progress, by a download of its own
naming          errors and logs of a flight name the key
stored_file     a reader of a complete blob, with the methods of a reader of one in flight
hub             watches one flight for all asyncio tasks of a process
async_blob      a readable blob for asyncio
pass_through    a download for one reader only, such as a client without room to keep the blob
"""
