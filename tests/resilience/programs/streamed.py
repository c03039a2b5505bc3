"""
A server of three protocols: `streamed.py GRPC_PORT TCP_PORT WEBSOCKET_PORT ...`, with any number of such threes of ports. Each gives
back what it is sent.

gRPC: `/echo.Echo/Whole` (one message), `/echo.Echo/Each` (any number, each at once). TCP: bytes. WebSocket: messages.
"""

from __future__ import annotations

import signal
import socketserver
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from websocket import accept, receive, send


class Echo(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/echo.Echo/Whole":
            return grpc.unary_unary_rpc_method_handler(lambda message, _: message)
        return grpc.stream_stream_rpc_method_handler(lambda messages, _: messages)


class Bytes(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Messages(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        accept(self.rfile, self.wfile)
        while (message := receive(self.rfile)) is not None:
            send(self.wfile, message)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 1024

    def handle_error(self, *_: object) -> None: ...


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ports = [int(port) for port in sys.argv[1:]]
server = grpc.server(ThreadPoolExecutor(16), handlers=[Echo()])
for grpc_port, tcp_port, websocket_port in zip(*[iter(ports)] * 3, strict=True):
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    for port, handler in ((tcp_port, Bytes), (websocket_port, Messages)):
        threading.Thread(target=Server(("127.0.0.1", port), handler).serve_forever, daemon=True).start()
server.start()
server.wait_for_termination()
