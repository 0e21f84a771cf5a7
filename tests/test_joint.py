"A photo of COCO is recognised in a data set that `refer_from_table` has written"
import json, pickle
import pytest
from PIL import Image
from sadlr.data.custom import refer_from_table
from sadlr.data.joint import Joint
from sadlr.data.refer import Refer

TRIANGLE = [8, 8, 40, 8, 40, 40]

def coco(root):
    "RefCOCO with four photos: two to train on, one of val and one of testA"
    splits, folder = ['train', 'train', 'val', 'testA'], root/'refcoco'
    (folder/'images').mkdir(parents=True)
    images = [dict(id=i, file_name=f'COCO_train2014_{i:012}.jpg', height=48, width=64) for i in range(4)]
    for image in images: Image.new('RGB', (64, 48)).save(folder/'images'/image['file_name'])
    refs = [dict(ref_id=i, ann_id=i, image_id=i, category_id=1, split=split,
                 sentences=[dict(sent_id=i, raw='thing', sent='thing')]) for i, split in enumerate(splits)]
    annotations = [dict(id=i, image_id=i, category_id=1, segmentation=[TRIANGLE]) for i in range(4)]
    (folder/'refs(unc).p').write_bytes(pickle.dumps(refs))
    (folder/'instances.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=[])))
    return Refer(root)

@pytest.mark.parametrize('name', ['COCO_train2014_{:012}.jpg', '{:012}.jpg'])
def test_held_out_photos_in_data_of_ones_own(tmp_path, name):
    refcoco, rows = coco(tmp_path/'data'), []
    for i in (3, 1, 2, 0): # in another order, so that the numbers differ from COCO's
        (refcoco.images/f'COCO_train2014_{i:012}.jpg').rename(tmp_path/name.format(i))
        rows.append(dict(image=name.format(i), phrase='thing', polygon=TRIANGLE, split='train'))
    for name_of_own, split in ('garden.jpg', 'train'), ('lawn.jpg', 'val'):
        Image.new('RGB', (64, 48)).save(tmp_path/name_of_own)
        rows.append(dict(image=name_of_own, phrase='thing', polygon=TRIANGLE, split=split))
    mine = refer_from_table(rows, tmp_path/'data', 'mine', folder=tmp_path)
    for refers in [mine], [refcoco, mine]:
        joint = Joint(refers)
        kept = [joint.image_path(ref).name for ref in joint.refs('train') if joint.refers[ref.source] is mine]
        assert [file[7:] for file in kept] == [name.format(1), name.format(0), 'garden.jpg']
        assert joint.dropped['mine (own)'] == dict(images=2, refs=2, sentences=2)
        assert joint.counts()['train']['images'] == 3 # the two of COCO, whichever set they are in, and the garden
