"""Every network of the zoo for torch.hub.load("OWNER/cnnzoo", NAME).

The functions are made from the registry, so new networks and plugins appear by themselves:

    model = torch.hub.load("OWNER/cnnzoo", "resnet50", num_classes=10)
    model = torch.hub.load("OWNER/cnnzoo", "resnet50", weights="default", download=True)

Arguments are those of `cnn_core.create_model`. The packages need not be installed: those of this
folder are then used from here.
"""

import importlib.metadata
import importlib.util
import pathlib
import sys
import tomllib

dependencies = ["torch", "numpy", "packaging", "PIL", "pluggy", "safetensors"]

_PROJECTS = sorted(pathlib.Path(__file__).resolve().parent.glob("packages/*/pyproject.toml"))


class _Uninstalled(importlib.metadata.Distribution):
    """A package of this folder, with the metadata that pip would have written."""

    def __init__(self, project):
        self.project = tomllib.loads(project.read_text("utf-8"))["project"]

    def read_text(self, filename):
        """Return METADATA or entry_points.txt, or None for any other file."""
        if filename == "METADATA":
            required = "".join(f"Requires-Dist: {r}\n" for r in self.project["dependencies"])
            named = f"Name: {self.project['name']}\nVersion: {self.project['version']}\n"
            return f"Metadata-Version: 2.1\n{named}{required}"
        if filename == "entry_points.txt":
            groups = self.project.get("entry-points", {})
            return "".join(
                f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
                for group, points in groups.items()
            )
        return None

    def locate_file(self, path):
        """Return the path of a file of the package."""
        return pathlib.Path(path)


class _Finder:
    """Lets importlib.metadata find the packages of this folder."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Find no modules: sys.path does."""

    @staticmethod
    def find_distributions(context):
        """Yield the packages that have the wanted name, or all of them."""
        for project in _PROJECTS:
            found = _Uninstalled(project)
            if context.name in (None, found.project["name"]):
                yield found


if importlib.util.find_spec("cnn_core") is None:
    sys.path[:0] = [str(project.parent / "src") for project in _PROJECTS]
    sys.meta_path.append(_Finder)


def _entrypoints():
    """Return a function for each registered model."""
    from cnn_core import create_model, get_spec, list_models

    def entrypoint(name):
        def build(**arguments):
            return create_model(name, **arguments)

        spec = get_spec(name)
        build.__name__ = name
        build.__doc__ = f"Build {name}: {spec.summary}. {spec.paper}\n\nArguments as create_model."
        return build

    return {name: entrypoint(name) for name in list_models()}


globals().update(_entrypoints())
