"""Write docs/bad_input.md from the tables of bad input in the tests: ``python tests/helpers/bad_input_page.py``.

Each case is run, and the page shows its error as a user reads it.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from celldial import VAE  # noqa: E402
from estimator import test_validation, test_validation_modalities  # noqa: E402
from helpers.raises import message_of  # noqa: E402
from helpers.simulate import simulate, simulate_modalities  # noqa: E402

PAGE = ROOT / "docs" / "bad_input.md"
HEADER = """# Messages about bad input

This page lists inputs that `fit` does not accept, with the error of each. It is written by
`tests/helpers/bad_input_page.py` from the table that the tests run. The simulated cells are called `c0`, `c1`, ..., the
genes `g0`, `g1`, ..., peaks `p0` and proteins `a0`. None of these errors changes the AnnData or the model.
[Input errors](input_errors.md) describes the rules.
"""


def message_of_case(adata: Any, spoil: Any, parameters: dict[str, Any], options: dict[str, Any]) -> str:
    """Return the type and the text of the error of a case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spoil is not None:
            changed = spoil(adata)
            adata = adata if changed is None else changed
        try:
            VAE(**{"n_latent": 2, "n_hidden": 8, **parameters}).fit(
                adata, **{"max_epochs": 1, "progress": False, **options}
            )
        except Exception as error:
            return f"`{type(error).__name__}`: {message_of(error)}"
    raise AssertionError("this input is accepted")


def table(rows: list[tuple[str, str]]) -> str:
    """Return a table of cases and messages."""
    lines = [f"| {name} | {text.replace('|', '¦')} |" for name, text in rows]
    return "\n".join(["| input | error |", "|---|---|", *lines])


def page() -> str:
    """Return the text of the page."""
    one = [
        (name, message_of_case(simulate(), spoil, parameters, options))
        for name, (spoil, parameters, options, _, _) in test_validation.BAD_INPUT.items()
    ]
    several = [
        (name, message_of_case(simulate_modalities(), spoil, parameters, {}))
        for name, (spoil, parameters, _, _) in test_validation_modalities.BAD_INPUT.items()
    ]
    return f"{HEADER}\n## Cells and parameters\n\n{table(one)}\n\n## Several modalities\n\n{table(several)}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
