"""Addresses of PostgreSQL and Redis as people really write them."""

import contextlib
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.dsn import DsnError, parse_postgres, parse_redis
from config.settings import MemorySettings, RedisSettings

PASSWORD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "POSTGRES"])
def test_every_usual_scheme_of_postgresql_means_the_same(scheme: str) -> None:
    assert parse_postgres(f"{scheme}://u:p@h/d").url() == "postgresql://u:p@h:5432/d"


@pytest.mark.parametrize("password", ["a/b", "a=b", "a+b", "a@b", "a:b", "a#b", "a?b", "50%off", "/=+@:#%", "ü€"])
def test_a_raw_password_is_understood(password: str) -> None:
    postgres = parse_postgres(f"postgresql://user:{password}@db.example:6000/skin?sslmode=require")
    redis = parse_redis(f"redis://:{password}@cache.example:7000/3")

    assert (postgres.user, postgres.password, postgres.host, postgres.port) == ("user", password, "db.example", 6000)
    assert (postgres.name, postgres.options) == ("skin", (("sslmode", "require"),))
    assert (redis.password, redis.host, redis.port, redis.name) == (password, "cache.example", 7000, "3")


def test_an_encoded_password_is_decoded_once() -> None:
    assert parse_postgres("postgres://u:p%40ss%2Fword@h/d").password == "p@ss/word"


@given(PASSWORD)
def test_the_canonical_form_is_read_the_same_by_us_and_by_others(password: str) -> None:
    target = parse_postgres(f"postgres://u:{password}@h:1/d")

    again = parse_postgres(target.url())
    other = urlsplit(target.url())

    assert again == target
    assert (unquote(other.password or ""), other.hostname, other.port) == (target.password, "h", 1)


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_dsn_error(text: str) -> None:
    for parse in (parse_postgres, parse_redis):
        for candidate in (text, f"postgres://{text}", f"redis://{text}", f"unix://{text}"):
            with contextlib.suppress(DsnError):
                assert parse(candidate).url()


def test_a_refused_address_is_not_repeated() -> None:
    with pytest.raises(DsnError) as caught:
        parse_postgres("postgres://user:hunter2@a b/d")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h/d",
        "mysql://h/d",
        "postgres://",
        "postgres://h:99999/d",
        "postgres://h:0/d",
        "postgres://u:p@h:x/d",
        "postgres://a b/d",
        "postgres://h\x00/d",
    ],
)
def test_what_is_no_postgresql_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(DsnError, match="PostgreSQL"):
        parse_postgres(text)


@pytest.mark.parametrize("text", ["redis://", "http://h", "unix://relative", "redis://h/three", "redis://h:1:2"])
def test_what_is_no_redis_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(DsnError, match="Redis"):
        parse_redis(text)


def test_an_ipv6_host_keeps_its_brackets_in_the_url_and_loses_them_in_the_host() -> None:
    target = parse_postgres("postgres://u:p@[2001:db8::1]:5433/d")

    assert target.host == "2001:db8::1"
    assert target.url() == "postgresql://u:p@[2001:db8::1]:5433/d"


def test_unix_sockets_are_understood_in_both_worlds() -> None:
    postgres = parse_postgres("postgresql:///skin?host=/run/postgresql")
    redis = parse_redis("unix://:secret@/run/redis.sock?db=2")

    assert (postgres.socket, postgres.host, postgres.name) == ("/run/postgresql", "", "skin")
    assert (redis.socket, redis.password, redis.options) == ("/run/redis.sock", "secret", (("db", "2"),))


def test_a_password_is_never_shown() -> None:
    target = parse_redis("redis://user:hunter2@h")

    assert "hunter2" not in repr(target)
    assert "hunter2" not in target.masked()
    assert target.masked() == "redis://user:***@h:6379/"


def test_host_user_and_password_may_be_given_apart() -> None:
    memory = MemorySettings.model_validate({"postgres_host": "db", "postgres_password": "a/b@c"})
    redis = RedisSettings.model_validate({"host": "cache", "password": "a/b@c", "database": 4})

    postgres_target, redis_target = memory.postgres(), redis.target()

    assert postgres_target is not None
    assert redis_target is not None
    assert postgres_target.url() == "postgresql://tegumentar:a%2Fb%40c@db:5432/tegumentar"
    assert redis_target.url() == "redis://:a%2Fb%40c@cache:6379/4"


def test_without_dsn_and_host_there_is_no_server() -> None:
    assert MemorySettings().postgres() is None
    assert RedisSettings().target() is None
    assert MemorySettings.model_validate({"postgres_dsn": ""}).postgres() is None
