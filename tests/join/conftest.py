import unittest

import pytest

from refindex.join import kept, windows


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every join is done twice: all references at once, as for few, and a few at a time, as for a hundred million."""
    if metafunc.cls is None or not issubclass(metafunc.cls, unittest.TestCase):
        metafunc.fixturenames.append("rows_in_one_go")
        metafunc.parametrize("rows_in_one_go", [windows.ROWS, 5], ids=["whole", "in windows"], indirect=True)


@pytest.fixture
def rows_in_one_go(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "ROWS", request.param)
    monkeypatch.setattr(kept, "ROWS", request.param if request.param == 5 else kept.ROWS)
