"""Shard bytes, compared with what mosaicml-streaming writes and reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash

from crisp_stream.format import mds
from crisp_stream.format.checksums import checksums, damaged, shard_seed, window_seeds
from tests.support.synthetic import synthetic_tokens


@pytest.mark.parametrize("token_dtype", ["uint16", "uint32"])
def test_shards_and_index_are_byte_identical_to_those_of_mdswriter(tmp_path: Path, token_dtype: mds.TokenDtype) -> None:
    from streaming import MDSWriter

    tokens = synthetic_tokens(37, 16).astype(token_dtype)
    samples = mds.encode_samples(tokens, np.arange(37) // 5)
    (tmp_path / "ours").mkdir()
    row = mds.write_shard(tmp_path / "ours" / "shard.00000.mds", samples, root=tmp_path, identity=7)
    columns = {"checksum": "uint32", "cluster": "uint32", "tokens": f"ndarray:{token_dtype}:16"}
    theirs = tmp_path / "theirs"
    with MDSWriter(out=str(theirs), columns=columns, hashes=["xxh3_128"], size_limit=None) as writer:
        for sample in samples:
            writer.write({name: sample[name] for name in columns})
    assert (tmp_path / row.path).read_bytes() == (theirs / "shard.00000.mds").read_bytes()
    index = mds.index_bytes([row], below="ours", window_tokens=16, token_dtype=token_dtype)
    assert json.loads(index) == json.loads((theirs / "index.json").read_text())


def test_a_window_lies_at_a_computable_byte(tmp_path: Path) -> None:
    samples = mds.encode_samples(synthetic_tokens(9, 16), np.arange(9))
    row = mds.write_shard(tmp_path / "shard.00000.mds", samples, root=tmp_path, identity=7)
    content = (tmp_path / row.path).read_bytes()
    assert row.shard_bytes == len(content) == row.first_sample_offset + 9 * samples.dtype.itemsize
    at = row.first_sample_offset + 4 * samples.dtype.itemsize
    assert np.frombuffer(content[at : at + samples.dtype.itemsize], samples.dtype)[0] == samples[4]


def test_a_flipped_bit_anywhere_in_a_sample_changes_its_checksum() -> None:
    sample = mds.encode_samples(synthetic_tokens(1, 16), np.array([3]))
    seeds = window_seeds(5, 0, 1)
    sample["checksum"] = checksums(sample, seeds)
    for bit in range(sample.dtype.itemsize * 8):
        flipped = bytearray(sample.tobytes())
        flipped[bit // 8] ^= 1 << bit % 8
        assert damaged(np.frombuffer(bytes(flipped), sample.dtype), seeds).all()


def test_a_whole_sample_of_another_place_shard_or_dataset_does_not_match(tmp_path: Path) -> None:
    samples = mds.encode_samples(np.repeat(synthetic_tokens(1, 16), 50, axis=0), np.full(50, 3))  # all of one text
    row = mds.write_shard(tmp_path / "shard.00000.mds", samples, root=tmp_path, identity=7)
    assert not damaged(samples, window_seeds(row.checksum_seed, 0, 50)).any()
    assert not damaged(samples[20:30], window_seeds(row.checksum_seed, 20, 10)).any()
    assert damaged(samples[::-1], window_seeds(row.checksum_seed, 0, 50)).all()
    assert damaged(samples[:-1], window_seeds(row.checksum_seed, 1, 49)).all()
    for identity, path in ((8, row.path), (7, "shard.00001.mds"), (7, "shards/00/shard.00000.mds")):
        assert damaged(samples, window_seeds(shard_seed(identity, path), 0, 50)).all()


@pytest.mark.parametrize("seed", [0, 1 << 63, (1 << 64) - 2])
def test_checksums_are_those_of_the_specification(seed: int) -> None:
    samples = mds.encode_samples(synthetic_tokens(5, 16), np.arange(5))
    expected = [
        xxhash.xxh3_64_intdigest(sample.tobytes()[4:], seed=(seed + at) % 2**64) % 2**32
        for at, sample in enumerate(samples)
    ]
    assert checksums(samples, window_seeds(seed, 0, 5)).tolist() == expected
    assert checksums(samples[3:], window_seeds(seed, 3, 2)).tolist() == expected[3:]
    path = "shards/07/shard.00003.mds"
    assert shard_seed(seed, path) == xxhash.xxh3_64_intdigest(path.encode(), seed=seed)


def test_the_number_of_windows_for_a_shard_size_fits_and_one_more_does_not() -> None:
    count = mds.max_windows_per_shard(1 << 20, 1024, "uint16")
    size = mds.sample_dtype(1024, "uint16").itemsize
    assert len(mds.header_bytes(count, 1024, "uint16")) + count * size <= 1 << 20
    assert len(mds.header_bytes(count + 1, 1024, "uint16")) + (count + 1) * size > 1 << 20


def test_a_shard_beyond_32_bit_offsets_is_refused() -> None:
    with pytest.raises(ValueError, match="MDS allows 4294967295"):
        mds.header_bytes(1 << 21, 1024, "uint16")
    with pytest.raises(TypeError, match="tokens must be uint16 or uint32"):
        mds.encode_samples(np.zeros((1, 4), np.int64), np.zeros(1))
