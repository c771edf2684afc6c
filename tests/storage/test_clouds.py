"""GCS, Azure and web servers through the same client: a dataset is put there, trained on, and equal to the local one.

Google's XML protocol is spoken by SeaweedFS without accounts (it ignores `x-goog-if-generation-match`, so create-only
puts are not tested there); Azure's by Azurite, with its signatures; web servers stand in this file, one with TLS.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import InputError, MissingObjectError, StorageError
from crisp_stream.storage.inputs import list_input, require_unchanged
from crisp_stream.storage.store import Store, open_store
from tests.support.azurite import azurite
from tests.support.fault_runs import Source, train
from tests.support.seaweed import seaweed
from tests.support.synthetic import write_synthetic_dataset

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    leaves = dict.fromkeys(range(16), 100)
    return Source(write_synthetic_dataset(tmp_path_factory.mktemp("source"), leaves, windows_per_shard=400).root)


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweed(tmp_path_factory.mktemp("gcs"), anonymous=True) as server, pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        yield f"gs://{server.bucket}"


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with azurite(tmp_path_factory.mktemp("azure")) as server, pytest.MonkeyPatch.context() as environment:
        for name, text in server.environment().items():
            environment.setenv(name, text)
        yield f"az://{server.container}"


@pytest.fixture(params=["gcs", "azure"])
def bucket(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


def test_objects_are_put_read_in_ranges_listed_and_deleted(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/objects")
    store.put("a/b.bin", b"0123456789")
    large = bytes(range(256)) * (80 << 10)
    (tmp_path / "large").write_bytes(large)
    store.put_file("a/large", tmp_path / "large")
    assert store.get("a/b.bin") == b"0123456789"
    assert store.get_range("a/b.bin", 3, 4) == b"3456"
    assert store.get_range("a/large", 17 << 20, 300) == large[17 << 20 :][:300]
    assert store.list() == store.list("a") == [("a/b.bin", 10), ("a/large", len(large))]
    assert store.exists("a/b.bin")
    store.delete("a/b.bin")
    assert not store.exists("a/b.bin")
    with pytest.raises(MissingObjectError, match=r"a/b\.bin does not exist"):
        store.get("a/b.bin")


def test_the_version_of_an_object_is_the_same_in_a_listing_and_alone(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/versions")
    store.put("a.jsonl", b"1")
    (tmp_path / "large").write_bytes(bytes(20 << 20))  # put in parts
    store.put_file("b.jsonl", tmp_path / "large")
    files = list_input(store.url).files
    for file in files:
        require_unchanged(file.url, file.num_bytes, file.version)
    store.put("a.jsonl", b"2")
    with pytest.raises(InputError, match=r"a\.jsonl: must stay as it was .* got another version of its size"):
        require_unchanged(files[0].url, files[0].num_bytes, files[0].version)


def test_a_create_only_put_keeps_what_is_there_on_azure(azure: str) -> None:
    store = open_store(f"{azure}/create")
    store.put("manifest.json", b"first", create=True)
    with pytest.raises(StorageError, match=r"manifest\.json already exists and is not overwritten"):
        store.put("manifest.json", b"second", create=True)
    assert store.get("manifest.json") == b"first"


def test_a_wrong_azure_key_is_told(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    with pytest.raises(StorageError, match="the credentials were refused"):
        open_store(f"{azure}/x", timeout=5).get("manifest.json")


def upload(source: Source, store: Store) -> None:
    for file in Path(source.root).rglob("*"):
        if file.is_file():
            store.put(file.relative_to(source.root).as_posix(), file.read_bytes())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_from_a_bucket_equals_the_folder(
    source: Source, bucket: str, tmp_path: Path, num_workers: int
) -> None:
    url = f"{bucket}/dataset-{num_workers}"
    upload(source, open_store(url))
    outcome = train(source, url, tmp_path / "cache", num_workers=num_workers, timeout=30.0)
    assert outcome.right, str(outcome)


class RangeHandler(SimpleHTTPRequestHandler):
    """A web server that honours ranges, as nginx, Apache and CDNs do (Python's own does not)."""

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        part = content[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)


class PlainHandler(SimpleHTTPRequestHandler):
    """Python's own web server, which sends whole files whatever is asked."""

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@contextmanager
def web_server(
    folder: str, handler: type[SimpleHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    def handle(*arguments: Any) -> SimpleHTTPRequestHandler:
        return handler(*arguments, directory=folder)

    with ThreadingHTTPServer(("127.0.0.1", 0), handle) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def own_certificate(folder: Path) -> ssl.SSLContext:
    """A server context with a fresh certificate for 127.0.0.1, which is written to `folder`/certificate.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "crisp-stream tests")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).add_extension(address, critical=False)
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


@pytest.mark.parametrize(("scheme", "num_workers"), [("http", 0), ("http", 2), ("https", 0)])
def test_training_from_a_web_server_equals_the_folder(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, num_workers: int
) -> None:
    tls = own_certificate(tmp_path) if scheme == "https" else None
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    with web_server(source.root, RangeHandler, tls) as port:
        url = f"{scheme}://127.0.0.1:{port}"
        outcome = train(source, url, tmp_path / "cache", num_workers=num_workers, timeout=30.0)
    assert outcome.right, str(outcome)


def test_a_certificate_that_nobody_vouches_for_is_refused(source: Source, tmp_path: Path) -> None:
    with (
        web_server(source.root, RangeHandler, own_certificate(tmp_path)) as port,
        pytest.raises(StorageError, match=r"(?i)certificate"),
    ):
        open_store(f"https://127.0.0.1:{port}", timeout=2).get("manifest.json")


def test_web_servers_are_neither_listed_nor_written_to(source: Source, tmp_path: Path) -> None:
    with web_server(source.root, RangeHandler) as port:
        store = open_store(f"http://127.0.0.1:{port}", timeout=2)
        assert store.exists("manifest.json")
        assert not store.exists("none")
        (tmp_path / "file").write_bytes(b"x")
        for write in (
            lambda: store.put("x", b"x"),
            lambda: store.put("x", b"x", create=True),
            lambda: store.put_file("x", tmp_path / "file"),
            lambda: store.delete("manifest.json"),
        ):
            with pytest.raises(StorageError, match=r"a web server can be read, not written to. Use the folder"):
                write()
        with pytest.raises(StorageError, match="a web server can be read, not listed"):
            store.list()


def test_a_web_server_without_ranges_is_told(source: Source, tmp_path: Path) -> None:
    with web_server(source.root, PlainHandler) as port:
        outcome = train(source, f"http://127.0.0.1:{port}", tmp_path / "cache")
    assert "StorageError" in outcome.error
    assert "does not serve ranges" in outcome.error, outcome.error
