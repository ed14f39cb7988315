"""One download per key and host: a process leads it, others follow, and one of them takes over.

flight          lead, follow or succeed, decided by kernel locks
leader          brings the bytes, in one thread
blob            a readable file that goes on when its leader dies
hub             watches one flight for all asyncio tasks of a process
async_blob      a readable blob for asyncio
pass_through    one client's own download, where there is no room to keep the blob
"""
