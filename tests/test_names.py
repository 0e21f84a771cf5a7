"Folders and files that look almost right: the message says what is there, what is missing and what to do"
import json, pickle, shutil
from pathlib import Path
import pytest
from PIL import Image
from sadlr.data.download import check_data
from sadlr.data.refer import Refer, find_refs, partitions_in
from sadlr.models.build import ReferSegmenter, create_model

H, W = 40, 60

def write(folder, refs='refs(unc).p', instances='instances.json', images='images'):
    "A data set of three refs, its files under any names; None: not at all"
    (folder/(images or '')).mkdir(parents=True)
    records = [dict(id=i, file_name=f'{i}.jpg', height=H, width=W) for i in range(3)]
    annotations = [dict(id=i, image_id=i, category_id=1, segmentation=[[5, 5, 25, 5, 25, 25, 5, 25]]) for i in range(3)]
    of = [dict(ref_id=i, ann_id=i, image_id=i, category_id=1, split=s, sentences=[dict(sent_id=i, raw='it', sent='it')])
          for i, s in enumerate(('train', 'val', 'test'))]
    if refs: (folder/refs).write_bytes(pickle.dumps(of))
    if instances: (folder/instances).write_text(json.dumps(dict(images=records, annotations=annotations, categories=[])))
    if images:
        for i in range(3): Image.new('RGB', (W, H), (50*i, 0, 0)).save(folder/images/f'{i}.jpg')

def message(*args):
    with pytest.raises((ValueError, FileNotFoundError)) as error: Refer(*args)
    assert '\n' not in str(error.value)
    return str(error.value)

@pytest.mark.parametrize('dataset', ['grefcoco', 'refcoco', 'mine'])
@pytest.mark.parametrize('name', ['grefs(unc).pkl', 'refs(unc).json', 'refs(unc).pkl', 'refs.p', 'Refs(unc).p', 'refs(unc)', 'refs(unc).p.zip'])
def test_a_folder_with_another_refs_file(tmp_path, dataset, name):
    write(tmp_path/dataset, refs=name)
    said, usual = message(tmp_path, dataset, 'unc'), 'grefs(unc).json' if dataset == 'grefcoco' else 'refs(unc).p'
    assert f'{tmp_path/dataset/usual} is missing' in said and repr(name) in said and 'a pickle' in said
    assert 'no data set' not in said
    wrong = check_data(tmp_path)
    assert len(wrong) == 1 and repr(name) in wrong[0] and check_data(tmp_path, dataset) == wrong

@pytest.mark.parametrize('dataset', ['grefcoco', 'refcoco', 'mine'])
def test_each_of_the_three_files_is_read(tmp_path, dataset):
    "gRefCOCO's pickle before its JSON, whatever the folder is called; REFER's own beside one of them is an error"
    write(tmp_path/dataset, refs='grefs(unc).p')
    refs = pickle.loads((tmp_path/dataset/'grefs(unc).p').read_bytes())
    assert len(Refer(tmp_path, dataset, 'unc').refs()) == 3
    (tmp_path/dataset/'grefs(unc).json').write_text(json.dumps(refs[:2]))
    assert len(Refer(tmp_path, dataset, 'unc').refs()) == 3
    (tmp_path/dataset/'grefs(unc).p').unlink()
    assert len(Refer(tmp_path, dataset, 'unc').refs()) == 2 and partitions_in(tmp_path) == [(dataset, 'unc')]
    (tmp_path/dataset/'refs(unc).p').write_bytes(pickle.dumps(refs[:1]))
    assert 'are both there' in message(tmp_path, dataset, 'unc')
    (tmp_path/dataset/'grefs(unc).json').unlink()
    assert len(Refer(tmp_path, dataset, 'unc').refs()) == 1 and partitions_in(tmp_path) == [(dataset, 'unc')]

def test_a_folder_without_any_file_of_annotations(tmp_path):
    write(tmp_path/'mine', refs=None, instances=None)
    assert 'holds nothing of the kind' in message(tmp_path, 'mine', 'unc')

def test_another_partition(tmp_path):
    write(tmp_path/'refcoco', refs='refs(google).p')
    said = message(tmp_path, 'refcoco', 'unc')
    assert 'refs(unc).p is missing' in said and "'refs(google).p'" in said and 'sadlr_data get' in said
    write(tmp_path/'mine', refs='refs(google).p')
    assert message(tmp_path, 'mine', 'unc') == "mine has no partition 'unc'; there are 'google'"

@pytest.mark.parametrize('there, asked', [('RefCOCO', 'refcoco'), ('refcoco', 'RefCOCO'), ('Mine', 'mine'),
                                          ('mine', 'MINE')])
