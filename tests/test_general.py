"Refs that mean none, one or several objects, as gRefCOCO has them: files, masks, training steps and GRES's scores"
import json, pickle, random, sys
from collections import Counter
from fractions import Fraction
from functools import partial
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from pycocotools import mask as coco_mask
from sadlr import cli, predict
from fastai.callback.core import Callback
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from sadlr.callbacks import AuxiliaryLoss, ExistenceLoss
from sadlr.data.block import refer_dataloaders, refer_samples
from sadlr.data.custom import refer_from_table
from sadlr.data.download import check_data
from sadlr.data.joint import Joint
from sadlr.data.refer import Refer
from sadlr.evaluation import evaluate, predict_existence, shuffle_phrases
from sadlr.learner import refer_learner
from sadlr.losses import LOSSES
from sadlr.masks import from_rle
from sadlr.metrics import PROTOCOLS, IoURecord, best_threshold, score, summarise
from sadlr.models.build import HEADS, ReferSegmenter, bundled, create_model
from sadlr.phrases import note_absent
from sadlr.predictions import read_predictions, save_predictions, score_predictions
from sadlr.preprocess import word_tokenizer
from sadlr.training import Training, set_threshold, train, trained_model

class StillNorms(Callback):
    "Leave batch statistics out, which depend on the size of a part"
    def before_batch(self):
        for m in self.model.modules():
            if 'BatchNorm' in type(m).__name__: m.eval()

H, W, N = 40, 56, 12 # an image's sides, and how many images
SPLITS = ['train']*8 + ['val']*2 + ['testA', 'testB']

def pixels(i, k):
    "Object k of image i: boxes that overlap, the last one of a single pixel"
    mask = np.zeros((H, W), bool)
    if k == 3: mask[i, i + 1] = True
    else: mask[3*k + i:3*k + 9 + i, 9*k:9*k + 12 + i] = True
    return mask

def segmentation(i, k):
    "Polygons, run lengths as a list, compressed ones"
    mask = np.asfortranarray(pixels(i, k), np.uint8)
    if k == 0: return [[0, i, 12 + i, i, 12 + i, 9 + i, 0, 9 + i]]
    if k == 1: return dict(size=[H, W], counts=np.diff([0, *np.flatnonzero(np.diff(mask.ravel('F'), prepend=0)), H*W]).tolist())
    return dict(size=[H, W], counts=coco_mask.encode(mask)['counts'].decode())

MEANT = [], [0], [1, 2], [0, 1, 2, 3], [3], [] # the objects of each ref of an image

def contents():
    images = [dict(id=i, file_name=f'COCO_train2014_{i:012}.jpg', height=H, width=W) for i in range(N)]
    annotations = [dict(id=10*i + k, image_id=i, category_id=k + 1, segmentation=segmentation(i, k), iscrowd=int(k == 2))
                   for i in range(N) for k in range(4)]
    refs = []
    for i in range(N):
        for k, objects in enumerate(MEANT):
            ref_id, phrases = 10*i + k, [f'thing {k}', f'the things {len(objects)}'][:1 + (i + k) % 2]
            sentences = [dict(sent_id=10*ref_id + n, raw=p, sent=p, tokens=p.split()) for n, p in enumerate(phrases)]
            refs.append(dict(ref_id=ref_id, ann_id=[10*i + o for o in objects] or [-1], image_id=i, split=SPLITS[i],
                             category_id=[o + 1 for o in objects] or [-1], no_target=not objects, file_name='x.jpg',
                             sent_ids=[s['sent_id'] for s in sentences], sentences=sentences))
    return refs, dict(images=images, annotations=annotations, categories=[dict(id=k + 1, name=f'k{k}') for k in range(4)])

def dump(refs, suffix): return json.dumps(refs).encode() if suffix == 'json' else pickle.dumps(refs, 2)

def write(root, suffix='json', change=lambda refs, instances: None, name='grefcoco'):
    refs, instances = contents()
    change(refs, instances)
    (root/name/'images').mkdir(parents=True, exist_ok=True)
    (root/name/f'grefs(unc).{suffix}').write_bytes(dump(refs, suffix))
    (root/name/'instances.json').write_text(json.dumps(instances))
    rng = np.random.default_rng(0)
    for image in instances['images']:
        picture = Image.fromarray(rng.integers(0, 255, (H, W, 3), np.uint8))
        picture.save(root/name/'images'/image['file_name'])
    return root

