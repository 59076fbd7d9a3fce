"""python -m examples.demo [--state FOLDER] [--port-base N]: what `make demo` runs. State stays in `.demo`.

With --endpoint HOST:PORT --token-file FILE it asks a platform that runs already, as `make compose-demo` does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from examples.demo import models, requests
from examples.demo.say import heading, line
from tessera.sdk import Client


def _tessera(*words: str, token: str = "") -> None:
    """Runs the CLI as a user would; its words go to the terminal."""
    line(f"$ tessera {' '.join(words)}")
    given = {"TESSERA_TOKEN": token} if token else {}
    subprocess.run([sys.executable, "-m", "tessera.cli", *words], check=True, env=os.environ | given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".demo/platform"))
    parser.add_argument("--port-base", type=int, default=18000)
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--token-file", type=Path)
    given = parser.parse_args()
    state = given.state.resolve()
    begun = time.monotonic()

    heading("1. Train the digits models (kept in .demo)")
    digits = state.parent / "digits"
    accuracies = models.train_digits(digits)

    if given.endpoint:
        token = given.token_file.read_text().strip() if given.token_file else ""
        with Client(given.endpoint, token=token or None) as client:
            _ask(client, digits, accuracies, ("--endpoint", given.endpoint), token)
    else:
        heading("2. Bring the platform up")
        _tessera("up", "--detach", "--state", str(state), "--port-base", str(given.port_base))
        try:
            with Client(state=state) as client:
                _ask(client, digits, accuracies, ("--state", str(state)))
        finally:
            heading("8. Take everything down")
            _tessera("down", "--state", str(state))
    line(f"the demo took {time.monotonic() - begun:.0f} s")


def _ask(client: Client, digits: Path, accuracies: dict[str, float], where: tuple[str, str], token: str = "") -> None:
    """Everything between up and down. `where` is how the CLI finds the platform."""
    heading("3. Register the models")
    models.register_all(client, digits, accuracies)
    heading("4. Profile a quick subset")
    models.profile_some(client)
    heading("5. Ask")
    requests.first_and_second(client)
    requests.sentences(client)
    requests.digits(client, accuracies)
    requests.triton(client)
    heading("6. Why?")
    _tessera("explain", requests.first_request_of("digits-medium"), *where, token=token)
    _tessera("trace", "show", requests.first_request_of("digits-medium"), *where, token=token)
    _tessera("ps", *where, token=token)
    heading("7. Say what you need, not which model")
    for request_id in requests.by_need(client, accuracies):
        _tessera("explain", request_id, *where, token=token)


if __name__ == "__main__":
    main()
