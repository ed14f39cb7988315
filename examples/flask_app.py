"""Flask under gunicorn: several workers, several clients, one download.

pip install 'shmstream[http]' flask gunicorn
ORIGIN=https://host gunicorn -k gthread -w 4 --threads 16 flask_app:app
curl -O http://127.0.0.1:8000/models/model.bin
"""

import os

from flask import Flask, Response

from shmstream import Store
from shmstream.wsgi import InFlightResponse, for_flask

app = Flask(__name__)
store = Store(max_bytes="100GiB")
ORIGIN = os.environ.get("ORIGIN", "https://host")


@app.get("/models/<path:name>")
def model(name: str) -> Response:
    """A model, complete, in flight or absent."""
    url = f"{ORIGIN}/{name}"
    return for_flask(InFlightResponse(store, url, url, filename=os.path.basename(name)))
