"""A RefCOCO-sized set opens without an object for each of its records, in little memory, and workers share it

By default a tenth of the size; all of it: SADLR_SHARE=1 pytest -s tests/test_scale.py (some minutes)"""
import json, os, pickle, random, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import numpy as np, psutil, pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from sadlr.data.block import refer_samples
from sadlr.data.refer import Refer

SHARE = float(os.environ.get('SADLR_SHARE', .1))
IMAGES, REFS, SENTENCES, ANNOTATIONS = (int(SHARE*n) for n in (20000, 50000, 142000, 200000))
WORDS = 'man woman left right the red blue shirt with hat dog on in of front guy second from girl standing'.split()

def outline(rng, n):
    "A polygon of n points in an image of 640 x 480, to the hundredth of a pixel as COCO's"
    angle, radius = np.sort(rng.uniform(0, 2*np.pi, n)), rng.uniform(30, 90)*rng.uniform(.8, 1.2, n)
    x, y = 320 + rng.uniform(-200, 200) + radius*np.cos(angle), 240 + rng.uniform(-130, 130) + radius*np.sin(angle)
    return np.stack([x.clip(0, 640), y.clip(0, 480)], 1).round(2).ravel().tolist()

def write_instances(path, rng):
    "Image i has the annotations i, i + IMAGES, ..."
    outlines = [json.dumps([outline(rng, n)]) for n in rng.integers(20, 71, 500)]
    url = 'http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg'
    images = [dict(license=1, file_name=f'COCO_train2014_{i:012}.jpg', coco_url=url, height=480, width=640,
                   date_captured='2013-11-14 22:32:02', flickr_url=url, id=i) for i in range(IMAGES)]
    annotations = (f'{{"segmentation": {outlines[rng.integers(500)]}, "area": 1234.56, "iscrowd": 0, '
                   f'"image_id": {i % IMAGES}, "bbox": [1.5, 2.5, 100.0, 120.5], "category_id": {1 + i % 80}, "id": {i}}}'
                   for i in range(ANNOTATIONS))
    categories = [dict(supercategory='x', id=i, name=f'c{i}') for i in range(1, 81)]
    path.write_text(f'{{"info": {{}}, "images": {json.dumps(images)}, "licenses": [], '
                    f'"annotations": [{", ".join(annotations)}], "categories": {json.dumps(categories)}}}')

