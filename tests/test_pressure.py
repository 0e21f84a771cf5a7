"Two runs in a folder, full disks, signals, damaged folders, numbers that are none: one line each, and nothing is lost"
import errno, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from forked import command, forked
from safetensors.torch import load_file
from sadlr import checkpoint, cli, experiments, files, predict as predict_room, training
from sadlr.checkpoint import load_state, tensors_of
from sadlr.models.segmenter import ReferSegmenter
from test_distributed import two_processes
from test_resume import assert_same_run, history, home, killed, options_of, train

def words_of(folder, *more, **options):
    return [*(f'--{k}={v}' for k, v in options_of(folder, **options).items()), *more]

def told(*words, code=1):
    "The one line with which `sadlr_train` ends in this process"
    argv, sys.argv = sys.argv, ['/usr/bin/sadlr_train', *words]
    try:
        with pytest.raises(SystemExit) as end: cli.sadlr_train()
    finally: sys.argv = argv
    said = end.value.code
    assert code == 1 and isinstance(said, str) and said.startswith('sadlr_train: ') and '\n' not in said
    assert 'Exception occured' not in said
    return said

@pytest.fixture(scope='module')
def stopped(home):
    "A run that was killed in its second epoch"
    killed(home/'stopped', 'at the seventh step')
    return home/'stopped'

@pytest.fixture
def folder(stopped, tmp_path): return Path(shutil.copytree(stopped, stopped.parent/tmp_path.name))

# --- 1: one folder, one run

def start(folder, *more, **options):
    "A training in a process of its own that has begun to train"
    state = folder/'state.pt'
    before = state.stat().st_mtime_ns if state.exists() else 0
    run = forked(command, 'sadlr_train', *words_of(folder, *more, **options), err=errors_of(folder))
    while run.is_alive() and (not state.exists() or state.stat().st_mtime_ns == before): time.sleep(.02)
    assert run.is_alive(), errors_of(folder).read_text()
    return run

def errors_of(folder): return folder.with_name(f'{folder.name}.err')

def end_of(run):
    run.join()
    return run.exitcode

def test_one_run_in_a_folder(home):
    "The second is told; the lock ends with the process, by Ctrl-C and by kill -9, whose loader's workers live a while"
    out, options = home/'locked', dict(epochs=1000, workers=1)
    run = start(out, **options)
    for more in [], ['--resume']:
        said = told(*words_of(out, *more, **options))
        assert 'unfinished run' in said or f'{out} is in use by another training' in said
    assert 'is in use' in said
    os.kill(run.pid, signal.SIGINT)
    assert end_of(run) == 130
    lines = errors_of(out).read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'sadlr_train: stopped; {out}/state.pt has the state of the run')
    assert '--resume goes on' in lines[0]
    run = start(out, '--resume', **options)
    run.kill()
    assert end_of(run) == -signal.SIGKILL
    with training.own_folder(out): pass

def test_where_nothing_can_be_locked(tmp_path, monkeypatch, capsys):
    "A network share without locks: it is said, and the training goes on"
    def refuse(number): monkeypatch.setattr(files.FileLock, 'acquire', Disk(number).refuse)
    for number in errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP:
        refuse(number)
        with training.own_folder(tmp_path/'run'): (tmp_path/'run'/'file').touch()
        assert 'cannot be locked' in capsys.readouterr().out
        experiments.add_run(tmp_path/'runs.csv', [dict.fromkeys(experiments.WHOLE, 1) | dict(seed=number)])
        assert 'cannot be locked' in capsys.readouterr().out
    assert len(experiments.read_results(tmp_path/'runs.csv')) == 3
    refuse(errno.EACCES)
    with pytest.raises(PermissionError):
        with training.own_folder(tmp_path/'run'): pass

def test_failed_start_leaves_no_folder(home):
    assert 'pico' in told(*words_of(home/'none', '--split_by=pico')) and not (home/'none').exists()

# --- 3: signals

def act(*args, **kwargs): os.kill(os.getpid(), signal.SIGTERM)

PHASES = { # object, function, what is left
    'data': (training, 'open_data', 'no state is in'), 'step': (torch.optim.AdamW, 'step', 'no state is in'),
    'validation': (Learner, '_do_epoch_validate', '--resume goes on'),
    'figure': (training, 'iteration_figure', '--resume goes on'), 'scores': (training, 'evaluate', '--resume goes on'),
    'state': (checkpoint, 'replace_file', 'no state is in')}

