"""HTTP responses of a blob that is complete, in flight or absent, for any ASGI server.

response      `InFlightResponse`, an ASGI application
reply         `BlobReply`, the answer to one request; raises what goes wrong
conditions    which status, headers and range a request gets
terms         how a caller wants the answers to look; also for WSGI
headers       dates and names of files in headers
body          sends the bytes as they arrive
leaving       ends the work for a client that leaves
statuses      which status an error means
remembering   results of functions, up to a bound in bytes
messages      the types of ASGI, names of extensions, short answers
protocol      uvicorn's HTTP/1.1 protocol, with zero-copy bodies and bounds on slow clients
congestion    the congestion control of a connection
"""

from shmstream.asgi.messages import Message, Receive, Scope, Send
from shmstream.asgi.response import InFlightResponse

__all__ = ["InFlightResponse", "Message", "Receive", "Scope", "Send"]
