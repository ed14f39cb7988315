"""What the registry asks of an upstream.

choice         which upstream a namespace means, of those that are configured
upstream       one registry that is asked for what is not here, at one URL
repository     one repository of it: what is asked, at which URL first, and a digest as a source
tokens         tokens from the realm that a 401 names, and basic credentials
credentials    which user and password this cache has for an upstream
answers        what an upstream may answer, by kind; whatever is none is refused
manifests      what the bytes of a manifest tell: media type, layers, referrers
"""
