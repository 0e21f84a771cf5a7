"Protocols, evaluation and files of masks against slow and obvious references; files from strangers"
import json, random, signal, sys
from fractions import Fraction
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from sadlr import cli
from sadlr.data.block import Sample, refer_samples
from sadlr.data.refer import PARTITIONS
from sadlr.data.shapes import make_shapes
from sadlr.evaluation import evaluate, predict_masks
from sadlr.published import published, read_published
from sadlr.metrics import IoURecord, score, summarise
from sadlr.models.build import create_model
from sadlr.predictions import read_predictions, save_predictions, score_predictions
from sadlr.preprocess import image_tensor, tokenize, word_tokenizer

NAMES = 'lavt', 'cris', 'lisa'

def slow_scores(preds, targets, protocol):
    "Pixel by pixel, in fractions"
    threshold = {'lavt': .5, 'cris': .35, 'lisa': .5}[protocol]
    ious, all_i, all_u = [], 0, 0
    for pred, target in zip(preds, targets):
        i = u = 0
        for p_row, t_row in zip(pred, target):
            for p, t in zip(p_row, t_row):
                p = bool(p > threshold) if isinstance(p, np.floating) else bool(p)
                i, u = i + (p and bool(t)), u + (p or bool(t))
        ious.append(Fraction(i, u) if u else Fraction(int(protocol == 'lisa')))
        all_i, all_u = all_i + i, all_u + u
    scores = {}
    for tenths in range(5, 10):
        limit = Fraction(tenths, 10)
        hits = sum(x > limit if protocol == 'cris' else x >= limit for x in ious)
        scores[f'P@0.{tenths}'] = Fraction(hits, len(ious))
    scores['mIoU'] = sum(ious)/len(ious)
    scores['oIoU'] = Fraction(all_i, all_u) if all_u else Fraction(0)
    if protocol == 'lisa': scores |= {'gIoU': scores['mIoU'], 'cIoU': scores['oIoU']}
    return {k: 100*float(v) for k, v in scores.items()}

rng = np.random.default_rng(0)
def noise(height, width, share=.5): return rng.random((height, width)) < share

def one_pixel(y, x):
    mask = np.zeros((6, 9), bool)
    mask[y, x] = True
    return mask

def tie(tenths):
    "Ten pixels, some of them found: an IoU exactly at a threshold"
    true = np.zeros((5, 7), bool)
    true.flat[:10] = True
    found = np.zeros((5, 7), bool)
    found.flat[:tenths] = True
    return found, true

empty, full = np.zeros((6, 9), bool), np.ones((6, 9), bool)
MASKS = {
    'empty truth': [(noise(6, 9), empty)], 'empty prediction': [(empty, noise(6, 9))], 'both empty': [(empty, empty)],
    'full': [(full, full)], 'full prediction': [(full, noise(6, 9, .2))], 'full truth': [(noise(6, 9), full)],
    'one pixel hit': [(one_pixel(2, 3), one_pixel(2, 3))], 'one pixel missed': [(one_pixel(2, 3), one_pixel(3, 2))],
    'ties': [tie(tenths) for tenths in range(5, 10)], 'one tie': [tie(7)],
    'one by one': [(noise(1, 1, p), noise(1, 1, t)) for p in (0, 1) for t in (0, 1)],
    'odd sizes': [(noise(h, w), noise(h, w, .7)) for h, w in [(1, 7), (7, 1), (5, 3), (13, 29), (31, 17)]],
    'random': [(noise(11, 8, p), noise(11, 8, t)) for p in (0, .05, .5, .95, 1) for t in (0, .05, .5, .95, 1)]}

def as_is(mask): return mask
def as_tensor(mask): return torch.from_numpy(mask)
def as_bytes(mask): return mask.astype(np.uint8)*255
def as_view(mask): return np.asfortranarray(mask)[::-1, ::-1][::-1, ::-1]
def as_image(mask): return Image.fromarray(mask)
def as_lists(mask): return mask.tolist()

@pytest.mark.parametrize('protocol', NAMES)
@pytest.mark.parametrize('case', MASKS)
@pytest.mark.parametrize('form', [as_is, as_tensor, as_bytes, as_view, as_image, as_lists])
def test_masks(protocol, case, form):
    preds, targets = zip(*MASKS[case])
    found = score(map(form, preds), map(form, targets), protocol)
    assert found == pytest.approx(slow_scores(preds, targets, protocol), rel=1e-12, abs=1e-12)

