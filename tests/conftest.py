"What all tests share"
from functools import partial
import pytest
from sadlr import cli

@pytest.fixture(autouse=True, scope='session')
def one_row():
    "Drawing is more than half of a tiny training: the figure of a run has one row here, not six"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, 'iteration_figure', partial(cli.iteration_figure, n=1))
        yield
