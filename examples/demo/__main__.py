"""python -m examples.demo [--state FOLDER] [--port-base N]: what `make demo` runs. State stays in `.demo`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from examples.demo import models, requests
from examples.demo.say import heading, line
from tessera.sdk import Client


def _tessera(*words: str) -> None:
    """Runs the CLI as a user would; its words go to the terminal."""
    line(f"$ tessera {' '.join(words)}")
    subprocess.run([sys.executable, "-m", "tessera.cli", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".demo/platform"))
    parser.add_argument("--port-base", type=int, default=18000)
    given = parser.parse_args()
    state = given.state.resolve()
    begun = time.monotonic()

    heading("1. Train the digits models (kept in .demo)")
    accuracies = models.train_digits(state.parent / "digits")

    heading("2. Bring the platform up")
    _tessera("up", "--detach", "--state", str(state), "--port-base", str(given.port_base))
    try:
        with Client(state=state) as client:
            heading("3. Register the models")
            models.register_all(client, state.parent / "digits", accuracies)
            heading("4. Profile a quick subset")
            models.profile_some(client)
            heading("5. Ask")
            requests.first_and_second(client)
            requests.sentences(client)
            requests.digits(client, accuracies)
            requests.triton(client)
            heading("6. Why?")
            _tessera("explain", requests.first_request_of("digits-medium"), "--state", str(state))
            _tessera("trace", "show", requests.first_request_of("digits-medium"), "--state", str(state))
            _tessera("ps", "--state", str(state))
    finally:
        heading("7. Take everything down")
        _tessera("down", "--state", str(state))
    line(f"the demo took {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
