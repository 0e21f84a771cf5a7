"Two processes train as one does, score as one does, go on after a stop, and only the first of them writes"
import csv, json, os, shutil, subprocess, sys, zlib
from functools import partial
from pathlib import Path
from socket import socket
from types import SimpleNamespace
import pytest, torch
from accelerate.utils import gather_object
from fastai.callback.core import Callback
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from msgspec import to_builtins
from forked import command, forked
from sadlr import checkpoint, cli, training
from sadlr.callbacks import ExistenceLoss
from sadlr.checkpoint import Checkpoint
from sadlr.data.block import refer_dataloaders
from sadlr.data.refer import Refer
from sadlr.data.shapes import make_shapes
from sadlr.distributed import distributed, launched
from sadlr.learner import refer_learner
from sadlr.models.build import create_model
from sadlr.parts import add_lora, freeze

BIN = Path(sys.executable).parent
# Of a weight: sums in another order came to 8e-6 on one processor. A quarter of the weights move by 1e-4 and more.
ROUNDING = 5e-5

def checksum(*tensors): return zlib.crc32(b''.join(t.numpy().tobytes() for t in tensors))

class Watch(Callback):
    "Leave batch statistics out, note what is seen in training, and break off after `end` batches"
    def __init__(self, end=None): self.end, self.seen, self.losses = end, [], []
    def before_batch(self):
        for m in self.model.modules():
            if 'BatchNorm' in type(m).__name__: m.eval()
        if self.training: self.seen += [checksum(*item) for item in zip(*self.xb, *self.yb)]
    def after_batch(self):
        if not self.training: return
        self.losses.append(self.loss.item())
        if len(self.losses) == self.end: raise KeyboardInterrupt

def learner(root, *cbs, dropout=0., names=('shapes', 'attributes'), less=False, **head_options):
    "The same in every process; SGD, because Adam makes steps of rounding errors where a gradient is zero"
    launched()
    set_seed(0)
    dls = refer_dataloaders(Refer(root, *names), img_size=32, bs=4, num_workers=0, device='cpu')
    model = create_model(size='nano', img_size=32, tokenizer=dls.tokenizer, head_options=head_options,
                         language_options=dict(hidden_dropout_prob=dropout))
    with torch.no_grad():
        for p in model.head.parameters(): p += .3*torch.randn_like(p) # so that it finds something
    if less: # of the parts that learn
        freeze(model, 'language')
        add_lora(model, 8)
    learn = refer_learner(dls, model, lr=1e-2, parts=2, cbs=cbs)
    learn.opt_func, learn.logger = partial(OptimWrapper, opt=torch.optim.SGD), lambda row: None
    return distributed(learn)

def train(root):
    "Scores before and after an epoch, and what it was made of"
    learn = learner(root, watch := Watch())
    with learn.no_bar():
        learn.validate()
        before = list(learn.final_record)
        learn.fit(1)
    return dict(before=before, after=list(learn.recorder.values[-1]), seen=sorted(gather_object(watch.seen)),
                losses=torch.tensor(gather_object([watch.losses])).mean(0), weights=learn.model.state_dict())

def less(root):
    "The weights after an epoch with a frozen part and additions to another, and which of them moved"
    learn = learner(root, Watch(), less=True)
    before = {name: t.clone() for name, t in learn.model.state_dict().items()}
    with learn.no_bar(): learn.fit(1)
    weights = learn.model.state_dict()
    return dict(weights=weights, moved={name for name in before if not before[name].equal(weights[name])})

def general(root):
    "GRES's scores where two thirds of the refs mean nothing or several objects"
    learn = learner(root, names=('general', 'own'))
    with learn.no_bar(): learn.validate()
    record = learn.metrics[0].record
    return dict(pairs=[pairs.tolist() for pairs in record.pairs], gres=record.summary('gres'), gres50=record.summary('gres50'))

def judging(root):
    "The weights after an epoch in which the head learns to say that nothing is there"
    learn = learner(root, Watch(), ExistenceLoss(1.), names=('general', 'own'), existence=True)
    with learn.no_bar(): learn.fit(1)
    return learn.model.state_dict()

