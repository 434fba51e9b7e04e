"""The example server on 127.0.0.1, asked by a real client."""

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec_trl import ItemCatalog, PromptRenderer, Recommender, generate_store


ROOT = Path(__file__).parents[2]
SERVER = ROOT / "examples/server"
sys.path.insert(0, str(SERVER))

import app as server_app  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported recommender of 60 items, and users."""
    store = generate_store(num_users=20, num_items=60)
    catalog = ItemCatalog(
        list(store.titles), list(store.titles.values()), list(store.semantic_ids.values()), "semantic_ids"
    )
    tokenizer = catalog.build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,  # probabilities that differ well, so that lists are no matter of rounding
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    renderer = PromptRenderer(catalog, tokenizer=tokenizer)
    folder = tmp_path_factory.mktemp("server")
    Recommender(model, tokenizer, catalog.trie(tokenizer), renderer, num_beams=12).save_pretrained(folder)
    (folder / "users.json").write_text('{"ann": ["i1", "i2"], "bob": []}')
    return folder


@pytest.fixture(scope="module")
def recommender(folder):
    return Recommender.from_pretrained(folder)


@contextmanager
def running(folder, limits=None, change=None, **options):
    """A server in a thread; gives its address and its service. `change` is called with the loaded recommender."""
    given = {"model": folder, "users": folder / "users.json", "device": "cpu", "max_batch": 8, "wait_ms": 5.0}
    app = server_app.build_app(argparse.Namespace(**(given | options)), limits or server_app.Limits())
    if change is not None:
        read = app.state.service._read
        app.state.service._read = lambda: change(read())
    server = server_app.serve(app, host="127.0.0.1", port=0, log_level="error")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app.state.service
    finally:
        server.should_exit = True
        thread.join(timeout=30)
    assert not thread.is_alive()


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def address(folder):
    with running(folder) as (address, service):
        wait_for(lambda: service.batcher is not None)
        yield address


def ask_all(address, bodies, path="/recommend"):
    """Post all bodies at once."""

    async def ask():
        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(base_url=address, timeout=30, limits=limits) as client:
            return await asyncio.gather(*(client.post(path, json=body) for body in bodies))

    return asyncio.run(ask())


def expected(recommender, body):
    exclude = body.get("exclude", []) + (body["history"] if body.get("exclude_history", True) else [])
    allow = [body["allow"]] if body.get("allow") is not None else None
    top_k = body.get("top_k", 10)
    return recommender.recommend([body["history"]], top_k=top_k, exclude=[exclude], allow=allow)[0]


def assert_same(answer, ranked):
    assert [(item["item"], item["title"]) for item in answer["items"]] == [(item, title) for item, title, _ in ranked]
    assert [item["score"] for item in answer["items"]] == pytest.approx([row.score for row in ranked], abs=1e-4)


def bodies(count):
    for number in range(count):
        body = {
            "history": [f"i{(number * 7 + step) % 60}" for step in range(1 + number % 5)],
            "top_k": 1 + number % 12,
        }
        if number % 3 == 1:
            body |= {"exclude": [f"i{item}" for item in range(number % 30)], "exclude_history": number % 2 == 0}
        if number % 4 == 2:
            body["allow"] = [f"i{item}" for item in range(20 + number % 20)]
        yield body


def test_every_answer_is_the_right_one_and_its_own_under_load(address, recommender):
    asked = list(bodies(60))
    before = httpx.get(f"{address}/ready").json()["batches"]
    answers = ask_all(address, asked)
    assert [answer.status_code for answer in answers] == [200] * 60
    for body, answer in zip(asked, answers, strict=True):
        assert_same(answer.json(), expected(recommender, body))
    batches = httpx.get(f"{address}/ready").json()["batches"] - before
    assert 8 <= batches < 45  # several were decoded together


def test_a_batch_of_requests_keeps_its_order(address, recommender):
    asked = list(bodies(12))
    (answer,) = ask_all(address, [{"requests": asked}], "/recommend/batch")
    for body, result in zip(asked, answer.json()["results"], strict=True):
        assert_same(result, expected(recommender, body))


def test_where_nothing_is_left_the_list_is_empty(address):
    asked = [
        {"history": ["i1"], "allow": []},
        {"history": ["i1"], "allow": ["i1"]},
        {"history": ["i1"], "allow": ["i2"]},
    ]
    answers = ask_all(address, asked)
    assert [[item["item"] for item in answer.json()["items"]] for answer in answers] == [[], [], ["i2"]]


def test_a_user_is_known_by_id(address, recommender):
    answer = httpx.post(f"{address}/recommend", json={"user": "ann", "top_k": 3})
    assert_same(answer.json(), expected(recommender, {"history": ["i1", "i2"], "top_k": 3}))


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"history": ["i1", "zither"]}, 422, "unknown_item", "request 0: history has 1 items .*zither"),
        ({"history": ["i1"], "exclude": ["zither"]}, 422, "unknown_item", "exclude has 1 items"),
        ({"history": ["i1"], "allow": ["zither"]}, 422, "unknown_item", "allow has 1 items"),
        ({"history": []}, 422, "empty_history", "give at least one item"),
        ({"user": "bob"}, 422, "empty_history", "give at least one item"),
        ({"user": "eve"}, 422, "unknown_user", "no user 'eve'"),
        ({"history": ["i1"], "user": "ann"}, 422, "invalid_request", "either history or user"),
        ({}, 422, "invalid_request", "either history or user"),
        ({"history": ["i1"], "top_k": 13}, 422, "top_k_too_large", "top_k is 13, expected 12 at most"),
        ({"history": ["i1"], "top_k": 0}, 422, "invalid_request", "body.top_k: .*greater than or equal to 1"),
        ({"history": ["i1"], "top_k": "many"}, 422, "invalid_request", "valid integer"),
        ({"history": ["i1"], "topk": 3}, 422, "invalid_request", "body.topk"),
        ({"history": "i1"}, 422, "invalid_request", "body.history"),
        ({"history": [["i1"]]}, 422, "invalid_request", "body.history.0"),
        ({"history": ["i" * 300]}, 422, "invalid_request", "256"),
        ({"history": ["i1"] * 201}, 422, "too_many_items", "history has 201 items, expected 200 at most"),
        ({"history": ["i1"], "allow": ["i1"] * 10_001}, 422, "too_many_items", "10001 items, expected 10000"),
        ([], 422, "invalid_request", "body"),
        ("text", 422, "invalid_request", "body"),
        (None, 422, "invalid_request", "body"),
        (b"{", 422, "invalid_request", "JSON decode error"),
        (b"\xff\xfe", 422, "invalid_request", "body"),
        (b"[" * 100_000, 400, "http_error", "parsing the body"),
        (b" " * 1_100_000, 413, "body_too_large", "more than 1048576 bytes"),
        ((b" " * 200_000 for _ in range(6)), 413, "body_too_large", "more than 1048576 bytes"),
    ],
)
def test_bad_input_is_refused_with_the_reason_and_survived(address, body, status, code, message):
    raw = isinstance(body, bytes) or hasattr(body, "__next__")
    content = {"content": body, "headers": {"content-type": "application/json"}} if raw else {"json": body}
    answer = httpx.post(f"{address}/recommend", timeout=30, **content)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert re.search(message, answer.json()["error"]["message"])
    assert httpx.post(f"{address}/recommend", json={"history": ["i1"]}).status_code == 200


def test_a_batch_says_which_request_is_wrong_and_has_a_limit(address):
    asked = [{"history": ["i1"]}, {"history": ["zither"]}]
    answer = httpx.post(f"{address}/recommend/batch", json={"requests": asked})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("request 1: ")
    answer = httpx.post(f"{address}/recommend/batch", json={"requests": asked[:1] * 33})
    assert answer.json()["error"] == {
        "code": "too_many_requests",
        "message": "the batch has 33 requests, expected 32 at most",
    }


def test_routes_that_are_not_there(address):
    assert httpx.get(f"{address}/nothing").json() == {"error": {"code": "http_error", "message": "Not Found"}}
    assert httpx.get(f"{address}/recommend").status_code == 405


def slowed(seconds):
    def change(recommender):
        recommend = recommender.recommend

        def slow(*args, **kwargs):
            time.sleep(seconds)
            return recommend(*args, **kwargs)

        recommender.recommend = slow
        return recommender

    return change


def test_health_and_readiness_while_the_model_is_loaded(folder):
    proceed = threading.Event()

    def change(recommender):
        proceed.wait(30)
        return recommender

    with running(folder, change=change) as (address, service):
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        for answer in (httpx.get(f"{address}/ready"), httpx.post(f"{address}/recommend", json={"history": ["i1"]})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert answer.headers["retry-after"] == "1"
        proceed.set()
        wait_for(lambda: service.batcher is not None)
        ready = httpx.get(f"{address}/ready").json()
        assert (ready["status"], ready["items"], ready["max_top_k"]) == ("ready", 60, 12)


def test_more_than_may_wait_are_turned_away(folder, recommender):
    limits = server_app.Limits(waiting=6)
    with running(folder, limits, slowed(0.3), max_batch=2) as (address, service):
        wait_for(lambda: service.batcher is not None)
        asked = list(bodies(20))
        answers = ask_all(address, asked)
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 6
        for body, answer in zip(asked, answers, strict=True):
            if answer.status_code == 200:
                assert_same(answer.json(), expected(recommender, body))
            else:
                assert answer.json()["error"]["code"] == "overloaded"
                assert answer.headers["retry-after"] == "1"
        assert service.batcher.waiting == 0
        assert ask_all(address, asked[:1])[0].status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(folder):
    with running(folder, server_app.Limits(seconds=0.2), slowed(0.6), max_batch=1) as (address, service):
        wait_for(lambda: service.batcher is not None)
        begun = service.batcher.batches
        answers = ask_all(address, [{"history": ["i1"]}] * 4)
        assert [(a.status_code, a.json()["error"]["code"]) for a in answers] == [(504, "timeout")] * 4
        wait_for(lambda: service.batcher.waiting == 0)
        time.sleep(0.7)
        assert service.batcher.batches == begun + 1  # nothing is decoded for those who have left


def test_a_body_that_does_not_come_is_given_up(folder):
    async def dawdle(address):
        host, port = address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        writer.write(head.encode())
        line = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        return line

    with running(folder, server_app.Limits(seconds=0.2)) as (address, _):
        assert b" 408 " in asyncio.run(dawdle(address))


def test_a_failure_is_its_own_requests_alone(folder, recommender):
    def change(loaded):
        recommend = loaded.recommend

        def failing(histories, **kwargs):
            if ["i13"] in histories:
                raise torch.OutOfMemoryError("no memory") if len(histories) == 1 else RuntimeError("bad batch")
            if ["i17"] in histories:
                raise RuntimeError("secret")
            return recommend(histories, **kwargs)

        loaded.recommend = failing
        return loaded

    with running(folder, change=change, wait_ms=100.0) as (address, service):
        wait_for(lambda: service.batcher is not None)
        asked = [{"history": [f"i{item}"]} for item in (11, 13, 17, 19)]
        first, memory, broken, last = ask_all(address, asked)
        assert_same(first.json(), expected(recommender, asked[0]))
        assert_same(last.json(), expected(recommender, asked[3]))
        assert (memory.status_code, memory.json()["error"]["code"]) == (503, "out_of_memory")
        assert (broken.status_code, broken.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in broken.text


def test_the_command_answers_what_had_come_before_it_ends(folder, tmp_path, recommender):
    """SIGTERM amid requests: they are answered, and the process ends well."""
    with (tmp_path / "log").open("w") as log:
        arguments = ["--model", str(folder), "--port", "0", "--wait_ms", "1500", "--max_batch", "64"]
        process = subprocess.Popen([sys.executable, "app.py", *arguments], cwd=SERVER, stdout=log, stderr=log)
    try:
        text = (tmp_path / "log").read_text
        wait_for(lambda: "Uvicorn running on" in text(), 60)
        address = text().partition("Uvicorn running on ")[2].split()[0]
        wait_for(lambda: httpx.get(f"{address}/ready").status_code == 200, 60)
        threading.Timer(0.5, process.send_signal, [signal.SIGTERM]).start()
        asked = list(bodies(5))
        for body, answer in zip(asked, ask_all(address, asked), strict=True):
            assert_same(answer.json(), expected(recommender, body))
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
        assert "Application shutdown complete" in text()
    finally:
        process.kill()


def test_a_folder_without_a_model_ends_the_server(tmp_path):
    app = server_app.build_app(
        argparse.Namespace(model=tmp_path, users=None, device="cpu", max_batch=8, wait_ms=5.0), server_app.Limits()
    )
    server_app.serve(app, host="127.0.0.1", port=0, log_level="error").run()
    assert "holds no recommender.json" in str(app.state.failure)
