"""Load the plugins selected by CNNZOO_PLUGINS, call their hooks, and report faults as JSON.

`cnnzoo doctor` runs `python -m cnn_core.cli.probe` as a subprocess, because a plugin may hang or
end the process. The report is the line of stdout that begins with `REPORT`, followed by
{"faults": [...], "conflicts": [...]}; all other lines were printed by plugins.
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
    """Load all plugins, run their own checks, and print the report."""
    logging.disable()  # faults are in the report already
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
