"A run that is killed at any moment goes on to the very weights and history of the run that was not"
import os, signal, time
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
import pytest, torch
from forked import command, forked
from safetensors.torch import load_file
from sadlr import checkpoint, cli, files, training
from sadlr.data.shapes import make_shapes
from sadlr.models.build import create_model
from sadlr.preprocess import word_tokenizer

def options_of(folder, **options):
    home, small = folder.parent, dict(n_images=20, bs=16, lr=1e-3, epochs=2, save_every=2)
    return dict(root=home/'data', out=folder, start=str(home/'start')) | small | options

def train(folder, **options):
    "Train in this process, without a sound"
    with redirect_stdout(StringIO()): cli.sadlr_train(**options_of(folder, **options))

def count_down(function, n, last_act):
    "`function`, but its n-th call is the process's last act"
    calls = iter(range(n - 1))
    def counted(*args, **kwargs): return function(*args, **kwargs) if next(calls, None) is not None else last_act(*args)
    return counted

def kill(*args): os.kill(os.getpid(), signal.SIGKILL)

def write_half(state, path):
    "What is on disk when the power fails"
    whole = BytesIO()
    torch_save(state, whole)
    Path(path).write_bytes(whole.getvalue()[:whole.tell()//2])
    kill()

torch_save = torch.save
MOMENTS = { # where the process is killed: object, function, at which call, what it still does
    'at the seventh step': (torch.optim.AdamW, 'step', 7, kill), # of four in an epoch
    'while the settings are written': (files, 'replace_file', 1, kill),
    'while the state is written': (torch, 'save', 4, write_half),
    'between the state and the model of an epoch': (checkpoint, 'save_scored', 1, kill),
    'between the files of the model': (checkpoint, 'replace_file', 6, kill),
    'after the last epoch': (training, 'iteration_figure', 1, kill)}

def killed(folder, moment, **options):
    "Train in a process of its own that is killed at that moment"
    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)
            where, name, n, last_act = MOMENTS[moment]
            setattr(where, name, count_down(getattr(where, name), n, last_act))
            train(folder, **options)
        finally: os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL

def history(folder): return [line.rsplit(',', 1)[0] for line in (folder/'history.csv').read_text().splitlines()]

def assert_same_run(folder, whole):
    assert {p.name for p in folder.iterdir()} == {'model', 'settings.json', 'history.csv', 'iterations.png'}
    assert history(folder) == history(whole) # all but the time
    torch.testing.assert_close(*[load_file(f/'model/model.safetensors') for f in (folder, whole)], rtol=0, atol=0)
    assert checkpoint.read_scores(folder/'model') == checkpoint.read_scores(whole/'model')

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp('resume')
    refs = make_shapes(home/'data', n_images=20).refs('train')
    torch.manual_seed(5) # a start after which the second epoch is the better one
    tokenizer = word_tokenizer([s.raw for ref in refs for s in ref.sentences])
    model = create_model(size='nano', img_size=32, tokenizer=tokenizer)
    with torch.no_grad():
        for p in model.head.parameters(): p += .3*torch.randn_like(p) # so that it finds something
    model.save_pretrained(home/'start')
    train(home/'whole')
    assert checkpoint.read_scores(home/'whole/model')['epoch'] == 1 # the files hold the weights of the last step
    return home

@pytest.mark.parametrize('moment', MOMENTS)
def test_killed_run_goes_on(home, moment):
    folder = home/moment
    killed(folder, moment)
    if not moment.startswith('while'): assert 'state.pt' in os.listdir(folder)
    if 'settings' in moment: assert set(os.listdir(folder)) == {'lock', 'settings.json.new'}
    if (folder/'state.pt').exists(): checkpoint.load_state(folder/'state.pt')
    train(folder, resume=True)
    assert_same_run(folder, home/'whole')

def test_in_parts_and_half_precision(home, monkeypatch):
    monkeypatch.setattr(training, 'precision_trouble', lambda *args: '') # fp16 may be emulated here
    few = dict(root=home/'few', n_images=10, img_size=32, bs=4, epochs=1) # nine steps
    options = few | dict(accumulate=2, precision='fp16', bert_dropout=.2, workers=1, save_every=1)
    train(home/'parts', **options)
    killed(home/'parts killed', 'at the seventh step', **options)
    assert checkpoint.load_state(home/'parts killed/state.pt')['scaler']['scale'] > 0
    train(home/'parts killed', resume=True, **options)
    assert_same_run(home/'parts killed', home/'parts')

def test_parts_that_are_frozen_or_adapted(home):
    "With dropout and statistics of parts that learn nothing, and additions of which the saved model shows none"
    pytest.importorskip('peft')
    options = dict(freeze='language', lora=4, checkpoint=True)
    train(home/'less', **options)
    killed(home/'less killed', 'at the seventh step', **options)
    names = checkpoint.load_state(home/'less killed/state.pt')['model']
    assert any('.lora_A.' in name for name in names)
    assert not any('lora' in name for name in load_file(home/'less/model/model.safetensors'))
    with pytest.raises(ValueError, match='begun with .*freeze=language'): train(home/'less killed', resume=True, lora=4)
    train(home/'less killed', resume=True, **options)
    assert_same_run(home/'less killed', home/'less')

def test_process_killed_from_outside(home):
    words = [f'--{name}={value}' for name, value in options_of(home/'outside').items()]
    run = forked(command, 'sadlr_train', *words)
    while not (home/'outside/state.pt').exists() and run.is_alive(): time.sleep(.02)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    train(home/'outside', resume=True)
    assert_same_run(home/'outside', home/'whole')

def test_what_is_refused(home):
    folder = home/'refused'
    killed(folder, 'at the seventh step')
    with pytest.raises(FileExistsError, match='unfinished run: add --resume'): train(folder)
    with pytest.raises(ValueError, match='begun with bs=16, lr=0.001: resume it with the same'):
        train(folder, resume=True, bs=4, lr=1)
    with pytest.raises(FileExistsError, match='holds a trained model'): train(home/'whole')
    whole = (folder/'state.pt').read_bytes()
    for broken in whole[:len(whole)//2], b'', whole[:1000] + b'?'*1000 + whole[2000:]:
        (folder/'state.pt').write_bytes(broken)
        with pytest.raises(ValueError, match='state.pt was not read'): train(folder, resume=True)
