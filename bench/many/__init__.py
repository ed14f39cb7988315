"""What it costs that there are many: files of others in /dev/shm, blobs, flights, clients."""
