"The commands as a shell sees them: options, files, exit status, and one line for each mistake"
import csv, json, pickle, shutil, sys, warnings
from pathlib import Path
import pytest
from forked import command, forked
from PIL import Image
from safetensors.torch import load_file, save_file
from sadlr import cli
from sadlr.models.build import ENCODERS, HEADS, LANGUAGES

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Where one small training has been run, with both spellings of the options"
    folder = tmp_path_factory.mktemp('cli')
    words = '--n_images', '40', '--epochs=1', '--img-size', '32', '--split-by=attributes'
    done = forked(command, 'sadlr_train', *words, cwd=folder, out=folder/'out', err=folder/'err')
    done.join()
    errors = (folder/'err').read_text()
    assert done.exitcode == 0 and 'Traceback' not in errors, errors
    assert (folder/'out').read_text().splitlines()[-1].startswith('written to runs/shapes')
    return folder

@pytest.fixture
def shell(folder, monkeypatch, capsys):
    "Run a command in this process, as its console script would; its output"
    monkeypatch.chdir(folder)
    def run(*words):
        monkeypatch.setattr(sys, 'argv', [f'/usr/bin/{words[0]}', *map(str, words[1:])])
        getattr(cli, words[0])()
        return capsys.readouterr().out
    return run

def photo(folder): return min((folder/'data'/'shapes'/'images').iterdir())

def test_files_of_a_run(folder):
    run = folder/'runs'/'shapes'
    assert {p.name for p in run.iterdir()} == {'model', 'settings.json', 'history.csv', 'iterations.png'}
    assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= {p.name for p in (run/'model').iterdir()}
    assert json.loads((run/'model'/'config.json').read_text())['img_size'] == 32
    columns, *rows = csv.reader((run/'history.csv').read_text().splitlines())
    assert [row[0] for row in rows] == ['0'] and len(rows[0]) == len(columns)
    assert {f'{score}_{i}' for score in ('mIoU', 'oIoU') for i in (1, 2, 3)} < set(columns)
    assert min(Image.open(run/'iterations.png').size) > 200

@pytest.mark.parametrize('option', ['--n_images', '--n-images'])
def test_shapes(shell, tmp_path, option):
    assert shell('sadlr_shapes', '--root', tmp_path, option, 20).startswith("train {'images': 16")

@pytest.mark.parametrize('words', [('--language', 'gru'), ('--head', 'classifier'), ('--workers', '2')])
def test_other_models_train(shell, tmp_path, words):
    line = '--n_images', 40, '--img_size', 32, '--epochs', 1, *words
    assert 'written to' in shell('sadlr_train', '--out', tmp_path/'run', *line)

def test_evaluate(shell):
    own = shell('sadlr_evaluate', '--split', 'test')
    exchanged = shell('sadlr_evaluate', '--split_by', 'attributes', '--shuffle')
    assert 'exchanged' in exchanged and 'exchanged' not in own
    assert [line.split()[0] for line in own.splitlines()] == ['shapes', 'iteration', '1', '2', '3']

def test_predict(shell, folder):
    assert shell('sadlr_predict', photo(folder), 'the small star', '--out', 'star.png').startswith('star.png: ')
    assert Image.open(folder/'star.png').size == Image.open(photo(folder)).size

def test_help_names_every_option(shell, capsys):
    with pytest.raises(SystemExit) as end: shell('sadlr_train', '--help')
    told = capsys.readouterr().out.replace('-', '_')
    assert end.value.code == 0 and all(f'__{name} ' in told for name in ('n_images', 'img_size', 'split_by', 'epochs'))

def test_help_names_every_part_of_a_model(shell, capsys):
    with pytest.raises(SystemExit): shell('sadlr_train', '--help')
    told = capsys.readouterr().out
    assert [name for name in (*ENCODERS, *HEADS, *LANGUAGES) if f"'{name}'" not in told] == []

def test_called_from_python_it_reads_no_command_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', ['pytest', '--unknown'])
    cli.sadlr_evaluate()
    cli.sadlr_shapes(n_images=40)
    with pytest.raises(ValueError, match='nano'): cli.sadlr_train(out='other', n_images=40, size='pico')

def test_unknown_option(shell, capsys):
    with pytest.raises(SystemExit) as end: shell('sadlr_train', '--n_imagoes', 40)
    assert end.value.code == 2 and 'unrecognized arguments: --n_imagoes 40' in capsys.readouterr().err