@pytest.fixture(scope='module')
def root(tmp_path_factory): return write(tmp_path_factory.mktemp('general'))

@pytest.fixture(scope='module')
def refer(root): return Refer(root, 'grefcoco', 'unc')

# ---- reading

def test_masks_are_unions(refer):
    for ref, objects in zip(refer.refs(), MEANT*N):
        slow = np.zeros((H, W), bool)
        for k in objects: slow |= pixels(ref.image_id, k)
        np.testing.assert_array_equal(refer.mask(ref), slow)
        assert len(ref.ann_ids) == len(objects) and refer.rle(ref)['size'] == [H, W]

@pytest.mark.parametrize('suffix', ['p', 'json'])
@pytest.mark.parametrize('name', ['grefcoco', 'mine'])
def test_json_and_pickle_give_the_same(tmp_path, refer, suffix, name):
    again = Refer(write(tmp_path, suffix, name=name), name, 'unc')
    assert list(again.refs()) == list(refer.refs()) and again.counts() == refer.counts()
    assert check_data(tmp_path, name) == []

def test_counts(refer):
    per_image = [sum(1 + (i + k) % 2 for i in range(8) for k, o in enumerate(MEANT) if wanted(len(o)))
                 for wanted in (lambda n: n == 0, lambda n: n > 1)]
    assert refer.counts()['train'] == dict(images=8, refs=48, sentences=72) | {'for none': per_image[0],
                                                                              'for several': per_image[1]}
    assert str(refer).splitlines()[1].endswith(f'72 sentences, {per_image[0]} for none, {per_image[1]} for several')

def test_a_list_of_one_is_the_number(tmp_path):
    "RefCOCO's refs as gRefCOCO would write them: the same masks and samples, to the last byte"
    def lists(refs, instances): refs[:] = [r for r in refs if len(r['ann_id']) == 1 and r['ann_id'] != [-1]]
    def numbers(refs, instances):
        lists(refs, instances)
        for r in refs: r.update(ann_id=r['ann_id'][0], category_id=r['category_id'][0])
        for r in refs: del r['no_target']
    a, b = (Refer(write(tmp_path/n, 'p', change, 'refcoco'), 'refcoco') for n, change in dict(a=lists, b=numbers).items())
    assert type(a.refs()[0].ann_id) is tuple and type(b.refs()[0].ann_id) is int and a.counts() == b.counts()
    assert [(r.ann_ids, a.rle(r)) for r in a.refs()] == [(r.ann_ids, b.rle(r)) for r in b.refs()]
    def plain(refer): return [(s.image.name, s.phrase, s.rle) for s in refer_samples(refer, 'train', draw=True)]
    assert plain(a) == plain(b)

def test_an_annotation_that_stands_twice_counts_once(tmp_path, refer):
    "A union has it once; one object alone, named twice, is not several"
    def twice(refs, instances):
        for r in refs:
            if r['ann_id'] != [-1]: r.update({name: r[name] + r[name][:1] for name in ('ann_id', 'category_id')})
    again = Refer(write(tmp_path, change=twice), 'grefcoco')
    assert [(r, again.rle(r)) for r in again.refs()] == [(r, refer.rle(r)) for r in refer.refs()]
    assert again.counts() == refer.counts() and check_data(tmp_path, 'grefcoco') == []

def test_the_usual_protocol(tmp_path, refer):
    "GRES's where a phrase may mean none or several, RefCOCO-M's own, otherwise LAVT's"
    def one_each(refs, instances): refs[:] = [r for r in refs if len(r['ann_id']) == 1 and r['ann_id'] != [-1]]
    plain = {name: Refer(write(tmp_path, change=one_each, name=name), name, 'unc') for name in ('refcoco', 'refcoco-m')}
    assert [cli.usual_protocol(r) for r in (refer, *plain.values())] == ['gres', 'lavt', 'lisa']

