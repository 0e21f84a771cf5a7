"What all tests share"
import gc, sys
from functools import partial
import pytest, torch

def pytest_configure(config):
    "pycocotools with NumPy 2, at every mask: tens of thousands of warnings that pytest would keep and send"
    config.addinivalue_line('filterwarnings', 'ignore:__array__ implementation:DeprecationWarning')

LONG = 'test_systems', 'test_train', 'test_pressure', 'test_resume', 'test_distributed', 'test_progress', 'test_onnx'

def pytest_collection_modifyitems(items):
    "What trains or exports goes first: of the short files that are left each worker takes as many as it has time for"
    items.sort(key=lambda item: item.path.stem not in LONG)

def pytest_collection_finish():
    "A million objects of the imported libraries stay till the end: no collection need look at them again"
    gc.collect()
    gc.freeze()

@pytest.fixture(autouse=True, scope='session')
def backward_before_export():
    """At the first backward pass PyTorch starts its threads, one for each kind of device it knows: none here.

    An export registers more kinds. Where it came first, a process forked later (see forked.py) could not train"""
    torch.ones(1, requires_grad=True).sum().backward()

@pytest.fixture(autouse=True, scope='session')
def one_row():
    "Drawing is more than half of a tiny training: the figure of a run has one row here, not six"
    from sadlr import training # not where nothing is tested, as in the process that only hands out the tests
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'iteration_figure', partial(training.iteration_figure, n=1))
        yield

@pytest.fixture
def shell(monkeypatch, capsys):
    "Run a command as its console script would: exit status or one line, and what it printed"
    from sadlr import cli
    def run(*words):
        monkeypatch.setattr(sys, 'argv', [f'/usr/bin/{words[0]}', *map(str, words[1:])])
        try: said = getattr(cli, words[0])()
        except SystemExit as end: said = end.code
        return said, capsys.readouterr().out
    return run
