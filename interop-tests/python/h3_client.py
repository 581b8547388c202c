"""An HTTP/3 client that is not ours: aioquic.

The first line of JSON on stdin says where, {"host", "port", "ca"}; each further one is a request, {"method", "path",
"headers", "body"}, over the same connection. What comes is printed a line each: {"status", "headers"}, {"data"},
{"ended"}. {"flood": n} sends the beginning of a header section of n bytes until the server stops it. It ends with its
stdin.
"""

import asyncio
import json
import os
import sys
import threading

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StopSendingReceived, StreamReset

FRAME_HEADERS = 1


def say(**event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.flooded = None

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            say(error=f"{event.error_code:#x} {event.reason_phrase}")
        elif isinstance(event, (StopSendingReceived, StreamReset)) and event.stream_id == self.flooded:
            self.flooded = None
            say(stopped=True)
            return
        for received in self.http.handle_event(event):
            if isinstance(received, HeadersReceived):
                headers = {name.decode(): value.decode() for name, value in received.headers}
                say(status=int(headers.pop(":status")), headers=headers)
            elif isinstance(received, DataReceived):
                say(data=received.data.decode())
            if isinstance(received, (HeadersReceived, DataReceived)) and received.stream_ended:
                say(ended=True)

    def request(self, authority, order):
        stream = self._quic.get_next_available_stream_id()
        headers = [(":method", order["method"]), (":scheme", "https"), (":authority", authority), (":path", order["path"])]
        headers += list(order.get("headers", {}).items())
        body = order.get("body", "").encode()
        self.http.send_headers(stream, [(name.encode(), value.encode()) for name, value in headers], end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()

    def flood(self, size):
        self.flooded = self._quic.get_next_available_stream_id()
        head = encode_uint_var(FRAME_HEADERS) + encode_uint_var(size)
        self._quic.send_stream_data(self.flooded, head + bytes(size // 16))
        self.transmit()


async def main():
    where = json.loads(sys.stdin.readline())
    authority = f"{where['host']}:{where['port']}"
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=where["host"])
    configuration.load_verify_locations(where["ca"])
    loop = asyncio.get_running_loop()
    async with connect(where["host"], where["port"], configuration=configuration, create_protocol=Client) as client:

        def take(order):
            client.flood(order["flood"]) if "flood" in order else client.request(authority, order)

        def read():
            for line in sys.stdin:
                loop.call_soon_threadsafe(take, json.loads(line))
            os._exit(0)

        threading.Thread(target=read, daemon=True).start()
        await asyncio.Event().wait()


asyncio.run(main())