@pytest.mark.parametrize('protocol', NAMES)
@pytest.mark.parametrize('kind', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('sizes', [[(1, 1)], [(9, 14)], [(1, 5), (12, 7), (31, 3)]*3])
def test_probabilities(protocol, kind, sizes):
    # many pixels exactly on a threshold, which is not above it
    values = np.array([0, .2, .35, .36, .4, .5, .51, .8, 1], kind)
    preds = [rng.choice(values, size) for size in sizes]
    targets = [noise(*size) for size in sizes]
    found = score(preds, targets, protocol)
    assert found == pytest.approx(slow_scores(preds, targets, protocol), rel=1e-12, abs=1e-12)
    assert score(map(torch.from_numpy, preds), map(torch.from_numpy, targets), protocol) == found

@pytest.mark.parametrize('protocol', NAMES)
def test_counts_of_any_order_and_batch(protocol):
    counts = rng.integers(0, 1000, (200, 3)).tolist() + [[0, 0, 0]]*5
    pairs = np.array([(i, i + extra) for i, extra, _ in counts])
    whole = summarise(*pairs.T, protocol)
    assert summarise(*rng.permutation(pairs).T, protocol) == whole
    record = IoURecord()
    record.pairs = [pairs[a:b, None] for a, b in [(0, 1), (1, 64), (64, 128), (128, 205)]]
    assert record.summary(protocol) == [whole]

# ---- a model, on photos of many sizes

@pytest.fixture(scope='module')
def refer(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('data'), n_images=40)

@pytest.fixture(scope='module')
def model(refer):
    torch.manual_seed(23)
    phrases = [s.raw for ref in refer.refs('val') for s in ref.sentences]
    return create_model(size='nano', img_size=32, tokenizer=word_tokenizer(phrases)).eval()

@pytest.fixture(scope='module')
def photos(refer):
    "Samples at sizes of their own, one of them without an object"
    sizes = [(64, 64), (33, 70), (91, 40), (32, 32), (17, 5), (64, 63)]
    samples = []
    for k, sample in enumerate(list(refer_samples(refer, 'val'))[:18]):
        h, w = sizes[k % len(sizes)]
        mask = Image.fromarray(coco_mask.decode(sample.rle)).resize((w, h), Image.Resampling.NEAREST)
        mask = np.asfortranarray(mask)*(k != 4)
        photo = Image.open(sample.image).convert('RGB').resize((w, h))
        samples.append(Sample(photo, sample.phrase, coco_mask.encode(mask)))
    return samples

class Reader(torch.nn.Module):
    "Score maps that depend on the phrase alone, so that they are the same to the last bit in any batch"
    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer, self.config, self.weight = tokenizer, dict(img_size=32), torch.nn.Parameter(torch.zeros(1))

    def forward(self, image, token_ids):
        seeds = (token_ids*torch.arange(1, 21)).sum(1).tolist()
        return torch.stack([torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

def slow_pairs(model, samples, protocol):
    "One sample at a time, both channels up-sampled, softmax; masks by PIL"
    for sample in samples:
        true = coco_mask.decode(sample.rle)
        if protocol == 'lavt': true = np.asarray(Image.fromarray(true).resize((32, 32), Image.Resampling.NEAREST))
        with torch.no_grad():
            scores = model(image_tensor(sample.image, 32)[None], tokenize(sample.phrase, model.tokenizer)[0])[0]
        chances = F.interpolate(scores, true.shape, mode='bilinear', align_corners=True).softmax(1)[:, 1]
        yield chances.numpy(), true.astype(bool)

@pytest.mark.parametrize('protocol', NAMES)
@pytest.mark.parametrize('bs', [1, 5, 64])
def test_evaluate(model, photos, protocol, bs):
    reader = Reader(model.tokenizer)
    pairs = list(slow_pairs(reader, photos, protocol))
    found = evaluate(reader, photos, bs, progress=False, protocol=protocol)
    for i, scores in enumerate(found):
        slow = slow_scores([p[i] for p, _ in pairs], [t for _, t in pairs], protocol)
        assert scores == pytest.approx(slow, rel=1e-12)
    assert len(found) == 3 and 0 < found[-1]['oIoU'] < 100

def test_the_generator_leaves_the_mode_behind(model, photos):
    model.train()
    some = predict_masks(model, photos, bs=2, progress=False)
    next(some)
    assert not model.training
    some.close() # an evaluation that was interrupted
    assert model.training and not model.eval().training

# ---- files

@pytest.fixture(scope='module')
def files(model, refer, tmp_path_factory):
    "The masks of two splits under each protocol"
    folder = tmp_path_factory.mktemp('predictions')
    for p in NAMES: save_predictions(folder/f'{p}.json', model, refer, ['val', 'test'], progress=False, protocol=p)
    return folder

@pytest.mark.parametrize('protocol', NAMES)
@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_file_scores_as_its_model(model, refer, files, protocol, split):
    direct = evaluate(model, refer_samples(refer, split), progress=False, protocol=protocol)
    assert score_predictions(read_predictions(files/f'{protocol}.json'), refer, split, protocol) == direct
    assert 0 < direct[-1]['oIoU']

def test_the_file_is_coco(refer, files):
    "pycocotools alone reads the masks"
    records = json.loads((files/'lisa.json').read_text())
    sentences = {s.sent_id: ref for ref in refer.refs() for s in ref.sentences}
    last = [r for r in records if r['iteration'] == 3 and r['split'] == 'val']
    assert len(last) == refer.counts()['val']['sentences']
    assert all(sentences[r['sent_id']].ann_id == r['ann_id'] and r['dataset'] == 'shapes' for r in last)
    masks = [coco_mask.decode(r['segmentation']).astype(bool) for r in last]
    found = score(masks, [refer.mask(sentences[r['sent_id']]) for r in last], 'lisa')
    assert found == score_predictions(read_predictions(files/'lisa.json'), refer, 'val', 'lisa')[-1]

def test_another_models_file(refer, tmp_path):
    "Only what is needed, in any order, without iterations, with runs as lists; perfect masks"
    records = []
    for ref in refer.refs('test'):
        flat = np.concatenate([[0], refer.mask(ref).ravel(order='F').astype(int)])
        edges = [0, *np.flatnonzero(np.diff(flat)).tolist(), flat.size - 1]
        runs = np.diff(edges).tolist()
        records += [{'sent_id': s.sent_id, 'segmentation': {'size': [64, 64], 'counts': runs}, 'score': 1.}
                    for s in ref.sentences]
    random.Random(0).shuffle(records)
    (tmp_path/'other.json').write_text(json.dumps(records))
    for protocol in NAMES:
        scores, = score_predictions(read_predictions(tmp_path/'other.json'), refer, 'test', protocol)
        assert set(scores.values()) == {100.}

@pytest.fixture
def no_hang():
    "Ends a test that does not come back"
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('no answer for 20 seconds'))
    signal.alarm(20)
    yield
    signal.alarm(0)

def test_flipped_bits(refer, files, tmp_path, no_hang):
    "A damaged file is scored or refused, never a crash, a hang, or another error"
    whole, chance, refused = (files/'lisa.json').read_bytes(), random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)): damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        (tmp_path/'damaged.json').write_bytes(damaged)
        try: score_predictions(read_predictions(tmp_path/'damaged.json'), refer, 'val', 'lisa')
        except ValueError as e: refused += len(str(e).splitlines()) == 1
    assert refused > 30

