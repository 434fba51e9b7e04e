"""
The example server under load, with and without micro-batching:

    python benchmarks/speed/serving.py

Two servers on 127.0.0.1, one thread each, are asked in turn by 1, 4 and 16 clients that each wait for an answer before
they ask again: requests a second, and the median and 95th percentile of the latency. 10,000 items of four tokens,
histories of 20 items, 10 items an answer, 20 beams, a small Llama of random weights. Writes
benchmarks/results/serving.csv.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.speed.evaluation import HISTORY, build  # noqa: E402
from benchmarks.speed.measurements import compare, in_turn, write_results  # noqa: E402


SYSTEMS = {
    "one at a time": ["--max_batch", "1", "--wait_ms", "0"],
    "micro-batches": ["--max_batch", "16", "--wait_ms", "5"],
}
BASELINE = "one at a time"
METRICS = {"throughput": "requests/s", "latency p50": "ms", "latency p95": "ms"}


def export(num_items: int, folder: str) -> None:
    """Save a recommender that the servers load."""
    from ilrec_trl import ItemCatalog, PromptRenderer, Recommender

    item_trie, _, model, tokenizer = build(num_items, 1)
    semantic_ids = {item: tokenizer.convert_ids_to_tokens(item_trie.sequence(item)) for item in item_trie.item_ids}
    renderer = PromptRenderer(ItemCatalog.from_semantic_ids(semantic_ids), tokenizer=tokenizer)
    Recommender(model, tokenizer, item_trie, renderer).save_pretrained(folder)


def start(folder: str, arguments: list[str]) -> tuple[subprocess.Popen, str]:
    """A server that is ready, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples/server/app.py"), "--model", folder, "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/ready").status_code == 200:
                return process, address
        except httpx.ConnectError:
            time.sleep(0.2)
    process.kill()
    raise RuntimeError("the server did not become ready")


async def load(address: str, clients: int, requests: int, num_items: int) -> dict[str, float]:
    """Every client asks until `requests` are answered; all must be answered well."""
    rng = np.random.default_rng(0)
    bodies = [
        {"history": [f"i{item}" for item in rng.integers(0, num_items, HISTORY)], "top_k": 10} for _ in range(requests)
    ]
    latencies: list[float] = []

    async def ask(client: httpx.AsyncClient) -> None:
        while bodies:
            body = bodies.pop()
            begun = time.perf_counter()
            answer = await client.post("/recommend", json=body)
            latencies.append(time.perf_counter() - begun)
            answer.raise_for_status()
            assert len(answer.json()["items"]) == 10

    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        begun = time.perf_counter()
        await asyncio.gather(*(ask(client) for _ in range(clients)))
        seconds = time.perf_counter() - begun
    median, slow = np.percentile(latencies, (50, 95)) * 1000
    return {"throughput": requests / seconds, "latency p50": float(median), "latency p95": float(slow)}


def measure(
    addresses: dict[str, str], clients: int, requests: int, rounds: int, num_items: int
) -> list[dict[str, Any]]:
    """CSV rows of all servers under a number of clients."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in addresses}

    def ask(name: str) -> float:
        seen[name].append(asyncio.run(load(addresses[name], clients, requests, num_items)))
        return seen[name][-1]["throughput"]

    for name in addresses:
        ask(name)
        seen[name].clear()  # the first load warms up
    in_turn({name: partial(ask, name) for name in addresses}, rounds)
    rows = []
    for metric, unit in METRICS.items():
        values = {name: [figures[metric] for figures in seen[name]] for name in addresses}
        rows += compare("serving", f"{clients} clients", metric, unit, values, BASELINE)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few requests, and no CSV")
    parser.add_argument("--items", type=int, default=10_000)
    options = parser.parse_args()
    rounds, requests = (1, 32) if options.quick else (5, 96)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        export(options.items, folder)
        servers = {name: start(folder, arguments) for name, arguments in SYSTEMS.items()}
        try:
            addresses = {name: address for name, (_, address) in servers.items()}
            for clients in (1, 4, 16):
                rows += measure(addresses, clients, requests, rounds, options.items)
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.wait(timeout=60)
    for row in rows:
        what = f"{row['case']:11} {row['metric']:12} {row['system']:14}"
        sys.stdout.write(f"{what} {row['p50']:>8} {row['unit']:10} {row['ratio']}\n")
    if not options.quick:
        sys.stdout.write(f"{write_results('serving', rows)}\n")


if __name__ == "__main__":
    main()
