"""What the operating system gives: locks, this process, threads, buffers, copying, descriptors."""
