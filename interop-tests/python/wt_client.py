"""A WebTransport client that is not ours: aioquic.

One line of JSON on stdin says what to do, {"url", "ca", "subscribe"}; what comes is printed as events, one a line.
It speaks just enough Protobuf for that. It ends with its stdin.
"""

import asyncio
import base64
import json
import os
import sys
import threading
from urllib.parse import urlparse

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, FrameType, H3Connection
from aioquic.h3.events import DatagramReceived, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated

# Field numbers of tidegate.proto.
CLIENT = {"connect": 2, "subscribe": 3}
SERVER = {3: "subscribed", 8: "publication", 9: "ephemeral", 11: "error", 12: "close"}


def say(**event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def request(number, name, body):
    frame = field(1, number) + field(CLIENT[name], body)
    return varint(len(frame)) + frame


def subscribe(channel, position):
    body = field(1, channel)
    if position:
        body += field(2, field(1, position["epoch"]) + field(2, position["offset"]))
    return body


def read_varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7


def fields(data):
    """All fields, by number, each a list."""
    found, at = {}, 0
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == 0:
            value, at = read_varint(data, at)
        else:
            length, at = read_varint(data, at)
            value, at = data[at : at + length], at + length
        found.setdefault(key >> 3, []).append(value)
    return found


def text(found, number):
    return found.get(number, [b""])[-1].decode()


def payload(found, json_field, bytes_field):
    if json_field in found:
        return {"data": json.loads(found[json_field][-1])}
    return {"data_base64": base64.b64encode(found.get(bytes_field, [b""])[-1]).decode()}


def publication(data):
    found = fields(data)
    say(event="publication", channel=text(found, 1), offset=found.get(2, [0])[-1], **payload(found, 3, 4))


def tell(frame):
    for number, values in fields(frame).items():
        name, found = SERVER.get(number), fields(values[-1]) if number != 1 else {}
        if name == "publication":
            publication(values[-1])
        elif name == "ephemeral":
            say(event="ephemeral", channel=text(found, 1), **payload(found, 2, 3))
        elif name == "subscribed":
            position = fields(found.get(2, [b""])[-1])
            say(
                event="subscribed",
                channel=text(found, 1),
                epoch=text(position, 1),
                offset=position.get(2, [0])[-1],
                recovered=bool(found.get(3, [0])[-1]),
            )
            for each in found.get(4, []):
                publication(each)
        elif name == "error":
            say(event="error", code=found.get(1, [0])[-1], message=text(found, 2))
        elif name == "close":
            say(event="closed", code=found.get(1, [0])[-1], reason=text(found, 2))


class Frames:
    """Delimited messages out of chunks."""

    def __init__(self, skip):
        self.skip, self.data = skip, b""

    def push(self, chunk):
        self.data += chunk
        while True:
            try:
                length, at = read_varint(self.data, 0)
            except IndexError:
                return
            if len(self.data) < at + length:
                return
            message, self.data = self.data[at : at + length], self.data[at + length :]
            if self.skip:
                self.skip -= 1
            else:
                tell(message)


class Protocol(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic, enable_webtransport=True)
        self.streams = {}

    def open(self, url, order):
        self.order, self.session = order, self._quic.get_next_available_stream_id()
        headers = {
            ":method": "CONNECT",
            ":scheme": "https",
            ":authority": url.netloc,
            ":path": url.path,
            ":protocol": "webtransport",
            "sec-webtransport-http3-draft02": "1",
        }
        self.http.send_headers(self.session, [(name.encode(), value.encode()) for name, value in headers.items()])
        self.transmit()

    def begin(self):
        control = self.http.create_webtransport_stream(self.session)
        # aioquic takes what comes back on it for HTTP/3 frames unless told that it is WebTransport's.
        with self.http._get_or_create_stream(control) as stream:
            stream.frame_type, stream.session_id = FrameType.WEBTRANSPORT_STREAM, self.session
        self.streams[control] = Frames(0)
        out = request(1, "connect", b"")
        for index, wish in enumerate(self.order["subscribe"], start=2):
            out += request(index, "subscribe", subscribe(wish["channel"], wish["position"]))
        self._quic.send_stream_data(control, out)
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            say(event="closed", code=event.error_code, reason=event.reason_phrase)
        for each in self.http.handle_event(event):
            if isinstance(each, HeadersReceived) and each.stream_id == self.session:
                status = dict(each.headers)[b":status"].decode()
                if status == "200":
                    self.begin()
                else:
                    say(event="error", message=f"HTTP {status}")
            elif isinstance(each, WebTransportStreamDataReceived):
                # On a stream of the server a header comes first.
                self.streams.setdefault(each.stream_id, Frames(1)).push(each.data)
            elif isinstance(each, DatagramReceived):
                Frames(0).push(each.data)


async def run(order):
    url = urlparse(order["url"])
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, max_datagram_frame_size=65536)
    configuration.load_verify_locations(cafile=order["ca"])
    async with connect(
        url.hostname, url.port, configuration=configuration, create_protocol=Protocol
    ) as protocol:
        protocol.open(url, order)
        await protocol.wait_closed()


def main():
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    asyncio.run(run(order))
    # Its last line must be read before it is gone.
    threading.Event().wait()


main()
