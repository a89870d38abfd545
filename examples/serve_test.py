"""The example server over loopback, with clients at the same time."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import keras
import pytest

pytest.importorskip("fastapi")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's"
)


@contextlib.contextmanager
def server(saved_model, log):
    """The port and the process of a server that is up, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", "examples.serve:create_app"]
            + [f"--port={number}"],
            env=os.environ | {"MODEL": str(saved_model)},
            cwd=pathlib.Path(__file__).parent.parent,
            stdout=file,
            stderr=file,
        )
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{number}/health", timeout=5):
                break
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    try:
        yield number, process
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def port(saved_model, tmp_path_factory):
    with server(saved_model, tmp_path_factory.mktemp("log") / "log") as (number, _):
        yield number


def post(port, path, body):
    """(status, answer)."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_concurrent_clients_get_their_own_answers(port, trained):
    from trainer.evaluation import scoring

    texts = [f"ti {'bo ' * i}." for i in range(8)]
    lines = scoring.score_lines(
        trained.model, trained.processor, texts, trained.max_length, 512
    )
    expected = {text: s.evaluation for text, s in zip(texts, lines)}
    jobs = 2 * [("/score", {"texts": [t]}) for t in texts] + 2 * [
        ("/generate", {"prompts": [t[:-2]], "length": 8, "seed": 3}) for t in texts
    ]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda job: post(port, *job), jobs))
    generated = {}
    for (path, body), (status, answer) in zip(jobs, answers):
        assert status == 200, answer
        if path == "/score":
            (text,) = body["texts"]
            assert answer[0]["tokens"] == expected[text].tokens
            assert answer[0]["nats"] == pytest.approx(expected[text].nats, rel=1e-4)
            assert answer[0]["perplexity_per_word"] == pytest.approx(
                expected[text].perplexity_per_word, rel=1e-3
            )
        else:
            (prompt,) = body["prompts"]
            assert answer[0].startswith(prompt.strip())
            assert generated.setdefault(prompt, answer) == answer  # seeded


def test_a_batch_of_texts(port):
    status, answer = post(port, "/score", {"texts": ["ti .", "zu bo ti ."]})
    assert status == 200 and len(answer) == 2
    status, answer = post(port, "/generate", {"prompts": ["ti", "", "zu bo"]})
    assert status == 200 and len(answer) == 3


@pytest.mark.parametrize(
    "path, body, status, reason",
    [
        ("/score", {"texts": []}, 422, "at least 1 item"),
        ("/score", {"texts": ["a"] * 65}, 422, "at most 64 items"),
        ("/score", {"texts": "a"}, 422, "valid list"),
        ("/score", {"texts": ["bo " * 400]}, 422, "tokens; the most is 32"),
        ("/score", {"texts": ["a", "a\u2581b"]}, 422, "text 2 has U+2581, a space to"),
        ("/score", b"{", 422, "JSON"),
        ("/score", {"text": ["a"]}, 422, "Field required"),
        ("/score", rb'{"texts": ["\ud800"]}', 422, "surrogates not allowed"),
        ("/score", b'{"texts": NaN}', 422, "valid list"),
        ("/generate", b'{"prompts": ["a"], "temperature": NaN}', 422, "or equal to 10"),
        ("/generate", {"prompts": ["a"], "length": 0}, 422, "greater than or equal"),
        ("/generate", {"prompts": ["a"], "temperature": -1}, 422, "greater than or"),
        ("/generate", {"prompts": ["a"], "seed": 2**31}, 422, "less than"),
        ("/generate", b" " * 1_000_001, 413, "the most is 1000000"),
        ("/none", {}, 404, "Not Found"),
    ],
)
def test_bad_input_is_a_clear_4xx(port, path, body, status, reason):
    found, answer = post(port, path, body)
    assert found == status
    assert reason in json.dumps(answer)


def test_a_huge_body_is_refused_before_it_is_sent(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/score")
        connection.putheader("Content-Length", str(10**12))
        connection.endheaders()
        assert connection.getresponse().status == 413


def test_a_body_of_unknown_length_is_refused(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/score", iter([b"{}"]), encode_chunked=True)
        assert connection.getresponse().status == 411
