"""A WebSocket client that is not ours: Python's `websockets`.

One line of JSON on stdin says what to do, {"url", "ca", "subscribe"}; what comes is printed as events, one a line.
It ends with its stdin.
"""

import asyncio
import json
import os
import ssl
import sys
import threading

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


def say(**event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def tell(frame):
    if "subscribed" in frame:
        subscribed = frame["subscribed"]
        say(event="subscribed", channel=subscribed["channel"], recovered=subscribed["recovered"], **subscribed["position"])
        for publication in subscribed["publications"]:
            say(event="publication", **publication)
    for name in ("publication", "ephemeral", "error"):
        if name in frame:
            say(event=name, **frame[name])


async def run(order):
    trust = ssl.create_default_context(cafile=order["ca"])
    async with connect(order["url"], ssl=trust, subprotocols=["tidegate.v1.json"], max_size=None) as socket:
        await socket.send(json.dumps({"id": 1, "connect": {}}))
        requests = [
            {"id": index, "subscribe": {name: value for name, value in wish.items() if value is not None}}
            for index, wish in enumerate(order["subscribe"], start=2)
        ]
        # An array of frames in one message.
        await socket.send(json.dumps(requests))
        try:
            while True:
                frames = json.loads(await socket.recv())
                for frame in frames if isinstance(frames, list) else [frames]:
                    if "ping" in frame:
                        await socket.send('{"pong":{}}')
                    tell(frame)
        except ConnectionClosed as closed:
            code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (0, "")
            say(event="closed", code=code, reason=reason)


def main():
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    asyncio.run(run(order))
    # Its last line must be read before it is gone.
    threading.Event().wait()


main()
