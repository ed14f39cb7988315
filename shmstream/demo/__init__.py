"""The demo: a blob that is streamed to interpreters that come, go and are killed as it arrives.

acts.py      `shmstream demo`: a real blob, and the three acts that are played with it
fanout.py    the first: one writer, readers come and go, one is killed, every digest checked
writer.py    its writer: a thread that transfers the blob at a given rate
takeover.py  the second: a flight of a store whose leader is killed, and the others carry on
origin.py    its origin: an HTTP server that gives the blob at a given rate
pull.py      the third: clients pull an image through a registry, one of whose workers is killed
upstream.py  ... its upstream: a small registry with one image; server.py: `shmstream serve`
client.py    ... a client, which verifies what it gets; board.py: what there is to see
text.py      `shmstream demo --text`: the concept program again, across interpreters
scene.py     what there is to see at one moment
screen.py    how it is shown: bars, lines and summary
sample.py    the blob that it streams when it is given none
parent.py    the parent's end of a reader: start, let in, hear, kill
reader.py    the reader's end: one interpreter that attaches or opens, reads, hashes and reports
stopping.py  how Ctrl-C and the like end it
"""
