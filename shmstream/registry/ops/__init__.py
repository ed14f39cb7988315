"""What operators see of the registry.

admin         the status page (page.html), `/healthz`, `/readyz`, `/metrics`, `/events`
catalogue     what admins see and do with images
status        what there is to see at one moment, for the status page
history       the bytes of the last ten minutes, for its chart
processes     what the parent and the workers use
metrics       what Prometheus is told, over all workers
access_log    one JSON line for each response
middleware    stands around the application, and sees each response for metrics and the log
names         the repository that a blob was last given out of, for the status page
"""
