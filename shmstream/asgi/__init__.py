"""HTTP responses of a blob that is complete, in flight or absent, for any ASGI server.

response      `InFlightResponse`, an ASGI application
conditions    which status, headers and range a request gets
body          sends the bytes as they arrive
protocol      uvicorn's HTTP/1.1 protocol, with zero-copy bodies and bounds on slow clients
congestion    the congestion control of a connection
"""

from shmstream.asgi.response import InFlightResponse, Message, Receive, Scope, Send

__all__ = ["InFlightResponse", "Message", "Receive", "Scope", "Send"]
