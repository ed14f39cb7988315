"""What operators see of the registry.

admin         the status page (page.html), `/healthz`, `/readyz`, `/metrics`, `/events`
status        what there is to see at one moment, for the status page
metrics       what Prometheus is told, over all workers
access_log    one JSON line for each response
middleware    stands around the application, and sees each response for metrics and the log
names         the repository that a blob was last given out of, for the status page
"""
