"Data of one's own: photos as cameras write them, faults while writing, and a training on the result"
import json, os, shutil, sys
import numpy as np, pytest
from PIL import Image
from pycocotools import mask as coco_mask
from sadlr import cli
from sadlr.data import custom
from sadlr.data.block import refer_samples
from sadlr.data.custom import mask_rle, refer_from_coco, refer_from_table
from sadlr.data.download import check_data
from sadlr.pictures import open_image

H, W = 40, 60
TRIANGLE = [5, 5, 40, 5, 5, 30]

@pytest.fixture
def table(tmp_path):
    "Five photos with a bright triangle each, as rows"
    mask = np.add.outer(np.arange(H), np.arange(W)) < 35
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = np.where(mask[..., None], 220, rng.integers(0, 90, (1, 1, 3))).astype(np.uint8)
        Image.fromarray(np.broadcast_to(pixels, (H, W, 3)).copy()).save(tmp_path/f'{i}.jpg', quality=95)
    Image.fromarray(mask).save(tmp_path/'mask.png')
    return [dict(image=f'{i}.jpg', phrase='bright triangle', mask='mask.png') for i in range(5)]

def write(table, tmp_path, **changes):
    return refer_from_table([row | changes for row in table], tmp_path/'data', 'mine', folder=tmp_path)

MODES = dict(grey=lambda i: i.convert('L'), cmyk=lambda i: i.convert('CMYK'), palette=lambda i: i.quantize(16),
             alpha=lambda i: i.convert('RGBA'), deep=lambda i: Image.fromarray(np.asarray(i.convert('L')).astype(np.uint16)*257))

@pytest.mark.parametrize('mode', MODES)
def test_any_kind_of_photo(table, tmp_path, mode):
    name = 'photo.tif' if mode in ('cmyk', 'deep') else 'photo.png'
    MODES[mode](Image.open(tmp_path/'0.jpg')).save(tmp_path/name)
    refer = write(table + [table[0] | dict(image=name)], tmp_path)
    assert len(refer.refs()) == 6 and check_data(tmp_path/'data', 'mine') == []

# ---- transparency of masks

DISC = np.hypot(*(np.mgrid[:H, :W] - np.array([20, 30]).reshape(2, 1, 1))) < 12
WHITE, ALPHA = np.full((H, W), 255, np.uint8), DISC*np.uint8(255)

def rgba(colour, alpha=ALPHA): return Image.fromarray(np.dstack([np.broadcast_to(np.uint8(colour), (H, W, 3)), alpha]))

def indexed(palette, pixels):
    image = Image.fromarray(pixels.astype(np.uint8))
    image = image.convert('P') if image.mode != 'P' else image
    image.putdata(pixels.ravel().tolist())
    image.putpalette(palette)
    return image

def bits(pixels): return Image.fromarray(pixels)

ON_CLEAR = { # the disc is white or coloured, the ground is of the same or another colour and transparent
    'RGBA white': (rgba([255]*3), '.png', {}), 'RGBA red': (rgba([9, 0, 0]), '.png', {}),
    'RGBA blue': (rgba([0, 0, 1]), '.png', {}),
    'RGBA webp': (rgba([255]*3), '.webp', dict(lossless=True, exact=True)), 'RGBA tif': (rgba([255]*3), '.tif', {}),
    'RGBA of two colours': (Image.fromarray(np.dstack([WHITE, 255 - ALPHA, WHITE, ALPHA])), '.png', {}),
    'LA': (Image.fromarray(np.dstack([WHITE, ALPHA])), '.png', {}),
    'L key': (Image.fromarray(np.where(DISC, 9, 200).astype(np.uint8)), '.png', dict(transparency=200)),
    'L key 0': (Image.fromarray(ALPHA), '.png', dict(transparency=0)),
    'RGB key': (Image.fromarray(np.where(DISC[..., None], [255]*3, [0, 255, 0]).astype(np.uint8)), '.png',
                dict(transparency=(0, 255, 0))),
    '1 key 0': (bits(DISC), '.png', dict(transparency=0)),
    'I;16 key': (Image.fromarray(np.where(DISC, 700, 50000).astype(np.uint16)), '.png', dict(transparency=50000)),
    'P index': (indexed([255]*6, DISC), '.png', dict(transparency=0)),
    'P last index': (indexed([255]*6, ~DISC), '.png', dict(transparency=1)),
    'P bytes': (indexed([255]*9, np.where(DISC, 2, np.arange(W) % 2)), '.png', dict(transparency=b'\0\0')),
    'P gif': (indexed([255, 0, 0, 0, 0, 255], DISC), '.gif', dict(transparency=0))}

