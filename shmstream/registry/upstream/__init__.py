"""What the registry asks of an upstream: its repositories, its tokens, its health."""
