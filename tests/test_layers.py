"Imports go one way: a module uses modules of lower number, and only what the package requires"
import ast, re, sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions, requires
from itertools import chain
from pathlib import Path
import nbformat, pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

repo = Path(__file__).parent.parent
LOW = 'sadlr.models', 'sadlr.losses', 'sadlr.metrics', 'sadlr.visualize', 'sadlr.preprocess'
FORBIDDEN_TO_LOW = ('sadlr.data', 'sadlr.callbacks', 'sadlr.learner', 'sadlr.evaluation', 'sadlr.profile', 'sadlr.checkpoint',
                    'sadlr.distributed', 'sadlr.predictions', 'sadlr.experiments', 'sadlr.schematic', 'sadlr.explain', 'sadlr.demo',
                    'sadlr.cli', 'sadlr.training')

def within(name, packages): return any(name == p or name.startswith(p + '.') for p in packages)

ROOMS = {path.stem: [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']
         for path in sorted((repo/'nbs').glob('[0-9]*.ipynb'))} # notebook -> its code cells

def number(stem): return stem.partition('_')[0] # '25b' stands between '25' and '26'

def module_numbers():
    "Dotted module name -> number of its notebook"
    names = {stem: re.search(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(code), re.M) for stem, code in ROOMS.items()}
    return {f'sadlr.{name[1]}': number(stem) for stem, name in names.items() if name}

def imports(path):
    "Dotted names of all that a file imports, relative ones resolved"
    package = ['sadlr', *path.relative_to(repo/'sadlr').parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            module = '.'.join([*base, *filter(None, [node.module])])
            yield from [module] if node.module else (f'{module}.{a.name}' for a in node.names)

NUMBERS = module_numbers()
FILES = {f'sadlr.{name[6:]}': repo/'sadlr'/f"{name[6:].replace('.', '/')}.py" for name in NUMBERS}

@pytest.mark.parametrize('name', NUMBERS)
def test_imports_point_down(name):
    ours = [i for i in imports(FILES[name]) if within(i, ['sadlr'])]
    assert [i for i in ours if NUMBERS.get(i, 'z') >= NUMBERS[name]] == [], f'{name} imports what is not below it'
    if within(name, LOW): assert [i for i in ours if within(i, FORBIDDEN_TO_LOW)] == []

def test_every_room_has_its_own_number():
    numbers = [number(stem) for stem in ROOMS]
    assert [n for n in numbers if numbers.count(n) > 1] == []

@pytest.mark.parametrize('stem', [stem for stem in ROOMS if stem != '00_course']) # which shows the house from outside
def test_a_reader_needs_nothing_from_later_rooms(stem):
    "What a notebook shows, too, comes from rooms below it, or is its own"
    trees = [ast.parse(re.sub(r'^[!%].*$', '', source, flags=re.M)) for source in ROOMS[stem]]
    used = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    used |= {a.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert [name for name in used if NUMBERS.get(name, '') > number(stem)] == []

def installed_with(lines, seen):
    "The distributions that come with those required in `lines`, these included"
    for r in map(Requirement, lines):
        if canonicalize_name(r.name) in seen or not (r.marker is None or r.marker.evaluate({'extra': ''})): continue
        seen.add(canonicalize_name(r.name))
        installed_with(requires(r.name) or [], seen)
    return seen

@pytest.fixture(scope='module')
def runtime():
    "What is there to import when the package is installed with its torch extra"
    config = ConfigParser(delimiters=['='])
    config.read(repo/'settings.ini')
    lines = (config['DEFAULT'][name].split() for name in ('requirements', 'torch_requirements'))
    return installed_with(chain.from_iterable(lines), set())

@pytest.fixture(scope='module')
def sources(): return packages_distributions()

@pytest.mark.parametrize('name', NUMBERS)
def test_imports_are_required(name, runtime, sources):
    top = {i.split('.')[0] for i in imports(FILES[name])} - set(sys.stdlib_module_names) - {'sadlr'}
    assert [t for t in top if runtime.isdisjoint(map(canonicalize_name, sources.get(t, [])))] == []