def square(counts, size=(64, 64)): return dict(size=size, counts=counts)

@pytest.mark.parametrize('segmentation, told', [
    (square('PP3'), 'do not add up'), (square('0' + chr(111)*8), ''), (square('5\x00'), ''), (square('\ud7ff'), ''),
    (square(''), ''),
    (square([4096, -5, 5]), 'do not add up'), (square([2**62, 2**62]), 'do not add up'), (square([]), 'do not add up'),
    (square('PP4', (64, 63)), "[64, 63] is not the image's [64, 64]"), (square([-1], (-64, -64)), 'is not'),
    (square([10**10], (10**5, 10**5)), "is not the image's")])
def test_runs_that_are_none(refer, files, tmp_path, no_hang, segmentation, told):
    records = json.loads((files/'lisa.json').read_text())
    records[5]['segmentation'] = segmentation
    (tmp_path/'bad.json').write_text(json.dumps(records))
    with pytest.raises(ValueError, match=f'sentence {records[5]["sent_id"]}') as e:
        score_predictions(read_predictions(tmp_path/'bad.json'), refer, 'val', 'lisa')
    assert told in str(e.value)

@pytest.mark.parametrize('side', [10**5, 0, -32])
def test_squares_that_are_none(refer, files, tmp_path, side):
    records = json.loads((files/'lavt.json').read_text())
    for r in records: r['segmentation'] = square([side*side], (side, side))
    (tmp_path/'bad.json').write_text(json.dumps(records))
    with pytest.raises(ValueError, match="network's square, of at most 4096 pixels"):
        score_predictions(read_predictions(tmp_path/'bad.json'), refer, 'val')

