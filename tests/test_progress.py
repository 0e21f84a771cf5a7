"A run seen from outside: a line per epoch in a log, callbacks of fastai, a summary; wrapped models; 16 bits on a CPU"
import os, re, shlex, subprocess, sys
from functools import partial
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback, CancelTrainException, CancelValidException
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientClip
from fastai.torch_core import set_seed
from forked import command, forked
from torch import nn
from torch.optim.swa_utils import AveragedModel
from sadlr.callbacks import bare_model, emulated, supervised_maps
from sadlr.checkpoint import Checkpoint, read_scores
from sadlr.cli import sadlr_train
from sadlr.training import named_callbacks
from sadlr.data.block import refer_dataloaders, refer_samples
from sadlr.data.shapes import make_shapes
from sadlr.evaluation import evaluate
from sadlr.learner import param_groups, refer_learner
from sadlr.models.build import ReferSegmenter, bundled, create_model
from sadlr.preprocess import word_tokenizer

SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
EPOCH = r'epoch (\d) of (\d): train_loss \S+, valid_loss \S+, P@0.5 \S+, mIoU \S+, oIoU \S+; ' \
        r'\d\d:\d\d, \S+ samples/s, \d\d:\d\d left, peak \d+\.\d\d GiB'
BIN = Path(sys.executable).parent

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp('outside')
    refer = make_shapes(home/'data', n_images=12)
    tokenizer = word_tokenizer([s.raw for split in refer.splits for ref in refer.refs(split) for s in ref.sentences])
    options = dict(encoder_options=dict(depths=(1, 1, 1)), language_options=SIZES | dict(vocab_size=len(tokenizer)))
    create_model(size='nano', img_size=32, tokenizer=tokenizer, **options).save_pretrained(home/'start')
    return home

@pytest.fixture
def learner(home):
    "A learner on twelve scenes of `home`, always from the same start"
    def make(*cbs, wrap=lambda m: m, **options):
        set_seed(0)
        model = ReferSegmenter.from_pretrained(home/'start')
        dls = refer_dataloaders(make_shapes(home/'data', n_images=12), model.tokenizer, 32, 16, num_workers=0, device='cpu')
        return refer_learner(dls, wrap(model), 1e-3, cbs=cbs, path=home, **options)
    return make

def ran(home, line):
    "How a command ends in a fork, what it writes to a file, and what goes to stderr"
    files = [home/f'{name} {len(list(home.glob(f"{name} *")))}' for name in ('out', 'err')]
    run = forked(command, *shlex.split(line), cwd=home, out=files[0], err=files[1])
    run.join()
    return run.exitcode, *(file.read_text() for file in files)

TRAIN = 'sadlr_train --start start --n_images 12 --bs 16 --epochs 2 --lr 1e-3'

# A run in a log

def test_a_line_per_epoch_and_what_to_type_next(home):
    "The log of a run has no bar; a resume tells only what it trains; the commands at the end work as they stand"
    home = Path(home)
    code, said, errors = ran(home, f"{TRAIN} --out 'my run' --accumulate 2")
    assert code == 0, errors
    assert errors == '' and '\r' not in said and '█' not in said
    epochs = [line for line in said.splitlines() if line.startswith('epoch ')]
    assert [re.fullmatch(EPOCH, line).groups() for line in epochs] == [('1', '2'), ('2', '2')]
    *_, summary, next_, score, show, last = said.splitlines()
    best = read_scores(home/'my run'/'model')
    assert re.fullmatch(rf"2 of 2 epochs in \d\d:\d\d; best: epoch {best['epoch'] + 1:.0f}, oIoU {best['oIoU']:.2f} on val", summary)
    assert next_ == 'next:' and last.startswith("written to my run: ")
    table = said[said.index('iteration '):said.index(summary)]
    code, scored, errors = ran(home, score)
    assert code == 0 and scored.endswith(table) and '\r' not in scored and errors == ''
    code, shown, errors = ran(home, show)
    assert code == 0 and 'of the image' in shown and (home/'overlay.png').exists()

def test_lines_arrive_at_once(home):
    "Whoever follows a log sees an epoch when it ends"
    read, write = os.pipe()
    run = forked(command, *shlex.split(f'{TRAIN} --epochs 200 --out followed'), cwd=home, out=write)
    os.close(write)
    with os.fdopen(read) as log: seen = next(line for line in log if line.startswith('epoch '))
    run.kill()
    run.join()
    assert 'epoch 1 of 200' in seen

