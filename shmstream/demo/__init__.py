"""The demo: a blob that is streamed to interpreters that come, go and are killed as it arrives.

acts        `shmstream demo`: a real blob, and the four acts that are played with it
fanout      the first: one writer; readers come and go, one is killed, every digest is checked
takeover    the second and the fourth: what pulls a blob is killed, and the others carry on
pull        the third: clients pull an image through a registry, and a worker is killed
text        `shmstream demo --text`: the concept program again, across interpreters

stage       what every act is given, and the check that nothing of it is left over
sample      the blob that is streamed when the demo is given none, and the image
pages       what all acts but the first download, and the origin that serves it
child       another interpreter: how it is started, told, heard and ended
reading     what a child that reads does; clients are readers, too
readers     the readers as the demo sees them
screen      how all of it is shown: bars, lines and a summary
"""
