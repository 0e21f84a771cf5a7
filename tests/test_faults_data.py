"Damaged files, odd images and odd sentences: a clear line or a right result, and nothing in between"
import json, os, pickle, random, resource
from collections import Counter
import numpy as np, pytest, torch
from PIL import Image
from pycocotools import mask as coco_mask
from sadlr.data.block import ReadImage, ReadMask, refer_dataloaders, refer_samples
from sadlr.data.refer import Refer
from sadlr.masks import check_part, run_lengths

H, W, N = 48, 64, 400 # image size and number of images, as many as make a pickle use its long opcodes
SPLITS = 'train', 'val', 'testA', 'testB'

def segmentation(i):
    "Polygons, a compressed RLE or a plain one"
    x, y = i % 30, i % 17
    polygons = [[x, y, x + 20, y, x + 20.5, y + 15.25, x, y + 15], [x + 22, y, x + 30, y, x + 30, y + 9]]
    mask = np.zeros((H, W), np.uint8, order='F')
    mask[y:y+15, x:x+20] = 1
    rle = coco_mask.encode(mask)
    runs = np.diff([0, *np.flatnonzero(np.diff(mask.ravel(order='F'))) + 1, H*W]).tolist()
    runs = [0, *runs] if mask[0, 0] else runs
    return [polygons, dict(size=[H, W], counts=rle['counts'].decode()), dict(size=[H, W], counts=runs)][i % 3]

def contents():
    images = [dict(id=i, file_name=f'COCO_train2014_{i:012}.jpg', height=H, width=W) for i in range(N)]
    annotations = [dict(id=1000 + i, image_id=i, category_id=1, segmentation=segmentation(i)) for i in range(N)]
    def sentence(k): return dict(sent_id=k, raw=f'The thing n° {k}', sent=f'the thing {k}', tokens=['thing'])
    refs = [dict(ref_id=i, ann_id=1000 + i, image_id=i, category_id=1, split=SPLITS[i % 4], file_name=f'{i}.jpg',
                 sent_ids=[2*i, 2*i + 1], sentences=[sentence(2*i), sentence(2*i + 1)]) for i in range(N)]
    return refs, dict(images=images, annotations=annotations, categories=[dict(id=1, name='person')])

@pytest.fixture
def root(tmp_path):
    return write(tmp_path, *contents())

def photo(): return Image.fromarray(np.tile(np.linspace(0, 255, W, dtype=np.uint8), (H, 1))).convert('RGB')

def write(root, refs, instances, protocol=2):
    "The files of RefCOCO; all images are one photo"
    (root/'refcoco'/'images').mkdir(parents=True, exist_ok=True)
    photo().save(root/'photo.jpg')
    (root/'refcoco'/'refs(unc).p').write_bytes(pickle.dumps(refs, protocol))
    (root/'refcoco'/'instances.json').write_text(json.dumps(instances))
    for image in instances['images']: os.link(root/'photo.jpg', root/'refcoco'/'images'/image['file_name'])
    return root

def damage(data, draw):
    "The file cut short, or with one to three bits flipped"
    if draw.random() < .3: return data[:draw.randrange(len(data))]
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)): data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)

def outcome(root):
    "What becomes of a data set: the kind of its end, for the statistics"
    try: refer = Refer(root)
    except ValueError as error:
        line = str(error)
        assert any(name in line for name in ('refs(unc).p', 'instances.json')) and len(line.splitlines()) == 1, line
        return 'refused at opening'
    for split in refer.splits:
        try: samples = refer_samples(refer, split, draw=True)
        except (ValueError, FileNotFoundError) as error:
            known = 'instances.json', 'refcoco (unc)', 'is missing: ', f'.jpg has {W} x {H} pixels, its mask '
            assert any(part in str(error) for part in known), str(error)
            return 'refused before the first epoch'
        for sample in samples:
            assert coco_mask.decode(sample.rle).shape == tuple(sample.rle['size'])
            assert all(p.strip() for p in sample.phrase)
    return 'usable'

