"""A Supabase for one worker, with latency and nothing behind it: it hands out rows, takes files, and says how jobs end.

    python -m benchmarks.fake_supabase [--upload-ms 200] [--request-ms 20]

Its first line of output is its URL, each other one the outcome of a job. It takes rows by POST /jobs, knows no Realtime, and ends
with its standard input. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

LIMITS = {"file_size_limit": None, "allowed_mime_types": None}


def now() -> str:
    return datetime.now(UTC).isoformat()


class Edge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer's body may wait 40 ms for the acknowledgement of its headers
    upload_seconds: float
    request_seconds: float
    waiting: ClassVar[deque[dict[str, Any]]] = deque()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/jobs":
            self.waiting.extend(row | {"created_at": now(), "run_at": now()} for row in json.loads(body))
            return self._answer(None)
        if self.path.startswith("/storage/"):
            time.sleep(self.upload_seconds)
            return self._answer({"Key": self.path, "Id": self.path})
        time.sleep(self.request_seconds)
        match self.path.rpartition("/")[2]:
            case "claim_jobs":
                rows = [self.waiting.popleft() | {"started_at": now()}] if self.waiting else []
                return self._answer({"jobs": rows, "more": False, "next_run_in_ms": None})
            case "heartbeat_jobs":
                return self._answer([{"verdict": "ok"}])
            case "sweep_orphans":
                return self._answer([])
            case "retire_jobs":
                return self._answer(0)
            case "finish_job":
                print(json.loads(body)["p_outcome"], flush=True)
                return self._answer("ok")
            case _:  # report_worker, applied_migrations, and the broadcast of progress
                return self._answer(None)

    def do_GET(self) -> None:
        if self.path.startswith("/rest/"):
            return self._answer([])
        if self.path.startswith("/storage/v1/bucket"):
            since = {"created_at": now(), "updated_at": now()}
            names = ("sdxl_image_fast", "sdxl_image_high", "reference_images")
            return self._answer([{"id": name, "name": name, "owner": "", "public": False, **LIMITS, **since} for name in names])
        return self._answer(None, status=403)

    def _answer(self, content: Any, *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upload-ms", type=float, default=200)
    parser.add_argument("--request-ms", type=float, default=20)
    options = parser.parse_args()
    Edge.upload_seconds, Edge.request_seconds = options.upload_ms / 1000, options.request_ms / 1000
    server = ThreadingHTTPServer(("127.0.0.1", 0), Edge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
