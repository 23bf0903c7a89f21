"""The S3 store on a real server: errors by their kinds, weaker servers, parts left over, hostile keys, many steps."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from art_s3.bucket import S3Bucket
from art_s3.options import S3StoreOptions

from art_core import lease
from art_core.checkpoint import ADAPTER, MANIFEST, manifest_bytes
from art_core.config import Environment
from art_core.errors import (
    CapabilityError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CommitConflictError,
    ConfigError,
    StoreError,
    StoreUnavailableError,
)
from art_core.object_store import ObjectStore
from art_core.part import StorePart
from art_core.plugins import Plugins
from art_core.protocols.store import StoreEntry, content_key
from art_core.run_key import RunKey
from art_core.selection import select
from tests.plugins.art_s3.place import Place
from tests.plugins.art_s3.proxy import Spoil, proxy
from tests.staged import stage_step

KEY = RunKey("p", "r")
RUN = "some/prefix/p/models/r/checkpoints/"
AMAZON = {"virtual_hosted_style_request": "true", "unsigned_payload": "true"}
PLAIN = {"virtual_hosted_style_request": "false", "checksum_algorithm": "sha256"}


def staged(tmp_path: Path, step: int, seed: int | None = None) -> Any:
    return stage_step(tmp_path / "here" / KEY.run, step, seed)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"url": "s3://b/some/pre%20fix/"}, ("b", "some/pre fix/")),
        ({"url": "s3://b"}, ("b", "")),
        ({"bucket": "b", "prefix": "/x/"}, ("b", "x/")),
        ({}, ("", "")),
    ],
)
def test_where_it_copies_to(values: dict[str, Any], place: tuple[str, str]) -> None:
    assert S3StoreOptions.parse(values).place == place


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"region": "us-east-1"} | AMAZON),
        ({"region": "eu-west-1"}, {"region": "eu-west-1"} | AMAZON),
        ({"endpoint_url": "https://s3.example", "path_style": False}, {"endpoint": "https://s3.example"} | AMAZON),
        ({"endpoint_url": "http://127.0.0.1:9"}, {"endpoint": "http://127.0.0.1:9"} | PLAIN),
    ],
)
def test_where_requests_go(
    values: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Amazon's own servers, which no test can reach, are the place where no endpoint is named.

    Bytes are part of the signature where nothing else guards them.
    """
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = S3Bucket(S3StoreOptions(bucket="b", **values))._store
    assert {"region": "us-east-1"} | expected == {key: value for key, value in store.config.items() if key != "bucket"}


@pytest.mark.parametrize(
    "values", [{"url": "http://b/x"}, {"url": "s3:///x"}, {"url": "s3://b?x=1"}, {"url": "s3://b", "prefix": "x"}]
)
def test_a_place_that_is_none_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="'s3' option"):
        S3StoreOptions.parse(values)


