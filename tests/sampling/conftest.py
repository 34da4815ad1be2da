import pytest


@pytest.fixture(scope="module")
def params():
    """Parameters of `small.CONFIG`; the programs compiled for its engines are dropped at the end."""
    import small

    yield small.make_params()
    small.HELD.clear()
