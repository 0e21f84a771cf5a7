"Options of every command: one that cannot act is refused, a number has a range, and any line is answered in one line"
import io, json, os, random, re, sys
from contextlib import redirect_stderr, redirect_stdout
from inspect import getsource, signature
import pytest, torch
from sadlr import app, cli, demo, training
from sadlr.data import shapes
from sadlr.models.build import ENCODERS, HEADS, create_model
from sadlr.models.sadlr import SADLRHead
from sadlr.preprocess import word_tokenizer
from sadlr.training import LIMITS, Training, check_idle, check_parts, check_resumed, decided, open_data, start_model

COMMANDS = {name: command for module in (cli, app) for name, command in vars(module).items() if name.startswith('sadlr_')}

class Done(Exception):
    "A command got as far as its work"

def done(*args, **kwargs): raise Done

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Scenes, models with and without SADLR, masks"
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp('options')
    refer = shapes.make_shapes(home/'data', n_images=20)
    tokenizer = word_tokenizer([s.raw for ref in refer.refs('train') for s in ref.sentences])
    for head in 'sadlr', 'cgan':
        create_model(head=head, size='nano', img_size=32, tokenizer=tokenizer).save_pretrained(home/head)
    with redirect_stdout(io.StringIO()):
        cli.sadlr_evaluate(str(home/'sadlr'), home/'data', save=home/'masks.json')
    return home

@pytest.fixture
def shell(home, monkeypatch):
    "What a command writes to standard error and its exit status; the work itself is left out"
    monkeypatch.chdir(home)
    for name in 'run_table', 'get_data', 'evaluate', 'save_predictions', 'cost_table':
        monkeypatch.setattr(cli, name, done)
    monkeypatch.setattr(training, 'refer_learner', done)
    monkeypatch.setattr(shapes, 'write_scenes', done)
    for name in 'make_app', 'write_space': monkeypatch.setattr(app, name, done)
    monkeypatch.setattr(app, 'needed', lambda name, extra: demo)
    def run(command, *words):
        monkeypatch.setattr(sys, 'argv', [f'/usr/bin/{command}', *map(str, words)])
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
            try: COMMANDS[command]()
            except Done: return 0, ''
            except SystemExit as end:
                if isinstance(end.code, str): return 1, end.code
                return end.code or 0, said.getvalue().removesuffix('\n')
        return 0, ''
    return run

def assert_one_line(command, code, said):
    if code: assert said.startswith(f'{command}: ') and len(said.splitlines()) == 1 and len(said) > 24, said

# --- options that cannot act

IDLE = [
    *(f'sadlr_train --n_images 20 --start sadlr --{option}' for option in (
        'tokenizer words', 'size nano', 'size tiny', 'language bert', 'language gru', 'pretrained true',
        'pretrained false', 'encoder lavt', 'encoder_options {"channels":64}', 'head_options {"update":"replace"}')),
    'sadlr_train --n_images 20 --start x.pth --size base', 'sadlr_train --n_images 20 --start x.pth --language bert',
    'sadlr_train --dataset refcoco --n_images 20', 'sadlr_train --dataset refcoco --data_seed 0',
    'sadlr_train --dataset shapes,refcoco --n_images 2000', 'sadlr_train --head classifier --iterations 3',
    'sadlr_train --head cgan --iterations 3', 'sadlr_train --start cgan --head cgan --iterations 2',
    'sadlr_train --language gru --bert_layers 1', 'sadlr_train --language gru --bert_dropout 0',
    'sadlr_train --n_images 20 --head classifier --auxiliary 1', 'sadlr_train --n_images 20 --head cgan --existence 1',
    'sadlr_train --start cgan --head cgan --n_images 20 --existence .5',
    *(f'sadlr_train --n_images 20 --freeze language --{option}' for option in (
        'language_lr 0.1', 'bert_layers 1', 'bert_dropout 0')),
    'sadlr_train --n_images 20 --lora 4 --bert_layers 1', 'sadlr_train --n_images 20 --freeze language,backbone --lora 4',
    'sadlr_train --n_images 20 --freeze language,encoder --lora 4', 'sadlr_train --n_images 20 --language gru --lora 4',
    'sadlr_train --n_images 20 --freeze head,language,encoder', 'sadlr_train --n_images 20 --freeze neck',
    'sadlr_train --n_images 20 --freeze language,', 'sadlr_train --n_images 20 --freeze=',
    'sadlr_train --n_images 20 --freeze head --existence .1', 'sadlr_train --n_images 20 --start sadlr --freeze head --existence .1',
    *(f'sadlr_evaluate --root data --predictions masks.json --{option}' for option in (
        'model sadlr', 'bs 64', 'workers 0', 'sentence raw', 'shuffle', 'save new')),
    'sadlr_profile --passes 0 --device cpu', 'sadlr_train --pdb', 'sadlr_predict a b --xtra c']