@pytest.mark.parametrize('phase', PHASES)
def test_sigterm(home, tmp_path, phase):
    "In every phase: status 143 and one line that says how to go on"
    where, name, left = PHASES[phase]
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            setattr(where, name, act)
            sys.argv = ['sadlr_train', *words_of(home/f'signal {phase}', save_every=1, epochs=1)]
            cli.sadlr_train()
        except BaseException as error: os.write(2, repr(error).encode())
        finally: os._exit(99)
    os.close(write)
    with os.fdopen(read) as file: lines = [line for line in file.read().splitlines() if 'arn' not in line]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143, lines
    assert len(lines) == 1 and lines[0].startswith('sadlr_train: stopped; ') and left in lines[0], lines

IMPORTING = '''
import os, signal, sys
class AtImport:
    def find_spec(self, name, *args):
        if name == 'fastai': os.kill(os.getpid(), signal.SIGINT)
sys.argv = ['/usr/bin/sadlr_evaluate']
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell lets it be ignored in what it starts with an &
sys.meta_path.insert(0, AtImport())
import sadlr.cli
'''

def test_ctrl_c_while_it_imports():
    done = subprocess.run([sys.executable, '-c', IMPORTING], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, 'sadlr_evaluate: stopped\n')

def test_handlers_are_put_back(home):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    told('--epochs=0')
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

# --- 2, 10: disks

def fail_at(n, function, fail):
    "`function`, but from the n-th call on it fails"
    calls = iter(range(n - 1))
    def counted(*args, **kwargs): return (fail if next(calls, None) is None else function)(*args, **kwargs)
    return counted

class Disk:
    "A file system that refuses from a moment on"
    def __init__(self, number): self.number = number
    def refuse(self, *args, **kwargs): raise OSError(self.number, os.strerror(self.number))
    def save(self, state, path):
        "As `torch.save` does where the disk is full"
        Path(path).write_bytes(b'half')
        os.fsync = self.refuse
        raise RuntimeError('[enforce fail at inline_container.cc:671] . unexpected pos 7107712 vs 7107604')

DISKS = { # moment: object, function, call, errno, words of the line
    'state': (torch, 'save', 4, errno.ENOSPC, ['state.pt.new was not written: No space left', 'MB are free']),
    'state, quota': (torch, 'save', 4, errno.EDQUOT, ['state.pt.new was not written: Disk quota exceeded']),
    'state, read-only': (torch, 'save', 4, errno.EROFS, ['state.pt.new was not written: Read-only file system']),
    'flush': (os, 'fsync', 9, errno.ENOSPC, ['No space left on device']),
    'first flush': (os, 'fsync', 1, errno.EIO, ['settings.json.new was not written: Input/output error'])}

@pytest.mark.parametrize('moment', DISKS)
def test_full_disk(home, monkeypatch, moment):
    "One line; the state before stays whole; after room is made the run ends as if nothing had been"
    where, name, n, number, words = DISKS[moment]
    folder, fail = home/f'full {moment}', Disk(number)
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', os.fsync) # is put back whatever happens
        m.setattr(where, name, fail_at(n, getattr(where, name), fail.save if name == 'save' else fail.refuse))
        said = told(*words_of(folder))
    assert all(word in said for word in words), said
    state = folder/'state.pt'
    assert ('--resume goes on' in said) == state.exists() and not list(folder.glob('state.pt.*'))
    if state.exists(): checkpoint.check_state(load_state(state), state)
    if number in (errno.EDQUOT, errno.EROFS): return # what is left is that of the first
    train(folder, resume=True)
    assert_same_run(folder, home/'whole')

@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which('mount'), reason='only root mounts a small disk')
@pytest.mark.parametrize('free', [1_000_000, 5_000_000])
def test_small_disk(home, tmp_path, free):
    "A real one, full at the first state or at the first model"
    (disk := tmp_path/'disk').mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={free}', 'tmpfs', disk])
    if mounted.returncode: pytest.skip('no mounts here')
    try:
        said = told(*words_of(home/'x', f'--out={disk}/run'))
        assert f'{disk}/run' in said and 'No space left on device' in said and '.new was not written' in said
        assert not list(disk.glob('run/*.new'))
        subprocess.run(['mount', '-o', 'remount,size=100m', disk], check=True)
        train(disk/'run', **options_of(home/'x') | dict(out=disk/'run'), resume=True)
        assert history(disk/'run') == history(home/'whole')
    finally: subprocess.run(['umount', '-l', disk])

def test_places_that_cannot_be_written(home, tmp_path):
    (tmp_path/'file').touch()
    for out in tmp_path/'file', tmp_path/'file'/'below', tmp_path/('x'*300), Path('/proc/run'):
        assert str(out) in told(*words_of(home/'x', f'--out={out}'))

