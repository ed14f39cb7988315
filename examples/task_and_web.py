"""A Celery task renders a report, and FastAPI workers stream it to browsers from the first second.

    pip install shmstream celery fastapi uvicorn
    celery -A task_and_web.tasks worker &
    uvicorn task_and_web:web --workers 4
    curl -N http://127.0.0.1:8000/reports/7

All of them use the same store, here that of the environment. The first request has the report
rendered; requests that come meanwhile get the same bytes; later requests get the file. If the task
fails, the clients are cut, and the next request renders the report again.
"""

import json
import os
import time

from celery import Celery
from fastapi import FastAPI

from shmstream import BlobExists, Store, StreamExists
from shmstream.asgi import InFlightResponse

store = Store()
tasks = Celery("reports", broker=os.environ.get("BROKER", "redis://localhost"))
tasks.conf.broker_transport_options = json.loads(os.environ.get("BROKER_OPTIONS", "{}"))
web = FastAPI()


@tasks.task(ignore_result=True)
def render(number: int) -> None:
    """Write the report as a file; nothing here knows that others read it meanwhile."""
    try:
        with store.create(f"report {number}", media_type="text/csv") as blob:
            for row in range(50):
                blob.write(f"{number},{row}\n".encode())
                time.sleep(0.01)  # the work
    except (StreamExists, BlobExists):
        pass  # another worker renders it, or has rendered it


@web.get("/reports/{number}", response_model=None)
def report(number: int) -> InFlightResponse:
    """The report, while it is rendered."""
    key = f"report {number}"
    if key not in store and not store.is_in_flight(key):
        render.delay(number)
    return InFlightResponse(store, key, filename=f"report-{number}.csv", wait_for=30)