@pytest.mark.parametrize('kind', ON_CLEAR)
def test_what_is_transparent_is_outside(tmp_path, kind):
    image, suffix, options = ON_CLEAR[kind]
    image.save(tmp_path/f'mask{suffix}', **options)
    if kind != 'P gif': assert Image.open(tmp_path/f'mask{suffix}').has_transparency_data
    np.testing.assert_array_equal(coco_mask.decode(mask_rle(tmp_path/f'mask{suffix}', H, W)), DISC)

REFUSED = {
    'all clear': (rgba([255]*3, 0*ALPHA), {}, 'is empty'),
    'black on clear': (rgba([0]*3), {}, 'is empty: .* black or transparent'),
    'soft edge': (rgba([255]*3, np.where(DISC, 255, 3).astype(np.uint8)), {}, 'is partly transparent'),
    'half': (rgba([255]*3, ALPHA//2), {}, 'is partly transparent'),
    'LA half': (Image.fromarray(np.dstack([WHITE, ALPHA//2])), {}, 'is partly'),
    'P half': (indexed([255]*6, DISC), dict(transparency=b'\0\x80'), 'is partly transparent'),
    'two colours': (rgba([255]*3, WHITE), dict(), None),
    'L key all': (Image.fromarray(WHITE), dict(transparency=255), 'is empty'),
    '1 key': (bits(DISC), dict(transparency=1), 'is empty'),
    'equally bright': (Image.fromarray(np.where(DISC[..., None], [255, 0, 0], [0, 130, 0]).astype(np.uint8)), {},
                       'has 2 values'),
    'photo cut out': (Image.fromarray(np.dstack([np.indices((H, W)).sum(0).astype(np.uint8) + 1]*3 + [ALPHA])), {},
                      'values besides 0')}

@pytest.mark.parametrize('kind', REFUSED)
def test_transparency_that_tells_no_object(tmp_path, kind):
    image, options, told = REFUSED[kind]
    image.save(tmp_path/'mask.png', **options)
    if told is None: # opaque
        return np.testing.assert_array_equal(coco_mask.decode(mask_rle(tmp_path/'mask.png', H, W)), 1)
    with pytest.raises(ValueError, match=f'mask.png.* {told}') as error: mask_rle(tmp_path/'mask.png', H, W)
    assert '\n' not in str(error.value)

ARRAYS = dict(rgba=np.asarray(rgba([255]*3)), la=np.dstack([WHITE, ALPHA]), rgb=np.dstack([ALPHA]*3), bool=DISC,
              float=DISC*.5,              int=DISC*np.int64(7), view=np.asarray(rgba([255]*3))[::-1][::-1])

@pytest.mark.parametrize('kind', ARRAYS)
def test_masks_as_arrays(kind): np.testing.assert_array_equal(coco_mask.decode(mask_rle(ARRAYS[kind], H, W)), DISC)

@pytest.mark.parametrize('mask', [
    np.zeros((H, W, 5), np.uint8), np.ones((H, W, 4)), np.ones((4, H, W), np.uint8), np.ones(H), np.full((H, W), np.nan),
    np.full((H, W), 'x'), np.full((H, W), None), np.ones((H, W), complex), np.ones((0, 0))], ids=range(9))
def test_arrays_that_are_no_masks(mask):
    with pytest.raises(ValueError, match='^the mask '): mask_rle(mask, H, W)

def test_a_transparent_mask_through_a_table(table, tmp_path):
    rgba([255]*3).save(tmp_path/'clear.png')
    refer = write(table, tmp_path, mask='clear.png')
    for ref in refer.refs(): np.testing.assert_array_equal(refer.mask(ref), DISC)

# ---- one photo is one photo

def ways_to_name(path):
    "The same photo under other names"
    (path.parent/'sub').mkdir()
    os.link(path, path.parent/'hard.jpg')
    os.symlink(path, path.parent/'soft.jpg')
    os.symlink(path.parent, path.parent/'elsewhere', target_is_directory=True)
    shutil.copyfile(path, path.parent/'copy.jpg')
    return ['./0.jpg', 'sub/../0.jpg', str(path.absolute()), path, 'hard.jpg', 'soft.jpg', 'elsewhere/0.jpg', 'copy.jpg']

@pytest.mark.parametrize('way', range(8))
def test_one_photo_by_another_name(table, tmp_path, way):
    name = ways_to_name(tmp_path/'0.jpg')[way]
    refer = write([*table, table[0] | dict(image=name, phrase='again')], tmp_path)
    first = refer.refs()[0]
    assert [s.raw for s in first.sentences] == ['bright triangle', 'again'] # one object, too
    assert len(refer.image_records) == len({*refer.image_records}) == 5 and len(refer.refs()) == 5
    assert refer.image_path(first).name == '000000_0.jpg'
    split = [row | dict(split='train') for row in table] + [table[0] | dict(image=name, split='val')]
    told = r"^row 6 .*: its split is 'val', and 'train' in a row before of the same photo \(.*0.jpg\)"
    with pytest.raises(ValueError, match=told):
        refer_from_table(split, tmp_path/'data', 'other', folder=tmp_path)

def in_coco(tmp_path, names, sizes=()):
    "A COCO file with an image and an object for each name"
    images = [dict(id=i, file_name=str(name), height=H, width=W) for i, name in enumerate(names)]
    for i, (height, width) in enumerate(sizes): images[i] |= dict(height=height, width=width)
    annotations = [dict(id=10 + i, image_id=i, category_id=1, segmentation=[[5, 5, 20 + i, 5, 5, 30]])
                   for i in range(len(names))]
    (tmp_path/'coco.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=[])))
    return tmp_path/'coco.json', {10 + i: f'thing {i}' for i in range(len(names))}

@pytest.mark.parametrize('way', range(8))
def test_one_photo_in_two_records_of_coco(table, tmp_path, way):
    name = ways_to_name(tmp_path/'0.jpg')[way]
    names = ['0.jpg', '1.jpg', '2.jpg', name]
    refer = refer_from_coco(*in_coco(tmp_path, names), tmp_path, tmp_path/'data', 'mine')
    assert len(refer.image_records) == 3 and [r.image_id for r in refer.refs()] == [0, 1, 2, 0]
    assert refer.refs()[0].split == refer.refs()[3].split and {r.split for r in refer.refs()} == {'train', 'val', 'test'}
    if str(name) == '0.jpg': return
    splits = dict(zip(map(str, names), ('train', 'val', 'test', 'val')))
    with pytest.raises(ValueError, match="are one photo, once in 'train' and once in 'val'"):
        refer_from_coco(*in_coco(tmp_path, names), tmp_path, tmp_path/'data', 'other', splits=splits)
    splits[str(name)] = 'train'
    same = refer_from_coco(*in_coco(tmp_path, names), tmp_path, tmp_path/'data', 'same', splits=splits)
    assert same.refs()[3].split == 'train'

def test_a_photo_stored_and_upright_in_two_records(table, tmp_path):
    note = Image.Exif()
    note[0x0112] = 6
    Image.open(tmp_path/'0.jpg').save(tmp_path/'side.jpg', exif=note)
    coco, phrases = in_coco(tmp_path, ['side.jpg', '1.jpg', '2.jpg', './side.jpg'], [(H, W)]*3 + [(W, H)])
    with pytest.raises(ValueError, match='images 0 and 3 are one photo .*, once on its side'):
        refer_from_coco(coco, phrases, tmp_path, tmp_path/'data', 'mine')

@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_in_any_orientation_match_the_mask_on_what_one_sees(table, tmp_path, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation) # the inverse of what the note asks for
    image, note = Image.open(tmp_path/'0.jpg'), Image.Exif()
    note[0x0112] = orientation
    if undo is not None: image = image.transpose(Image.Transpose(undo))
    image.save(tmp_path/'0.jpg', exif=note, quality=95)
    refer = write(table, tmp_path)
    ref = refer.refs()[0]
    seen = np.asarray(open_image(refer.image_path(ref), (H, W)))[..., 0] > 150
    mask = refer.mask(ref)
    assert (seen & mask).sum()/(seen | mask).sum() > .95

def test_photos_are_linked_or_copied(table, tmp_path, monkeypatch):
    linked = write(table, tmp_path)
    assert linked.image_path(linked.refs()[0]).stat().st_nlink == 2
    def no_links(*_): raise OSError('no links on this disk')
    monkeypatch.setattr(os, 'link', no_links)
    copied = refer_from_table(table, tmp_path/'data', 'copied', folder=tmp_path)
    path = copied.image_path(copied.refs()[0])
    assert path.stat().st_nlink == 1 and path.read_bytes() == (tmp_path/'0.jpg').read_bytes()

def test_photos_of_one_name_in_two_folders(table, tmp_path):
    for i in 0, 1:
        (tmp_path/f'{i}').mkdir()
        (tmp_path/f'{i}.jpg').rename(tmp_path/f'{i}'/'same.jpg')
        table[i]['image'] = f'{i}/same.jpg'
    refer = write(table, tmp_path)
    paths = [refer.image_path(r) for r in refer.refs()]
    assert len({p.read_bytes() for p in paths}) == len(set(paths)) == 5

@pytest.mark.parametrize('name', ['_place', 'Refer'])
def test_a_fault_while_writing_leaves_nothing(table, tmp_path, monkeypatch, name):
    def fault(*_): raise OSError('No space left on device')
    monkeypatch.setattr(custom, name, fault)
    with pytest.raises(OSError, match='No space left'): write(table, tmp_path)
    assert list((tmp_path/'data').iterdir()) == []

def test_the_same_table_gives_the_same_files(table, tmp_path):
    files = [(p.read_bytes()) for name in ('a', 'b') for refer in [refer_from_table(table, tmp_path/name, 'mine', folder=tmp_path)]
             for p in sorted((refer.root/'mine').glob('*.*'))]
    assert files[:2] == files[2:]

def test_every_row_is_trained_on(table, tmp_path):
    table = [row | dict(split='val' if i == 4 else 'train') for i, row in enumerate(table)]
    refer = write([*table, table[0] | dict(phrase='🔺 emoji only'), table[0] | dict(phrase='🔺')], tmp_path)
    phrases = [s.phrase for s in refer_samples(refer, 'train')]
    assert sorted(phrases) == ['bright triangle']*4 + ['🔺', '🔺 emoji only']
    assert [s.phrase for s in refer_samples(refer, 'train', 'sent')] == phrases

def test_phrases_without_annotation_file(table, tmp_path):
    write(table, tmp_path)
    coco = tmp_path/'data'/'mine'/'instances.json'
    with pytest.raises(FileNotFoundError, match='nothing.json'):
        refer_from_coco(tmp_path/'nothing.json', {}, tmp_path, tmp_path/'data', 'other')
    with pytest.raises(FileNotFoundError, match='nothing.json'):
        refer_from_coco(coco, tmp_path/'nothing.json', tmp_path, tmp_path/'data', 'other')

def test_crowds_and_parts_from_coco(table, tmp_path):
    "Run lengths as a list (a crowd), and an object in two polygons"
    runs = [0, 2*H, H*(W - 2)]
    annotations = [dict(id=1, image_id=5, category_id=3, iscrowd=1, segmentation=dict(size=[H, W], counts=runs)),
                   dict(id=2, image_id=5, category_id=3, iscrowd=0, segmentation=[TRIANGLE, [50, 30, 59, 30, 59, 39]])]
    coco = dict(images=[dict(id=5, file_name='0.jpg', height=H, width=W)], annotations=annotations,
                categories=[dict(id=3, name='shape')])
    (tmp_path/'coco.json').write_text(json.dumps(coco))
    with pytest.warns(UserWarning, match="the splits are 'test'; a training reads 'train' and 'val'"):
        refer = refer_from_coco(tmp_path/'coco.json', {'1': 'left edge', '2': ['both']}, tmp_path, tmp_path/'data',
                                'mine', splits={'0.jpg': ' test '})
    left, both = refer.refs('test')
    assert refer.mask(left).sum() == 2*H and refer.mask(left)[:, :2].all()
    assert refer.mask(both)[10, 10] and refer.mask(both)[32, 57] and refer.categories == {3: 'shape'}

def test_a_split_that_is_a_number(table, tmp_path):
    with pytest.warns(UserWarning, match="the splits are '0', '1'"):
        refer = write([row | dict(split=i % 2) for i, row in enumerate(table)], tmp_path)
    assert refer.splits == ['0', '1']

@pytest.mark.parametrize('changes', [dict(image=5), dict(mask=3), dict(mask=[[0, 1]]), dict(mask={}), dict(mask=b'0')])
def test_a_cell_of_another_type_is_named_in_one_line(table, tmp_path, changes):
    with pytest.raises(ValueError, match=r'^row 1 \(.*\): the (image|mask) is no path') as error:
        write(table, tmp_path, **changes)
    assert '\n' not in str(error.value)

@pytest.mark.parametrize('phrases', ['[]', '{}', '"it"', '3', '[["0", "it"]]', 'null'])
def test_phrases_that_are_no_dictionary(table, tmp_path, phrases):
    write(table, tmp_path)
    (tmp_path/'phrases.json').write_text(phrases)
    with pytest.raises(ValueError, match='the phrases are no dictionary'):
        refer_from_coco(tmp_path/'data'/'mine'/'instances.json', tmp_path/'phrases.json', tmp_path/'data'/'mine'/'images',
                        tmp_path/'data', 'other')
    assert not (tmp_path/'data'/'other').exists()

def test_trains_like_refcoco(table, tmp_path, monkeypatch):
    write(table, tmp_path)
    words = '--root data --dataset mine --split_by own --size nano --img_size 32 --tokenizer words --pretrained false'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['sadlr_train', *f'{words} --epochs 1 --bs 2 --workers 0 --out run'.split()])
    cli.sadlr_train()
    assert (tmp_path/'run'/'model'/'model.safetensors').is_file()