@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_folders_that_cannot_be_flushed(tmp_path, monkeypatch, number):
    "Folders need no flush; a file that has none is an error with its path"
    def refuse(kind):
        real = os.fsync
        def fsync(fd):
            if kind(f'/dev/fd/{fd}'): raise OSError(number, os.strerror(number))
            real(fd)
        return fsync
    monkeypatch.setattr(os, 'fsync', refuse(os.path.isdir))
    checkpoint.save_state({'a': torch.ones(2)}, tmp_path/'state.pt')
    monkeypatch.setattr(os, 'fsync', refuse(os.path.isfile))
    with pytest.raises(OSError, match='state.pt.new was not written'):
        checkpoint.save_state({'a': 0}, tmp_path/'state.pt')
    assert load_state(tmp_path/'state.pt')['a'].tolist() == [1, 1] and os.listdir(tmp_path) == ['state.pt']

def test_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, 'open', Disk(errno.EACCES).refuse)
    checkpoint.save_state({'a': 1}, tmp_path/'state.pt')
    assert load_state(tmp_path/'state.pt') == {'a': 1}

def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path/'model').touch()
    with pytest.raises(files.NotWritten, match=f'^{tmp_path}/model was not written: File exists'):
        with files.writing(tmp_path/'model.new'): (tmp_path/'model').mkdir()
    (tmp_path/'x.json').mkdir()
    with pytest.raises(files.NotWritten, match=f'^{tmp_path}/x.json was not written: Is a directory'):
        files.write_file(tmp_path/'x.json', b'1')
    assert not list(tmp_path.glob('*.new'))

def command_told(monkeypatch, name, *words):
    "The one line with which a command ends in this process; None where it ends well"
    monkeypatch.setattr(sys, 'argv', [f'/usr/bin/{name}', *map(str, words)])
    try: getattr(cli, name)()
    except SystemExit as end: return end.code

@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
def test_answers_on_a_full_disk(home, tmp_path, monkeypatch, number):
    "Pictures and predictions: one line with the name, what was there stays, no half file"
    photo, picture, masks = home/'data/shapes/images/000000.png', tmp_path/'x.png', tmp_path/'x.json'
    picture.write_bytes(b'old')
    predict = 'sadlr_predict', photo, 'the star', '--model', home/'start', '--out'
    evaluate = 'sadlr_evaluate', '--root', home/'data', '--model', home/'start', '--save', masks
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', Disk(number).refuse)
        for line, file in ((predict + (picture,), picture), (evaluate, masks)):
            assert command_told(m, *line).startswith(f'{line[0]}: {file}.new was not written: {os.strerror(number)}')
    assert os.listdir(tmp_path) == ['x.png'] and picture.read_bytes() == b'old'
    monkeypatch.setattr(Path, 'touch', Disk(number).refuse)
    monkeypatch.setattr(ReferSegmenter, 'forward', None) # it is known before any question is asked
    assert f'{masks}.new was not written' in command_told(monkeypatch, *evaluate)

def test_pictures_that_cannot_be_meant(home, tmp_path, monkeypatch):
    "The photo itself is not overwritten; a name that says no format is refused before the model is read"
    photo = Path(shutil.copy(home/'data/shapes/images/000000.png', tmp_path))
    before = photo.read_bytes()
    monkeypatch.chdir(tmp_path)
    line = 'sadlr_predict', photo, 'the star', '--model', home/'start', '--out'
    def predict(out): return command_told(monkeypatch, *line, out)
    for out in photo, '000000.png', f'{tmp_path}/../{tmp_path.name}/000000.png': assert 'is the photo itself' in predict(out)
    assert photo.read_bytes() == before
    monkeypatch.setattr(predict_room, 'load_model', None)
    for out in 'x', 'x.xyz', 'x.json', 'x.psd', tmp_path: assert f'out={out}: no picture' in predict(out)

def test_output_that_goes_nowhere(home, monkeypatch):
    "A full disk below the log, or nobody who reads the pipe: what is wrong, and how to go on"
    for number in errno.ENOSPC, errno.EPIPE:
        monkeypatch.setattr(training, 'print', Disk(number).refuse, raising=False)
        said = told(*words_of(home/f'nowhere {number}'))
        assert f'what it prints or records was not written: {os.strerror(number)}; no state is in' in said

# --- 4, 5: damaged folders

def without(*keys):
    def change(state):
        for key in keys[:-1]: state = state[key]
        del state[keys[-1]]
    return change

