"""The page of models is the registry's, and every family of the registry is held to transformers."""

import subprocess
import sys
from pathlib import Path

from jaxalign.models.families import FAMILIES
from tests.models.families.table import page
from tests.parity.cases import CASES

ROOT = Path(__file__).parents[3]


def test_the_page_of_models_is_what_the_registry_says():
    command = "python -m tests.models.families.table > docs/models.md"
    assert (ROOT / "docs" / "models.md").read_text() == page(), f"written anew by: {command}"


def test_every_family_has_parity_cases():
    assert set(CASES) == set(FAMILIES)
    for model_type, cases in CASES.items():
        assert cases, model_type
        assert all(callable(build) for build in cases.values())


def test_every_family_says_what_it_covers():
    for family in FAMILIES.values():
        assert family.covers, family.model_type
        assert family.features, family.model_type


def test_the_table_of_cases_is_read_without_torch():
    code = "import sys; sys.modules['torch'] = None; import tests.parity.cases as c; assert c.CASES"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
