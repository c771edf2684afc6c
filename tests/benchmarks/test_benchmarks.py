"""The dataset generator, the measuring, and every section of the benchmark at toy size."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evaluation import bench_eval
from benchmarks.loading.error_section import litdata_choices
from benchmarks.loading.latency_proxy import LatencyProxy
from benchmarks.support import report
from benchmarks.support.measure import run_repeated, run_task
from benchmarks.support.report import Column, digits
from benchmarks.support.synthetic_dataset import DatasetPlan, windows_per_leaf, write_dataset
from crisp_stream.format.dataset import open_dataset
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.loading.reader import read_windows

ROOT = Path(__file__).parent.parent.parent
PLAN = DatasetPlan(leaves=300, windows=2_000, window_tokens=8, arity=8, depth=3, shard_bytes=2_000)


def test_a_generated_dataset_verifies_and_every_window_holds_its_id(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "data", PLAN)
    dataset = open_dataset(tmp_path / "data")
    assert (manifest.num_leaves, manifest.num_windows, manifest.depth) == (300, 2_000, 3)
    assert manifest.num_shards > 8
    tokens = read_windows(dataset, np.arange(2_000))["tokens"].astype(np.int64)
    assert (tokens[:, :4] @ (256 ** np.arange(4)) == np.arange(2_000)).all()
    assert dataset.tree.fingerprint == manifest.tree_fingerprint
    assert not verify_dataset(str(tmp_path / "data")).problems


@pytest.mark.parametrize("sizes", ["lognormal", "zipf", "equal"])
def test_every_leaf_has_a_window_and_all_windows_are_shared_out(sizes: str) -> None:
    plan = DatasetPlan(leaves=1_000, windows=12_345, sizes=sizes)  # pyright: ignore[reportArgumentType]
    leaves, counts = windows_per_leaf(plan)
    assert (np.diff(leaves.astype(np.int64)) > 0).all()
    assert counts.min() >= 1
    assert counts.sum() == 12_345
    assert (counts.max() - counts.min() <= 1) == (sizes == "equal")


def test_a_generated_dataset_is_a_function_of_its_plan(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        write_dataset(tmp_path / name, PLAN)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]


def test_the_generator_refuses_more_leaves_than_windows() -> None:
    with pytest.raises(ValueError, match="leaves must be 1 to"):
        DatasetPlan(leaves=10, windows=9)


def test_litdatas_choices_are_those_of_its_random_generator() -> None:
    weights = np.random.default_rng(0).random(50).tolist()
    reference = random.Random(3)
    expected = [reference.choices(range(50), weights=weights, k=1)[0] for _ in range(500)]
    assert litdata_choices(weights, 3, 500) == expected


def test_a_missing_peer_gives_a_row_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "streaming.py").write_text("raise ImportError\n")
    options = {"folders": str(tmp_path), "batches": 1}
    result = run_task("loading.peers:cpu_of_streaming", options, env={"PYTHONPATH": str(tmp_path)}, ranks=2)
    assert "not installed" in result["unavailable"]
    columns = [Column(title="side", key="side"), Column(title="µs", key="cpu_us", show=digits(1))]
    rows = [{"side": "peer", **result}, {"side": "ours", "cpu_us": 4.25}]
    assert report.table(columns, rows).splitlines()[2:] == [f"| peer | {result['unavailable']} |", "| ours | 4.2 |"]


def test_a_task_that_fails_is_reported_with_its_error() -> None:
    with pytest.raises(RuntimeError, match="unexpected keyword"):
        run_repeated("loading.error_section:litdata", {"nonsense": 1}, times=1)


class _Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "200000")
        self.end_headers()
        self.wfile.write(b"x" * 200_000)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def page_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_proxy_delays_and_counts_every_request(page_server: str) -> None:
    with LatencyProxy(page_server, 50) as proxy:
        started = time.perf_counter()
        for _ in range(3):
            with urllib.request.urlopen(f"{proxy.endpoint}/page", timeout=10) as answer:
                assert len(answer.read()) == 200_000
        assert time.perf_counter() - started >= 3 * 0.05
        totals = proxy.totals()
    assert totals["requests"] == 3
    assert totals["received"] > 600_000


def test_the_tables_of_the_readme_are_replaced_between_their_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- cpu -->\nold\n<!-- end cpu -->\nafter\n")
    report.update_readme({"cpu": "new\n"}, readme)
    assert readme.read_text() == "before\n<!-- cpu -->\nnew\n<!-- end cpu -->\nafter\n"
    with pytest.raises(ValueError, match="must hold <!-- s3 -->"):
        report.update_readme({"s3": "new\n"}, readme)


@pytest.mark.parametrize("section", ["cpu", "start", "resume", "s3", "error", "changes"])
def test_every_section_runs_at_toy_size(section: str, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/loading/bench_loader.py", section, "--quick", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert f"## {section}" in done.stdout
    results = json.loads((tmp_path / "quick" / "results" / f"{section}.json").read_text())
    sides = {row["side"].partition(",")[0]: row for row in results["rows"]}
    assert "crisp-stream" in sides
    assert "unavailable" not in sides["crisp-stream"]
    assert len(sides) >= 2


def test_judging_is_measured_at_toy_size(capsys: pytest.CaptureFixture[str]) -> None:
    bench_eval.main(["--limit", "6", "--repeats", "1", "--width", "32"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ")[:2] for line in lines if line.startswith(("| texts", "| questions"))]
    sides = [
        ("texts", "bare"),
        ("texts", "eval"),
        *(("questions", side) for side in ("bare", "eval", "lm-eval's HFLM")),
    ]
    assert rows == [[f"| {name}", side] for name, side in sides]
