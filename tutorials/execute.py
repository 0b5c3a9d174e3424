"""Run tutorials from top to bottom, each in a fresh kernel, and keep what they show: ``make tutorials``.

``python tutorials/execute.py [NOTEBOOK ...]`` writes the outputs into the notebooks, all of them by default. A tutorial
works in an empty folder, without a network, and says nothing on stderr but the progress of training, which is left
out of what is kept.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 600
# An address at which nobody answers: what wants to download something fails, here as on a machine without a network.
NOWHERE = "http://127.0.0.1:9"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tutorials() -> list[Path]:
    """List the notebooks, in their order."""
    return sorted(HERE.glob("[0-9]*.ipynb"))


def execute(path: Path, cwd: Path) -> Any:
    """Run a notebook in `cwd`, and return it with its outputs; the file stays as it is.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raises an error.
    RuntimeError
        A cell says something on stderr: a warning that a reader would stumble over.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": "127.0.0.1,localhost"}
    environment.pop("MPLBACKEND", None)  # a kernel draws into the notebook
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=TIMEOUT_S,
        record_timing=False,
        resources={"metadata": {"path": str(cwd)}},
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    raise RuntimeError(f"{path.name} says on stderr, at\n{cell.source}\n\n{output.text}")
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def is_progress(output: Any) -> bool:
    """Whether an output is a progress bar, all of it."""
    if output.get("name") != "stderr":
        return False
    lines = [line for line in re.split(r"[\r\n]+", output.text) if line.strip()]
    return all("epoch" in line and "|" in line for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the notebooks that are named, and write what they show into them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=tutorials(), metavar="NOTEBOOK")
    for path in parser.parse_args(arguments).notebooks:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        # Whole or not at all: a notebook that failed stays as it was.
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e3:,.0f} kB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