def resume(root):
    "Losses and weights of a run with dropout in each process: uninterrupted, and stopped and resumed"
    def run(name, watch, **options):
        learn = learner(root, watch, dropout=.2)
        with learn.no_bar(): learn.fit(2, cbs=Checkpoint(root/name, every=4, **options))
        weights = {k: v.clone() for k, v in learn.model.state_dict().items()}
        return gather_object([watch.losses]), weights, sorted(gather_object(watch.seen))
    whole = run('whole', Watch())
    try: run('stopped', Watch(len(whole[0][0])*3//4))
    except KeyboardInterrupt: pass
    if launched().is_main_process: shutil.copytree(root/'stopped', root/'alone')
    launched().wait_for_everyone()
    return dict(whole=whole, resumed=run('stopped', Watch(), resume=True))

def work(root):
    "What two processes do together"
    results = dict(train=train(root), less=less(root), general=general(root), judging=judging(root), resume=resume(root))
    if launched().is_main_process: torch.save(results, root/'results.pt')
    launched().destroy_process_group()

def two_processes(work, *args, err, **options):
    "How two forks end that a launcher could have started; what they say is in files of the folder `err`"
    with socket() as free:
        free.bind(('127.0.0.1', 0))
        common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE='2')
    def start(rank): return forked(work, *args, err=err/f'{rank}.err', RANK=rank, LOCAL_RANK=rank, **common, **options)
    ranks = list(map(start, '01'))
    for process in ranks: process.join()
    return [process.exitcode for process in ranks]

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('distributed')
    refs = list(make_shapes(root, n_images=12).refs())
    (root/'general').mkdir()
    for name in 'instances.json', 'images': (root/'general'/name).symlink_to(f'../shapes/{name}')
    of_image = {ref.image_id: [r.ann_id for r in refs if r.image_id == ref.image_id] for ref in refs}
    meant = [[[-1], [ref.ann_id], of_image[ref.image_id]][k % 3] for k, ref in enumerate(refs)]
    records = [to_builtins(ref) | dict(ann_id=ids, category_id=ids[:1]) for ref, ids in zip(refs, meant)]
    (root/'general'/'grefs(own).json').write_text(json.dumps(records))
    return root

@pytest.fixture(scope='module')
def results(root):
    assert two_processes(work, root, err=root) == [0, 0], (root/'0.err').read_text() + (root/'1.err').read_text()
    return torch.load(root/'results.pt')

def test_same_training_as_one_process(root, results):
    torch.set_num_threads(1)
    one, two = train(root), results['train']
    assert one['before'][-1] > 0 and two['before'] == one['before'] # to the last digit
    assert two['seen'] == one['seen'] and len(set(one['seen'])) == len(one['seen']) # each ref once, the same phrases
    torch.testing.assert_close(two['losses'], one['losses'], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(two['after']), torch.tensor(one['after']), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two['weights'], one['weights'], rtol=1e-4, atol=ROUNDING)

def test_same_training_of_less_as_one_process(root, results):
    torch.set_num_threads(1)
    one, two = less(root), results['less']
    assert one['moved'] == two['moved'] and any('.lora_A.' in name for name in one['moved'])
    assert not any(name.startswith('language.') or 'base_layer' in name for name in one['moved'])
    torch.testing.assert_close(two['weights'], one['weights'], rtol=1e-4, atol=ROUNDING)

def test_same_scores_of_gres_as_one_process(root, results):
    "To the last bit, and the pairs in the same order"
    torch.set_num_threads(1)
    one, two = general(root), results['general']
    assert two == one and len(one['pairs']) > 1
    assert {pair[0][2] > 0 for batch in one['pairs'] for pair in batch} == {True, False}

def test_same_existence_as_one_process(root, results):
    torch.set_num_threads(1)
    one, two = judging(root), results['judging']
    assert any('existence' in name for name in one)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=ROUNDING)

def test_two_processes_resume(results):
    (whole, weights, _), (resumed, again, _) = results['resume'].values()
    assert len(resumed[0]) < len(whole[0]) and resumed == [losses[-len(resumed[0]):] for losses in whole]
    assert whole[0] != whole[1]
    torch.testing.assert_close(again, weights, rtol=0, atol=0)

def test_one_process_goes_on_with_what_two_began(root, results):
    torch.set_num_threads(1)
    learn = learner(root, watch := Watch(), dropout=.2)
    with learn.no_bar(): learn.fit(2, cbs=Checkpoint(root/'alone', resume=True))
    assert sorted(watch.seen) == results['resume']['resumed'][2] # the same refs with the same phrases

def noted(name, write):
    "`write`, which besides notes who calls it"
    def noting(*args, **kwargs):
        with open(f'writes of {os.environ["RANK"]}', 'a') as file: print(name, file=file)
        return write(*args, **kwargs)
    return noting

def noting_command(*words):
    for module, name in [(checkpoint, 'save_state'), (checkpoint, 'save_scored'), (checkpoint, 'replace_file'),
                         (training, 'write_settings'), (training, 'iteration_figure'), (training.CSVLogger, 'before_fit')]:
        setattr(module, name, noted(name, getattr(module, name)))
    command(*words)

def test_command(root):
    "In two processes, each with the environment that the launcher of the documents gives to its own"
    write = 'import json, os; json.dump({**os.environ}, open(os.environ["RANK"] + ".json", "w"))'
    (root/'env.py').write_text(write)
    launch = 'launch --multi_gpu --num_processes 2 --main_process_port 0 env.py'
    done = subprocess.run([BIN/'accelerate', *launch.split()], env=os.environ | {'CUDA_VISIBLE_DEVICES': ''}, cwd=root,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    given = [json.loads((root/f'{rank}.json').read_text()) for rank in range(2)]
    words = 'sadlr_train --n_images 12 --img_size 32 --bs 8 --epochs 2'.split()
    store = dict(TORCHELASTIC_USE_AGENT_STORE='False') # the launcher's has ended with it
    def start(env):
        out, err = (root/f'{env["RANK"]}.{name}' for name in ('out', 'err'))
        return forked(noting_command, *words, cwd=root, out=out, err=err, **env | store)
    ranks = list(map(start, given))
    for process in ranks:
        process.join(300) # one that waits for another that has died
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0], (root/'0.err').read_text() + (root/'1.err').read_text()
    assert [p.name for p in root.glob('writes of *')] == ['writes of 0']
    calls = (root/'writes of 0').read_text().splitlines()
    assert calls.count('save_state') == 2 and calls.count('save_scored') >= 1
    assert all(calls.count(name) == 1 for name in ('write_settings', 'iteration_figure', 'before_fit'))
    assert ''.join(file.read_text() for file in root.glob('*.out')).count('written to runs/shapes') == 1
    assert {p.name for p in (root/'runs/shapes').iterdir()} == {
        'model', 'settings.json', 'history.csv', 'iterations.png'}
    assert [row[0] for row in csv.reader((root/'runs/shapes/history.csv').open())] == ['epoch', '0', '1']

def test_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(training, 'launched', lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match='bs=6 cannot be computed in accumulate=2 equal parts by each of 2 processes'):
        cli.sadlr_train(bs=6, accumulate=2)
