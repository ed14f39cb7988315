"""What operators see of the registry: metrics, health, the status page, the access log."""
