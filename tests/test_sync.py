"What is generated, or said twice, agrees with its source"
import json, re, subprocess, sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
import nbformat, pytest, sadlr
from PIL import Image

repo = Path(__file__).parent.parent
config = ConfigParser(delimiters=['='])
config.read(repo/'settings.ini')
settings = config['DEFAULT']

def test_readme_is_the_index():
    readme = subprocess.check_output([repo/'.ci'/'readme'], text=True)
    assert (repo/'README.md').read_text(encoding='utf-8') == readme, 'run .ci/readme > README.md'

def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\(([^)#:]+)\)|src="([^":]+)"', (repo/'README.md').read_text(encoding='utf-8'))
    assert [link for pair in links for link in pair if link and not (repo/link).exists()] == []

def test_readme_is_short():
    "What is a word holds a letter or a digit; the folded map counts too"
    text = (repo/'README.md').read_text(encoding='utf-8')
    assert 700 <= sum(bool(re.search(r'\w', word)) for word in text.split()) <= 900

def test_animation_is_small():
    path = repo/'nbs'/'images'/'answer.gif'
    with Image.open(path) as gif: assert gif.n_frames == 3 and path.stat().st_size < 100_000

# ---- the front door: the tables of the index and the course

def cells(stem): return nbformat.read(repo/'nbs'/f'{stem}.ipynb', as_version=4).cells

def prose(stem): return '\n'.join(c.source for c in cells(stem) if c.cell_type == 'markdown')

def test_map_is_complete():
    listed = re.findall(r'^\| \[(\S+)\]', prose('index'), re.M)
    there = sorted(path.stem for path in (repo/'nbs').glob('[0-9]*.ipynb'))
    todo = [f'add the row "| [{name}]({name}.ipynb) | ABOUT | MINUTES |"' for name in there if name not in listed]
    todo += [f'take out the row of {name}' for name in listed if name not in there]
    assert listed == there, (f'in the table "Map" of nbs/index.ipynb {", ".join(todo) or "sort the rows by number"}; '
                             'then run .ci/refresh nbs/index.ipynb')

@pytest.mark.parametrize('page', ['index', '00_course'])
def test_minutes_of_reading(page):
    "Each number is what the course's own function counts, within a quarter or five minutes"
    counting = dict(json=json, re=re)
    exec(next(c.source for c in cells('00_course') if c.source.startswith('def reading_minutes')), counting)
    rows = re.findall(r'\[(\d\d_\S+)\]\([^)]*\)(?:, as far as "(.*?)")? \|.*\| (\d+) \|$', prose(page), re.M)
    counted = [counting['reading_minutes'](repo/'nbs'/f'{stem}.ipynb', before) for stem, before, _ in rows]
    wrong = {stem: f'{said} minutes, counted {5*round(minutes/5)}' for (stem, _, said), minutes in zip(rows, counted)
             if abs(int(said) - minutes) > max(5, minutes/4)}
    assert rows and wrong == {}

def test_sections_named_in_the_course():
    named = re.findall(r'\]\((\S+)\.ipynb\), "(.*?)"', prose('00_course'))
    assert named and [(stem, title) for stem, title in named
                      if not re.search(rf'^##+ {re.escape(title)}$', prose(stem), re.M)] == []

def test_every_module_has_its_notebook():
    sources = {p: re.search(r'File to edit: (\S+\.ipynb)', p.read_text(encoding='utf-8'))
               for p in (repo/'sadlr').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py')}
    assert [p for p, found in sources.items() if not (found and (p.parent/found[1]).resolve().exists())] == []

def test_version():
    assert sadlr.__version__ == settings['version']

@pytest.mark.parametrize('command', settings['console_scripts'].split())
def test_command_exists(command):
    module, function = command.split('=')[1].split(':')
    assert callable(getattr(import_module(module), function))

def test_front_door():
    "Every name is that of its room, whatever was imported before; until one is asked for, nothing heavy is imported"
    for name in sadlr.__all__:
        assert getattr(sadlr, name) is getattr(import_module(f'sadlr.{sadlr._ROOMS[name]}'), name)
        assert name in dir(sadlr) and name not in {path.stem for path in (repo/'sadlr').glob('*.py')}
    with pytest.raises(AttributeError, match="'sadlr' has no attribute 'nothing'"): sadlr.nothing
    light = "import sadlr, sys; assert sys.modules.keys().isdisjoint(['torch', 'fastai', 'timm', 'transformers', 'numpy'])"
    subprocess.run([sys.executable, '-c', light], check=True)

def test_few_names():
    "What only its notebook or the house uses is not public: `#| exporti`"
    lists = [re.search(r'^__all__ = (\[.*?\])', path.read_text(encoding='utf-8'), re.M | re.S)
             for path in (repo/'sadlr').rglob('*.py') if path.name not in ('__init__.py', '_modidx.py')]
    assert sum(len(re.findall(r"'\w+'", found[1])) for found in lists) <= 150

def test_results_in_words_are_those_of_the_runs():
    "README and course quote the means of the central tables, with how many seeds they have"
    from sadlr.experiments import read_results, same_seeds, summarise_table, tables
    numbers = 'zero one two three four five six seven eight'.split()
    def means(file, table, labels):
        systems = tables()[table]
        results = same_seeds(read_results(repo/'nbs'/'experiments'/file), systems)
        rows = summarise_table(results, systems).loc[labels]
        return *(f'{mean:.1f}' for mean in rows['oIoU']), numbers[rows.seeds.iloc[0]]
    classifier, one, three, seeds = means('longer.csv', 'longer', ['LAVT', 'SADLR, one iteration', 'SADLR'])
    readme, course = ((repo/name).read_text(encoding='utf-8') for name in ('README.md', 'nbs/00_course.ipynb'))
    assert f'has {classifier} oIoU, with one iteration {one}, with three {three}' in readme and f'With {seeds} seeds each' in readme
    assert f'{classifier} oIoU with a classifier, {one} with one iteration, {three} with three; {seeds} seeds' in course
    classifier, one, three, seeds = means('relations.csv', 'iterations', ['0', '1', '3'])
    assert f'After ten: {classifier}, {one} and {three} ({seeds} seeds)' in course
    cgan, sadlr, _ = means('longer.csv', 'longer', ['CGAN', 'SADLR'])
    assert f'after thirty epochs LAVT has {cgan} oIoU with CGAN, {sadlr} with SADLR' in readme
