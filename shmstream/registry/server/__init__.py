"""The processes of `shmstream serve`.

serve         what is done once, around the workers
supervisor    the parent: starts the workers, and another one when one dies
starting      how the process of a worker is started: by fork, or by exec
ending        how a forked worker ends: as a program
acceptor      decides which worker takes a connection, if no keeper gives connections to workers
worker        one worker process
accepting     uvicorn, for one worker among several
error_log     the log on standard error, which waits for no reader

Connections that outlive their worker:

keeper            the supervisor's end: has a duplicate of each, gives it to another worker
kept              the worker's end
channel           messages between the two
connections       the table in shared memory that says what a worker is doing
keeping_protocol  the protocol of such a connection
repeats           requests that are answered without the application
transport         its transport, which reads nothing by itself
"""