@pytest.mark.parametrize('line', IDLE)
def test_option_that_cannot_act(shell, line):
    command, *words = line.split()
    code, said = shell(command, *words)
    option = [word for word in words if word.startswith('--')][-1].removeprefix('--')
    assert code and (re.split('[ =]', option)[0] in said or 'no maps to supervise' in said), said
    assert_one_line(command, code, said)

def test_blocks_that_do_not_exist(shell):
    "Nothing can be computed again in a model without such blocks"
    words = '--n_images 20 --size nano --language gru --head classifier --encoder timm --checkpoint'.split()
    code, said = shell('sadlr_train', *words, '--encoder_options', '{"backbone": "resnet18"}')
    assert code == 1 and 'checkpoint: leave it out' in said

def test_additions_without_their_library(shell, monkeypatch):
    "Told before anything is read"
    monkeypatch.setitem(sys.modules, 'peft', None)
    monkeypatch.setattr(training, 'open_data', None)
    assert shell('sadlr_train', '--lora', 4) == (1, 'sadlr_train: peft is not installed: pip install "sadlr[lora]"')

ACTING = [
    'sadlr_train --n_images 20 --start sadlr --iterations 2 --img_size 64',
    'sadlr_train --n_images 20 --start cgan --head cgan --auxiliary 1', 'sadlr_train --n_images 20 --existence .5',
    'sadlr_train --n_images 20 --start sadlr --existence 1 --img_size 64',
    'sadlr_train --n_images 20 --data_seed 0 --encoder lavt --iterations 2 --language bert --size nano --bert_layers 1',
    'sadlr_train --n_images 20 --freeze language,head', 'sadlr_train --n_images 20 --freeze backbone --lora 2 --language_lr 1',
    'sadlr_train --n_images 20 --lora 0 --bert_layers 1', 'sadlr_train --n_images 20 --lora 4 --checkpoint',
    'sadlr_train --n_images 20 --checkpoint --accumulate 2 --save_every 3 --wd 0 --language_lr 0 --bs 8',
    'sadlr_evaluate --root data --model sadlr --bs 8 --workers 0 --sentence sent',
    'sadlr_profile --size nano --passes 1 --device cpu']

@pytest.mark.parametrize('line', ACTING)
def test_option_that_acts(shell, line):
    command, *words = line.split()
    assert shell(command, *words) == (0, '')

def test_settings_hold_what_acts(home):
    "None stands where nothing was used, and a given option always stays"
    s = Training(dataset='refcoco')
    assert (s.n_images, s.data_seed, s.iterations, s.tokenizer) == (None, None, 3, 'bert-base-uncased')
    s = Training(start='somewhere', head='cgan')
    own = 'encoder', 'size', 'language', 'pretrained', 'tokenizer', 'iterations'
    assert {getattr(s, name) for name in own} == {None}
    assert Training(start='somewhere', tokenizer='words').tokenizer == 'words'
    s = Training()
    assert (s.n_images, s.data_seed, s.encoder, s.iterations, s.language) == (2000, 0, 'lavt', 3, 'bert')