def test_epochs_of_before_are_not_told_again(learner, tmp_path, capsys):
    "Three epochs, stopped after the first: the resume tells two and three"
    class Stop(GradientClip):
        def before_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learner().fit(3, cbs=[Checkpoint(tmp_path), Stop()])
    first = capsys.readouterr().out
    learner().fit(3, cbs=Checkpoint(tmp_path, resume=True))
    told = [re.fullmatch(EPOCH, line).groups() for line in (first + capsys.readouterr().out).splitlines()]
    assert told == [('1', '3'), ('2', '3'), ('3', '3')]

def test_what_silences_fastai_silences_the_lines(learner, capsys):
    learn = learner()
    with learn.no_logging(): learn.fit(1)
    learn.validate()
    learn.get_preds()
    assert capsys.readouterr().out == ''
    learn.fit(1, cbs=ShowGraphCallback())
    with learn.no_bar(): learn.fit(1)
    assert len(re.findall(EPOCH, capsys.readouterr().out)) == 2

# Callbacks

def test_early_end_is_an_end(home):
    "A run that a callback ends early has its best model, its figure and its summary, and no state is left"
    early = 'fastai.callback.tracker.EarlyStoppingCallback(monitor="P@0.9")'
    code, said, errors = ran(home, f"{TRAIN} --epochs 9 --out early --cbs '{early}'")
    assert code == 0, errors
    assert '2 of 9 epochs in' in said and {p.name for p in (home/'early').iterdir()} == {
        'model', 'settings.json', 'history.csv', 'iterations.png'}

def test_best_model_of_the_epoch_that_ended_the_fit(learner, tmp_path):
    "What ends the fit comes after what keeps the model"
    learn = learner(EarlyStoppingCallback('P@0.9'))
    learn.fit(5, cbs=Checkpoint(tmp_path, monitor='train_loss'))
    assert len(learn.recorder.values) == 2 and read_scores(tmp_path/'model')['epoch'] == 1

def test_who_looks_at_the_model_sees_no_later_one(learner, tmp_path):
    "After a resume each epoch has been looked at once, and what `SaveModelCallback` keeps is what it kept without a stop"
    class Look(Callback):
        def __init__(self): self.epochs = []
        def after_epoch(self): self.epochs.append((self.epoch, self.model.head.classifier.weight.sum().item()))
    class Stop(Callback):
        def __init__(self, epoch): self.last = epoch
        def before_epoch(self):
            if self.epoch == self.last: raise KeyboardInterrupt
    def fit(name, *cbs, **options):
        learn, look = learner(SaveModelCallback('valid_loss', fname=tmp_path/f'{name} best'), *cbs), Look()
        try: learn.fit(3, cbs=[Checkpoint(tmp_path/name, **options), look])
        except KeyboardInterrupt: pass
        return look.epochs, torch.load(tmp_path/f'{name} best.pth')
    whole, kept = fit('whole')
    for stopped in 1, 2, 3:
        first, _ = fit(f'cut {stopped}', Stop(stopped))
        second, again = fit(f'cut {stopped}', resume=True)
        assert first + second == whole and len(first) == stopped
        assert all(torch.equal(again[name], kept[name]) for name in kept)

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixtures_are_refused(learner, mix):
    "Given to the learner or to the fit, by name, before a batch is read"
    for fit in (lambda: learner(mix()).fit(1), lambda: learner().fit(1, cbs=mix())):
        with pytest.raises(ValueError, match=f'leave {mix.__name__} out'): fit()

def test_a_learner_of_ones_own_stops_at_the_first_number_that_is_none(learner):
    "Without a command, too; `lr_find` may go as far as it likes"
    with pytest.raises(FloatingPointError, match='the loss is (nan|inf).*take a lower learning rate'): learner().fit(2, 1e9)
    with (learn := learner()).no_bar():
        learn.lr_find(1e3, 1e9, num_it=6, stop_div=False, show_plot=False)
        with pytest.raises(FloatingPointError): learn.fit(1, cbs=Spoil())
        learn.fit(1) # without the spoilt gradient of before

