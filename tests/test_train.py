"Training as a whole: one command for every data set, the options that save memory, LAVT's habits"
import csv, json, os, pickle, shutil, subprocess, sys
from argparse import Namespace
from functools import partial
from pathlib import Path
import pytest, torch
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import BnFreeze, ShortEpochCallback, bn_types
from fastai.torch_core import set_seed
from safetensors.torch import load_file
from sadlr.cli import sadlr_evaluate, sadlr_train
from sadlr.training import Training, open_data, start_model, training_loaders
from sadlr.data.block import refer_dataloaders
from sadlr.data.refer import Refer
from sadlr.data.shapes import make_shapes
from sadlr.learner import refer_learner
from sadlr.models.build import create_model
from sadlr.models.lavt_ris import PREFIXES, load_lavt_ris
from sadlr.preprocess import word_tokenizer

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Ten scenes as 'shapes', and the same files under the names of RefCOCO"
    root = tmp_path_factory.mktemp('train')
    make_shapes(root, n_images=10)
    shutil.copytree(root/'shapes', root/'refcoco')
    (root/'refcoco'/'refs(attributes).p').rename(root/'refcoco'/'refs(unc).p')
    return root

@pytest.fixture
def train(root, tmp_path, monkeypatch):
    "`sadlr_train` as its console script would run it; the folder of the run"
    def run(line):
        out = tmp_path/f'run{len(list(tmp_path.iterdir()))}'
        made = '' if '--dataset refcoco' in line else '--n_images 10'
        words = f'sadlr_train --root {root} {made} --out {out} --workers 0 {line}'.split() # the last of two wins
        monkeypatch.setattr(sys, 'argv', words)
        sadlr_train()
        return out
    return run

def history(out):
    "The columns of a run but for the time"
    columns, *rows = csv.reader((out/'history.csv').read_text().splitlines())
    assert columns[-1] == 'time' and all(len(row) == len(columns) and ':' in row[-1] for row in rows)
    return [row[:-1] for row in rows]

OPTIONS = ('--img_size 32 --tokenizer words --pretrained false --bs 8 --optimizer muon --lr 1e-3 --language_lr 1 '
           '--accumulate 2 --checkpoint')

def test_only_the_data_set_differs(train):
    "Shapes and RefCOCO go the same way: from the same files they come to the same figures, digit by digit"
    runs = [train(f'--dataset {name} --size nano --epochs 1 {OPTIONS}') for name in ('shapes', 'refcoco')]
    assert history(runs[0]) == history(runs[1])
    told = [json.loads((run/'settings.json').read_text()) for run in runs]
    differ = {name for name, value in told[0]['options'].items() if value != told[1]['options'][name]}
    assert differ == {'dataset', 'split_by', 'out', 'n_images', 'scene_size', 'data_seed'} and told[0]['data'] == told[1]['data']

def test_tiny_trains(root):
    "Swin-T and BERT-base by the options of RefCOCO: one step of two parts reaches every layer"
    s = Training(root=root, dataset='refcoco', size='tiny', img_size=64, tokenizer='words', pretrained=False, bs=4,
                       accumulate=2, checkpoint=True)
    set_seed(0)
    model = start_model(s, refer := open_data(s))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn = refer_learner(training_loaders(s, refer, model), model, s.lr, wd=0, parts=s.accumulate, checkpoint=s.checkpoint,
                          cbs=ShortEpochCallback(.1))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []

def test_several_data_sets_train_together(train, root, tmp_path, capsys):
    "Two data sets of the same files have twice the refs; what one holds out, the other may not train on"
    for name in 'refcoco', 'refcoco+': shutil.copytree(root/'refcoco', tmp_path/'joint'/name)
    line = f'--root {tmp_path}/joint --dataset refcoco,refcoco+ --size nano --epochs 1 {OPTIONS}'
    joined = json.loads((train(line)/'settings.json').read_text())
    alone = Refer(root, 'refcoco', 'unc').counts()
    assert joined['data']['train']['refs'] == 2*alone['train']['refs'] and joined['data']['val'] == alone['val']
    assert joined['options']['split_by'] == 'unc,unc' and 'left out of refcoco+' in capsys.readouterr().out