def test_own_head_keeps_its_number_of_iterations(monkeypatch, home):
    class Patient(SADLRHead):
        def __init__(self, channels, word_dim, iterations=5): super().__init__(channels, word_dim, iterations)
    monkeypatch.setitem(HEADS, 'patient', Patient)
    of = dict(root=home/'data', n_images=20, img_size=32, head='patient')
    for given, n in (None, 5), (2, 2):
        s = Training(**of, iterations=given)
        assert (s.iterations, start_model(s, open_data(s)).head.iterations) == (n, n)

def test_started_run_records_the_models_parts(home):
    s = Training(root=home/'data', n_images=20, start=str(home/'sadlr'))
    s = decided(s, start_model(s, open_data(s)))
    config = json.loads((home/'sadlr'/'config.json').read_text())
    assert [getattr(s, n) for n in ('encoder', 'size', 'language', 'img_size')] == ['lavt', 'nano', 'bert', 32]
    assert s.encoder_options == config['encoder_options'] and s.tokenizer is s.pretrained is None

def test_a_size_beside_a_backbone():
    s = Training(encoder='timm', encoder_options=dict(backbone='resnet18'), size='large')
    with pytest.raises(ValueError, match="size='large': leave it out, encoder_options name the backbone"): check_idle(s)
    for size in 'nano', 'base': check_idle(Training(**vars(s) | dict(size=size)))

@pytest.mark.parametrize('tokenizer', [None, word_tokenizer(['the red star'])])
def test_trained_weights_of_which_some_are_nowhere(monkeypatch, tokenizer):
    "BERT's are found by a name alone; where nothing is found at all it is an error"
    options = dict(head='classifier', size='nano', img_size=64, pretrained=True, tokenizer=tokenizer)
    encoder = create_model(size='nano', img_size=64).encoder
    with pytest.raises(ValueError, match='pretrained=True: leave it out, the encoder is built already, and of words only'):
        create_model(encoder, **options)
    monkeypatch.setitem(ENCODERS, 'lavt', lambda *args, **options: encoder) # whose weights need no network
    with pytest.warns(UserWarning, match='the words start from random ones'): create_model('lavt', **options)

def test_older_runs_go_on(home):
    "Their settings hold values of options that did not act; those are not compared"
    s = Training(root=home/'data', n_images=20, start=str(home/'sadlr'))
    now = json.loads(json.dumps(vars(s), default=str))
    check_resumed(s, now | dict(tokenizer='words', pretrained=False, size='nano', encoder='lavt', language='bert'))
    with pytest.raises(ValueError, match='begun with lr=1'): check_resumed(s, now | dict(lr=1.))

# --- numbers

HUGE = '1' + '0'*30

@pytest.mark.parametrize('option, values', [(name, (str(low - 1), HUGE, '-' + HUGE, 'nan', '9'*5000, ''))
                                            for name, (low, _) in LIMITS.items()], ids=list(LIMITS))
def test_numbers_that_can_mean_nothing(shell, option, values):
    "In every command that has the option, it is named, before anything is read"
    takers = [name for name in COMMANDS if option in signature(COMMANDS[name]).parameters]
    assert takers
    for command in takers:
        first = dict(sadlr_experiment=['update'], sadlr_export=['shapes', 'shapes.onnx']).get(command, [])
        for value in values:
            code, said = shell(command, *first, f'--{option}={value}')
            assert code and option in said.replace('-', '_'), (command, value, said)
            assert_one_line(command, code, said)

PARTS = ('{"channels": -1}', '{"channels": 0}', '{"channels": 1e30}', '{"channels": NaN}', '{"channels": "x"}',
         '{"channels": 1.5}', '{"depths": [2]}', '{"depths": []}', '{"depths": [1, 1, 1, 1]}', '{"channels": 2}',
          '{"num_heads": [0, 0, 0, 0]}', '{"window_size": 0}',
         '{"fusion_heads": 0}', '{"embed_dim": null}', '{"depths": [[-1]]}', '{"pretrained": true}', '{"": 1}',
         '['*10**5)

