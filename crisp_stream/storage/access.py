"""Which server a root is on, and who asks: the options of obstore's clients, from variables, profiles and roles.

obstore reads variables and no files. Without an account it asks the address 169.254.169.254, where a cloud tells a
machine its role, until the time of the request is up. So keys in variables go straight to it. Everything else of AWS is
looked up by botocore, as boto3 does it, whose import takes 0.5 s. For all three clouds, a connection to that address
is tried for a second before botocore or obstore may ask it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crisp_stream.errors import StorageError

_S3 = ("s3", "s3a")
_AZURE = ("az", "azure", "abfs", "abfss")
_ENDPOINTS = {
    **dict.fromkeys(_S3, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")),
    "gs": ("STORAGE_EMULATOR_HOST",),
    **dict.fromkeys(_AZURE, ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")),
}
"""By scheme, the variables that name another server than the provider's."""
_UNSIGNED = {
    **dict.fromkeys(_S3, ("AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST")),
    "gs": ("GOOGLE_SKIP_SIGNATURE",),
    **dict.fromkeys(_AZURE, ("AZURE_SKIP_SIGNATURE",)),
}
"""By scheme, the variables that ask for requests without an account."""
_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_AZURE_NO_ACCOUNT = ("ENDPOINT", "ACCOUNT_NAME", "STORAGE_ACCOUNT", "CONTAINER", "CONTAINER_NAME")
"""Endings of variables of Azure that name a place and no account."""

METADATA_ADDRESS = "169.254.169.254"
METADATA_SECONDS = 1.0
ROLE_ATTEMPTS = 3
CREDENTIAL_SECONDS = 540
"""How long obstore keeps credentials of botocore, which renews those that end within ten minutes."""


def access_options(url: str) -> dict[str, Any]:
    """Options of obstore's `from_url` for a root: `config`, and `credential_provider` where variables do not suffice.

    Raises:
        StorageError: there are no credentials, or those that are configured cannot be had.
    """
    scheme = url.partition("://")[0]
    endpoint = next((os.environ[name] for name in _ENDPOINTS.get(scheme, ()) if os.environ.get(name)), None)
    if scheme in _S3:
        return _s3_options(url, endpoint)
    if scheme == "gs" and endpoint:
        account = {"gcs_base_url": endpoint, "disable_oauth": True}
        account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        return {"config": {"service_account_key": json.dumps(account)}}  # an emulator knows no accounts
    if scheme == "gs":
        _require_google_account(url)
    elif scheme in _AZURE:
        _require_azure_account(url)
    return {}


def endpoint_of(url: str, options: dict[str, Any]) -> str:
    """The address that is asked, or the root itself where it is the provider's."""
    names = _ENDPOINTS.get(url.partition("://")[0], ())
    endpoint = options.get("config", {}).get("endpoint")
    return endpoint or next((os.environ[name] for name in names if os.environ.get(name)), url)


def is_unsigned(url: str) -> bool:
    """Whether a variable asks for requests without an account. Raises StorageError: its value is no switch."""
    for name in _UNSIGNED.get(url.partition("://")[0], ()):
        text = os.environ.get(name, "")
        if text.strip().lower() in _ON:
            return True
        if text.strip().lower() not in _OFF:
            raise StorageError(f"{name} must be true or false, got {text!r}. Set it to one of them, or not at all.")
    return False


def account_remedy(url: str) -> str:
    """What to look at when the storage refused a request."""
    if is_unsigned(url):
        name = _UNSIGNED[url.partition("://")[0]][0]
        return (
            f"The request was sent without an account ({name}), so this is not public: unset that and use an account."
        )
    if url.partition("://")[0] in _S3 and not _has_keys():
        return f"Check {_profile()} or the role that gives them, and the permissions."
    return "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or your provider's variables) and the permissions."


def _s3_options(url: str, endpoint: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"config": {}}
    unsigned = is_unsigned(url)
    if unsigned:
        options["config"]["skip_signature"] = True
    needs_credentials = not unsigned and not _has_keys()
    if needs_credentials or _chosen_profile() or any(map(_is_file, _aws_files())):
        region, of_profile, provider = _ask_botocore(url, needs_credentials)
        endpoint = endpoint or of_profile
        if region:
            options["config"]["region"] = region
        if provider is not None:
            options["credential_provider"] = provider
    if endpoint:
        options["config"]["endpoint"] = endpoint
    return options


