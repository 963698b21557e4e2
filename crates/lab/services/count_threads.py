"""Counts by name, in memory: `POST /count/NAME` answers with the number. A thread for each connection."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

counts = {}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        with lock:
            counts[self.path] = counts.get(self.path, 0) + 1
            body = b"%d\n" % counts[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
