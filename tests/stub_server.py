"""An OpenAI-compatible service in a thread of this process, which answers as it is told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


@dataclass
class Stub:
    """Its address, and what it was asked: (path, headers, body)."""

    base: str
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)

    @property
    def questions(self) -> list[str]:
        return [body["messages"][0]["content"] for _, _, body in self.asked]


@contextmanager
def serving(reply: Callable[[str], str | int | bytes]) -> Iterator[Stub]:
    """`reply` gets the question and gives what is said, a status, or the bytes to send."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.asked.append((self.path, dict(self.headers), body))
            said = reply(stub.questions[-1])
            if isinstance(said, str):
                said = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(said if isinstance(said, int) else 200)
            self.end_headers()
            self.wfile.write(said if isinstance(said, bytes) else b"{}")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
