"""A host gets one file for all its processes, in the ways that there are: `python -m bench.caches`.

ways.py       the ways: through fsspec, and by programs and libraries that fetch files
readers.py    the processes that read the file
measure.py    what happens to them: all begin together, one is killed, the origin lies
page.py       the table
"""