def test_real_annotations_together(tmp_path):
    "What two and three real outlines of COCO cover together, beside pycocotools' own union of their masks"
    real = next((p/'shared/real/refcoco_records.json' for p in Path(__file__).parents
                 if (p/'shared/real/refcoco_records.json').exists()), None)
    if not real: pytest.skip('no shared/real/refcoco_records.json beside the project')
    instances = json.loads(real.read_text())['instances']
    images, of_image = {i['id']: i for i in instances['images']}, {}
    for a in instances['annotations']: of_image.setdefault(a['image_id'], []).append(a)
    chosen = [(i, of[:n]) for i, of in of_image.items() for n in (0, 1, 2, 3)]
    refs = [dict(ref_id=k, ann_id=[a['id'] for a in some] or [-1], image_id=i, split='val', no_target=not some,
                 category_id=[a['category_id'] for a in some] or [-1], sentences=[dict(sent_id=k, raw='it', sent='it')])
            for k, (i, some) in enumerate(chosen)]
    (tmp_path/'grefcoco').mkdir()
    (tmp_path/'grefcoco'/'grefs(unc).json').write_text(json.dumps(refs))
    (tmp_path/'grefcoco'/'instances.json').write_text(json.dumps(instances))
    refer = Refer(tmp_path, 'grefcoco')
    for ref, (i, some) in zip(refer.refs(), chosen, strict=True):
        h, w = images[i]['height'], images[i]['width']
        masks = [coco_mask.decode(coco_mask.frPyObjects(a['segmentation'], h, w)).any(2) for a in some]
        np.testing.assert_array_equal(refer.mask(ref), np.any([np.zeros((h, w), bool), *masks], axis=0))
    assert len(chosen) == 8 and refer.counts()['val'] == dict(images=2, refs=8, sentences=8) | {'for none': 2, 'for several': 4}

# ---- files that make no sense

def change_ref(**fields): return lambda refs, instances: refs[9].update(fields)

ODD = {
    'an empty list': (change_ref(ann_id=[]), r'ref 13: its ann_id is \[\], and where nothing is meant it is \[-1\]'),
    'nothing and something': (change_ref(ann_id=[-1, 10]), r'ref 13: its ann_id is \[-1, 10\], and -1, for nothing, stands alone'),
    'nothing twice': (change_ref(ann_id=[-1, -1]), 'ref 13: .* stands alone'),
    'strings': (change_ref(ann_id=['left', 'cup']), r'Expected `int`, got `str` - at `\$\[9\].ann_id\[0\]` \(ref 13\)'),
    'a boolean': (change_ref(ann_id=True), r'got `bool` - at `\$\[9\].ann_id` \(ref 13\)'),
    'booleans': (change_ref(ann_id=[True, False]), r'got `bool` .* \(ref 13\)'),
    'nothing at all': (change_ref(ann_id=None), r'got `null` .* \(ref 13\)'),
    'a list in a list': (change_ref(ann_id=[[10]]), r'got `array` .* \(ref 13\)'),
    'an object': (change_ref(ann_id={'id': 10}), r'got `object` .* \(ref 13\)'),
    'a fraction': (change_ref(ann_id=[10.5]), r'got `float` .* \(ref 13\)'),
    'a number below': (change_ref(ann_id=[-2]), r'>= -1 .* \(ref 13\)'),
    'a large number': (change_ref(ann_id=[2**63]), r'Expected `int` <= .* \(ref 13\)'),
    'no list of kinds': (change_ref(category_id=[]), r'ref 13: its category_id is \[\]'),
    'kinds with nothing': (change_ref(category_id=[1, -1]), r'ref 13: its category_id is \[1, -1\]'),
    'not nothing': (change_ref(no_target=True), r'ref 13: its no_target is True, its ann_id'),
    'not something': (change_ref(ann_id=[-1]), r'ref 13: its no_target is False, its ann_id \[-1\]'),
    'no answer': (change_ref(no_target='no'), r'got `str` - at `\$\[9\].no_target` \(ref 13\)'),
    'no field': (lambda refs, instances: refs[9].pop('ann_id'), r'missing required field `ann_id` .* \(ref 13\)'),
    'no ref': (lambda refs, instances: refs.__setitem__(9, [13]), r'Expected `object`, got `array` - at `\$\[9\]`')}

@pytest.mark.parametrize('case', ODD)
@pytest.mark.parametrize('suffix', ['p', 'json'])
def test_odd_lists_are_named(tmp_path, case, suffix):
    change, told = ODD[case]
    write(tmp_path, suffix, change)
    with pytest.raises(ValueError, match=told) as error: Refer(tmp_path, 'grefcoco')
    line = str(error.value)
    assert line.startswith(f"{tmp_path/'grefcoco'/f'grefs(unc).{suffix}'} is not a list of refs: ")
    assert '\n' not in line and len(line) < 400 and check_data(tmp_path, 'grefcoco') == [line]

