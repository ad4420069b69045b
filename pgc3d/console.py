"""What a run says on the terminal: a progress bar and messages on stderr, the files made on stdout."""

import sys
from typing import Any


def say(message: str) -> None:
    """A line on stderr."""
    if message:
        print(message, file=sys.stderr, flush=True)


class Bar:
    """Draws the events of a run: a bar on stderr, a line on stdout for each file made."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: Any) -> None:
        if event.message:
            say(event.message)
        elif event.file is not None:
            self.close()
            print(event.file)
        elif event.report is not None:
            self._step(event)
        else:
            self.close()
            say(f"{event.stage} ...")

    def _step(self, event: Any) -> None:
        from tqdm import tqdm

        report = event.report
        if self._bar is None:
            self._bar = tqdm(total=report.steps, initial=report.step - 1, desc=event.stage, unit="step")
        self._bar.update(report.step - self._bar.n)
        if report.metrics:
            clipped = [v for name, v in report.metrics.items() if name.endswith("/clipped_fraction")]
            self._bar.set_postfix_str(
                f"clipped {100 * sum(clipped) / len(clipped):.0f} %, memory {event.memory / 1e9:.2f} GB"
            )

    def close(self) -> None:
        """Leave the bar as it is; the next event starts another one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
