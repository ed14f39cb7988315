"""Programs for those who develop shmstream: `python -m tools.generate` from the root of the tree."""