def _ask_botocore(url: str, needs_credentials: bool) -> tuple[str | None, str | None, Any]:
    """(region, endpoint, credential provider): each None where it is not set, or not needed."""
    from botocore.exceptions import BotoCoreError, ClientError

    surroundings = _surroundings()
    try:
        found = _boto_session(surroundings)
        region = None if os.environ.get("AWS_REGION") else found.get_config_variable("region")
        endpoint = _profile_endpoint(found)
        if not needs_credentials:
            return region, endpoint, None
        provider = _boto_credentials(surroundings)
    except (BotoCoreError, ClientError, OSError) as error:  # OSError: a file that this user may not read
        reason = " ".join(str(error).split())[:500].rstrip(".")
        raise StorageError(
            f"{url}: the credentials of {_profile()} cannot be had: {reason}. "
            "Mend the profile, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    if provider is None:
        raise _no_s3_credentials(url, found)
    return region, endpoint, provider


def _has_keys() -> bool:
    return bool(os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"))


def _aws_files() -> tuple[Path, Path]:
    """The files of credentials and of settings, whether they are there or not."""
    credentials = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    return Path(credentials).expanduser(), Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - pathlib's raises in the home of another user


def _chosen_profile() -> str | None:
    return os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")  # in botocore's order


def _profile() -> str:
    return f"profile {_chosen_profile() or 'default'} in {' and '.join(map(str, _aws_files()))}"


_Surroundings = tuple[frozenset[tuple[str, str]], tuple[int, ...]]


def _surroundings() -> _Surroundings:
    """What botocore's answers depend on: variables, and when the files were changed."""
    variables = ((name, text) for name, text in os.environ.items() if name.startswith("AWS_") or name == "HOME")
    return frozenset(variables), tuple(file.stat().st_mtime_ns if _is_file(file) else 0 for file in _aws_files())


@functools.lru_cache(maxsize=8)
def _boto_session(surroundings: _Surroundings, **settings: Any) -> Any:
    """botocore's view of them. Kept, because a role, a process or a login may take long to ask."""
    import botocore.session

    found = botocore.session.Session()
    region = dict(surroundings[0]).get("AWS_REGION")  # which botocore does not read, though roles are asked in a region
    for name, value in (({"region": region} if region else {}) | settings).items():
        found.set_config_variable(name, value)
    return found


@functools.lru_cache(maxsize=8)
def _boto_credentials(surroundings: _Surroundings) -> Any:
    """obstore's provider on top of botocore, asked once; None: there are no credentials.

    botocore asks for the role of a machine once, in a second or two, which is long where there is none and little
    patience where there is one: here it is asked several times, but only where something listens.
    """
    from obstore.auth.boto3 import Boto3CredentialProvider

    found = _boto_session(surroundings)
    found.get_component("credential_provider").remove("iam-role")
    if found.get_credentials() is None:
        if _has_no_role() or not _answers(_role_address(found)):
            return None
        found = _boto_session(surroundings, metadata_service_num_attempts=ROLE_ATTEMPTS)
        if found.get_credentials() is None:
            return None
    provider = Boto3CredentialProvider(found, ttl=timedelta(seconds=CREDENTIAL_SECONDS))
    provider()  # what cannot be had is told here, in botocore's words
    return provider


def _has_no_role() -> bool:
    return os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"


def _role_address(found: Any) -> str:
    """Where a machine of AWS learns its role."""
    by_ipv6 = found.get_config_variable("ec2_metadata_service_endpoint_mode") == "ipv6"
    chosen = found.get_config_variable("ec2_metadata_service_endpoint")
    return chosen or ("[fd00:ec2::254]" if by_ipv6 else METADATA_ADDRESS)


def _forget() -> None:
    """A lock that another thread held while this process was forked would stay closed."""
    _boto_session.cache_clear()
    _boto_credentials.cache_clear()


os.register_at_fork(after_in_child=_forget)


def _profile_endpoint(found: Any) -> str | None:
    """`endpoint_url` of the profile: the one of its services section for S3, else that of all services."""
    profile = found.get_scoped_config()
    section = found.full_config.get("services", {}).get(profile.get("services"), {})
    return section.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")


def _no_s3_credentials(url: str, found: Any) -> StorageError:
    machine = f"none answered at {_role_address(found)}"
    if _has_no_role():
        machine = "switched off by AWS_EC2_METADATA_DISABLED"
    return StorageError(
        f"{url}: no credentials. Looked for AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, {_profile()}, the role of a "
        f"container or of web identity in variables, and a role of this machine ({machine}). Set one of them; a public "
        "bucket is read without credentials by AWS_SKIP_SIGNATURE=true."
    )


def _require_google_account(url: str) -> None:
    variables = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY")
    login = Path("~/.config/gcloud/application_default_credentials.json").expanduser()
    named = any(os.environ.get(name) for name in (*variables, "GOOGLE_APPLICATION_CREDENTIALS"))
    address = os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_IP") or METADATA_ADDRESS
    if not is_unsigned(url) and not named and not _is_file(login) and not _answers(address):
        raise StorageError(
            f"{url}: no credentials. Looked for GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT_KEY, {login} "
            f"and an account of this machine (none answered at {address}). Set one of them; a public bucket is read "
            "without credentials by GOOGLE_SKIP_SIGNATURE=true."
        )


def _require_azure_account(url: str) -> None:
    named = any(
        name.startswith("AZURE_") and text and not name.endswith(_AZURE_NO_ACCOUNT) for name, text in os.environ.items()
    )
    named = named or bool(os.environ.get("IDENTITY_ENDPOINT"))
    if not is_unsigned(url) and not named and not _answers(METADATA_ADDRESS):
        raise StorageError(
            f"{url}: no credentials. Looked for AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_ID "
            f"and an identity of this machine (none answered at {METADATA_ADDRESS}). Set one of them; a public "
            "container is read without credentials by AZURE_SKIP_SIGNATURE=true."
        )


def _answers(address: str) -> bool:
    """Whether something listens at a metadata address: `host`, `host:port` or a URL."""
    place = urlsplit(address if "//" in address else f"//{address}")
    with contextlib.suppress(OSError):
        socket.create_connection((place.hostname or "", place.port or 80), METADATA_SECONDS).close()
        return True
    return False
