"""The processes of `shmstream serve`: a supervisor that accepts, and workers that answer."""
