"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.seaweed import S3Server, seaweed
from tests.support.written_dataset import text_file as text_file
from tests.support.written_dataset import word_encoder as word_encoder
from tests.support.written_dataset import written as written

# Machines are shared: a slow moment is no failure.
settings.register_profile("crisp-stream", deadline=None)
settings.load_profile("crisp-stream")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; its endpoint and credentials are in the environment for the rest of the session."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment().items():
            environment.setenv(name, value)
        yield server
