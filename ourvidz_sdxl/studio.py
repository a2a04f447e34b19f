"""The built Studio page on loopback, for the demo and the tests. Anywhere else a static host serves `studio/app/dist`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase

DIST = ROOT / "studio" / "app" / "dist"
PORT = 5173  # Vite's own; any other when it is taken

# What the bundled model is at home with (models/tiny-sdxl/README.md), instead of the page's defaults.
BUNDLED_MODEL: dict[str, Any] = {
    "sizes": [(128, 128), (192, 128), (128, 192), (256, 256)],
    "examples": ["a red circle on a blue background", "a green star on a white background", "a yellow cross on a black background"],
}


@contextmanager
def serve_studio(supabase: EmbeddedSupabase, config: Mapping[str, Any] = BUNDLED_MODEL) -> Iterator[str | None]:
    """Yields the page's address, or None when it has not been built (`make demo` builds it)."""
    if not (DIST / "index.html").exists():
        yield None
        return
    told = {"supabaseUrl": supabase.url, "supabasePublishableKey": supabase.publishable_key, **config}
    handler = partial(_Handler, directory=str(DIST), config=json.dumps(told).encode())
    with _listen(handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="studio", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def _listen(handler: Any) -> ThreadingHTTPServer:
    try:
        return ThreadingHTTPServer(("127.0.0.1", PORT), handler)
    except OSError:
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, directory: str, config: bytes) -> None:
        self._config = config
        super().__init__(*arguments, directory=directory)

    def do_GET(self) -> None:
        if Path(self.path).name != "config.json":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self._config)))
        self.end_headers()
        self.wfile.write(self._config)
        return None

    def log_message(self, *_: Any) -> None:
        """Nothing: the demo's own lines would drown."""