def put(*keys, value):
    def change(state):
        for key in keys[:-1]: state = state[key]
        state[keys[-1]] = value(state[keys[-1]]) if callable(value) else value
    return change

PARAMETER = 'head.classifier.bias'
STATES = {
    'a list': [1, 2], 'a number': 3, 'nothing': {}, 'a model': {'model': {'a': torch.ones(1)}},
    'a tensor': torch.ones(2), **{f'without {key}': without(key) for key in (
        'model', 'opt', 'rows', 'losses', 'random', 'length', 'epoch', 'loader')},
    'no moments of a parameter': without('opt', 'state', 0, 'exp_avg'), 'a tensor less': without('model', PARAMETER),
    'no groups': put('opt', 'param_groups', value=[]), 'another shape': put('model', PARAMETER, value=torch.ones(7)),
    'half precision': put('model', PARAMETER, value=lambda t: t.half()), 'rows of another run': put('rows', value=[]),
    'moments of another shape': put('opt', 'state', 0, 'exp_avg', value=torch.ones(3)),
    'epoch -1': put('epoch', value=-1), 'text for a number': put('batches', value='3'),
    'no generator': put('random', value=[{}]), 'random 3': put('random', value=3),
    'another loader': put('loader', value=(3, (1, 2), None)),
    'losses of one number': put('losses', value=torch.ones(()))}

@pytest.mark.parametrize('name', STATES)
def test_state_of_something_else(folder, name):
    state = STATES[name]
    if callable(state):
        change, state = state, load_state(folder/'state.pt')
        change(state)
    torch.save(state, folder/'state.pt')
    said = told(*words_of(folder, '--resume'))
    assert f'{folder}/state.pt' in said and ('holds no state' in said or 'is of another training' in said), said

SETTINGS = ['[]', '{}', 'null', '3', '{"options": null}', '{"options": []}', '{"options": {}}', '{"options": "x"}', '',
            '{"options": {"lr": 0.001}}',
            '{"opt', '['*10**5, b'\xff\xfe', None]

@pytest.mark.parametrize('text', SETTINGS, ids=lambda text: repr(text)[:20])
def test_settings_of_something_else(folder, text):
    file = folder/'settings.json'
    if text is None: file.unlink()
    else: file.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = told(*words_of(folder, '--resume'))
    assert f'{file} does not say how the run was begun' in said and 'to begin again' in said

def cut(folder):
    file = folder/'model/model.safetensors'
    file.write_bytes(file.read_bytes()[:1000])
def empty(folder): (folder/'model/model.safetensors').write_bytes(b'')
def garbage(folder): (folder/'model/model.safetensors').write_bytes(b'?'*5000)
def no_tokenizer(folder):
    for file in folder.glob('model/tokenizer*'): file.unlink()
def no_vocabulary(folder): (folder/'model/tokenizer.json').unlink()
def cut_config(folder): (folder/'model/config.json').write_text('{"enc')
def no_config(folder): (folder/'model/config.json').unlink()

DAMAGES = cut, empty, garbage, no_tokenizer, no_vocabulary, cut_config, no_config

@pytest.mark.parametrize('damage', DAMAGES, ids=lambda f: f.__name__)
def test_damaged_model(folder, damage):
    "It is said what is lost and what to do, and that helps"
    damage(folder)
    said = told(*words_of(folder, '--resume'))
    assert 'the best model so far is lost' in said and f'({folder}/model)' in said, said
    if damage is not cut: return
    shutil.rmtree(folder/'model')
    train(folder, resume=True)
    assert history(folder) == history(folder.parent/'whole')

def test_state_that_is_gone(folder):
    "That is no run that has ended"
    (folder/'state.pt').unlink()
    said = told(*words_of(folder, '--resume'))
    assert f'{folder}/state.pt is missing' in said and f'--start {folder}/model' in said

def test_other_data_on_resume(folder):
    settings = json.loads((folder/'settings.json').read_text())
    settings['data']['train']['refs'] += 1
    (folder/'settings.json').write_text(json.dumps(settings))
    assert 'these are not the data' in told(*words_of(folder, '--resume'))

def test_damages_that_do_not_matter(folder):
    "A mark at the start of settings.json is skipped; history.csv is written anew from the state"
    file = folder/'settings.json'
    file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes())
    (folder/'history.csv').write_bytes(b'\xff\x00,,"')
    train(folder, resume=True)
    assert_same_run(folder, folder.parent/'whole')

# --- 6: a run that has ended