@pytest.mark.parametrize('change, told', [
    (change_ref(ann_id=[11, 21]), r'ref 13 \(annotation 11, 21, image 1\): annotation 21 is of image 2 in .*instances.json'),
    (change_ref(ann_id=[10, 777]), r'ref 13 \(annotation 10, 777, image 1\): annotation 777 is not in'),
    (change_ref(image_id=77, ann_id=[-1], no_target=True), r'ref 13 \(annotation none, image 77\): image 77 is not in')])
def test_lists_that_lead_nowhere(tmp_path, change, told):
    write(tmp_path, change=change)
    with pytest.raises(ValueError, match=told) as error: Refer(tmp_path, 'grefcoco')
    assert '\n' not in str(error.value)

def test_a_hostile_pickle_is_not_run(tmp_path):
    write(tmp_path, 'p')
    class Foreign:
        def __reduce__(self): return open, (str(tmp_path/'written'), 'w')
    (tmp_path/'grefcoco'/'grefs(unc).p').write_bytes(pickle.dumps([Foreign()]))
    with pytest.raises(ValueError, match=r'grefs\(unc\).p was not read: it asks to import'): Refer(tmp_path, 'grefcoco')
    assert not (tmp_path/'written').exists()

def test_one_of_several_without_pixels_is_named(tmp_path):
    "It would be lost in the union"
    write(tmp_path, change=lambda refs, instances: instances['annotations'][5].update(segmentation=[]))
    refer = Refer(tmp_path, 'grefcoco')
    with pytest.raises(ValueError, match='instances.json, annotation 11: the segmentation has no'):
        refer_samples(refer, 'train')
    assert any('annotation 11' in line for line in check_data(tmp_path, 'grefcoco'))

def test_one_of_several_that_covers_nothing_is_named(tmp_path):
    "The union hides it, so the check looks at each"
    flat = [[10, 10, 20, 10, 30, 10]]
    write(tmp_path, change=lambda refs, instances: instances['annotations'][5].update(segmentation=flat))
    assert [line.partition('/')[0] for line in check_data(tmp_path, 'grefcoco')] == [f'grefcoco (unc), ref {k}: ' for k in (12, 13)]
    assert all(line.endswith('annotation 11: no pixel is covered') for line in check_data(tmp_path, 'grefcoco'))

@pytest.mark.parametrize('suffix', ['p', 'json'])
def test_damaged_files(tmp_path, suffix):
    "Flipped bits and cuts: refused in one line, or usable"
    path, draw, ends = write(tmp_path, suffix)/'grefcoco'/f'grefs(unc).{suffix}', random.Random(0), Counter()
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)): data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data[:draw.randrange(len(data))] if draw.random() < .2 else data)
        try:
            refer = Refer(tmp_path, 'grefcoco')
            for split in refer.splits: refer_samples(refer, split)
        except (ValueError, FileNotFoundError) as error:
            assert len(str(error).splitlines()) == 1, str(error)
            ends['refused'] += 1
        else: ends['usable'] += 1
    assert ends['refused'] > 12 and ends['usable']

def test_a_training_stops_before_its_first_step(tmp_path, monkeypatch):
    write(tmp_path, change=ODD['nothing and something'][0])
    monkeypatch.chdir(tmp_path)
    line = '--root . --dataset grefcoco --size nano --img_size 32 --tokenizer words --pretrained false --epochs 1'
    monkeypatch.setattr(sys, 'argv', ['sadlr_train', *line.split()])
    with pytest.raises(SystemExit) as end: cli.sadlr_train()
    assert 'ref 13: its ann_id' in end.value.code and len(end.value.code.splitlines()) == 1
    assert not list(tmp_path.rglob('*.safetensors'))

# ---- samples, steps and trainings

def test_samples(refer):
    samples = refer_samples(refer, 'train')
    assert [bool(coco_mask.area(s.rle)) for s in samples] == [bool(r.ann_ids) for r in refer.refs('train')
                                                             for _ in r.sentences]
    wrong = shuffle_phrases(samples)
    assert all(a.image == b.image and a.rle == b.rle for a, b in zip(samples, wrong))
    _, _, masks = refer_dataloaders(refer, img_size=32, bs=8, num_workers=0, device='cpu').valid.one_batch()
    assert 0 < sum(mask.any().item() for mask in masks) < 8

