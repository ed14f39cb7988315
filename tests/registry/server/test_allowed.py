"""Which settings a running server takes at SIGHUP."""

from __future__ import annotations

from typing import Any

import pytest

from shmstream.registry.server.serve import _allowed
from shmstream.registry.settings import Settings, Upstream

PLAIN: dict[str, Any] = {}
TLS = {"certfile": "/cert", "keyfile": "/key"}
MUTUAL = {**TLS, "client_ca": "/ca"}


def settings(given: dict[str, Any]) -> Settings:
    return Settings((Upstream(None, "http://a.example"),), "/s", **given)


@pytest.mark.parametrize(
    ("first", "then"), [(PLAIN, TLS), (PLAIN, MUTUAL), (TLS, PLAIN), (TLS, MUTUAL), (MUTUAL, TLS)]
)
def test_what_clients_are_trusted_by_stays(
    first: dict[str, Any], then: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert _allowed(settings(first), settings(then)) == settings(first)
    assert "a change counts when the registry is started again" in caplog.text


def test_another_certificate_counts(caplog: pytest.LogCaptureFixture) -> None:
    new = settings({"certfile": "/new", "keyfile": "/new-key", "client_ca": "/new-ca"})
    assert _allowed(settings(MUTUAL), new) == new
    assert caplog.text == ""
