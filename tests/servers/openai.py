"""A server that speaks OpenAI's protocol over real HTTP, and vLLM's own.

The first is for what a real server does seldom: a test writes its answers, and queues the troubles that come before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import urllib3

from rookery.local.ports import free_port

STARTUP_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, as it came."""

    path: str
    key: str
    body: Mapping[str, Any]
    time: float
    """Of the monotonic clock, in seconds."""

    @property
    def prompt(self) -> str:
        text = self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]
        assert isinstance(text, str)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    text: str | None
    finish: str = "stop"
    prompt_tokens: int = 10
    completion_tokens: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A reply in place of an answer."""

    status: int
    body: str = '{"error": {"message": "no"}}'
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class OpenAIServer:
    url: str
    answer: Callable[[Asked], Said]
    """Called in the thread of a request."""
    troubles: deque[Trouble] = field(default_factory=deque)
    """Replies to the next requests, in place of answers."""
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def start_openai(answer: Callable[[Asked], Said]) -> Iterator[OpenAIServer]:
    server = OpenAIServer(url="", answer=answer)
    lock = threading.Lock()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers["Authorization"].removeprefix("Bearer ")
            asked = Asked(path=self.path, key=key, body=body, time=time.monotonic())
            with lock:
                busy += 1
                server.most_at_once = max(server.most_at_once, busy)
                server.asked.append(asked)
                trouble = server.troubles.popleft() if server.troubles else None
            try:
                reply = trouble or Trouble(status=200, body=json.dumps(_reply(asked, server.answer(asked))))
            finally:
                with lock:
                    busy -= 1
            content = reply.body.encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server.url = f"http://127.0.0.1:{listening.server_port}/v1"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


def _reply(asked: Asked, said: Said) -> dict[str, Any]:
    chat = asked.path.endswith("/chat/completions")
    text = {"message": {"role": "assistant", "content": said.text}} if chat else {"text": said.text}
    return {
        "id": "1",
        "object": "chat.completion" if chat else "text_completion",
        "model": f"{asked.body['model']}-2025-04-14",
        "choices": [{"index": 0, "finish_reason": said.finish, **text}],
        "usage": {
            "prompt_tokens": said.prompt_tokens,
            "completion_tokens": said.completion_tokens,
            "total_tokens": said.prompt_tokens + said.completion_tokens,
        },
    }


@contextmanager
def start_vllm(model: str, *, key: str, log: Path) -> Iterator[str]:
    """The URL of vLLM's own server of a model, on CPU. It needs an environment with vLLM."""
    port = free_port()
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--api-key", key, "--enforce-eager", "--dtype", "float32"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", **os.environ}
    with log.open("w") as output, subprocess.Popen(argv, stdout=output, stderr=output, env=environment) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if urllib3.request("GET", url, timeout=2.0, retries=False).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"{url}\n{log.read_text()[-2000:]}")
