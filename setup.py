"Packaging: every fact comes from settings.ini"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {extra: cfg[f'{extra}_requirements'].split()
          for extra in ('torch', 'onnx', 'export', 'parquet', 'demo', 'lora', 'dev', 'docs')}

class SourceArchive(sdist):
    "With settings.ini, which this file reads wherever it is built"
    def make_release_tree(self, folder, files): super().make_release_tree(folder, [*files, 'settings.ini'])

setup(
    cmdclass={'sdist': SourceArchive},
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else cfg['description'],
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    packages=find_packages(include=['sadlr', 'sadlr.*']),
    package_data={'sadlr': ['assets/*', 'assets/*/*']},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require=extras | {'dev': extras['torch'] + extras['dev']},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{cfg["lib_name"]}={cfg["lib_name"]}._modidx:d']},
    zip_safe=False,
)
