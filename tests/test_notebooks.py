"Each notebook is stored whole: title, outputs, no error, small"
import re
from pathlib import Path
import nbformat, pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent/'nbs').rglob('*.ipynb'))

@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request): return request.param

@pytest.fixture
def cells(path): return nbformat.read(path, as_version=4).cells

def code(cells): return [c for c in cells if c.cell_type == 'code']

def test_title(cells):
    assert cells[0].cell_type == 'markdown' and re.fullmatch(r'# .+\n\n> .+', cells[0].source.rstrip())

def test_module_is_named_after_the_notebook(path, cells):
    names = re.findall(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(c.source for c in code(cells)), re.M)
    assert names in ([], [path.stem.split('_', 1)[-1]])

def test_stored_with_outputs(cells):
    outputs = [o for c in code(cells) for o in c.outputs]
    assert outputs, 'run .ci/refresh'
    assert [o.ename for o in outputs if o.output_type == 'error'] == []
    assert [o.text[:80] for o in outputs if o.output_type == 'stream' and ('Warning' in o.text or o.name == 'stderr')] == []

def test_small(path):
    assert path.stat().st_size < 300_000

def test_no_leftovers(cells):
    source = '\n'.join(c.source for c in cells)
    assert re.findall(r'TODO|FIXME|XXX|from sadlr[\w.]* import \*', source) == []
    assert [c.source for c in code(cells) if not c.source.strip()] == []

def test_lines_fit(cells):
    assert [line for c in code(cells) for line in c.source.splitlines() if len(line) > 120] == []

def test_no_star_imports_in_the_library(cells):
    exported = '\n'.join(c.source for c in code(cells) if re.search(r'^#\|\s*exporti?\b', c.source, re.M))
    assert re.findall(r'^from .+ import \*', exported, re.M) == []