PARTS = [(e, 'sadlr') for e in ('lavt', 'vlt', 'lts')] + [('lavt', h) for h in HEADS if h != 'sadlr'] + [('lts', 'cgan')]
STEPS = [(*parts, 'dice', 'some') for parts in PARTS] + [
    (*parts, loss, 'all') for parts in (('lavt', 'sadlr'), ('lts', 'cgan')) for loss in LOSSES] + [
    ('lavt', 'sadlr', 'cross_entropy', 'some')]

@pytest.mark.parametrize('encoder, head, loss, which', STEPS)
def test_a_step_where_nothing_is_meant(refer, encoder, head, loss, which):
    "Loss and gradient are finite, with the maps on the way supervised, too; the weights move and stay finite"
    torch.manual_seed(0)
    kept = [r for r in refer.refs() if which == 'some' or not r.ann_ids]
    class Some:
        name, splits, rle, image_path = 'some', refer.splits, refer.rle, refer.image_path
        def refs(self, split): return [r for r in kept if r.split == split]
    dls = refer_dataloaders(Some(), img_size=32, bs=6, num_workers=0, device='cpu')
    model = create_model(encoder=encoder, head=head, size='nano', img_size=32, tokenizer=dls.tokenizer)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    cbs = [AuxiliaryLoss(.5)] if encoder == 'lts' or head == 'cgan' else []
    learn = refer_learner(dls, model, loss_func=LOSSES[loss](), cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.losses).all() and np.isfinite(learn.recorder.values[-1][:2]).all()
    assert all(p.isfinite().all() for p in model.parameters())
    assert any((p != before[n]).any() for n, p in model.named_parameters())

