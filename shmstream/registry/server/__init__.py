"""The processes of `shmstream serve`.

serve         what is done once, around the workers
supervisor    the parent: starts the workers, and another one when one dies
acceptor      decides which worker takes a connection
worker        one worker process
accepting     uvicorn, for one worker among several
"""