def write_refs(path):
    draw, refs, sent_id = random.Random(0), [], 0
    for i in range(REFS):
        sentences = []
        for _ in range(SENTENCES*(i + 1)//REFS - SENTENCES*i//REFS):
            tokens = draw.choices(WORDS, k=draw.randint(2, 6))
            sentences.append(dict(tokens=tokens, raw=' '.join(tokens).title(), sent_id=sent_id, sent=' '.join(tokens)))
            sent_id += 1
        image = i % IMAGES
        split = 'train' if image < .85*IMAGES else 'val' if image < .925*IMAGES else 'testA'
        refs.append(dict(sent_ids=[s['sent_id'] for s in sentences], file_name=f'COCO_train2014_{image:012}_{i}.jpg',
                         ann_id=i, ref_id=i, image_id=image, split=split, sentences=sentences, category_id=1 + i % 80))
    path.write_bytes(pickle.dumps(refs, protocol=2))

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('scale')
    (root/'refcoco'/'images').mkdir(parents=True)
    write_instances(root/'refcoco'/'instances.json', np.random.default_rng(0))
    write_refs(root/'refcoco'/'refs(unc).p')
    Image.new('RGB', (640, 480)).save(root/'photo.jpg')
    for i in range(IMAGES): os.link(root/'photo.jpg', root/'refcoco'/'images'/f'COCO_train2014_{i:012}.jpg')
    return root

MEASURE = """{setup}
import sys, time
def peak(): return next(int(line.split()[1])/1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))
before, blocks, start = peak(), sys.getallocatedblocks(), time.process_time()
kept = {statement}
print(sys.getallocatedblocks() - blocks, peak() - before, peak(), time.process_time() - start)"""

def measure(statement, setup):
    "Objects that stay, growth of the peak memory and that peak in MB, processor seconds, in a process of its own"
    code = MEASURE.format(setup=setup, statement=statement)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(map(float, done.stdout.split()))

def test_opening(root):
    path = root/'refcoco'/'instances.json'
    size = path.stat().st_size/2**20
    reader = 'from pathlib import Path; from sadlr.data.refer import Refer, read_instances'
    measured = {'json.load': measure(f'json.load(open({str(path)!r}))', 'import json'),
                'read_instances': measure(f'read_instances(Path({str(path)!r}))', reader),
                'Refer': measure(f'Refer({str(root)!r})', reader)}
    print(f'\ninstances.json: {size:.0f} MB')
    for name, (objects, growth, peak, seconds) in measured.items(): # the time is of this machine: told, not tested
        print(f'{name}: {seconds:.2f} s, {objects:.0f} objects, {growth:.0f} MB more at the peak of {peak:.0f} MB')
    (plain, *_), (decoding, *_), (ours, memory, peak, _) = measured.values()
    assert decoding < .2*plain and ours < .2*plain and memory < 3*size and peak < 1500

class Reader(Dataset):
    "Goes through its share of the items, and gives the memory that the worker has for itself alone, before and after"
    def __init__(self, items, read): self.items, self.read = items, read
    def __len__(self): return 2
    def __getitem__(self, i):
        before = psutil.Process().memory_full_info().uss
        for item in self.items: self.read(item)
        return before, psutil.Process().memory_full_info().uss

def fields(sample): return [str(sample.image), *sample.phrase, *sample.rle.values()]
def sentences(ref): return [(s.raw, s.sent) for s in ref.sentences]

def copied(items, read=str):
    "MB that two workers copy on average"
    loader = DataLoader(Reader(items, read), batch_size=1, num_workers=2, multiprocessing_context='fork',
                        collate_fn=lambda batch: batch[0])
    return np.mean([after - before for before, after in loader])/2**20

def copied_of(block, read):
    "MB more than where the same work is done on the first item again and again; the smaller of two tries"
    return min(copied(block, read) - copied(block[[0]*len(block)], read) for _ in range(2))

def in_blocks_and_lists(root):
    "The data set, its samples and refs as they are kept and as lists, and the objects that each takes"
    def objects(make):
        before = sys.getallocatedblocks()
        made = make()
        return made, sys.getallocatedblocks() - before
    refer = Refer(root)
    blocks, packed = objects(lambda: (refer_samples(refer, 'train', draw=True), refer.refs('train')))
    lists, unpacked = objects(lambda: [list(block) for block in blocks])
    return refer, blocks, lists, packed, unpacked

def test_workers_share(root):
    "A worker copies the objects that it counts references of, and blocks have next to none"
    *_, lists, packed, unpacked = in_blocks_and_lists(root)
    assert packed < .02*unpacked and unpacked > 5*len(lists[0])

def copies(root):
    refer, (samples, refs), lists, *_ = in_blocks_and_lists(root)
    def sentences_and_mask(ref): return [sentences(ref), refer.rle(ref)]
    as_blocks = copied_of(samples, fields) + copied_of(refs, sentences_and_mask)
    as_lists = copied(lists[0], fields) + copied(lists[1], sentences) - 2*copied(range(len(samples)))
    blocks = sum(len(b) for b in (samples.block, refs.block, refer.segmentations.objects.block))/2**20
    return f'{len(samples)} samples with their refs and masks, {blocks:.0f} MB: each worker copies ' \
           f'{as_lists:.1f} MB of lists, {as_blocks:.1f} MB of blocks'

@pytest.mark.skipif('SADLR_SHARE' not in os.environ, reason='a measure for 10_data.refer, which busy machines move')
def test_how_much_workers_copy(root):
    with ProcessPoolExecutor(1, get_context('spawn')) as fresh: # without the memory that other tests have left
        print('\n' + fresh.submit(copies, root).result())
