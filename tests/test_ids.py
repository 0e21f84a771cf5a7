"An id names one thing: in REFER's files, in COCO's, in phrases; what repeats is refused with its id and its file"
import json, pickle, sys
from pathlib import Path
import pytest
from PIL import Image
from sadlr import cli
from sadlr.data.custom import refer_from_coco, refer_from_table, write_refer
from sadlr.data.download import check_data
from sadlr.data.refer import Refer

H, W, N = 40, 60, 12
SQUARE = [[5, 5, 25, 5, 25, 25, 5, 25]]

def contents(n=N):
    "An image, an object and a ref with two sentences for each number; the first two refs speak of one object"
    images = [dict(id=i, file_name=f'{i}.jpg', height=H, width=W) for i in range(n)]
    annotations = [dict(id=100 + i, image_id=i, category_id=1, segmentation=SQUARE) for i in range(n)]
    def sentences(i): return [dict(sent_id=2*i + k, raw=f'thing {i}', sent=f'thing {i}') for k in range(2)]
    refs = [dict(ref_id=i, ann_id=100 + max(i, 1), image_id=max(i, 1), category_id=1, split='val' if i > 8 else 'train',
                 sentences=sentences(i)) for i in range(n)]
    return refs, dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing'), dict(id=2, name='x')])

def write(root, refs, instances, name='mine'):
    folder = root/name
    (folder/'images').mkdir(parents=True)
    (folder/'refs(own).p').write_bytes(pickle.dumps(refs))
    (folder/'instances.json').write_text(json.dumps(instances))
    for i in range(N): Image.new('RGB', (W, H), (20*i, 80, 80)).save(folder/'images'/f'{i}.jpg')
    return root

def repeat(records, i, j, key='id'): records[i][key] = records[j][key]

REPEATED = {
    'annotation': ('annotation 103', lambda refs, inst: repeat(inst['annotations'], 5, 3)),
    'annotation that no ref uses': ('annotation 7', lambda refs, inst: inst['annotations'].extend(
        [dict(id=7, image_id=0, bbox=[1, 1, 2, 2])]*2)),
    'image': ('image 3', lambda refs, inst: inst['images'].append(dict(inst['images'][3], file_name='9.jpg'))),
    'image that no ref uses': ('image 99', lambda refs, inst: inst['images'].extend([dict(inst['images'][0], id=99)]*2)),
    'the same record again': ('annotation 104', lambda refs, inst: inst['annotations'].append(inst['annotations'][4])),
    'written in another way': ('annotation 104', lambda refs, inst: inst['annotations'][5].update(id='104')),
    'category': ('category 1', lambda refs, inst: repeat(inst['categories'], 1, 0)),
    'ref': ('ref 2', lambda refs, inst: repeat(refs, 11, 2, 'ref_id')),
    'sentence of one ref': ('sentence 6', lambda refs, inst: repeat(refs[3]['sentences'], 1, 0, 'sent_id')),
    'sentence of two refs': ('sentence 6', lambda refs, inst: refs[9]['sentences'][1].update(sent_id=6))}

@pytest.mark.parametrize('case', REPEATED)
def test_repeated_ids_are_refused_when_the_files_are_opened(tmp_path, monkeypatch, capsys, case):
    told, change = REPEATED[case]
    refs, instances = contents()
    change(refs, instances)
    write(tmp_path, refs, instances)
    file = 'refs(own).p' if told.startswith(('ref', 'sentence')) else 'instances.json'
    with pytest.raises(ValueError) as error: Refer(tmp_path, 'mine', 'own')
    line = str(error.value)
    assert f'{told} stands twice' in line and str(tmp_path/'mine'/file) in line and '\n' not in line
    assert check_data(tmp_path, 'mine') == [line]
    monkeypatch.setattr(sys, 'argv', ['sadlr_data', 'check', str(tmp_path)])
    with pytest.raises(SystemExit, match='^sadlr_data: '): cli.sadlr_data()
    assert line in capsys.readouterr().out

def test_several_refs_of_one_object_are_no_repetition(tmp_path):
    refer = Refer(write(tmp_path, *contents()), 'mine', 'own')
    a, b = refer.refs()[0], refer.refs()[1]
    assert a.ann_id == b.ann_id and (refer.mask(a) == refer.mask(b)).all() and check_data(tmp_path, 'mine') == []

def test_the_real_records_open(tmp_path):
    real = next((p/'shared/real/refcoco_records.json' for p in Path(__file__).parents
                 if (p/'shared/real/refcoco_records.json').exists()), None)
    if not real: pytest.skip('no shared/real/refcoco_records.json beside the project')
    sample = json.loads(real.read_text())
    for partition, records in sample['refs'].items():
        dataset, split_by = partition.removesuffix(')').split('(')
        (tmp_path/dataset).mkdir(exist_ok=True)
        (tmp_path/dataset/f'refs({split_by}).p').write_bytes(pickle.dumps(records, 2))
        (tmp_path/dataset/'instances.json').write_text(json.dumps(sample['instances']))
        assert len(Refer(tmp_path, dataset, split_by).refs()) == len(records)