@pytest.mark.parametrize('change, told', [
    (lambda found: found[1:], r'missing: 1 \(sent_id {0}\)'),
    (lambda found: found + found[:1], r'repeated: 1 \(sent_id {0}\)'),
    (lambda found: [found[0] | {'sent_id': 10**9}, *found[1:]],
     r'unknown: 1 \(sent_id 1000000000\); missing: 1 \(sent_id {0}\)'),
    (lambda found: [], r'missing: \d+ \(sent_id {0}, '),
    (lambda found: [found[0] | {'dataset': 'refcoco'}, *found[1:]], "sentence {0} has dataset 'refcoco', not 'shapes'"),
    (lambda found: [found[0] | {'ann_id': 0}, *found[1:]], 'sentence {0} has ann_id 0, not ')])
def test_sentences_that_do_not_fit(refer, files, tmp_path, change, told):
    records = json.loads((files/'lisa.json').read_text())
    (tmp_path/'bad.json').write_text(json.dumps(change(records)))
    with pytest.raises(ValueError, match=told.format(records[0]['sent_id'])):
        score_predictions(read_predictions(tmp_path/'bad.json'), refer, 'val', 'lisa')

def test_a_repeated_number_in_the_data(refer, files, monkeypatch):
    "Where two objects share a sentence's number, no file can be scored"
    monkeypatch.setattr(type(refer), 'refs', lambda self, split=None, refs=type(refer).refs: [*refs(self, split)]*2)
    with pytest.raises(ValueError, match='is not unique'):
        score_predictions(read_predictions(files/'lisa.json'), refer, 'val', 'lisa')

# ---- published rows

def test_published_rows_are_the_papers():
    "Sums over the columns, taken from the printed tables"
    tables = read_published()
    assert 'AAAI 2023' in tables['source'] and [len(tables[t]) for t in ('table1_oIoU', 'table2_mIoU')] == [18, 2]
    used = ('refcoco', 'unc'), ('refcoco+', 'unc'), ('refcocog', 'umd'), ('refcocog', 'google')
    ours = [published(d, p, s)[-1] for d, p in used for s in PARTITIONS[d][p] if s != 'train']
    assert [row['oIoU'] for row in ours] == [74.24, 76.25, 70.06, 64.28, 69.09, 55.19, 63.60, 63.56, 61.16]
    assert [row['mIoU'] for row in ours] == [76.52, 77.98, 73.49, 68.94, 72.71, 61.10, 67.47, 67.73, 65.21]
    assert published('shapes', 'attributes', 'val') == published('refcoco', 'google', 'val') == []

# ---- the command

@pytest.fixture
def shell(model, refer, tmp_path, monkeypatch, capsys):
    "Run `sadlr_evaluate` in a folder with data and a model; its output"
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(Path('runs/shapes/model'))
    def run(line, *options):
        words = ['--root', str(refer.root), *line.split(), *map(str, options)]
        monkeypatch.setattr(sys, 'argv', ['sadlr_evaluate', *words])
        cli.sadlr_evaluate()
        return capsys.readouterr().out
    return run

def test_save_and_score_again(shell):
    direct = shell('--split all --protocol cris')
    assert shell('--split all --protocol cris --save masks.json') == direct
    assert shell('--split all --protocol cris --predictions masks.json') == direct
    heads = [line for line in direct.splitlines() if line.startswith('shapes')]
    assert [line.split()[2] for line in heads] == ['train:', 'val:', 'test:'] and 'sentences; protocol cris' in heads[0]

def test_no_image_is_needed_for_a_file(shell, files, refer, tmp_path):
    for name in 'instances.json', 'refs(attributes).p':
        (tmp_path/'shapes').mkdir(exist_ok=True)
        (tmp_path/'shapes'/name).write_bytes((refer.root/'shapes'/name).read_bytes())
    assert 'iteration' in shell('--protocol lisa', '--root', tmp_path, '--predictions', files/'lisa.json')

@pytest.mark.parametrize('line, told', [
    ('--protocol coco', "'lavt', 'cris', 'lisa'"), ('--split val,testA', "'train', 'val', 'test'"),
    ('--predictions none.json', 'none.json'), ('--save nowhere/masks.json', 'no folder nowhere'),
    ('--save runs', 'runs exists'), ('--save masks.json --shuffle', 'one of shuffle, predictions and save'),
    ('--predictions runs/shapes/model/config.json', 'config.json holds no predictions')])
def test_mistake(shell, line, told):
    with pytest.raises(SystemExit) as end: shell(line)
    said = end.value.code
    assert told in said and said.startswith('sadlr_evaluate: ') and len(said.splitlines()) == 1