MISTAKES = [
    ('sadlr_train --out new --n_images 40 --split_by colours', "'attributes', 'relations'"),
    ('sadlr_train --out new --n_images 40 --size pico', "'nano', 'tiny', 'small', 'base', 'large'"),
    ('sadlr_train --out new --n_images 40 --encoder cris', "'lavt'"),
    ('sadlr_train --out new --n_images 40 --language t5', "'bert', 'gru'"),
    ('sadlr_train --out new --n_images 50', '40'),
    ('sadlr_train --n_images 40', 'runs/shapes holds a trained model'),
    ('sadlr_train --out new --dataset refcoco --split_by unc', 'refs(unc).p'),
    ('sadlr_train --out new --dataset refcoco --split_by mine', "'unc', 'google'"),
    ('sadlr_evaluate --root nowhere', 'nowhere'),
    ('sadlr_evaluate --split testA', "'train', 'val', 'test'"),
    ('sadlr_evaluate --split_by colours', "'attributes'"),
    ('sadlr_evaluate --model ./nothing', 'nothing'),
    ('sadlr_predict missing.png star', 'missing.png'),
    ('sadlr_predict data/shapes/instances.json star', 'instances.json'),
    ('sadlr_profile --heads cascade', "unknown head 'cascade'"),
    ('sadlr_profile --size huge', "unknown size 'huge'"),
]

@pytest.mark.parametrize('line, told', MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake(shell, line, told): assert told in mistake(shell, *line.split())

def mistake(shell, *words):
    "The one line that a mistake is answered with"
    with pytest.raises(SystemExit) as end: shell(*words)
    said = end.value.code # a string: Python writes it to standard error and exits with 1
    assert isinstance(said, str) and said.startswith(f'{words[0]}: ') and len(said.splitlines()) == 1
    return said

def test_empty_phrase(shell, folder): assert 'empty' in mistake(shell, 'sadlr_predict', photo(folder), ' ')

def test_a_warning_is_one_line(monkeypatch, capsys):
    "With the name of the command and without a line of its source"
    def sadlr_warned(): print(warnings.formatwarning(UserWarning('some\nwords'), UserWarning, __file__, 3), end='')
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/sadlr_warned'])
    before = warnings.formatwarning
    cli.command(sadlr_warned)()
    assert capsys.readouterr().out == 'sadlr_warned: some words\n' and warnings.formatwarning is before

def test_missing_image_of_a_data_set(shell, folder, tmp_path):
    shutil.copytree(folder/'data', tmp_path/'data')
    shutil.rmtree(tmp_path/'data'/'shapes'/'images')
    assert 'images' in mistake(shell, 'sadlr_evaluate', '--root', tmp_path/'data')

class Foreign:
    "What unpickles to a call of `print`"
    def __reduce__(self): return print, ('you have been had',)

def test_pickle_that_imports(shell, folder, tmp_path, capsys):
    shutil.copytree(folder/'data'/'shapes', tmp_path/'shapes')
    (tmp_path/'shapes'/'refs(attributes).p').write_bytes(pickle.dumps([Foreign()]))
    assert 'builtins.print' in mistake(shell, 'sadlr_evaluate', '--root', tmp_path)
    assert 'you have been had' not in capsys.readouterr().out

def longer(tensors): tensors['head.classifier.bias'] = tensors['head.classifier.bias'].repeat(2)
def fewer(tensors): del tensors['head.classifier.bias']

@pytest.mark.parametrize('change, told', [(longer, '1 of another shape'), (fewer, '1 missing')])
def test_foreign_weights(shell, folder, tmp_path, change, told):
    shutil.copytree(folder/'runs'/'shapes'/'model', tmp_path/'model')
    tensors = load_file(tmp_path/'model'/'model.safetensors')
    change(tensors)
    save_file(tensors, tmp_path/'model'/'model.safetensors')
    said = mistake(shell, 'sadlr_predict', photo(folder), 'star', '--model', tmp_path/'model')
    assert told in said and 'head.classifier.bias' in said

def test_broken_weights(shell, folder, tmp_path):
    shutil.copytree(folder/'runs'/'shapes'/'model', tmp_path/'model')
    (tmp_path/'model'/'model.safetensors').write_bytes(b'not tensors')
    assert 'model.safetensors' in mistake(shell, 'sadlr_predict', photo(folder), 'star', '--model', tmp_path/'model')
