from __future__ import annotations

import dataclasses
import pydoc_data.topics
import shutil
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.storage.store import open_store
from crisp_stream.writers.embedding.embed import EncoderChoice, matching_encoder
from crisp_stream.writers.embedding.lsi import LSI_FILES, LsiEncoder
from crisp_stream.writers.embedding.probe import ENCODER_FILE, EncoderFile
from tests.support.encoders import keep_encoder
from tests.support.seaweed import S3Server

TEXTS = [text[at : at + 800] for text in pydoc_data.topics.topics.values() for at in range(0, len(text), 800)][:300]


@pytest.fixture(scope="module")
def lsi() -> LsiEncoder:
    return LsiEncoder.fit(TEXTS, dim=32)


@pytest.fixture(scope="module")
def root(lsi: LsiEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of a dataset's root the encoder needs."""
    root = tmp_path_factory.mktemp("root")
    lsi.save(root / "encoder")
    keep_encoder(root, lsi)
    return root


def test_vectors_are_unit_float16_and_near_for_near_meanings(lsi: LsiEncoder) -> None:
    vectors = lsi.embed(TEXTS)
    assert vectors.dtype == np.float16
    assert vectors.shape == (len(TEXTS), 32)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
    likeness = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    imports = [row for row, text in enumerate(TEXTS) if text.count("import") >= 4]
    assert len(imports) >= 5
    assert likeness[np.ix_(imports, imports)].mean() > 2 * likeness[imports].mean()
    assert lsi.embed([]).shape == (0, 32)


def test_weights_are_those_of_scikit_learn(lsi: LsiEncoder) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    library = TfidfVectorizer(sublinear_tf=True, min_df=2)
    expected = library.fit_transform(TEXTS).toarray()
    assert sorted(lsi.terms) == sorted(library.vocabulary_)
    columns = [library.vocabulary_[term] for term in lsi.terms]
    found = lsi.weights(lsi.pieces(TEXTS)).toarray()
    np.testing.assert_allclose(found, expected[:, columns], atol=1e-6)


def test_components_are_the_best_axes_for_the_texts(lsi: LsiEncoder) -> None:
    weights = lsi.weights(lsi.pieces(TEXTS)).toarray().astype(np.float64)
    np.testing.assert_allclose(lsi.components.T @ lsi.components, np.eye(32), atol=1e-4)
    best = np.square(np.linalg.svd(weights, compute_uv=False)[:32]).sum()
    assert np.square(weights @ lsi.components).sum() > 0.97 * best
    assert (lsi.components.sum(axis=0) >= 0).all()


def test_equal_texts_give_equal_files_whatever_the_threads_and_another_seed_others(tmp_path: Path) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2):
        LsiEncoder.fit(TEXTS, dim=8).save(tmp_path / "one")
    with threadpool_limits(1):
        LsiEncoder.fit(TEXTS, dim=8).save(tmp_path / "two")
    for name in LSI_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(LSI_FILES)
    assert LsiEncoder.fit(TEXTS, dim=8, seed=1).weights_sha256 != LsiEncoder.load(tmp_path / "one").weights_sha256


def test_a_row_depends_on_its_text_alone(lsi: LsiEncoder) -> None:
    together = lsi.embed(TEXTS[:40])
    for row in (0, 7, 39):
        np.testing.assert_array_equal(lsi.embed([TEXTS[row]])[0], together[row])
    parts = [lsi.pieces(TEXTS[:20]), lsi.pieces(TEXTS[20:40])]
    np.testing.assert_array_equal(np.concatenate([lsi.embed_pieces(part) for part in parts]), together)


def test_a_text_without_known_terms_gets_the_first_axis(lsi: LsiEncoder) -> None:
    expected = np.zeros(32, np.float16)
    expected[0] = 1
    for text in ("", " \n", "qqqqzzz xxxyyy", "a b c"):
        np.testing.assert_array_equal(lsi.embed([text, TEXTS[0]])[0], expected)


def test_the_vocabulary_keeps_the_most_widespread_terms() -> None:
    texts = ["the cat sat", "the cat ran", "the dog ran", "once"]
    assert LsiEncoder.fit(texts, dim=2).terms == ["the", "cat", "ran"]
    small = LsiEncoder.fit(texts, dim=5, max_terms=2)
    assert small.terms == ["the", "cat"]
    assert small.components.shape == (2, 2)


def test_the_record_says_what_made_the_vectors(lsi: LsiEncoder) -> None:
    assert lsi.record() == EncoderRecord(
        name="lsi", weights_sha256=lsi.weights_sha256, max_length=0, pooling="tfidf-svd", dim=32
    )


def test_files_load_as_they_were_saved(lsi: LsiEncoder, root: Path) -> None:
    loaded = LsiEncoder.load(root / "encoder")
    assert loaded.record() == lsi.record()
    np.testing.assert_array_equal(loaded.embed(TEXTS[:20]), lsi.embed(TEXTS[:20]))


def test_a_matching_encoder_is_the_datasets_own(lsi: LsiEncoder, root: Path, tmp_path: Path) -> None:
    choice = matching_encoder(lsi.record(), None, str(root))
    assert dataclasses.replace(choice, probe=None) == EncoderChoice(name=str(root / "encoder"), fitted="lsi")
    np.testing.assert_array_equal(choice.open().embed(TEXTS[:5]), lsi.embed(TEXTS[:5]))
    copy = shutil.copytree(root / "encoder", tmp_path / "copy")
    assert matching_encoder(lsi.record(), str(copy), str(root)).name == str(copy)
    other = dataclasses.replace(lsi.record(), weights_sha256="0" * 64)
    with pytest.raises(InputError, match=r"encoder .*: must be the one that embedded"):
        matching_encoder(other, None, str(root))


def test_a_matching_encoder_is_fetched_from_a_remote_dataset_once(
    lsi: LsiEncoder, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path / "cache"))
    url = s3.fresh_prefix()
    open_store(url).put(ENCODER_FILE, EncoderFile.of(lsi).to_json())
    with pytest.raises(FormatError, match=r"encoder/vocabulary\.json is missing"):
        matching_encoder(lsi.record(), None, url)
    store = open_store(url)
    lsi.save(tmp_path)
    for name in LSI_FILES:
        store.put(f"encoder/{name}", (tmp_path / name).read_bytes())
    choice = matching_encoder(lsi.record(), None, url)
    np.testing.assert_array_equal(choice.open().embed(TEXTS[:5]), lsi.embed(TEXTS[:5]))
    for name in LSI_FILES:
        store.delete(f"encoder/{name}")
    assert matching_encoder(lsi.record(), None, url) == choice


def test_files_that_do_not_belong_together_are_refused(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / "encoder", tmp_path / "copy")
    np.save(folder / "components.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(FormatError, match="the files of an LSI encoder must agree"):
        LsiEncoder.load(folder)
    (folder / "weight_per_term.npy").write_bytes(b"")
    with pytest.raises(FormatError, match=r"must hold vocabulary\.json, weight_per_term\.npy, components\.npy"):
        LsiEncoder.load(folder)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InputError, match="lsi: needs at least 2 terms that stand in 2 texts, got 0 from 2 texts"):
        LsiEncoder.fit(["one two", "three four"])
    with pytest.raises(InputError, match="lsi: dim and max_terms must be at least 2, got 1 and 50000"):
        LsiEncoder.fit(TEXTS, dim=1)