@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_16_bits_train(train, monkeypatch, precision):
    "Where a CPU emulates them the command refuses; here it may"
    monkeypatch.setattr('sadlr.training.precision_trouble', lambda *args: '')
    out = train(f'--size nano --epochs 1 --bs 8 --img_size 32 --precision {precision}')
    assert all(t.isfinite().all() for t in load_file(out/'model'/'model.safetensors').values())

def test_paper_recipe_is_the_default_for_every_refer_data_set():
    "Section 4.2 and design.md"
    for dataset, partition in [('refcoco', 'unc'), ('refcoco+', 'unc'), ('refcocog', 'umd'), ('mine', 'own')]:
        s = Training(dataset=dataset)
        assert (s.encoder, s.head, s.size, s.iterations, s.img_size) == ('lavt', 'sadlr', 'base', 3, 480)
        assert (s.language, s.tokenizer, s.pretrained, s.loss) == ('bert', 'bert-base-uncased', True, 'dice')
        assert (s.lr, s.wd, s.bs, s.epochs, s.split_by, s.out) == (5e-5, 1e-2, 32, 40, partition, Path('runs')/dataset)
        assert (s.bert_layers, s.bert_dropout, s.precision, s.accumulate, s.checkpoint) == (None, None, 'fp32', 1, False)
    with torch.device('meta'): model = create_model(s.encoder, s.head, s.size, s.img_size, language=s.language)
    assert model.encoder.backbone.layers[-1].blocks[-1].drop_path1.drop_prob == pytest.approx(.3)
    assert model.encoder.backbone.window_size == 12 and model.language.dim == 768 and model.encoder.channels == 512

def test_accumulation_takes_the_same_steps(root):
    "An epoch in batches of 8 and in parts of 4 and 2 is one training, batch statistics aside"
    def weights(parts):
        set_seed(0)
        dls = refer_dataloaders(Refer(root, 'shapes', 'attributes'), img_size=32, bs=8//parts, num_workers=0, device='cpu')
        model = create_model(size='nano', img_size=32, tokenizer=dls.tokenizer).double()
        for m in model.modules():
            if isinstance(m, bn_types): m.requires_grad_(False) # what `BnFreeze` asks for
        learn = refer_learner(dls, model, lr=1e-3, parts=parts, metrics=[], cbs=[BnFreeze()])
        learn.remove_cb(ProgressCallback)
        with learn.no_logging(): learn.fit(1)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), len(set(learn.recorder.lrs))
    (whole, steps), *others = [weights(parts) for parts in (1, 2, 4)]
    for other, other_steps in others:
        assert other_steps == steps > 2
        torch.testing.assert_close(other, whole, rtol=1e-6, atol=1e-8)

def test_lavts_habits(train, root):
    "Frozen layers stay as they were, the loss is the cross-entropy, and no dropout is drawn"
    line = '--size nano --epochs 1 --bs 8 --img_size 32 --bert_layers 1 --bert_dropout 0 --loss cross_entropy'
    out = train(line)
    s = Training(root=root, n_images=10, size='nano', img_size=32, bert_layers=1, bert_dropout=0.)
    set_seed(s.seed, reproducible=True)
    before, after = start_model(s, open_data(s)).state_dict(), load_file(out/'model'/'model.safetensors')
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    of_bert = {name.removeprefix('language.bert.') for name in changed if name.startswith('language.')}
    assert of_bert and all(name.startswith('encoder.layer.0.') for name in of_bert)
    assert json.loads((out/'settings.json').read_text())['options']['loss'] == 'cross_entropy'
    assert history(out) != history(train(line.replace('cross_entropy', 'dice')))

def test_start_from_a_saved_model(train):
    "Its weights are where the training begins: with a learning rate of nothing they are where it ends"
    first = train('--size nano --epochs 1 --bs 8 --img_size 32')
    second = train(f'--epochs 1 --bs 8 --lr 1e-12 --wd 0 --start {first}/model')
    weights = [load_file(run/'model'/'model.safetensors') for run in (first, second)]
    trained = [name for name in weights[0] if 'running' not in name and 'batches' not in name]
    for name in trained: torch.testing.assert_close(weights[1][name], weights[0][name], rtol=0, atol=1e-8)

