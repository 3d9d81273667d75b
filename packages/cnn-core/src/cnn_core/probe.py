"""Load the plugins that the environment selects, call their providers, report as JSON.

Run by `cnnzoo doctor` in a process of its own: `python -m cnn_core.probe`. The last line of
stdout is {"faults": [...], "conflicts": [...]}.
"""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any

from cnn_core import registry
from cnn_core.plugins import Fault, plugins


def main() -> None:
    """Print the report."""
    logging.disable()
    catalogues: list[registry.Catalogue[Any]] = [
        registry.models(),
        registry.datasets(),
        registry.recipes(),
        registry.metrics(),
        registry.views(),
        registry.weights(),
        registry.commands(),
        registry.checks(),
    ]
    for _, entry in registry.checks():
        try:
            advice = entry.spec.check()
        except (Exception, SystemExit) as error:
            entry.plugin.add_fault(f"check {entry.spec.name}", error)
        else:
            if advice:
                entry.plugin.add_fault(f"check {entry.spec.name}", advice)
    faults = [_as_dict(fault) for plugin in plugins().all for fault in plugin.faults]
    conflicts = [line for catalogue in catalogues for line in catalogue.conflicts]
    print("\n" + json.dumps({"faults": faults, "conflicts": conflicts}))


def _as_dict(fault: Fault) -> dict[str, object]:
    text = "".join(traceback.format_exception(fault.exception)) if fault.exception else ""
    return {
        "reason": f"{fault.where}: {fault.cause}",
        "traceback": text,
        "fatal": fault.fatal,
    }


if __name__ == "__main__":
    main()
