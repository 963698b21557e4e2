"""Counts by name, in memory: `POST /count/NAME` answers with the number. One thread, an event loop."""

import asyncio
import sys

counts = {}


async def converse(reader, writer):
    while request := await reader.readline():
        while (await reader.readline()).strip():
            pass
        name = request.split()[1]
        counts[name] = counts.get(name, 0) + 1
        body = b"%d\n" % counts[name]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
    writer.close()


async def tick():
    while True:
        await asyncio.sleep(0.05)
        counts["ticks"] = counts.get("ticks", 0) + 1


async def main():
    server = await asyncio.start_server(converse, "0.0.0.0", int(sys.argv[1]))
    ticking = asyncio.create_task(tick())
    async with server:
        await server.serve_forever()
    await ticking


asyncio.run(main())
