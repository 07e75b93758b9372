"""A page as a person sees it: Chromium opens it, and gives its text and its picture."""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

LOAD_SECONDS = 60
_CLICK = """(() => {
    const found = [...document.querySelectorAll("body *")].filter(one => one.innerText?.trim() === %s).pop();
    found?.click();
    return Boolean(found);
})()"""
"""Clicks the innermost element with a text; whether there is one."""


def see(
    url: str,
    shows: Callable[[str], bool],
    picture: Path,
    *,
    cookies: Mapping[str, str],
    size: tuple[int, int],
    unfold: Sequence[str] = (),
) -> str:
    """Open a page with these cookies, wait until its text is as `shows` wants it, and write its picture (PNG).

    What says one of the texts of `unfold` is clicked as soon as it is there, once each, in their order.
    Returns the text; fails if it is not so in time. Skips where there is no Chromium.
    """
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here; Debian's package of that name has it")
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [
                *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--user-data-dir={profile}", "--remote-debugging-port=0", f"--window-size={size[0]},{size[1]}"),
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return asyncio.run(_see(Path(profile) / "DevToolsActivePort", url, shows, picture, cookies, unfold))
        finally:
            browser.terminate()
            browser.wait()


async def _see(
    port_file: Path,
    url: str,
    shows: Callable[[str], bool],
    picture: Path,
    cookies: Mapping[str, str],
    unfold: Sequence[str],
) -> str:
    end = time.monotonic() + LOAD_SECONDS
    while not (port_file.exists() and port_file.read_text().strip()):
        assert time.monotonic() < end, "chromium does not start"
        await asyncio.sleep(0.1)
    port = port_file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            page = await answer.json()
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as line:
            numbers = itertools.count(1)

            async def ask(method: str, **parameters: Any) -> dict[str, Any]:
                number = next(numbers)
                await line.send_json({"id": number, "method": method, "params": parameters})
                while True:
                    message = await line.receive_json()
                    if message.get("id") == number:
                        assert "error" not in message, message
                        result: dict[str, Any] = message["result"]
                        return result

            for name, value in cookies.items():
                await ask("Network.setCookie", name=name, value=value, url=url)
            await ask("Page.navigate", url=url)
            text, folded = "", list(unfold)
            while folded or not shows(text):
                assert time.monotonic() < end, f"{url} never showed what it should:\n{text}"
                await asyncio.sleep(0.5)
                if folded:
                    clicked = await ask("Runtime.evaluate", expression=_CLICK % json.dumps(folded[0]))
                    folded = folded[1:] if clicked["result"]["value"] else folded
                text = (await ask("Runtime.evaluate", expression="document.body?.innerText ?? ''"))["result"]["value"]
            picture.write_bytes(base64.b64decode((await ask("Page.captureScreenshot"))["data"]))
            return text
