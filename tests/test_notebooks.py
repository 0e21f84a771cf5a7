"Each notebook is stored whole (title, outputs, no error, small) and written in one way"
import ast, io, re, tokenize
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

def test_solutions_are_folded(cells):
    solutions = [c for c in code(cells) if re.match(r'(#\|.*\n)*# Exercise', c.source)]
    assert [c.source[:40] for c in solutions if c.metadata.get('jupyter') != dict(source_hidden=True, outputs_hidden=True)] == []

def test_no_score_is_taken_for_an_address(cells):
    "JupyterLab makes a link to a mailbox of a plain P@0.5"
    assert [c.source[:40] for c in cells if c.cell_type == 'markdown' and re.search(r'(?<![`\w])P@0\.\d', c.source)] == []

def test_every_figure_has_a_text_of_its_own(cells):
    def shown(cell): return any(kind.startswith('image/') for out in cell.outputs for kind in out.get('data', {}))
    assert [c.source[:60] for c in code(cells) if shown(c) and not re.search(r'^#\|\s*fig-alt: .', c.source, re.M)] == []

def test_lines_fit(cells):
    assert [line for c in code(cells) for line in c.source.splitlines() if len(line) > 120] == []

def test_no_star_imports_in_the_library(cells):
    exported = '\n'.join(c.source for c in code(cells) if re.search(r'^#\|\s*exporti?\b', c.source, re.M))
    assert re.findall(r'^from .+ import \*', exported, re.M) == []

def exported(cells): return [c.source for c in code(cells) if re.search(r'^#\|\s*exporti?\b', c.source, re.M)]

def length(source):
    "Lines of code, without blank ones and those in which a signature documents its parameters"
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith('#|')]
    functions = [node for node in ast.walk(ast.parse('\n'.join(lines))) if isinstance(node, ast.FunctionDef)]
    return len(lines) - len({n for f in functions for n in range(f.lineno + 1, f.body[0].lineno)})

def test_an_exported_cell_is_one_idea(cells):
    assert [source[:80] for source in exported(cells) if length(source) > 40 and not only_names(source)] == []

def only_names(source):
    "Whether a cell imports, or lists the fields of one class, and does nothing else"
    body = ast.parse(source).body
    imports = all(isinstance(node, (ast.Import, ast.ImportFrom, ast.Try)) for node in body)
    fields = [node for node in getattr(body[0], 'body', []) if isinstance(node, ast.AnnAssign)]
    return imports or len(body) == 1 and isinstance(body[0], ast.ClassDef) and length(source) - len(fields) <= 40

def tight_commas(source):
    "Lines with a comma that no space follows"
    tokens = list(tokenize.generate_tokens(io.StringIO(re.sub(r'^[!%].*$', '', source, flags=re.M)).readline))
    return [a.line for a, b in zip(tokens, tokens[1:])
            if a.string == ',' and a.end == b.start and b.string not in ')]}' and b.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT)]

def test_one_dialect(cells):
    sources = [c.source for c in code(cells)]
    assert [line for source in sources for line in tight_commas(source)] == []
    imports = [node for source in sources for node in ast.walk(ast.parse(re.sub(r'^[!%].*$', '', source, flags=re.M)))
               if isinstance(node, ast.Import)]
    assert [ast.unparse(node) for node in imports if len(node.names) > 1] == []
    documented = '\n'.join(exported(cells))
    assert re.findall(r'^\s+"Raise .*|#.*[^`]\bNone: .*', documented, re.M) == []
