"""Load the plugins that the environment selects, call their providers, report as JSON.

Run by `cnnzoo doctor` in a process of its own: `python -m cnn_core.cli.probe`. One line of stdout
is `REPORT` and {"faults": [...], "conflicts": [...]}; others are what plugins print.
"""

from __future__ import annotations

import json
import logging
import traceback

from cnn_core import registry
from cnn_core.plugins import ENDINGS, plugins
from cnn_core.plugins.discovery import Fault
from cnn_core.registry.names import contested_defaults

REPORT = "cnn_core.cli.probe: "


def main() -> None:
    """Print the report."""
    logging.disable()
    catalogues = registry.catalogues()
    for _, entry in registry.checks():
        try:
            advice = entry.spec.check()
        except ENDINGS:
            raise
        except BaseException as error:
            entry.plugin.add_fault(f"check {entry.spec.name}", error)
        else:
            if advice:
                entry.plugin.add_fault(f"check {entry.spec.name}", advice)
    faults = [_as_dict(fault) for plugin in plugins().all for fault in plugin.faults]
    conflicts = [*plugins().conflicts]
    conflicts += [line for catalogue in catalogues for line in catalogue.conflicts]
    conflicts += contested_defaults()
    print("\n" + REPORT + json.dumps({"faults": faults, "conflicts": conflicts}))


def _as_dict(fault: Fault) -> dict[str, object]:
    text = "".join(traceback.format_exception(fault.exception)) if fault.exception else ""
    return {
        "reason": f"{fault.where}: {fault.cause}",
        "traceback": text,
        "fatal": fault.fatal,
    }


if __name__ == "__main__":
    main()
