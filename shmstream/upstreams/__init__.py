"""What every pull-through server needs to ask its upstreams: the registry, and the mirrors.

questions      how long a question may take, and how often it is asked
singleflight   blocking questions for asyncio; identical ones are asked once
request_id     the id of the request that is answered, which upstreams are told
health         whether an upstream answers, as this process has seen it
probes         upstreams that have failed are asked again
notes          small files that all workers share, and may lose
allowance      how many more requests an upstream allows, as it tells itself
counts         what is counted of each upstream
pace           so many bytes a second, or requests, of all workers together
"""
