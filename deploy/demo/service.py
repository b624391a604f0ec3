"""The service that `docker compose up` puts behind the sidecar: it knows nothing of limits, and sees who asks."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(BaseHTTPRequestHandler):
    """Answers everything alike."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Who asks is in the header that the sidecar writes."""
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.dumps({"hint": "Try a dictionary.", "for": self.headers.get("x-ratelimit-user")}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815 - the names that http.server looks for


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Service).serve_forever()
