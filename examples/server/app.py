"""Recommendations over HTTP from a folder that `ilrec export` wrote.

pip install 'ilrec-trl[serve]'
python examples/server/app.py --model runs/recommender --port 8000
curl -s localhost:8000/recommend -H 'content-type: application/json' -d '{"history": ["i14", "i35"], "top_k": 3}'
"""

import argparse
import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from micro_batches import MicroBatcher, Overloaded, Query

from ilrec_trl import Recommender


try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict, Field, model_validator
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise SystemExit(f"{error}; pip install 'ilrec-trl[serve]'") from error

logger = logging.getLogger("ilrec.server")


@dataclass
class Limits:
    """What a client may ask for; more is refused with the reason."""

    history: int = 200  # items of one history
    items: int = 10_000  # ids of one exclude or allow list
    requests: int = 32  # requests of one batch
    body_bytes: int = 1 << 20
    waiting: int = 64  # requests waiting or being decoded
    seconds: float = 10.0  # from arrival to answer


class Refusal(Exception):
    """An answer other than 200: status, a code for programs, and a sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


ItemId = Annotated[str, Field(min_length=1, max_length=256)]


class RecommendRequest(BaseModel):
    """One user's question, by history or by user id."""

    model_config = ConfigDict(extra="forbid")

    history: list[ItemId] | None = None
    user: ItemId | None = None
    top_k: int = Field(default=10, ge=1)
    exclude_history: bool = True
    exclude: list[ItemId] = []
    allow: list[ItemId] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "RecommendRequest":
        if (self.history is None) == (self.user is None):
            raise ValueError("give either history or user")
        return self


class BatchRequest(BaseModel):
    """Several users' questions."""

    model_config = ConfigDict(extra="forbid")

    requests: list[RecommendRequest] = Field(min_length=1)


class RecommendedItem(BaseModel):
    item: str
    title: str | None
    score: float


class RecommendResponse(BaseModel):
    items: list[RecommendedItem]


class BatchResponse(BaseModel):
    results: list[RecommendResponse]