@pytest.fixture
def lavt(root, tmp_path):
    "A small checkpoint as LAVT publishes them, and the folder of its tokenizer"
    tokenizer = word_tokenizer([s.raw for ref in Refer(root, 'shapes', 'attributes').refs() for s in ref.sentences])
    tokenizer.save_pretrained(tmp_path/'words')
    bert = dict(hidden_size=64, num_attention_heads=1, num_hidden_layers=2, intermediate_size=32)
    set_seed(1)
    model = create_model(head='classifier', size='nano', img_size=64, tokenizer=tokenizer, language_options=bert,
                         encoder_options=dict(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4,
                                              fusion_heads=1))
    theirs = {}
    for name, t in model.state_dict().items():
        their, our = next((k, v) for k, v in PREFIXES.items() if name.startswith(v))
        theirs[their + name.removeprefix(our)] = t[..., None] if '.fusion.' in their and t.ndim == 2 else t
    torch.save(dict(model=theirs, args=Namespace(model='lavt_one', img_size=64)), tmp_path/'lavt.pth')
    return tmp_path/'lavt.pth', tmp_path/'words'

def test_start_from_a_published_checkpoint(train, lavt, root, capsys, monkeypatch):
    "The new head learns on top of LAVT's encoder, which is where the training begins; LAVT itself can be scored"
    path, words = lavt
    out = train(f'--epochs 1 --bs 8 --lr 1e-12 --wd 0 --iterations 2 --start {path} --tokenizer {words}')
    config = json.loads((out/'model'/'config.json').read_text())
    assert (config['head'], config['img_size'], config['encoder_options']['embed_dim']) == ('sadlr', 64, 8)
    assert 'oIoU_1,oIoU_2,time' in (out/'history.csv').read_text()
    theirs, ours = load_lavt_ris(path, tokenizer=words), load_file(out/'model'/'model.safetensors')
    for name, p in theirs.named_parameters():
        if not name.startswith('head.'): torch.testing.assert_close(ours[name], p.data, rtol=0, atol=1e-8)
    monkeypatch.setattr('sadlr.models.lavt_ris.load_lavt_ris', partial(load_lavt_ris, tokenizer=words))
    capsys.readouterr()
    sadlr_evaluate(str(path), root, split='test')
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ['shapes', 'iteration', '1']

def test_a_tokenizer_that_does_not_fit(train, lavt, tmp_path):
    "Of more tokens or of fewer: the ids would mean other words"
    for phrases in ['star'], [f'word{i}' for i in range(500)]:
        word_tokenizer(phrases).save_pretrained(tmp_path/'other')
        with pytest.raises(SystemExit, match='tokens, the language encoder .* use the one it was trained with'):
            train(f'--epochs 1 --bs 8 --start {lavt[0]} --tokenizer {tmp_path}/other')

def test_cleaned_sentences(train, root, tmp_path):
    "With `--sentence sent` nothing else is read: here it is one word for all"
    shutil.copytree(root/'refcoco', tmp_path/'cleaned'/'refcoco')
    file = tmp_path/'cleaned'/'refcoco'/'refs(unc).p'
    refs = pickle.loads(file.read_bytes())
    for ref in refs:
        for sentence in ref['sentences']: sentence['sent'] = 'thing'
    file.write_bytes(pickle.dumps(refs))
    out = train(f'--dataset refcoco --root {file.parents[1]} --size nano --epochs 1 --sentence sent {OPTIONS}')
    assert len(json.loads((out/'model'/'tokenizer.json').read_text())['model']['vocab']) == 6 # five are special
    sadlr_evaluate(str(out/'model'), file.parents[1], 'refcoco', sentence='sent')
    with pytest.raises(ValueError, match="sentence='clean': choose one of"):
        sadlr_evaluate(str(out/'model'), file.parents[1], 'refcoco', sentence='clean')

def test_offline_it_says_what_is_missing(root, tmp_path):
    "A console script, from its import on: without a network and the weights the paper's recipe ends in one line, soon"
    command = [Path(sys.executable).parent/'sadlr_train', '--dataset', 'refcoco', '--root', root, '--out', tmp_path/'run']
    env = dict(os.environ, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and not (tmp_path/'run').exists()
    assert done.stderr.startswith('sadlr_train: ') and 'bert-base-uncased' in done.stderr
