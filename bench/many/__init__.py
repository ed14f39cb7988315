"""What it costs that there are many: files in /dev/shm, blobs in a store."""