class BodyLimit:
    """Refuses bodies that are too large, whether they say so at the start or not, or too slow to arrive."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        said = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if int(said) > self.limits.body_bytes:
                raise Refusal(413, "body_too_large", f"the body has more than {self.limits.body_bytes} bytes")
            body = await asyncio.wait_for(self._read(receive), self.limits.seconds)
        except Refusal as error:
            return await _reply(error)(scope, receive, send)
        except TimeoutError:
            late = Refusal(408, "body_too_slow", f"the body was not there within {self.limits.seconds:g} s")
            return await _reply(late)(scope, receive, send)
        read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return read.pop() if read else await receive()

        await self.app(scope, again, send)

    async def _read(self, receive: Receive) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limits.body_bytes:
                raise Refusal(413, "body_too_large", f"the body has more than {self.limits.body_bytes} bytes")
        return body


class Service:
    """The recommender behind the routes: it checks requests, and decodes them in batches."""

    def __init__(self, options: argparse.Namespace, limits: Limits) -> None:
        self.options = options
        self.limits = limits
        self.batcher: MicroBatcher | None = None
        self.users: dict[str, list[str]] = {}

    async def load(self) -> None:
        """Read model and users, on a thread, so that the health check answers meanwhile."""
        recommender = await asyncio.to_thread(self._read)
        self.batcher = MicroBatcher(
            recommender,
            max_batch=self.options.max_batch,
            wait_ms=self.options.wait_ms,
            max_waiting=self.limits.waiting,
        )

    def _read(self) -> Recommender:
        if self.options.users is not None:
            users = json.loads(Path(self.options.users).read_text())
            self.users = {user: list(map(str, items)) for user, items in users.items()}
        recommender = Recommender.from_pretrained(self.options.model)
        recommender.model.to(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        recommender.recommend([[recommender.catalog.item_ids[0]]], top_k=1)  # what is made at the first call
        return recommender

    async def answer(self, requests: list[RecommendRequest]) -> list[RecommendResponse]:
        if self.batcher is None:
            raise Refusal(503, "not_ready", "the model is being loaded; see /ready")
        if len(requests) > self.limits.requests:
            message = f"the batch has {len(requests)} requests, expected {self.limits.requests} at most"
            raise Refusal(422, "too_many_requests", message)
        queries = [self._query(request, number) for number, request in enumerate(requests)]
        try:
            lists = await asyncio.wait_for(self.batcher.ask(queries), self.limits.seconds)
        except Overloaded:
            message = f"{self.limits.waiting} requests are being answered; try again in a second"
            raise Refusal(429, "overloaded", message) from None
        except TimeoutError:
            raise Refusal(504, "timeout", f"no answer within {self.limits.seconds:g} s") from None
        except torch.OutOfMemoryError:
            logger.exception("out of memory")
            message = "the accelerator has no memory left for this request; lower --max_batch"
            raise Refusal(503, "out_of_memory", message) from None
        return [RecommendResponse(items=[RecommendedItem(**item._asdict()) for item in row]) for row in lists]

    def _query(self, request: RecommendRequest, number: int) -> Query:
        assert self.batcher is not None
        recommender = self.batcher.recommender
        where = f"request {number}: "
        if request.user is not None and request.user not in self.users:
            raise Refusal(422, "unknown_user", f"{where}there is no user {request.user!r}; give a history instead")
        history = self.users[request.user] if request.user is not None else request.history or []
        if not history:
            raise Refusal(422, "empty_history", f"{where}the history is empty; give at least one item")
        limits = (("history", history, self.limits.history), ("exclude", request.exclude, self.limits.items))
        for name, items, most in (*limits, ("allow", request.allow or [], self.limits.items)):
            if len(items) > most:
                raise Refusal(422, "too_many_items", f"{where}{name} has {len(items)} items, expected {most} at most")
            unknown = [item for item in items if item not in recommender.item_trie]
            if unknown:
                message = f"{where}{name} has {len(unknown)} items that are not in the catalogue: {unknown[:5]}"
                raise Refusal(422, "unknown_item", message)
        most = min(recommender.num_beams, len(recommender.item_trie))
        if request.top_k > most:
            raise Refusal(422, "top_k_too_large", f"{where}top_k is {request.top_k}, expected {most} at most")
        exclude = [*request.exclude, *history] if request.exclude_history else request.exclude
        return Query(history, request.top_k, exclude, request.allow)


def build_app(options: argparse.Namespace, limits: Limits) -> FastAPI:
    """The application; the model is loaded when it starts, while `/ready` says 503."""
    service = Service(options, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.load())
        loading.add_done_callback(lambda _: _stop_on_error(app, loading))
        yield
        # uvicorn has answered what had come and takes nothing more.
        loading.cancel()
        if service.batcher is not None:
            await service.batcher.close()

    app = FastAPI(title="Recommendations", lifespan=lifespan)
    app.state.service, app.state.failure = service, None
    app.add_middleware(BodyLimit, limits=limits)
    _add_error_answers(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """The model is there and questions are answered."""
        if service.batcher is None:
            raise Refusal(503, "not_ready", "the model is being loaded")
        recommender = service.batcher.recommender
        return {
            "status": "ready",
            "items": len(recommender.item_trie),
            "max_top_k": min(recommender.num_beams, len(recommender.item_trie)),
            "waiting": service.batcher.waiting,
            "batches": service.batcher.batches,
        }

    @app.post("/recommend")
    async def recommend(request: RecommendRequest) -> RecommendResponse:
        """Items for one user."""
        return (await service.answer([request]))[0]

    @app.post("/recommend/batch")
    async def recommend_batch(request: BatchRequest) -> BatchResponse:
        """Items for several users, in their order."""
        return BatchResponse(results=await service.answer(request.requests))

    return app


def _stop_on_error(app: FastAPI, loading: "asyncio.Task[None]") -> None:
    if not loading.cancelled() and loading.exception() is not None:
        app.state.failure = loading.exception()
        app.state.server.should_exit = True


def _add_error_answers(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return _reply(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]]
        return _reply(Refusal(422, "invalid_request", "; ".join(faults)))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return _reply(Refusal(error.status_code, "http_error", str(error.detail)))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return _reply(Refusal(500, "internal_error", "the request failed; the server's log says why"))


def _reply(refusal: Refusal) -> JSONResponse:
    headers = {"retry-after": "1"} if refusal.status in (429, 503) else None
    return JSONResponse({"error": {"code": refusal.code, "message": refusal.message}}, refusal.status, headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that `ilrec export` wrote")
    parser.add_argument("--users", help="JSON file {user: [item, ...]} (LC-Rec's inter.json), for requests by user id")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", help="by default an accelerator where there is one")
    parser.add_argument("--max_batch", type=int, default=16, help="requests decoded at once")
    parser.add_argument("--wait_ms", type=float, default=5.0, help="how long a request waits for others")
    for name, value in vars(Limits()).items():
        parser.add_argument(f"--max_{name}", type=type(value), default=value)
    options = parser.parse_args()
    limits = Limits(**{name: getattr(options, f"max_{name}") for name in vars(Limits())})
    app = build_app(options, limits)
    server = serve(app, host=options.host, port=options.port)
    server.run()
    if app.state.failure is not None:
        raise SystemExit(f"the model cannot be served: {app.state.failure}")


def serve(app: FastAPI, **options: Any) -> uvicorn.Server:
    """A server that stops where the model cannot be loaded, and that answers what had come before it ends."""
    app.state.server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=30, **options))
    return app.state.server


if __name__ == "__main__":
    main()