class Spoil(Callback):
    def after_backward(self): next(self.model.parameters()).grad.view(-1)[0] = float('nan')

class Stop(Callback):
    def before_step(self): raise KeyboardInterrupt

def test_a_search_that_was_broken_off_leaves_the_guard_in_place(learner):
    with (learn := learner()).no_bar():
        with pytest.raises(KeyboardInterrupt), learn.added_cbs([Stop()]): learn.lr_find(num_it=6, show_plot=False)
        with pytest.raises(FloatingPointError): learn.fit(2, 1e9)

def test_epoch_without_scores(learner, capsys):
    "Both phases were cut short"
    class Cut(Callback):
        order = 100
        def after_batch(self): raise CancelTrainException if self.training else CancelValidException
    learner(Cut()).fit(1)
    assert 'epoch 1 of 1: no scores; ' in capsys.readouterr().out

@pytest.mark.parametrize('names, told', {
    'no.such.Callback': "No module named 'no'", 'fastai.callback.core.Nothing': "no attribute 'Nothing'",
    'Callback': "'Callback' is not in a module", 'pathlib.Path': 'Path is no Callback of fastai',
    'sadlr.callbacks.AuxiliaryLoss': "missing 1 required positional argument: 'weight'", 'a.b(': 'does not match',
    'math.pi': 'float is no Callback', 'broken_module.cb': 'division by zero',
    'fastai.callback.training.GradientClip(open("x"))': 'malformed node'}.items())
def test_what_is_no_callback_is_told_before_anything_is_read(home, tmp_path, monkeypatch, names, told):
    (tmp_path/'broken_module.py').write_text('1/0')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(told)) as error: sadlr_train(root=home/'nowhere', cbs=names)
    assert str(error.value).startswith(f'cbs={names}: ') and '\n' not in str(error.value)
    assert not (home/'nowhere').exists()

def test_named_callbacks(tmp_path, monkeypatch):
    (tmp_path/'my_callbacks.py').write_text('from fastai.callback.training import GradientClip\nfour = GradientClip(4.)\n'
                                            'def make(): return [GradientClip(5.), four]\nthree = [GradientClip(3.)]')
    monkeypatch.chdir(tmp_path)
    text = 'my_callbacks.four,my_callbacks.make , my_callbacks.three,fastai.callback.training.GradientClip(max_norm=2.0)'
    assert [cb.max_norm for cb in named_callbacks(text)] == [4, 5, 4, 3, 2]
    assert named_callbacks(None) == named_callbacks('') == []

def test_tensorboard(learner, tmp_path):
    "Losses, rates and scores, read back; the training is that without it"
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    plain, watched = learner(), learner(TensorBoardCallback(log_dir=tmp_path))
    for learn in (plain, watched):
        set_seed(1)
        learn.fit(2)
    written = EventAccumulator(str(tmp_path)).Reload()
    assert [e.value for e in written.Scalars('oIoU')] == pytest.approx([row[8] for row in plain.recorder.values])
    assert sorted({e.value for e in written.Scalars('lr_2')}) == pytest.approx(sorted(plain.recorder.lrs), rel=1e-6)
    assert len(written.Images('Sample results')) == 2
    assert watched.recorder.values == plain.recorder.values

# Wrapped models

class Around(nn.Module):
    "A user's own module, under a name that is none of ours"
    def __init__(self, inner):
        super().__init__()
        self.norm_of_mine = inner
    def forward(self, *args): return self.norm_of_mine(*args)

compiled = partial(torch.compile, backend='eager')

def of_parts(model):
    "Each part compiled alone, and a part of a part"
    model.encoder.backbone = compiled(model.encoder.backbone)
    for part in ('language', 'encoder', 'head'): setattr(model, part, compiled(getattr(model, part)))
    return model

def of_data_parallel_parts(model):
    for part in ('language', 'encoder', 'head'): setattr(model, part, nn.DataParallel(getattr(model, part)))
    return model

@pytest.mark.parametrize('wrap', [compiled, nn.DataParallel, Around, nn.Sequential, AveragedModel, of_parts,
                                  of_data_parallel_parts, lambda m: Around(nn.DataParallel(compiled(of_parts(m))))])
