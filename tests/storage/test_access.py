"""Who asks for the objects of a bucket: profiles and roles as boto3 reads them, nobody, or a clear error."""

from __future__ import annotations

import datetime
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import StorageError
from crisp_stream.storage import access
from crisp_stream.storage.store import Store, open_store
from tests.support.fault_proxy import Request, fault_proxy
from tests.support.ports import free_port
from tests.support.seaweed import S3Server, seaweed

VARIABLES = (
    "AWS_ENDPOINT_URL",
    "S3_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_SKIP_SIGNATURE",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with an empty .aws, no variables, and no role of this machine."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture
def stored(s3: S3Server, home: Path) -> str:
    """The address of a prefix that holds `a`; `home` has taken the variables away again."""
    url = s3.fresh_prefix()
    s3.store(url.removeprefix(f"s3://{s3.bucket}/")).put("a", b"0123")
    return url


def keys(s3: S3Server) -> str:
    return f"aws_access_key_id = {s3.access_key_id}\naws_secret_access_key = {s3.secret_access_key}\n"


def write_files(home: Path, s3: S3Server, profile: str = "default") -> None:
    (home / ".aws" / "credentials").write_text(f"[{profile}]\n{keys(s3)}")
    section = profile if profile == "default" else f"profile {profile}"
    (home / ".aws" / "config").write_text(f"[{section}]\nregion = eu-west-3\nendpoint_url = {s3.endpoint}\n")


def test_the_default_profile_gives_keys_region_and_server(s3: S3Server, stored: str, home: Path) -> None:
    write_files(home, s3)
    assert open_store(stored).get("a") == b"0123"
    assert access.access_options(stored)["config"] == {"region": "eu-west-3", "endpoint": s3.endpoint}


def test_a_profile_is_chosen_by_its_variable(
    s3: S3Server, stored: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(home, s3, "work")
    with pytest.raises(StorageError, match=r"no credentials\. .* profile default in "):
        open_store(stored).get("a")
    monkeypatch.setenv("AWS_PROFILE", "work")
    store = open_store(stored)
    store.put("b", b"45")
    assert store.get_range("a", 1, 2) == b"12"
    assert store.list() == [("a", 4), ("b", 2)]
    monkeypatch.setenv("AWS_PROFILE", "wrok")
    with pytest.raises(
        StorageError, match=r"the credentials of profile wrok in .* cannot be had: .*could not be found"
    ):
        open_store(stored).get("a")


def test_files_may_lie_elsewhere_and_a_server_may_be_of_s3_alone(
    s3: S3Server, stored: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "keys").write_text(f"[default]\n{keys(s3)}")
    (home / "settings").write_text(
        "[default]\nservices = here\nendpoint_url = http://127.0.0.1:1\n"
        f"[services here]\ns3 =\n  endpoint_url = {s3.endpoint}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "keys"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "settings"))
    assert open_store(stored).get("a") == b"0123"


def test_a_profile_may_have_its_keys_from_a_process(s3: S3Server, stored: str, home: Path) -> None:
    answer = {"Version": 1, "AccessKeyId": s3.access_key_id, "SecretAccessKey": s3.secret_access_key}
    (home / "answer.json").write_text(json.dumps(answer))
    config = f"[default]\ncredential_process = cat {home}/answer.json\nendpoint_url = {s3.endpoint}\n"
    (home / ".aws" / "config").write_text(config)
    assert open_store(stored).get("a") == b"0123"
    (home / ".aws" / "config").write_text(config.replace("answer", "none"))
    with pytest.raises(StorageError, match=r"credentials of profile default in .* cannot be had: .*none\.json"):
        open_store(stored).get("a")


def test_variables_go_before_files_as_in_boto3(
    s3: S3Server, stored: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(home, s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"the credentials were refused\. Check AWS_ACCESS_KEY_ID"):
        open_store(stored).get("a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_access_key)
    assert open_store(stored).get("a") == b"0123"
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert access.access_options(stored)["config"] == {"endpoint": "http://127.0.0.1:1"}


def test_refused_keys_of_a_profile_are_told_with_the_profile(s3: S3Server, stored: str, home: Path) -> None:
    write_files(home, s3)
    path = home / ".aws" / "credentials"
    path.write_text(path.read_text().replace(s3.secret_access_key, "wrong"))
    with pytest.raises(StorageError, match=r"the credentials were refused. Check profile default in .*\.aws/cred"):
        open_store(stored).get("a")


def test_a_file_that_cannot_be_read_is_told(
    s3: S3Server, stored: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(home, s3)
    file = str(home / ".aws" / "credentials")

    def refuse(path: str, *_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("botocore.configloader.raw_config_parse", refuse)  # root may read everything
    with pytest.raises(StorageError, match=rf"profile default in {file} .* cannot be had: .*Permission denied"):
        open_store(stored).get("a")


def test_keys_in_variables_load_no_boto3(s3: S3Server) -> None:
    code = f"from crisp_stream.storage.store import open_store; print(open_store({s3.fresh_prefix()!r}).list()); "
    code += "import sys; sys.exit('botocore' in sys.modules)"
    environment = s3.environment() | {"HOME": "/nowhere", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)


@contextmanager
def web_server(answers: dict[str, str], *, status: int = 200, headers: dict[str, str] | None = None) -> Iterator[str]:
    """A server that has an answer for some paths, whatever is asked, and 404 for others; its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.do_GET()

        do_POST = do_PUT  # noqa: N815

        def do_GET(self) -> None:
            body = answers.get(self.path, "").encode()
            self.send_response(status if body else 404)
            for name, text in {"Content-Length": str(len(body)), "ETag": '"a"', **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Last-Modified", self.date_time_string())
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_profile_may_take_on_a_role(s3: S3Server, stored: str, home: Path) -> None:
    keys_of_role = (
        f"<AccessKeyId>{s3.access_key_id}</AccessKeyId><SecretAccessKey>{s3.secret_access_key}</SecretAccessKey>"
        "<SessionToken></SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
    )
    answer = f"<AssumeRoleResult><Credentials>{keys_of_role}</Credentials></AssumeRoleResult>"
    with web_server({"/": f"<AssumeRoleResponse>{answer}</AssumeRoleResponse>"}) as address:
        (home / ".aws" / "credentials").write_text(
            "[person]\naws_access_key_id = person\naws_secret_access_key = secret\n"
        )
        (home / ".aws" / "config").write_text(
            "[default]\nrole_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = person\nservices = here\n"
            f"region = us-east-1\n[services here]\nsts =\n  endpoint_url = {address}\n"
            f"s3 =\n  endpoint_url = {s3.endpoint}\n"
        )
        assert open_store(stored).get("a") == b"0123"


def test_credentials_that_cannot_be_renewed_are_told(s3: S3Server, stored: str, home: Path) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=2)
    answer = {"Version": 1, "AccessKeyId": s3.access_key_id, "SecretAccessKey": s3.secret_access_key}
    (home / "answer.json").write_text(json.dumps(answer | {"SessionToken": "", "Expiration": soon.isoformat()}))
    (home / ".aws" / "config").write_text(
        f"[default]\ncredential_process = cat {home}/answer.json\nendpoint_url = {s3.endpoint}\n"
    )
    options = access.access_options(stored)
    options["credential_provider"].ttl = datetime.timedelta(0)
    store = open_store(stored)
    assert store.get("a") == b"0123"
    (home / "answer.json").unlink()
    with pytest.raises(
        StorageError, match=r"the credentials cannot be renewed: .*answer\.json.* Check profile default"
    ):
        store.get("a")


def test_the_role_of_a_machine_is_asked_for(
    s3: S3Server, stored: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/latest/meta-data/iam/security-credentials/"
    role = {"AccessKeyId": s3.access_key_id, "SecretAccessKey": s3.secret_access_key, "Token": ""}
    role |= {"Code": "Success", "Expiration": "2099-01-01T00:00:00Z"}
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    answers = {"/latest/api/token": "token", path: "reader", f"{path}reader": json.dumps(role)}
    with web_server(answers) as address:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        assert open_store(stored).get("a") == b"0123"
    with web_server({"/latest/api/token": "token"}) as address:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        with pytest.raises(StorageError, match=rf"no credentials\. .*none answered at {address}"):
            open_store(stored).get("a")


@contextmanager
def black_hole() -> Iterator[str]:
    """An address that answers nothing, as 169.254.169.254 does in most networks: a listener whose queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for connection in waiting:
            connection.close()


def test_without_credentials_the_error_comes_soon_and_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    with black_hole() as address:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        began = time.monotonic()
        with pytest.raises(StorageError) as raised:
            open_store("s3://bucket/x", timeout=120).get("manifest.json")
    assert str(raised.value) == (
        "s3://bucket/x: no credentials. Looked for AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, profile default in "
        f"{home}/.aws/credentials and {home}/.aws/config, the role of a container or of web identity in variables, "
        f"and a role of this machine (none answered at {address}). Set one of them; a public bucket is read "
        "without credentials by AWS_SKIP_SIGNATURE=true."
    )
    assert 1.0 <= time.monotonic() - began < 10  # one second and a bit, on a machine that has nothing else to do


@pytest.mark.parametrize(
    ("url", "variable"), [("gs://bucket/x", "GOOGLE_SKIP_SIGNATURE"), ("az://container/x", "AZURE_SKIP_SIGNATURE")]
)
def test_google_and_azure_are_not_waited_for_either(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str, variable: str
) -> None:
    monkeypatch.setattr(access, "METADATA_ADDRESS", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    with pytest.raises(StorageError, match=rf"{url}: no credentials. .*{variable}=true"):
        open_store(url).get("manifest.json")
    monkeypatch.setenv(variable, "true")
    assert access.access_options(url) == {}


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that refuses no request that has no signature."""
    with seaweed(tmp_path_factory.mktemp("public"), anonymous=True) as server:
        server.store("x").put("a", b"0123")
        yield server


@pytest.mark.parametrize(("variable", "text"), [("AWS_SKIP_SIGNATURE", "true"), ("AWS_NO_SIGN_REQUEST", "YES")])
def test_a_public_bucket_is_read_without_credentials(
    public: S3Server, home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    seen: list[Request] = []
    with fault_proxy(public.endpoint) as proxy:
        proxy.start("delay", where=lambda request: bool(seen.append(request)))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv(variable, text)
        assert open_store(f"s3://{public.bucket}/x").get("a") == b"0123"
    assert ["authorization" in request.headers for request in seen] == [False]


def test_whoever_asks_may_pay(s3: S3Server, stored: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []
    write_files(home, s3)
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    with fault_proxy(s3.endpoint) as proxy:
        proxy.start("delay", where=lambda request: bool(seen.append(request)))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(stored)
        store.put("a", b"0123")
        assert store.get_range("a", 0, 2) == b"01"
        assert store.list() == [("a", 4)]
    assert {request.headers.get("x-amz-request-payer") for request in seen} == {"requester"}


def test_a_bucket_that_is_not_public_and_a_switch_that_is_none_are_told(
    s3: S3Server, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(StorageError, match=r"without an account \(AWS_SKIP_SIGNATURE\), so this is not public"):
        open_store(stored).get("a")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "please")
    with pytest.raises(StorageError, match="AWS_SKIP_SIGNATURE must be true or false, got 'please'"):
        open_store(stored).get("a")


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_encoded_answers_and_whole_ones_are_named(home: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    def store(address: str) -> Store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        return open_store("s3://b" if scheme == "s3" else f"{address}/b", timeout=5)

    encoded = re.escape("b/a: the answer is encoded (Content-Encoding: gzip), so its bytes are not those that were")
    with (
        web_server({"/b/a": "0123"}, headers={"Content-Encoding": "gzip"}) as address,
        pytest.raises(StorageError, match=f"cannot read .*{encoded}"),
    ):
        store(address).get("a")
    part = {"Content-Encoding": "gzip", "Content-Range": "bytes 1-2/9"}
    with (
        web_server({"/b/a": "12"}, status=206, headers=part) as address,
        pytest.raises(StorageError, match=f"cannot read bytes 1-2 of .*{encoded}"),
    ):
        store(address).get_range("a", 1, 2)
    with web_server({"/b/a": "0123"}) as address:
        assert store(address).get("a") == b"0123"
        whole = re.escape("b/a: the server does not serve ranges (it answered 200 with the whole object, not 206 with")
        with pytest.raises(StorageError, match=f"cannot read bytes 1-2 of .*{whole}"):
            store(address).get_range("a", 1, 2)
    with web_server({"/b/a": "0123"}, headers={"Content-Encoding": "aws-chunked"}) as address:
        assert store(address).get("a") == b"0123"
