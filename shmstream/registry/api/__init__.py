"""What clients ask of the registry: everything under /v2/."""