def test_train_and_score_by_the_commands(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    def run(line):
        monkeypatch.setattr(sys, 'argv', line.split())
        getattr(cli, sys.argv[0])()
        return capsys.readouterr().out
    run(f'sadlr_train --root {root} --dataset grefcoco --size nano --img_size 32 --tokenizer words --pretrained false '
        '--epochs 1 --bs 8 --out run')
    assert '"for none": ' in (tmp_path/'run'/'settings.json').read_text()
    ask = f'sadlr_evaluate --root {root} --dataset grefcoco --split val,testA'
    for protocol in 'gres', 'gres50':
        out = run(f'{ask} --model run/model --protocol {protocol}')
        assert 'for none' in out and 'N-acc' in out
        assert run(f'{ask} --model run/model --protocol {protocol} --save {protocol}.json') == out
        assert run(f'{ask} --predictions {protocol}.json --protocol {protocol}') == out

def test_a_head_that_can_say_no(root, refer, tmp_path, monkeypatch, capsys):
    "Trained, its threshold chosen and kept; scores, a file of masks, an answer and a graph agree"
    monkeypatch.chdir(tmp_path)
    def run(line):
        monkeypatch.setattr(sys, 'argv', line.split())
        getattr(cli, sys.argv[0])()
        return capsys.readouterr().out
    of = f'sadlr_train --root {root} --dataset grefcoco --size nano --img_size 32 --tokenizer words --pretrained false --bs 8'
    out = run(f'{of} --epochs 1 --existence 1 --out run')
    settings = json.loads((tmp_path/'run'/'settings.json').read_text())['options']
    threshold = json.loads((tmp_path/'run'/'model'/'config.json').read_text())['threshold']
    assert settings['existence'] == 1 and settings['head_options'] == {} and f'threshold {threshold:.3g}, of' in out
    assert '--dataset grefcoco' in out and '--protocol' not in out
    model = ReferSegmenter.from_pretrained(tmp_path/'run'/'model')
    exists, there = predict_existence(model, refer_samples(refer, 'val'))
    assert model.threshold == threshold == best_threshold(exists[:, -1], there)
    assert sorted(there) != [True]*len(there) and exists.shape == (len(there), 3)

    config = model.config | dict(threshold=float(np.median(exists))) # so that some are denied
    (tmp_path/'run'/'model'/'config.json').write_text(json.dumps(config))
    model.config = config
    for protocol in 'gres', 'gres50', 'lavt':
        save_predictions(f'{protocol}.json', model, refer, ['val'], progress=False, protocol=protocol)
        direct = evaluate(model, refer_samples(refer, 'val'), progress=False, protocol=protocol)
        answers = read_predictions(f'{protocol}.json')
        assert {(p.no_target, bool(from_rle(p.segmentation).any())) for p in answers} == {(True, False), (None, True)}
        assert score_predictions(answers, refer, 'val', protocol) == direct
    sample = refer_samples(refer, 'val')[int(exists[:, -1].argmin())]
    denied = model.segment(sample.image, sample.phrase)
    assert not denied.mask.any() and note_absent(denied).startswith('not there (probability that it is: ')
    monkeypatch.setattr(sys, 'argv', ['sadlr_predict', '--model', 'run/model', str(sample.image), sample.phrase])
    cli.sadlr_predict()
    assert note_absent(denied) in capsys.readouterr().out
    monkeypatch.setattr(predict, 'save_gif', lambda photo, masks, file, phrase: file.write(phrase.encode()))
    sys.argv += ['--out', 'denied.gif']
    cli.sadlr_predict()
    assert (tmp_path/'denied.gif').read_text() == f'{sample.phrase}: {note_absent(denied)}'

@pytest.mark.parametrize('some, lacking', [(True, 'nothing'), (False, 'something')])
def test_a_threshold_needs_both_kinds_of_phrases(refer, tmp_path, capsys, some, lacking):
    "Otherwise it stays as it was, and the run says so"
    model = create_model(size='nano', img_size=32, tokenizer=word_tokenizer(['thing']), head_options=dict(existence=True),
                         threshold=.3)
    kept = [s for s in refer_samples(refer, 'val') if bool(coco_mask.area(s.rle)) == some]
    set_threshold(Training(existence=1., out=tmp_path), model, kept, 8)
    assert f'threshold 0.3, not chosen: val has no phrase for {lacking}' in capsys.readouterr().out
    assert model.threshold == .3 and not [*tmp_path.iterdir()]

@pytest.mark.parametrize('img_size', [None, 64])
def test_a_training_keeps_the_words_before_a_landmark(img_size):
    model, shipped = trained_model(Training(start='any', existence=.1, img_size=img_size), None, {}), bundled('any')
    assert model.landmark_after == shipped.landmark_after != [] and model.threshold == shipped.threshold

def test_a_training_without_phrases_for_nothing(tmp_path, capsys):
    "It is told before the first step, because nobody could see it in the scores of such data"
    with pytest.warns(UserWarning, match='existence=0.1: no phrase for training means nothing'):
        train(Training(root=tmp_path/'data', out=tmp_path/'run', n_images=20, epochs=1, img_size=32, existence=.1))
    assert 'threshold 0.5, not chosen' in capsys.readouterr().out

def test_recomputed_and_in_parts(refer):
    "The same weights, whether activations are kept or computed again, and however many parts a batch has"
    trained = []
    for bs, options in (8, {}), (8, dict(checkpoint=True)), (4, dict(parts=2)):
        set_seed(0)
        dls = refer_dataloaders(refer, img_size=32, bs=bs, num_workers=0, device='cpu')
        model = create_model(size='nano', img_size=32, tokenizer=dls.tokenizer, head_options=dict(existence=True))
        learn = refer_learner(dls, model, cbs=[ExistenceLoss(1.), StillNorms()], **options)
        learn.opt_func = partial(OptimWrapper, opt=torch.optim.SGD)
        before = model.head.existence[3].weight.detach().clone()
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        assert model.head.existence.said is None and (model.head.existence[3].weight - before).abs().max() > 1e-4
        trained.append(model.state_dict())
    for other in trained[1:]: torch.testing.assert_close(other, trained[0], rtol=1e-4, atol=1e-6)

def test_joint(root, refer, tmp_path):
    "With a set of one's own that has one object for each ref; held out photos are left out with their refs for nothing"
    for i in range(3): Image.new('RGB', (W, H), (9, 80*i, 9)).save(tmp_path/f'{i}.png')
    rows = [dict(image=f'{i}.png', phrase='it', polygon=[1, 1, 9, 1, 9, 9], split=s) for i, s in enumerate(SPLITS[6:9])]
    own = refer_from_table(rows, tmp_path/'data', 'own', folder=tmp_path)
    joint = Joint([refer, own])
    assert len(joint.refs('train')) == 48 + 2 and joint.counts()['train']['for none'] == refer.counts()['train']['for none']
    for ref in joint.refs('train'): assert joint.mask(ref).any() == bool(ref.ann_ids)

# ---- own data

@pytest.mark.parametrize('mask, told', [
    ('[]', "the list of masks is empty; where nothing is meant, write 'none'"), ('["a.png", 3]', 'of type int'),
    ('["a.png", "a.png"]', 'two of its masks are the same'), ('["a.png", "lost.png"]', 'lost.png is no mask'),
    ('[a.png', r'\[a.png is no mask'), ('None', 'None is no mask'), ('', "or 'none' for one where nothing is meant")])
def test_masks_of_a_table_that_are_none(tmp_path, mask, told):
    Image.new('RGB', (W, H)).save(tmp_path/'photo.png')
    Image.fromarray(pixels(0, 0)).save(tmp_path/'a.png')
    with pytest.raises(ValueError, match=r'^row 1 \(photo.png\): .*' + told):
        refer_from_table([dict(image='photo.png', phrase='it', mask=mask)], tmp_path/'data', 'new', folder=tmp_path)
    assert not (tmp_path/'data').exists()

# ---- GRES's scores

def slow_gres(preds, targets, says, least, meant=None):
    "Pixel by pixel, in fractions, as the paper's definitions read"
    ious, all_i, all_u, no, yes = [], 0, 0, [], []
    for k, (pred, target, said) in enumerate(zip(preds, targets, says)):
        p, t = set(zip(*np.nonzero(pred))), set(zip(*np.nonzero(target)))
        says_nothing = len(p) < least if said is None else bool(said)
        if not (t if meant is None else meant[k]):
            no.append(says_nothing)
            ious.append(Fraction(says_nothing))
            if not says_nothing: all_u += len(p | t)
        else:
            i, u = 0 if says_nothing else len(p & t), len(p | t)
            iou = Fraction(i, u) if u else Fraction(0)
            yes.append((not says_nothing, iou))
            ious.append(iou)
            all_i, all_u = all_i + i, all_u + u
    def share(hits): return 100*float(Fraction(sum(hits), len(hits))) if hits else None
    return {'gIoU': 100*float(sum(ious)/len(ious)), 'cIoU': 100*float(Fraction(all_i, all_u)) if all_u else None,
            'N-acc': share(no), 'T-acc': share([there for there, _ in yes]),
            **{f'Pr@0.{x}': share([iou >= Fraction(x, 10) for _, iou in yes]) for x in (7, 8, 9)}}

def same(found, slow):
    assert list(found) == list(slow) and [v is None for v in found.values()] == [v is None for v in slow.values()]
    for k, v in found.items(): assert v is None or v == pytest.approx(slow[k], rel=1e-12, abs=1e-12), k

def filled(n, size=(7, 11)): return (np.arange(size[0]*size[1]) < n).reshape(size)

DEGENERATE = { # predicted, meant
    'nothing, and said so': [(0, 0)], 'nothing, and a pixel': [(1, 0)], 'nothing, and everything': [(77, 0)],
    'denied': [(0, 9)], 'one pixel': [(1, 1)], 'everything': [(77, 77)], '49 pixels': [(49, 49)], '50 pixels': [(50, 50)],
    '49 for nothing': [(49, 0)], '50 for nothing': [(50, 0)], 'ties': [(70, 70), (49, 70), (56, 70), (63, 70)],
    'all of it': [(0, 0), (1, 0), (77, 0), (0, 9), (49, 49), (50, 77)]}

@pytest.mark.parametrize('protocol', ['gres', 'gres50'])
@pytest.mark.parametrize('case', DEGENERATE)
@pytest.mark.parametrize('said', [None, True, False])
def test_degenerate_masks(protocol, case, said):
    preds, targets = zip(*[map(filled, pair) for pair in DEGENERATE[case]])
    says = [said]*len(preds)
    slow = slow_gres(preds, targets, says, PROTOCOLS[protocol].least)
    same(score(preds, targets, protocol, absent=says), slow)
    if said is None: same(score(map(torch.from_numpy, preds), map(torch.from_numpy, targets), protocol), slow)

def test_mistakes():
    some = [filled(3), filled(0)]
    with pytest.raises(ValueError, match='shorter'): score(some, some, 'gres', absent=[True])
    with pytest.raises(ValueError, match="absent: the protocol 'lisa' takes none"): score(some, some, 'lisa', absent=[True]*2)
    with pytest.raises(ValueError, match='need the pixels of the true masks'): summarise([1], [2], 'gres')
    with pytest.raises(ValueError, match='no pair of masks'): score([], [], 'gres')

@pytest.mark.parametrize('protocol', ['gres', 'gres50'])
def test_a_thousand_random_sets(protocol):
    rng = np.random.default_rng(7)
    for _ in range(1000):
        m, size = rng.integers(1, 9), rng.integers(1, 14, 2)
        shares = rng.choice([0, 0, .02, .3, .9, 1], (2, m))
        preds, targets = ([rng.random(size) < share for share in of] for of in shares)
        says = rng.choice([None, None, None, True, False], m).tolist()
        same(score(preds, targets, protocol, absent=says), slow_gres(preds, targets, says, PROTOCOLS[protocol].least))

@pytest.mark.parametrize('protocol', ['gres', 'gres50'])
def test_counts_of_any_order_and_batch(protocol):
    "One record, several, in any order: the same to the last bit"
    rng = np.random.default_rng(1)
    preds, targets = torch.from_numpy(rng.random((60, 3, 9, 9)) < .2), torch.from_numpy(rng.random((60, 9, 9)) < .2)
    targets[::3], preds[::4] = False, False
    meant = [k % 3 > 0 or k == 6 for k in range(60)] # the seventh is too small to have a pixel
    def summary(*batches):
        record = IoURecord()
        for batch in batches: record.add_masks(preds[batch], targets[batch], [meant[k] for k in batch])
        return record.summary(protocol)
    whole = summary(range(60))
    assert summary(range(10), range(10, 11), range(11, 60)) == summary(*[[k] for k in rng.permutation(60).tolist()]) == whole
    for i, found in enumerate(whole):
        same(found, slow_gres(preds[:, i].numpy(), targets.numpy(), [None]*60, PROTOCOLS[protocol].least, meant))

@pytest.mark.parametrize('protocol', ['gres', 'gres50', 'lavt', 'lisa'])
def test_a_file_scores_as_its_model(refer, tmp_path, protocol):
    "Also on the network's square, on which the objects of one pixel are lost"
    torch.manual_seed(5)
    model = create_model(size='nano', img_size=16, tokenizer=word_tokenizer(['thing 0 1 2 3 4 5', 'the things'])).eval()
    for split in 'train', 'val':
        save_predictions(tmp_path/f'{split}.json', model, refer, [split], progress=False, protocol=protocol)
        direct = evaluate(model, refer_samples(refer, split), progress=False, protocol=protocol)
        assert score_predictions(read_predictions(tmp_path/f'{split}.json'), refer, split, protocol) == direct
    if protocol != 'gres': return
    meant = [bool(r.ann_ids) for r in refer.refs('val') for _ in r.sentences]
    lost = [r for r in refer.refs('train') if r.ann_ids and not
            np.asarray(Image.fromarray(refer.mask(r)).resize((16, 16), Image.Resampling.NEAREST)).any()]
    assert lost and 0 < sum(meant) < len(meant)

def test_what_a_model_says_beside_its_masks(refer, tmp_path):
    "A file with `no_target` against the slow reference; a file without it, or of another protocol, does not ask"
    rng, lines, preds, targets, says = np.random.default_rng(2), [], [], [], []
    for ref in refer.refs('val'):
        for s in ref.sentences:
            mask, said = rng.random((H, W)) < rng.choice([0, .01, .5]), [None, True, False][rng.integers(3)]
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            line = dict(sent_id=s.sent_id, segmentation=dict(size=[H, W], counts=rle['counts'].decode()),
                        ann_id=list(ref.ann_ids) or [-1])
            lines.append(line if said is None else line | dict(no_target=said))
            preds, targets, says = [*preds, mask], [*targets, refer.mask(ref)], [*says, said]
    path = tmp_path/'masks.json'
    path.write_text(json.dumps(lines))
    found, = score_predictions(read_predictions(path), refer, 'val', 'gres50')
    same(found, slow_gres(preds, targets, says, 50))
    assert score_predictions(read_predictions(path), refer, 'val', 'lisa')[0] == score(preds, targets, 'lisa')
    path.write_text(json.dumps([lines[0] | dict(no_target='yes'), *lines[1:]]))
    with pytest.raises(ValueError, match='masks.json holds no predictions: .*no_target'): read_predictions(path)