# ---- through the writers

@pytest.fixture
def coco(tmp_path):
    "A folder with a COCO file and its photos"
    write(tmp_path, *contents(), 'source')
    return tmp_path/'source'

def convert(coco, change=lambda instances: None, phrases=None, **options):
    instances = json.loads((coco/'instances.json').read_text())
    change(instances)
    (coco/'changed.json').write_text(json.dumps(instances))
    phrases = phrases or {100 + i: f'thing {i}' for i in range(N)}
    return refer_from_coco(coco/'changed.json', phrases, coco/'images', coco.parent/'data', 'new', **options)

@pytest.mark.parametrize('case', [c for c in REPEATED if not REPEATED[c][0].startswith(('ref', 'sentence'))])
def test_repeated_ids_in_a_coco_file(coco, case):
    told, change = REPEATED[case]
    with pytest.raises(ValueError, match=rf'changed.json: {told} stands twice'):
        convert(coco, lambda inst: change([], inst))
    assert not (coco.parent/'data').exists()

@pytest.mark.parametrize('text, told', [
    ('{"101": "a", "101": "b"}', "phrases.json is no JSON: the key '101' stands twice"),
    ('{"101": ["a", "b"], "102": "c", "101": ["a"]}', "the key '101' stands twice"),
    ('{"101": "a", "\\u0031\\u0030\\u0031": "b"}', "the key '101' stands twice"),
    ('{"101": "a", "101.0": "b"}', 'annotation 101 has phrases twice')])
def test_phrases_of_one_annotation_twice(coco, text, told):
    (coco/'phrases.json').write_text(text)
    with pytest.raises(ValueError, match=told): convert(coco, phrases=coco/'phrases.json')

@pytest.mark.parametrize('key', ['101', 101.0])
def test_phrases_of_one_annotation_twice_in_a_dictionary(coco, key):
    phrases = {101: 'a', key: 'b'}
    if len(phrases) == 2:
        with pytest.raises(ValueError, match='annotation 101 has phrases twice'): convert(coco, phrases=phrases)

@pytest.mark.parametrize('what', ['image', 'annotation', 'category'])
def test_repeated_ids_given_to_write_refer(tmp_path, what):
    _, instances = contents(3)
    records = dict(image=instances['images'], annotation=instances['annotations'], category=instances['categories'])
    repeat(records[what], 1, 0)
    with pytest.raises(ValueError, match=f'^{what} {records[what][0]["id"]} stands twice'):
        write_refer(tmp_path, 'new', 'own', records['image'], [], records['annotation'], {}, {}, records['category'])

@pytest.mark.parametrize('names, told', [
    (['a.jpg', 'b.jpg', 'a.jpg'], "2 images have the file_name 'a.jpg'"),
    (['a.jpg', 'A.JPG', 'c'], '2 images have the file_name'),
    (['../a.jpg', 'b', 'c'], 'no plain name'), (['s/a.jpg', 'b', 'c'], 'no plain name'), (['', 'b', 'c'], 'no plain name')])
def test_photos_of_one_name_do_not_write_over_each_other(tmp_path, names, told):
    "A photo is linked into the data set: what is written into its name is written into the user's own file"
    write(tmp_path, *contents(), 'source')
    _, instances = contents(3)
    photos = [tmp_path/'source/images'/f'{i}.jpg' for i in range(3)]
    images = [i | dict(file_name=n) for i, n in zip(instances['images'], names)]
    before = [p.read_bytes() for p in photos]
    with pytest.raises(ValueError, match=told):
        write_refer(tmp_path, 'new', 'own', images, photos, instances['annotations'], {100: ['x']}, {0: 'train'}, [])
    assert [p.read_bytes() for p in photos] == before and not (tmp_path/'new').exists()

@pytest.mark.parametrize('phrases, splits, told', [
    ({7: ['x']}, {0: 'train'}, 'phrases for annotation 7'), ({'100': ['x']}, {0: 'train'}, "phrases for annotation '100'"),
    ({100: 'x'}, {0: 'train'}, 'not a list'), ({101: ['x']}, {0: 'train'}, 'image 1 is in no split')])
def test_ids_that_lead_nowhere(tmp_path, phrases, splits, told):
    _, instances = contents(3)
    with pytest.raises(ValueError, match=told):
        write_refer(tmp_path, 'new', 'own', instances['images'], [], instances['annotations'], phrases, splits, [])

@pytest.mark.parametrize('name', ['Split', ' split', 'Mask'])
def test_a_column_that_would_not_be_read(tmp_path, name):
    with pytest.raises(ValueError, match=f"the column '{name}' would not be read"):
        refer_from_table([{'image': 'a.png', 'phrase': 'x', 'polygon': '', name: 'train'}], tmp_path, 'new')
