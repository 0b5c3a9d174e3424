"""Run the tutorials and store their outputs: ``make tutorials``.

``python tutorials/execute.py [NOTEBOOK ...]`` runs each notebook from top to bottom in a fresh kernel and writes the
outputs into the file. The default is all notebooks. A tutorial runs in an empty folder and without a network. The
progress bars of training are dropped; any other text on stderr is an error.
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
# Nothing listens at this address. A download fails here as it does on a machine without a network.
UNREACHABLE_PROXY = "http://127.0.0.1:9"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tutorials() -> list[Path]:
    """Return the paths of the notebooks, in reading order."""
    return sorted(HERE.glob("[0-9]*.ipynb"))


def execute(path: Path, cwd: Path) -> Any:
    """Run a notebook in the folder `cwd` and return it with its outputs. The file does not change.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raises an error.
    RuntimeError
        A cell writes something other than a progress bar to stderr, such as a warning.
    """
    notebook = nbformat.read(path, as_version=4)
    proxies = {"http_proxy": UNREACHABLE_PROXY, "https_proxy": UNREACHABLE_PROXY, "no_proxy": "127.0.0.1,localhost"}
    environment = {**os.environ, **proxies}
    environment.pop("MPLBACKEND", None)  # the kernel must draw into the notebook
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=TIMEOUT_S,
        record_timing=False,
        # A kernel sends its streams in pieces, cut by a timer: the number of pieces differs from run to run.
        coalesce_streams=True,
        resources={"metadata": {"path": str(cwd)}},
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    raise RuntimeError(f"{path.name} wrote to stderr in the cell\n{cell.source}\n\n{output.text}")
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def is_progress(output: Any) -> bool:
    """Return whether an output consists of progress bars alone."""
    if output.get("name") != "stderr":
        return False
    lines = [line for line in re.split(r"[\r\n]+", output.text) if line.strip()]
    return all("epoch" in line and "|" in line for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the given notebooks and write their outputs into the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=tutorials(), metavar="NOTEBOOK")
    for path in parser.parse_args(arguments).notebooks:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        # The file is written after the whole notebook has run: a failed run leaves it unchanged.
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e3:,.0f} kB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
