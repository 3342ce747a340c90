"""`python tests/serve_policy.py DIR [QUESTION]`: serves an exported policy with `transformers serve` on the loopback address and asks it.

Needs `pip install 'transformers[serving]'`, best in an environment of its own. Prints the answer as the server gave it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HOST, PATIENCE = "127.0.0.1", 180.0


def free_port() -> int:
    """A port that nobody listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def post(url: str, body: dict) -> dict:
    """The JSON that comes back."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]).resolve()
    question = arguments[1] if len(arguments) > 1 else "Name a colour."
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--host", HOST]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], env=environment)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                if server.poll() is not None or time.monotonic() > deadline:
                    print("the server did not come up", file=sys.stderr)
                    return 1
                time.sleep(1)
        body = {
            "model": str(folder),
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 16,
            "temperature": 0,
        }
        print(json.dumps(post(f"http://{HOST}:{port}/v1/chat/completions", body), ensure_ascii=False, indent=1))
    finally:
        server.terminate()
        server.wait(timeout=30)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
