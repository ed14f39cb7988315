"""The demo: a blob that is streamed to interpreters that come, go and are killed as it arrives.

    acts        `shmstream demo`: a real blob, and the three acts that are played with it
    fanout      the first: one writer; readers come and go, one is killed, every digest is checked
    takeover    the second: the leader of a flight is killed, and the others carry on
    pull        the third: clients pull an image through a registry, and a worker is killed
    text        `shmstream demo --text`: the concept program again, across interpreters

    process     a process of the demo, as its parent sees it: one of the following three
    reader      reads a blob, hashes it and reports
    origin      an HTTP server that serves the blob at a given rate
    server      `shmstream serve`, which ends with the demo
    client      a client of the registry, which verifies what it gets
    scene       what there is to see at one moment
    screen      how it is shown: bars, lines and summary
    sample      the blob that is streamed when the demo is given none
    pace        bytes at a given rate

Only the command line imports this.
"""