def test_run_that_has_ended(home, capsys):
    before = {file: file.stat().st_mtime_ns for file in (home/'whole').rglob('*')}
    cli.sadlr_train(**options_of(home/'whole'), resume=True)
    assert f'the run in {home}/whole has ended, its model is {home}/whole/model' in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (home/'whole').rglob('*')} == before
    assert 'holds a trained model' in told(*words_of(home/'whole'))

# --- numbers that are none

POISON = '''
import torch
from fastai.callback.core import Callback
from fastai.torch_core import rank_distrib

class Poison(Callback):
    run_valid = False
    def __init__(self, what, rank=0): self.what, self.rank = what, rank
    def spoils(self, what): return (self.what, self.rank, 1, 3) == (what, rank_distrib(), self.epoch, self.iter)
    def before_batch(self):
        if self.spoils('batch'): self.learn.xb = (self.xb[0]*float('nan'), *self.xb[1:])
    def after_loss(self):
        if self.spoils('loss'): self.learn.loss_grad = self.loss_grad*float('nan')
        if self.spoils('infinite_loss'): self.learn.loss_grad = self.loss_grad + float('inf')
    def after_backward(self):
        if self.spoils('gradient'): next(self.model.parameters()).grad.view(-1)[0] = float('nan')
    def after_step(self):
        if self.spoils('weight'): next(self.model.parameters()).data.view(-1)[0] = float('inf')
'''

def is_finite(state): return all(t.isfinite().all() for _, t in tensors_of(state) if t.is_floating_point())

NUMBERS = { # options -> words of the line
    '--lr=1e6': 'the loss is nan',
    '--accumulate=2 --cbs=poison.Poison("gradient")': 'a gradient is not finite',
    '--accumulate=2 --cbs=poison.Poison("infinite_loss")': 'the loss is inf',
    '--cbs=poison.Poison("batch")': 'the loss is nan', '--workers=1 --cbs=poison.Poison("loss")': 'the loss is nan',
    '--save_every=1 --cbs=poison.Poison("weight")': 'is not finite'}

@pytest.mark.parametrize('more', NUMBERS)
def test_numbers_that_are_none(home, monkeypatch, tmp_path, more):
    "One line, and what is on disk is finite and whole"
    (tmp_path/'poison.py').write_text(POISON)
    monkeypatch.syspath_prepend(tmp_path)
    out = home/tmp_path.name
    said = told(*words_of(out, *more.split()))
    assert NUMBERS[more] in said and 'lr ' in said and 'batch ' in said, said
    assert (out/'state.pt').exists() or '--lr' in more
    if (out/'state.pt').exists():
        assert f'the last finite state is {out}/state.pt' in said and is_finite(load_state(out/'state.pt'))
    if (out/'model').exists(): assert is_finite(load_file(out/'model/model.safetensors')) and '--start' in said

def test_scaler_may_leave_out_steps(home, monkeypatch):
    "In fp16 a gradient that overflows is no reason to stop"
    monkeypatch.setattr(training, 'precision_trouble', lambda *args: '')
    out = home/'overflow'
    train(out, root=home/'few', n_images=10, precision='fp16', cbs='test_pressure.Overflow', epochs=1)
    assert is_finite(load_file(out/'model/model.safetensors'))

class Overflow(Callback):
    run_valid = False
    def after_backward(self):
        if self.iter == 1: next(self.model.parameters()).grad.view(-1)[0] = float('inf')

def test_experiment_stops_too(tmp_path):
    small = training.Training(root=tmp_path, n_images=20, epochs=1, bs=8, lr=1e6)
    one = {'0': experiments.tables()['iterations']['0']}
    with pytest.raises(FloatingPointError, match='^lavt-classifier, seed 3: the loss is nan'):
        experiments.run_table(one, tmp_path/'r.csv', tmp_path/'models', small, [3])
    assert not (tmp_path/'r.csv').exists() and not [*(tmp_path/'models').rglob('*.*')]

def test_two_processes_stop_together(home, tmp_path):
    "A loss of the second one that is no number: both end, and the state is finite"
    (tmp_path/'poison.py').write_text(POISON)
    out = home/'two'
    words = words_of(out, '--cbs=poison.Poison("loss", 1)')
    ends = two_processes(command, 'sadlr_train', *words, cwd=tmp_path, err=tmp_path)
    assert ends == [1, 1]
    said = ''.join(file.read_text() for file in tmp_path.glob('*.err'))
    assert 'sadlr_train: ' in said and ('a gradient is not finite' in said or 'the loss is nan' in said), said
    assert is_finite(load_state(out/'state.pt')) and is_finite(load_file(out/'model/model.safetensors'))
