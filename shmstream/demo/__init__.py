"""The demo: one writer, and readers in interpreters of their own that come and go as it writes.

text.py      `shmstream demo --text`: the concept program again, across interpreters
fanout.py    `shmstream demo`: a real blob, a reader killed in the middle, every digest checked
writer.py    its writer: a thread that transfers the blob at a given rate
screen.py    its bars, lines and summary
sample.py    the blob that it streams when it is given none
parent.py    the parent's end of a reader: start, let in, hear, kill; and how to stop a demo
reader.py    the reader's end: one interpreter that attaches, reads, hashes and reports
"""
