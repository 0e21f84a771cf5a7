"A photo is recognised whatever it is called: by COCO's name, by a link, by a copy"
import json, os, pickle, shutil
import pytest
from PIL import Image
from sadlr.data.custom import refer_from_table
from sadlr.data.download import check_data
from sadlr.data.joint import Joint, count_photos
from sadlr.data.refer import Refer

TRIANGLE = [8, 8, 40, 8, 40, 40]

def photo(i): return Image.new('RGB', (64, 48), (20*i, 90, 120))

def coco(root):
    "RefCOCO with four photos: two to train on, one of val and one of testA"
    splits, folder = ['train', 'train', 'val', 'testA'], root/'refcoco'
    (folder/'images').mkdir(parents=True)
    images = [dict(id=i, file_name=f'COCO_train2014_{i:012}.jpg', height=48, width=64) for i in range(4)]
    for image in images: photo(image['id']).save(folder/'images'/image['file_name'])
    refs = [dict(ref_id=i, ann_id=i, image_id=i, category_id=1, split=split,
                 sentences=[dict(sent_id=i, raw='thing', sent='thing')]) for i, split in enumerate(splits)]
    annotations = [dict(id=i, image_id=i, category_id=1, segmentation=[TRIANGLE]) for i in range(4)]
    (folder/'refs(unc).p').write_bytes(pickle.dumps(refs))
    (folder/'instances.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=[])))
    return Refer(root)

def own(tmp_path, splits, name='mine'):
    "A data set of one's own: file name -> split"
    rows = [dict(image=image, phrase='thing', polygon=TRIANGLE, split=split) for image, split in splits.items()]
    return refer_from_table(rows, tmp_path/'data', name, folder=tmp_path)

def kept(joint, refer):
    return [joint.image_path(r).name[7:] for r in joint.refs('train') if joint.refers[r.source] is refer]

@pytest.mark.parametrize('name', ['COCO_train2014_{:012}.jpg', '{:012}.jpg'])
def test_held_out_photos_in_data_of_ones_own(tmp_path, name):
    refcoco, splits = coco(tmp_path/'data'), {}
    for i in (3, 1, 2, 0): # in another order, so that the numbers differ from COCO's
        (refcoco.images/f'COCO_train2014_{i:012}.jpg').rename(tmp_path/name.format(i))
        splits[name.format(i)] = 'train'
    for i, (name_of_own, split) in enumerate([('garden.jpg', 'train'), ('lawn.jpg', 'val')], 4):
        photo(i).save(tmp_path/name_of_own)
        splits[name_of_own] = split
    mine = own(tmp_path, splits)
    for refers in [mine], [refcoco, mine]:
        joint = Joint(refers)
        assert kept(joint, mine) == [name.format(1), name.format(0), 'garden.jpg']
        assert joint.dropped['mine (own)'] == dict(images=2, refs=2, sentences=2)
        assert joint.counts()['train']['images'] == 3 # the two of COCO, whichever set they are in, and the garden

WAYS = dict(copy=shutil.copy, hard_link=os.link, link=os.symlink)

@pytest.mark.parametrize('way', WAYS)
def test_a_held_out_photo_under_another_name(tmp_path, way):
    "It is left out, and one that is trained on in both sets counts once"
    refcoco = coco(tmp_path/'data')
    for i, name in {2: 'of val.jpg', 0: 'of train.jpg'}.items():
        WAYS[way](refcoco.images.absolute()/f'COCO_train2014_{i:012}.jpg', tmp_path/name)
    for i, name in {4: 'garden.jpg', 5: 'lawn.jpg'}.items(): photo(i).save(tmp_path/name)
    mine = own(tmp_path, {'of val.jpg': 'train', 'of train.jpg': 'train', 'garden.jpg': 'train', 'lawn.jpg': 'val'})
    joint = Joint([refcoco, mine])
    assert kept(joint, mine) == ['of train.jpg', 'garden.jpg']
    assert joint.counts()['train'] == dict(images=3, refs=4, sentences=4)

@pytest.mark.parametrize('name', ['0.jpg', './0.jpg', 'sub/../0.jpg', 'link.jpg', 'copy.jpg'])
def test_one_photo_under_two_ids_of_one_set(tmp_path, name):
    "Files that others wrote: the check tells it, and a joint training leaves it out"
    for i in range(4): photo(i).save(tmp_path/f'{i}.jpg')
    mine = own(tmp_path, {'0.jpg': 'train', '1.jpg': 'val', '2.jpg': 'test', '3.jpg': 'train'})
    assert check_data(mine.root) == []
    instances, first = json.loads(mine.path.read_text()), mine.images/mine.image_records[0]['file_name']
    (mine.images/'sub').mkdir()
    (mine.images/'link.jpg').symlink_to(first.absolute())
    shutil.copy(first, mine.images/'copy.jpg')
    instances['images'][1]['file_name'] = name.replace('0.jpg', first.name)
    mine.path.write_text(json.dumps(instances))
    again = Refer(mine.root, 'mine', 'own')
    assert check_data(mine.root) == ["mine (own): images 0 and 1 are one photo, once in 'train' and once in 'val'"]
    assert [ref.image_id for ref in Joint([again]).refs('train')] == [3]

def test_photos_of_one_name_in_two_sets_are_two(tmp_path):
    names = 'IMG_1.jpg', 'IMG_2.jpg', 'IMG_3.jpg'
    for k, folder in enumerate(('north', 'south')):
        (tmp_path/folder).mkdir()
        for i, name in enumerate(names): photo(3*k + i).save(tmp_path/folder/name)
    north = own(tmp_path/'north', dict(zip(names, ('train', 'val', 'test'))))
    south = own(tmp_path/'south', dict(zip(names, ('val', 'train', 'test'))))
    joint = Joint([north, south])
    assert len(joint.refs('train')) == joint.counts()['train']['images'] == 2 and joint.dropped[north.name]['refs'] == 0

def test_the_same_set_twice(tmp_path):
    refcoco = coco(tmp_path/'data')
    with pytest.raises(ValueError, match=r"a data set is there twice: 'refcoco \(unc\)', 'refcoco \(unc\)'"):
        Joint([refcoco, Refer(tmp_path/'data'/'..'/'data')])

def test_photos_are_counted_by_any_of_their_names():
    assert count_photos([['a', 1], ['b'], [1, 'c'], ['c', 2], ['d']]) == 3