async def test_it_is_chosen_by_a_url_and_configured_by_the_aws_chain(
    place: Place, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    url = f"s3://{place.bucket}/some/prefix"
    selected = select(Plugins(), "store", None, Environment(store=url))
    assert isinstance(selected.part, StorePart)
    store = selected.part.create(selected.options)
    assert store is not None
    await store.check()
    await store.commit(KEY, staged(tmp_path, 7))
    key = content_key(staged(tmp_path, 7).manifest)[:16]
    assert {f"{RUN}0007/{MANIFEST}", f"{RUN}0007/{key}/{ADAPTER}"} <= set(place.objects)
    with pytest.raises(ConfigError, match="has no bucket"):
        selected.part.create(S3StoreOptions())


async def test_a_profile_gives_the_credentials(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(f"[lab]\naws_access_key_id = {keys[0]}\naws_secret_access_key = {keys[1]}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    await place.store(profile="lab").check()
    with pytest.raises(ConfigError, match=r"the AWS configuration can't be used: .*nobody"):
        place.store(profile="nobody")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="the AWS chain has no credentials") as raised:
        await place.store().check()
    assert not raised.value.retryable


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (500, "InternalError", StoreUnavailableError),
        (503, "SlowDown", StoreUnavailableError),
        (503, "ServiceUnavailable", StoreUnavailableError),
        (400, "RequestTimeout", StoreUnavailableError),
        (400, "ExpiredToken", StoreUnavailableError),
        (403, "RequestTimeTooSkewed", StoreUnavailableError),
        (403, "AccessDenied", StoreError),
        (403, "InvalidAccessKeyId", StoreError),
        (403, "SignatureDoesNotMatch", StoreError),
        (404, "NoSuchBucket", StoreError),
    ],
)
async def test_errors_are_told_apart(
    place: Place, server: str, tmp_path: Path, status: int, code: str, error: type[StoreError]
) -> None:
    """At every call: what was there before is there after, and the same call succeeds once it is over."""
    spoil = Spoil()
    with proxy(server, spoil) as address:
        store = place.store(endpoint_url=address)
        entry = await store.commit(KEY, staged(tmp_path, 1))
        spoil.answer = lambda method, path: (status, code)
        calls = {
            "commit": lambda: store.commit(KEY, staged(tmp_path, 2)),
            "list": lambda: store.list(KEY),
            "fetch": lambda: store.fetch(KEY, 1, tmp_path / "fetched"),
            "delete": lambda: store.delete(KEY, [1], []),
            "check": store.check,
        }
        for name, call in calls.items():
            with pytest.raises(StoreError) as caught:
                await call()
            assert type(caught.value) is error, (name, caught.value)
            assert code in str(caught.value) or error is StoreUnavailableError, (name, caught.value)
        spoil.answer = lambda method, path: None
        assert list(await store.list(KEY)) == [entry]
        await store.commit(KEY, staged(tmp_path, 2))


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [(403, "AccessDenied", StoreError), pytest.param(503, "SlowDown", StoreUnavailableError, marks=pytest.mark.heavy)],
)
async def test_what_removes_tells_them_apart_too(
    place: Place, server: str, tmp_path: Path, status: int, code: str, error: type[StoreError]
) -> None:
    """A removal that is refused removes nothing that was to stay, and can be made again."""
    spoil = Spoil()
    with proxy(server, spoil) as address:
        store = place.store(endpoint_url=address)
        for step in (1, 2, 3):
            await store.commit(KEY, staged(tmp_path, step))
        calls = {
            "runs": store.runs,
            "drop": lambda: store.drop_optimizer(KEY, [2]),
            "delete": lambda: store.delete(KEY, [1], [3]),
            "sweep": lambda: store.sweep(KEY, 0.0),
        }
        for name, call in calls.items():
            spoil.answer = lambda method, path: (status, code)
            with pytest.raises(StoreError, match=code) as caught:
                await call()
            assert type(caught.value) is error, (name, caught.value)
            assert caught.value.retryable is (error is StoreUnavailableError)
            spoil.answer = lambda method, path: None
            assert {2, 3} <= {entry.step for entry in await store.list(KEY)}
            await call()
        entries = await store.list(KEY)
        assert [(entry.step, bool(entry.dropped)) for entry in entries] == [(2, True), (3, False)]


async def test_a_server_that_is_silent_or_gone_is_unavailable(place: Place, server: str, tmp_path: Path) -> None:
    spoil = Spoil(answer=lambda method, path: (0, ""))
    with proxy(server, spoil) as address:
        store = place.store(endpoint_url=address, timeout_s=0.3)
        with pytest.raises(StoreUnavailableError):
            await store.commit(KEY, staged(tmp_path, 1))
    with pytest.raises(StoreUnavailableError):
        await place.store(endpoint_url=address, timeout_s=0.3).check()


@pytest.mark.skipif("ART_TEST_S3" in os.environ, reason="a header that was signed can't be taken away")
async def test_a_server_that_ignores_the_condition_is_found_out(place: Place, server: str, tmp_path: Path) -> None:
    with proxy(server, Spoil(drop_headers=("if-none-match",))) as address:
        with pytest.raises(CapabilityError, match=r"ignores the condition to write .* or give single_writer=True"):
            await place.store(endpoint_url=address).check()
        assert list(place.objects) == [], "the probe is gone"
        weaker = [place.store(endpoint_url=address, single_writer=True) for _ in range(8)]
        await weaker[0].check()
        for step in range(2):
            staging = [staged(tmp_path, step, seed) for seed in range(8)]
            calls = [store.commit(KEY, each) for store, each in zip(weaker, staging, strict=True)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            won = [each for each in outcomes if isinstance(each, StoreEntry)]
            assert len(won) == 1, outcomes
            assert {type(each) for each in outcomes} == {StoreEntry, CommitConflictError}
            assert (await weaker[0].list(KEY))[-1] == won[0]


async def test_a_lease_of_one_that_died_ends(place: Place, tmp_path: Path) -> None:
    """Its mark is a minute old by the server's clock: made old here by moving the newer ones forward."""
    store = place.store(single_writer=True)
    place.objects["some/prefix/.art-lease/p/r/dead"] = b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "LIFE_S", -1.0 - 1e-3)
        await store.commit(KEY, staged(tmp_path, 1))
    assert [key for key in place.objects if "lease" in key] == []


async def test_unfinished_parts_show_nothing_and_are_swept(place: Place, tmp_path: Path) -> None:
    store = place.store()
    await store.commit(KEY, staged(tmp_path, 1))
    key = f"{RUN}0002/{'0' * 16}/{ADAPTER}"
    upload = place.client.create_multipart_upload(Bucket=place.bucket, Key=key)["UploadId"]
    place.client.upload_part(Bucket=place.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * (5 << 20))
    assert [entry.step for entry in await store.list(KEY)] == [1]
    if "ART_TEST_S3" in os.environ:  # moto says of every upload that it was begun in 2010
        assert await store.sweep(KEY, 3600.0) == 0
    assert await store.sweep(KEY, 0.0) == 1
    assert "Uploads" not in place.client.list_multipart_uploads(Bucket=place.bucket)