@pytest.mark.parametrize('file, protocol, n', [('refs(unc).p', 2, 90), ('refs(unc).p', 0, 40), ('refs(unc).p', 4, 40),
                                               ('instances.json', 2, 90)])
def test_damaged_files(tmp_path, file, protocol, n):
    root = write(tmp_path, *contents(), protocol)
    path, draw, ends = root/'refcoco'/file, random.Random(protocol), Counter()
    whole = path.read_bytes()
    assert outcome(root) == 'usable'
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(n):
        path.write_bytes(damage(whole, draw))
        ends[outcome(root)] += 1
    assert ends['refused at opening'] > .25*n # all that were cut short, at least
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000 # kilobytes

def test_every_memo_number(root):
    "A flipped bit in the number of an object, whichever it is, asks for no more memory than the file is long"
    path = root/'refcoco'/'refs(unc).p'
    whole, at = bytearray(path.read_bytes()), 0
    places = [i for i in range(len(whole)) if whole[i] == pickle.LONG_BINPUT[0]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for at in places[::len(places)//25]:
        path.write_bytes(whole[:at+4] + bytes([whole[at+4] ^ 128]) + whole[at+5:])
        outcome(root)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000

def test_run_lengths_against_pycocotools():
    "What is let through decodes to the runs that were read; what pycocotools would hang on is refused"
    draw, mask = random.Random(0), np.zeros((40, 60), np.uint8, order='F')
    mask[5:20, 10:40] = mask[10:30, 50:55] = 1
    counts, passed = bytearray(coco_mask.encode(mask)['counts']), 0
    for _ in range(3000):
        changed = bytearray(counts)
        for _ in range(draw.randint(1, 3)): changed[draw.randrange(len(changed))] = draw.randrange(48, 112)
        rle = dict(size=[40, 60], counts=bytes(changed))
        try: check_part(rle, 40, 60)
        except ValueError: continue
        runs = run_lengths(bytes(changed))
        expected = np.repeat(np.arange(len(runs)) % 2, runs).reshape(60, 40).T
        np.testing.assert_array_equal(coco_mask.decode(rle), expected)
        passed += 1
    assert passed

@pytest.mark.parametrize('change, message', [
    (lambda refs, inst: refs[5].update(ann_id=7), 'ref 5 (annotation 7, image 5): annotation 7 is not in'),
    (lambda refs, inst: refs[5].update(image_id=4), 'ref 5 (annotation 1005, image 4): annotation 1005 is of image 5'),
    (lambda refs, inst: inst['images'].pop(5), 'ref 5 (annotation 1005, image 5): image 5 is not in'),
    (lambda refs, inst: refs[5].update(sentences=[]), 'refcoco (unc): ref 5 has no sentence'),
    (lambda refs, inst: refs[5]['sentences'][1].update(raw=' \n'), 'refcoco (unc): ref 5: sentence 11 is empty'),
    (lambda refs, inst: inst['annotations'][5].update(segmentation=[]), 'annotation 1005: the segmentation has no'),
    (lambda refs, inst: inst['annotations'][5].update(segmentation=[['a']*6]),
     'instances.json, annotation 1005: Expected `float`'),
    (lambda refs, inst: inst['annotations'][4].update(segmentation=dict(size=[W, H], counts=[W*H])),
     f"instances.json, annotation 1004: the RLE's size [{W}, {H}] is not the image's [{H}, {W}]"),
    (lambda refs, inst: inst['annotations'][4].update(segmentation=dict(size=[H, W], counts=[9])), 'do not add up')])
def test_what_does_not_fit(tmp_path, change, message):
    refs, instances = contents()
    change(refs, instances)
    root = write(tmp_path, refs, instances)
    with pytest.raises(ValueError) as raised:
        refer = Refer(root)
        for split in SPLITS: refer_samples(refer, split, draw=True)
    assert message in str(raised.value)

def test_missing_image(root):
    path = root/'refcoco'/'images'/'COCO_train2014_000000000008.jpg'
    path.unlink()
    with pytest.raises(FileNotFoundError, match='the image of ref 8 is missing: .*000000000008.jpg'):
        refer_dataloaders(Refer(root))

def small(tmp_path, image, suffix='.jpg', size=(H, W), raw='thing', **options):
    "A data set of two refs of one image"
    height, width = size
    instances = dict(images=[dict(id=1, file_name=f'image{suffix}', height=height, width=width)], categories=[],
                     annotations=[dict(id=1, image_id=1, segmentation=[[0, 0, 20, 0, 20, 10, 0, 10]])])
    refs = [dict(ref_id=i, ann_id=1, image_id=1, category_id=1, split=split,
                 sentences=[dict(sent_id=i, raw=raw, sent=raw)])
            for i, split in enumerate(('train', 'val'))]
    root = write(tmp_path, refs, instances)
    image.save(root/'refcoco'/'images'/f'image{suffix}', **options)
    return Refer(root)

@pytest.mark.parametrize('mode, suffix', [
    ('L', '.jpg'), ('CMYK', '.jpg'), ('RGB', '.jpg'), ('P', '.png'), ('RGBA', '.png'), ('LA', '.png'), ('1', '.png'),
    ('I;16', '.png'), ('RGB', '.webp'), ('L', '.tif')])
def test_kinds_of_images(tmp_path, mode, suffix):
    image = photo().convert('L' if mode == 'I;16' else mode)
    if mode == 'I;16': image = Image.fromarray(np.asarray(image).astype(np.uint16)*257)
    refer = small(tmp_path, image, suffix)
    dls = refer_dataloaders(refer, img_size=32, bs=1, num_workers=0, device='cpu')
    images, _, masks = dls.valid.one_batch()
    assert images.shape == (1, 3, 32, 32) and masks.shape == (1, 32, 32)
    seen = ReadImage(48)(refer_samples(refer, 'val')[0]).float()
    assert (seen[:, 36:44].mean((0, 1)) > seen[:, 4:12].mean((0, 1)) + 100).all() # the gradient has survived

@pytest.mark.parametrize('orientation', range(1, 9))
def test_rotated_images(tmp_path, orientation):
    "Stored pixels where the mask has their size; the upright picture where only that has it"
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = orientation > 4
    for at, size in (('stored', (H, W)), *([('upright', (W, H))] if turned else [])):
        refer = small(tmp_path/at, photo(), size=size, exif=exif.tobytes())
        sample = refer_samples(refer, 'train', draw=True)[0]
        seen, mask = ReadImage(32)(sample).float()[..., 0], ReadMask(32)(sample)
        assert mask[0, 0] == 1 and mask[-1, -1] == 0
        stored = np.asarray(Image.open(sample.image).convert('RGB').resize((32, 32), Image.Resampling.BILINEAR))
        same = (seen - torch.from_numpy(stored[..., 0]*1.)).abs().max() < 3
        assert same == (at == 'stored')

def test_image_of_another_size(tmp_path):
    refer = small(tmp_path, photo(), size=(H, W + 1))
    with pytest.raises(ValueError, match=f'image.jpg has {W} x {H} pixels, its mask {W+1} x {H}'):
        refer_dataloaders(refer, img_size=32, num_workers=0, bs=1, device='cpu')

@pytest.mark.parametrize('content', [b'', b'<html>503 Service Unavailable</html>', b'\xff\xd8\xff\xe0\0\x10JFIF'])
def test_file_that_is_no_image(root, content):
    "It is refused before the first epoch, wherever it stands"
    path = root/'refcoco'/'images'/'COCO_train2014_000000000009.jpg' # of val
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(ValueError, match='000000000009.jpg is no image that can be read'):
        refer_dataloaders(Refer(root))

@pytest.mark.parametrize('raw', ['🐕', 'le chien 🐕‍🦺!', '左边的人', 'x'*500, '?', 'a\x00b', 'ﬁ'*30])
def test_odd_sentences(tmp_path, raw):
    "Ids and a mask for every sentence that is not blank"
    dls = refer_dataloaders(small(tmp_path, photo(), raw=raw), img_size=32, bs=1, num_workers=0, device='cpu')
    _, ids, _ = dls.valid.one_batch()
    assert ids.shape == (1, 20) and ids[0, 0] == dls.tokenizer.cls_token_id