def test_numbers_of_parts():
    "Zero and places counted from the end are numbers that backbones take"
    check_parts('encoder_options', dict(out_indices=[-2, -1], init_values=0, drop_rate=0., stem={'chs': [0, 32]}))
    with pytest.raises(ValueError, match=r'^encoder_options: heads=-1 is not between 0 and 10000$'):
        check_parts('encoder_options', dict(heads=[2, -1]))

@pytest.mark.parametrize('option', PARTS, ids=lambda text: text[:24])
def test_parts_that_cannot_be_built(shell, option):
    code, said = shell('sadlr_train', '--n_images', 20, f'--encoder_options={option}')
    assert code and 'encoder_options' in said.replace('-', '_') and len(said) < 1000, said
    assert_one_line('sadlr_train', code, said)

def test_what_torch_says_of_a_layer_without_elements_is_not_passed_on(shell, recwarn):
    code, said = shell('sadlr_train', '--n_images', 20, '--head=cgan', '--encoder_options={"channels": 1}')
    assert 'there is no such model' in said and not [w for w in recwarn if 'zero-element' in str(w.message)]

# --- help

@pytest.mark.parametrize('command', COMMANDS)
def test_help_is_whole(command):
    "fastcore takes one line of comment for a parameter, and drops the next"
    lines = getsource(COMMANDS[command].described).partition('    "')[0].splitlines()
    assert [line for line in lines if re.match(r'\s+#', line)] == []

# --- any line

WORDS = ['', ' ', '\t', 'NULL', '\u200b', '-1', '0', '1', '3', '20', '1e30', 'nan', 'NaN', 'inf', '-inf', HUGE,
         '9'*5000, '0.5', 'true', 'None', '[]',  '{}', '{"channels": -1}', '{"iterations": 2}',
         '{"a": {"b": [1e999]}}', '../..', '/', '.', '/dev/null', 'a,b', ',', ',,', '💥', '\udcff',
         'shapes',  'sadlr', 'masks.json', 'data', '--', '-', '%s', '{0}', 'a\nb', '²', 'x'*5000, '\0', 'all',
         'nano', 'lavt', 'words', "'", '"', '*', 'a=b', '=']
LINES = dict(
    sadlr_predict=['data/shapes/images/000000.png', 'the star', '--model', 'sadlr'], sadlr_data=['check', 'data'],
    sadlr_experiment=['update', '--root', 'data'], sadlr_evaluate=['--model', 'sadlr'],
    sadlr_train=['--n_images', '10', '--epochs', '1', '--size', 'nano', '--out', 'fuzz'], sadlr_shapes=['--root', 'data'],
    sadlr_demo=['--model', 'sadlr', '--examples', 'data/shapes/images'], sadlr_profile=['--size', 'nano', '--passes', '0'], sadlr_export=['sadlr', 'sadlr.onnx', '--precision', 'int2'])

def mutated(line, options, draw):
    "A line with something wrong: words exchanged, put in, left out, repeated; options with any value"
    line = list(line)
    for _ in range(draw.choice([1, 1, 2, 3])):
        i, kind, word = draw.randrange(len(line) + 1), draw.randrange(6), draw.choice(WORDS)
        if kind == 0: line[i:i + 1] = [word]
        elif kind == 1: line[i:i] = [word]
        elif kind == 2: line[i:i + 1] = []
        elif kind == 3: line += [f'--{draw.choice(options)}={word}']
        elif kind == 4: line += [f'--{draw.choice(options)}', word]
        else: line += line[i:i + 2]*2
    return line

@pytest.mark.parametrize('command', LINES)
def test_any_line_is_answered(shell, command, n=int(os.environ.get('SADLR_LINES', 30))):
    "Seeded; with SADLR_LINES=2000 it looks further"
    assert {*LINES} == {*COMMANDS}
    options = list(signature(COMMANDS[command]).parameters)
    for seed in range(n):
        words = mutated(LINES[command], options, random.Random(f'{command} {seed}'))
        try: assert_one_line(command, *shell(command, *words))
        except BaseException as error: raise AssertionError(f'{seed}: {command} {[w[:60] for w in words]}') from error
