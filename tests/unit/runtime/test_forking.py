"""A zygote's loop, where events come in an order that hurts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tessera.runtime import control
from tessera.runtime.control import ControlDecoder, Message

HASTY = Path(__file__).parent / "hasty_zygote.py"


async def test_a_runtime_that_is_reaped_before_its_pipe_is_read_does_not_end_its_zygote(tmp_path: Path) -> None:
    socket, run_folder = tmp_path / "zygote.sock", tmp_path / "not-a-folder"
    run_folder.touch()  # no runtime comes up there
    zygote = await asyncio.create_subprocess_exec(sys.executable, HASTY, socket, run_folder)
    try:
        async with asyncio.timeout(60):
            while not socket.is_socket():
                assert zygote.returncode is None
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_unix_connection(socket)
            said = messages(reader)
            for number in (1, 2):
                writer.write(control.encode({"id": number, "op": "fork", "runtime_id": f"r-{number}", "trust_domain": "default"}))
                assert (await anext(said))["error"]["message"] == f"runtime r-{number} ended with 1 before it served"
                assert (await anext(said))["event"] == "exit"
            writer.write(control.encode({"id": 3, "op": "shutdown"}))
            assert await anext(said) == {"id": 3, "ok": {}}
            writer.close()
            assert await zygote.wait() == 0
    finally:
        if zygote.returncode is None:
            zygote.kill()
            await zygote.wait()


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    decoder = ControlDecoder()
    while data := await reader.read(1 << 16):
        for message in decoder.feed(data):
            yield message
