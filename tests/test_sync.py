"What is generated, or said twice, agrees with its source"
import re, subprocess, sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
import pytest, sadlr

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
