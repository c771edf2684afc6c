from __future__ import annotations

import pytest

from benchmarks.writing import duplicates_scale


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_the_search_is_measured_stage_by_stage(
    dedup: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates_scale, "GROUP_DOCUMENTS", 500)
    monkeypatch.setattr("sys.argv", ["", "--documents", "2000", "--dedup", dedup, "--bundle-documents", "700"])
    duplicates_scale.main()
    printed = capsys.readouterr().out
    near = 150 if dedup == "near" else 0  # a tenth of each group but the first
    assert f"2,000 documents, {{'exact': 150, 'near': {near}}}" in printed
    assert "4 bundles" in printed
    assert ("| duplicates-candidates | 14 |" in printed) == (dedup == "near")