def test_another_letter_case(tmp_path, there, asked):
    write(tmp_path/there)
    if (tmp_path/asked).is_dir(): pytest.skip('this file system knows no capitals')
    assert f'there is a folder {there!r}, and capitals count' in message(tmp_path, asked, 'unc')
    assert f'there is a folder {there!r}, and capitals count' in check_data(tmp_path, asked)[0]

@pytest.mark.parametrize('name', ['refcoco', 'mine'])
def test_a_root_too_low(tmp_path, monkeypatch, name):
    write(tmp_path/name)
    for root in tmp_path/name, Path('.'):
        monkeypatch.chdir(tmp_path/name)
        told = f'is the folder of one data set: the root is {tmp_path.resolve()}, the data set {name!r}'
        assert told in message(root, name, 'unc')
    assert f'the root is {tmp_path.resolve()}' in check_data(tmp_path/name)[0]

def test_a_root_too_high_and_one_that_is_not_there(tmp_path):
    write(tmp_path/'data'/'mine')
    assert f"one level deeper: the root is {tmp_path/'data'}" in message(tmp_path, 'mine', 'unc')
    assert f"one level deeper: the root is {tmp_path/'data'}" in check_data(tmp_path)[0]
    assert f"there is no folder {tmp_path/'nowhere'}" in message(tmp_path/'nowhere', 'mine', 'unc')

@pytest.mark.parametrize('name', ['instances_train.json', 'annotations.json', 'Instances.json', 'instances.json.gz'])
def test_instances_of_another_name(tmp_path, name):
    write(tmp_path/'mine', instances=name)
    said = message(tmp_path, 'mine', 'unc')
    assert said == f"{tmp_path/'mine'/'instances.json'} is missing; beside it there is {name!r}"
    assert check_data(tmp_path, 'mine') == [said]

@pytest.mark.parametrize('name', ['0.JPG', '0.png', '0.jpg.jpg'])
def test_images_of_another_kind(tmp_path, name):
    write(tmp_path/'mine')
    (tmp_path/'mine'/'images'/'0.jpg').rename(tmp_path/'mine'/'images'/name)
    refer = Refer(tmp_path, 'mine', 'unc')
    with pytest.raises(FileNotFoundError, match=f"0.jpg; it is there as '{name}'"): refer.image_path(refer.refs()[0])
    assert f"mine (unc): 0.jpg is there as '{name}'" in check_data(tmp_path, 'mine')

def test_a_file_for_a_folder(tmp_path):
    (tmp_path/'mine').write_text('refs')
    assert f"{tmp_path/'mine'} is a file, and a data set is a folder" in message(tmp_path, 'mine', 'unc')

def test_names_near_a_model(tmp_path):
    "A run's folder, and files of a model's"
    create_model(size='nano', img_size=32).save_pretrained(tmp_path/'model')
    for name, told in {'': f'the model of this run is {tmp_path}/model', 'model/config.json': f'name its folder, {tmp_path}/model[?]',
                       'model/model.safetensors': 'is a file: name its folder'}.items():
        with pytest.raises(FileNotFoundError, match=told): ReferSegmenter.from_pretrained(tmp_path/name)
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='is this a saved model'): ReferSegmenter.from_pretrained(tmp_path/'empty')

@pytest.mark.parametrize('deeper', ['images/images', 'images/train2014'])
def test_images_one_level_deeper(tmp_path, deeper):
    write(tmp_path/'mine', images=deeper)
    refer = Refer(tmp_path, 'mine', 'unc')
    with pytest.raises(FileNotFoundError) as error: refer.image_path(refer.refs()[0])
    assert f"it lies in {tmp_path/'mine'/deeper}: move the images to {tmp_path/'mine'/'images'}" in str(error.value)
    assert any(f"lies in {tmp_path/'mine'/deeper}" in line for line in check_data(tmp_path, 'mine'))

def test_images_in_another_usual_place(tmp_path):
    write(tmp_path/'mine', images=None)
    (tmp_path/'mine'/'images').mkdir()
    write(tmp_path/'other', images='photos')
    shutil.move(tmp_path/'other'/'photos', tmp_path/'train2014')
    refer = Refer(tmp_path, 'mine', 'unc')
    with pytest.raises(FileNotFoundError, match=f"it lies in {tmp_path/'train2014'}"): refer.image_path(refer.refs()[0])

@pytest.mark.parametrize('name', ['', '.', '..', 's*', '[a', 'a/b', '/'])
def test_odd_names_of_data_sets(tmp_path, name):
    write(tmp_path/'mine')
    with pytest.raises((ValueError, FileNotFoundError)): find_refs(tmp_path, name, 'unc')
