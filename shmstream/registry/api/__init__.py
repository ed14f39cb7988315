"""What clients ask of the registry: everything under /v2/.

routes          what a request asks for, decided from method, path and query
distribution    answers it: manifests, blobs, tags, referrers
pull            the bytes of one digest out of one repository, for one request
grants          which repository was confirmed to have which digest
access          which clients may pull, and from which upstreams
accept          the media types that a client takes
tags            which manifest a tag has, as the upstream last said
prefetch        begins the flights of an image's layers when its manifest is asked for
errors          what is answered when something fails
"""