def test_groups_however_nested(home, wrap):
    "Each parameter is in the group of the part that owns it"
    model = ReferSegmenter.from_pretrained(home/'start')
    groups = [[p.shape for p in g['params']] for g in param_groups(model)]
    assert all(groups)
    wrapped = wrap(model)
    assert [[p.shape for p in g['params']] for g in param_groups(wrapped)] == groups
    assert [g['weight_decay'] for g in param_groups(wrapped)] == [1e-2, 0., 1e-2]
    assert bare_model(wrapped).config['size'] == 'nano'

def test_model_whose_parts_are_not_found(home):
    with pytest.raises(ValueError, match='Linear contains no module with the parts language, encoder, head'):
        param_groups(nn.Linear(2, 2))
    flat = ReferSegmenter.from_pretrained(home/'start')
    flat.register_parameter('_flat_param', nn.Parameter(torch.zeros(3))) # as FSDP has it
    with pytest.raises(ValueError, match='use_orig_params=True'): param_groups(flat)

def test_compiled_model_trains_as_it_is(learner, home, tmp_path):
    "Fit, checkpointed blocks, best model, scores and a saved folder: those of the plain model"
    runs = []
    for name, wrap in ('plain', lambda m: m), ('compiled', compiled):
        learn = learner(wrap=wrap, checkpoint=True)
        with torch.compiler.set_stance('force_eager'): # the wrapper is there, and nothing waits for a compiler
            learn.fit(1, cbs=Checkpoint(tmp_path/name))
            samples = refer_samples(make_shapes(home/'data', n_images=12), 'val')
            scores = evaluate(learn.model, samples, progress=False)
        kept = ReferSegmenter.from_pretrained(tmp_path/name/'model')
        runs.append((learn.recorder.values, scores, torch.cat([p.flatten() for p in kept.parameters()]).tolist()))
    assert runs[0] == runs[1]

@pytest.mark.parametrize('wrap', [nn.DataParallel, AveragedModel])
def test_scores_and_pixels_of_a_wrapped_model(home, wrap):
    "What hides the attributes of a model hides neither its tokenizer nor the pixels it wants"
    refer, model = make_shapes(home/'data', n_images=12), bundled()
    samples = refer_samples(refer, 'val')
    assert evaluate(wrap(model), samples, progress=False) == evaluate(model, samples, progress=False)
    model.config['preprocessing'] = dict(mean=[.5]*3, std=[.5]*3)
    dls = refer_dataloaders(refer, model.tokenizer, img_size=32, num_workers=0, device='cpu')
    with pytest.raises(ValueError, match='preprocessing=model.preprocessing'): refer_learner(dls, wrap(model))

def test_maps_of_a_wrapped_model():
    options = dict(encoder_options=dict(depths=(1, 1, 1)), language_options=SIZES | dict(vocab_size=20))
    model = create_model(head='cgan', size='nano', img_size=32, **options)
    maps = supervised_maps(model)
    assert supervised_maps(Around(nn.DataParallel(compiled(of_parts(model))))) == maps and len(maps) == 3

# 16 bits on a CPU

OLD_CPU = dict(ONEDNN_MAX_CPU_ISA='AVX2', ATEN_CPU_CAPABILITY='avx2') # what makes oneDNN and ATen forget newer arithmetic

def test_emulated_16_bits_are_refused_in_one_line(home):
    "On a CPU without bf16 the command says so before it reads anything"
    here = emulated(torch.bfloat16, torch.device('cpu')) # or in a process that is told before it starts
    line = f'{TRAIN} --root nowhere --out slow --precision bf16'
    if here: code, said, error = ran(home, line)
    else:
        done = subprocess.run([BIN/'sadlr_train', *line.split()[1:]], cwd=home, capture_output=True, text=True,
                              env=os.environ | OLD_CPU)
        code, said, error = done.returncode, done.stdout, done.stderr
    if code == 0: pytest.skip('this processor cannot play one without bf16')
    assert error == ("sadlr_train: precision 'bf16' is emulated by this CPU: use 'fp32', which is some twenty times "
                     'faster\n') and said == ''
    assert not (home/'nowhere').exists() and not (home/'slow').exists()
    assert not emulated(torch.float32, torch.device('cpu')) and not emulated(torch.bfloat16, torch.device('meta'))
