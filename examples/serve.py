r"""Serves an export of et-exporter over HTTP: an example to start from.

    pip install '.[cpu,examples]'
    MODEL=models/lm/1 uvicorn --factory examples.serve:create_app --limit-concurrency=64
    curl localhost:8000/score --json '{"texts": ["The president spoke ."]}'
    curl localhost:8000/generate --json '{"prompts": ["The president"], "length": 20}'

It imports nothing of ours and no Keras. TensorFlow runs requests in parallel, each in a
thread that FastAPI gives it. Bad input is answered with 4xx and a reason.
"""

import json
import math
import os
import pathlib
from typing import Annotated

import sentencepiece
import tensorflow as tf
from fastapi import FastAPI
from fastapi import HTTPException
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator
from pydantic import BaseModel
from pydantic import Field

MAX_BODY = 1_000_000  # bytes
SPACE_MARK = "\u2581"  # of SentencePiece


def utf8(text: str) -> str:
    """Returns a text; JSON can name halves of characters, which are none."""
    text.encode()  # UnicodeEncodeError is a ValueError, and so a bad request
    return text


Texts = Annotated[
    list[Annotated[str, AfterValidator(utf8)]], Field(min_length=1, max_length=64)
]


class ScoreRequest(BaseModel):
    texts: Texts


class GenerateRequest(BaseModel):
    prompts: Texts
    length: int = Field(40, ge=1, le=1024)
    temperature: float = Field(0.8, ge=0, le=10)
    top_k: int = Field(40, ge=0)
    seed: int = Field(0, ge=0, lt=2**31)


def create_app(folder=None) -> FastAPI:
    """Returns the server of an export, by default of the environment's MODEL."""
    folder = pathlib.Path(folder or os.environ["MODEL"])
    functions = tf.saved_model.load(str(folder)).signatures
    limits = json.loads((folder / "assets.extra" / "limits.json").read_text())
    vocabulary = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "assets" / "tokenizer.model")
    )
    end = limits["eos_id"]
    app = FastAPI(title="language model")

    def encode(texts, most, suffix=()):
        """Returns (B, T) ids, filled up with padding."""
        for number, text in enumerate(texts, start=1):
            if SPACE_MARK in text:
                reason = f"text {number} has U+2581, a space to SentencePiece"
                raise HTTPException(422, reason)
        rows = [[*vocabulary.encode(text.strip()), *suffix] for text in texts]
        for number, row in enumerate(rows, start=1):
            if len(row) > most:
                reason = f"text {number} has {len(row)} tokens; the most is {most}"
                raise HTTPException(422, reason)
        width = max(1, *map(len, rows))
        pad = limits["pad_id"]
        return tf.constant([row + [pad] * (width - len(row)) for row in rows], tf.int32)

    @app.middleware("http")
    async def limit_body(request: Request, call_next):
        if request.method == "POST":
            size = request.headers.get("content-length")
            if size is None or not size.isdigit():
                return JSONResponse({"detail": "Content-Length is required"}, 411)
            if int(size) > MAX_BODY:
                if int(size) < 10 * MAX_BODY:
                    # A client that is cut off while it sends never sees the reason.
                    async for _ in request.stream():
                        pass
                detail = f"the body has {size} bytes; the most is {MAX_BODY}"
                return JSONResponse({"detail": detail}, 413)
        return await call_next(request)

    @app.exception_handler(RequestValidationError)
    def bad_request(request: Request, error: RequestValidationError):
        # Without the input, which may be nothing that an answer can hold: nan.
        detail = [{"loc": e["loc"], "msg": e["msg"]} for e in error.errors()]
        return JSONResponse({"detail": detail}, 422)

    @app.get("/health")
    def health():
        return limits

    @app.post("/score")
    def score(request: ScoreRequest):
        """Nats (-log p), tokens and perplexity per word of each text."""
        ids = encode(request.texts, limits["max_length"], [end])
        nats = tf.reduce_sum(functions["score"](ids=ids)["nats"], axis=1).numpy()
        tokens = tf.math.count_nonzero(ids, axis=1).numpy()
        return [
            {
                "nats": float(n),
                "tokens": int(t),
                "perplexity_per_word": math.exp(min(n / (len(text.split()) + 1), 700)),
            }
            for n, t, text in zip(nats, tokens, request.texts)
        ]

    @app.post("/generate")
    def generate(request: GenerateRequest):
        """Each prompt with its continuation."""
        ids = encode(request.prompts, limits["max_length"] - 1)
        found = functions["generate"](
            ids=ids,
            length=tf.constant(min(request.length, limits["max_length"])),
            temperature=tf.constant(request.temperature),
            top_k=tf.constant(min(request.top_k, limits["vocab_size"])),
            seed=tf.constant(request.seed),
        )["ids"]
        rows = tf.concat([ids, found], axis=1).numpy().tolist()
        return [vocabulary.decode([i for i in row if i > end]) for row in rows]

    return app
