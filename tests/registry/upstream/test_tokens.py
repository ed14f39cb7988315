"""Challenges, and authorizations for which no realm has to be asked."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shmstream.errors import (
    SourceError,
)
from shmstream.registry.upstream.credentials import Credential, CredentialsError, Means
from shmstream.registry.upstream.tokens import Challenge, Tokens, challenges

BASIC = "Basic " + base64.b64encode(b"me:one").decode()
TOKEN = "Bearer t0ken"

CHALLENGES = [
        ('Bearer realm="https://a/token",service="s",scope="repository:x:pull,push"',
         [Challenge("bearer", {"realm": "https://a/token", "service": "s",
                               "scope": "repository:x:pull,push"})]),
        ('BASIC Realm="a \\"b\\"", Bearer realm=x , service="y"',
         [Challenge("basic", {"realm": 'a "b"'}),
          Challenge("bearer", {"realm": "x", "service": "y"})]),
        ("Negotiate, Basic", [Challenge("negotiate", {}), Challenge("basic", {})]),
        ('Bearer realm="https://a/token" service="s"  scope="x"',
         [Challenge("bearer", {"realm": "https://a/token", "service": "s", "scope": "x"})]),
        ('Bearer realm="https://a/token",, service="s"',
         [Challenge("bearer", {"realm": "https://a/token", "service": "s"})]),
        ('Bearer realm="https://a/token"; service="s"',
         [Challenge("bearer", {"realm": "https://a/token", "service": "s"})]),
        ('Basic realm="x" Bearer realm=https://a/token?b;c service=s',
         [Challenge("basic", {"realm": "x"}),
          Challenge("bearer", {"realm": "https://a/token?b;c", "service": "s"})]),
        ("", []),
        ('"', []),
        ('Bearer realm="unfinished', [Challenge("bearer", {})]),
]  # fmt: skip


def test_challenges() -> None:
    for header, expected in CHALLENGES:
        assert challenges(header)[: len(expected)] == expected


@given(some.text(alphabet='Bearer="\\, x\t', max_size=200))
@example("a=" * 10_000)
@example('B a="' + "\\" * 20_000)
def test_whatever_a_challenge_is(header: str) -> None:
    """It is understood, or not, and nothing else happens: no realm that it names is asked."""
    for each in challenges(header):
        assert each.scheme == each.scheme.lower()
        assert all(name == name.lower() for name in each.parameters)
    password, token = Credential("me", "one"), Credential("", "t0ken", Means.TOKEN)
    for credential, known in ((None, {None}), (password, {None, BASIC}), (token, {None, TOKEN})):
        try:
            value = _holding(credential).renew("a", header, None)
        except SourceError as error:
            is_final = not error.retryable
        else:
            is_final = value in known
        assert is_final, (credential, header)


def _holding(credential: Credential | None) -> Tokens:
    return Tokens("upstream", "https", lambda _: credential)


NAMES = some.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
VALUES = some.text(some.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=20)


@given(
    some.lists(
        some.builds(Challenge, some.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True),
                    some.dictionaries(NAMES, VALUES, max_size=4)),
        max_size=4,
    )
)  # fmt: skip
def test_every_good_challenge_is_understood(offered: list[Challenge]) -> None:
    told = [
        f"{each.scheme.title()} "
        + ", ".join(f'{name}="{_quoted(value)}"' for name, value in each.parameters.items())
        for each in offered
    ]
    assert challenges(", ".join(told)) == offered


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def test_basic_authentication_is_looked_up_when_it_is_refused() -> None:
    known = [Credential("me", "one")]
    tokens = Tokens("upstream", "https", lambda _: known[-1])
    assert tokens.current("a") is None
    first = tokens.renew("a", 'Basic realm="r"', None)
    assert first == "Basic " + base64.b64encode(b"me:one").decode()
    assert tokens.current("a") == tokens.current("b") == first
    assert tokens.renew("a", "Basic", first) is None, "there is no other one"
    known.append(Credential("me", "two"))
    second = tokens.renew("a", "Basic", first)
    assert second == "Basic " + base64.b64encode(b"me:two").decode()
    assert tokens.renew("a", "Basic", first) == second, "somebody was faster"


def test_a_bearer_token_of_the_operator() -> None:
    tokens = Tokens("upstream", "https", lambda _: Credential("", "t0ken", Means.TOKEN))
    assert tokens.renew("a", 'Bearer realm="https://127.0.0.1:1/"', None) == "Bearer t0ken"
    assert tokens.renew("a", 'Bearer realm="https://127.0.0.1:1/"', "Bearer t0ken") is None


def test_without_credentials_there_is_no_basic_authentication() -> None:
    tokens = Tokens("upstream", "https", lambda _: None)
    assert tokens.renew("a", 'Basic realm="r"', None) is None
    assert tokens.renew("a", 'Negotiate, Digest realm="r"', None) is None
    assert tokens.current("a") is None


def test_credentials_do_not_leave_https() -> None:
    tokens = Tokens("upstream", "https", lambda _: Credential("me", "s3cret"))
    for realm in ("http://127.0.0.1:1/token", "ftp://a/", "//a/b", "https://a\r\nb/", "https://"):
        with pytest.raises(SourceError) as caught:
            tokens.renew("a", f'Bearer realm="{realm}"', None)
        assert "s3cret" not in str(caught.value)
        assert not caught.value.retryable


def test_credentials_that_cannot_be_looked_up() -> None:
    def fail(_: str) -> Credential | None:
        raise CredentialsError("docker-credential-x does not run")

    with pytest.raises(SourceError, match="docker-credential-x"):
        Tokens("upstream", "https", fail).renew("a", "Basic", None)


def test_the_tokens_of_many_repositories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmstream.registry.upstream.tokens._MOST", 3)
    tokens = Tokens("upstream", "https", lambda _: None)
    for number in range(10):
        tokens.current(str(number))
    assert list(tokens._held) == ["7", "8", "9"]