async def test_large_files_go_in_parts(place: Place, tmp_path: Path) -> None:
    spoil = Spoil()
    with proxy(str(place.options.endpoint_url), spoil) as address:
        store = place.store(endpoint_url=address, part_bytes=5 << 20)
        checkpoint = staged(tmp_path, 1)
        (checkpoint.directory / "large.safetensors").write_bytes(bytes(range(256)) * (180 << 10))
        from art_core.checkpoint import write_manifest

        checkpoint = write_manifest(
            checkpoint.directory, run=KEY.run, step=1, base_model=checkpoint.manifest.base_model
        )
        await store.commit(KEY, checkpoint)
        assert len([path for method, path in spoil.seen if method == "PUT" and "partNumber" in path]) == 9
        fetched = await store.fetch(KEY, 1, tmp_path / "fetched")
        assert fetched.manifest == checkpoint.manifest


@pytest.mark.parametrize("name", ["../../../evil", "%2e%2e/evil", "/abs", "..%2F..%2Fevil", "a\\b", "🏃"])
async def test_hostile_keys_are_nothing(place: Place, tmp_path: Path, name: str) -> None:
    store = place.store()
    entry = await store.commit(KEY, staged(tmp_path, 1))
    digits = content_key(entry.manifest)[:16]
    for key in (f"{RUN}0001/{digits}/{name}", f"{RUN}{name}", f"{RUN}0001/{name}", f"some/prefix/{name}/models/x"):
        place.objects[key] = b"evil"
    assert list(await store.list(KEY)) == [entry]
    await store.fetch(KEY, 1, tmp_path / "in" / "fetched")
    assert {path.name for path in (tmp_path / "in" / "fetched").iterdir()} == {*entry.manifest.files, MANIFEST}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["fetched"]


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/b.json", "evil.pkl", "a\0.json"])
async def test_a_manifest_that_names_what_it_must_not(place: Place, tmp_path: Path, name: str) -> None:
    store = place.store()
    entry = await store.commit(KEY, staged(tmp_path, 1))
    text = manifest_bytes(entry.manifest).decode().partition(',\n "manifest_sha256"')[0] + "\n}"
    escaped = name.replace("\0", "\\u0000")
    place.objects[f"{RUN}0001/{MANIFEST}"] = text.replace(ADAPTER, escaped).encode()
    assert list(await store.list(KEY)) == []
    with pytest.raises(CheckpointCorruptError, match=MANIFEST):
        await store.fetch(KEY, 1, tmp_path / "in" / "fetched")
    assert not (tmp_path / "in").exists()


async def test_an_object_that_is_too_large_is_not_read_to_its_end(place: Place, tmp_path: Path) -> None:
    store = place.store()
    entry = await store.commit(KEY, staged(tmp_path, 1))
    key = f"{RUN}0001/{content_key(entry.manifest)[:16]}/{ADAPTER}"
    place.objects[key] = place.objects[key] + bytes(1000)
    with pytest.raises(CheckpointCorruptError, match=f"{ADAPTER} has .* bytes; its manifest says"):
        await store.fetch(KEY, 1, tmp_path / "fetched")
    with pytest.raises(CheckpointNotFoundError):
        await store.fetch(KEY, 2, tmp_path / "none")


async def list_many(place: Place, tmp_path: Path, steps: int) -> None:
    """Store that many steps and list them twice: from nothing, and again."""
    store: ObjectStore = place.store()
    first = await store.commit(KEY, staged(tmp_path, 0))
    files = {key.rpartition("/")[2]: data for key, data in place.objects.items() if MANIFEST not in key}
    limit = asyncio.Semaphore(32)

    async def put(step: int) -> None:
        manifest = first.manifest.model_copy(update={"step": step})
        async with limit:
            for name, data in files.items():
                key = f"p/models/r/checkpoints/{step:04d}/{content_key(manifest)[:16]}/{name}"
                await store._bucket.put(key, data)
            await store._bucket.put(f"p/models/r/checkpoints/{step:04d}/{MANIFEST}", manifest_bytes(manifest))

    await asyncio.gather(*(put(step) for step in range(1, steps)))
    fresh = place.store()
    start = time.perf_counter()
    assert [entry.step for entry in await fresh.list(KEY)] == list(range(steps))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    assert len(await fresh.list(KEY)) == steps
    print(f"list of {steps} steps: {seconds:.2f} s, again {time.perf_counter() - start:.2f} s")


async def test_many_steps_are_listed_in_order(place: Place, tmp_path: Path) -> None:
    """Moto takes a few ms a manifest."""
    await list_many(place, tmp_path, 100)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
async def test_ten_thousand_steps_are_listed_in_order(place: Place, tmp_path: Path) -> None:
    await list_many(place, tmp_path, 10_000)
