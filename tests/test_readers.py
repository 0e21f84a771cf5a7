"Files of other tools, the same in every reader: marks, encodings, numbers that are none, half characters, boxes"
import json, pickle
import pytest
from PIL import Image
from sadlr.training import begun_options
from sadlr.data.custom import polygon_parts, read_phrases, read_table, refer_from_coco, refer_from_table
from sadlr.data.download import check_data
from sadlr.data.refer import Refer, read_instances, read_refs
from sadlr.data.shapes import make_shapes
from sadlr.files import decode_json, read_json
from sadlr.models.build import read_config
from sadlr.predictions import read_predictions

H, W = 40, 60
SQUARE = [[5, 5, 25, 5, 25, 25, 5, 25]]

def coco():
    return dict(images=[dict(id=i, file_name=f'{i}.jpg', height=H, width=W) for i in range(3)],
                annotations=[dict(id=i, image_id=i, category_id=1, segmentation=SQUARE) for i in range(3)],
                categories=[dict(id=1, name='thing')])

def predictions(): return [dict(sent_id=i, segmentation=dict(size=[4, 8], counts='52203')) for i in range(2)]

def phrases(): return {str(i): f'thing {i}' for i in range(3)}

def read_settings(path):
    folder = path.parent/f'run {path.name}'
    folder.mkdir(exist_ok=True)
    (folder/'settings.json').write_bytes(path.read_bytes())
    return begun_options(folder)

READERS = dict(
    config=(lambda: dict(encoder='lavt', head_options={}), read_config),
    settings=(lambda: dict(options=dict(dataset='é', epochs=1, bs=2, lr=1., seed=0), data={}), read_settings),
    instances=(coco, lambda path: [(i['id'], i['file_name']) for i in read_instances(path).images]),
    predictions=(predictions, lambda path: [p.sent_id for p in read_predictions(path)]),
    phrases=(phrases, lambda path: read_phrases(path, range(3))), plain=(coco, read_json))

ENCODINGS = 'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'

@pytest.mark.parametrize('encoding', ENCODINGS)
@pytest.mark.parametrize('reader', READERS)
def test_encodings(tmp_path, reader, encoding):
    content, read = READERS[reader]
    for name in 'a', 'b':
        (tmp_path/name).write_bytes(json.dumps(content(), ensure_ascii=False).encode(encoding if name == 'a' else 'utf-8'))
    assert read(tmp_path/'a') == read(tmp_path/'b')

ODD_VALUES = [b'NaN', b'Infinity', b'-Infinity', b'[NaN, {"a": -Infinity}]', b'"caf\xe9"', rb'"half \ud83d"',
              rb'"\udc36\\"',
              b'1e999',              b'9' * 4500, b'{"deep": [[[[1]]]]}', b'null']

@pytest.mark.parametrize('value', ODD_VALUES, ids=range(len(ODD_VALUES)))
@pytest.mark.parametrize('reader', ['instances', 'predictions'])
def test_fields_that_nobody_reads(tmp_path, reader, value):
    content, read = READERS[reader]
    text = json.dumps(content()).encode()
    expected = (tmp_path/'a').write_bytes(text) and read(tmp_path/'a')
    for key in b'"id":', b'"sent_id":': text = text.replace(key, b'"score": %s, %s' % (value, key))
    (tmp_path/'a').write_bytes(text)
    assert read(tmp_path/'a') == expected

@pytest.mark.parametrize('text', [b'"caf\xe9.jpg"', rb'"half \ud83d.jpg"', b'NaN', b'null', b'7'])
def test_a_field_that_is_read_is_named(tmp_path, text):
    (tmp_path/'bad.json').write_bytes(json.dumps(coco()).encode().replace(b'"0.jpg"', text))
    with pytest.raises(ValueError, match='bad.json is not a COCO file: ') as error: read_instances(tmp_path/'bad.json')
    line = str(error.value)
    assert '\n' not in line and ('no Unicode' in line or '`$.images[0].file_name`' in line)

BROKEN = [b'', b'{', b'[1', b'nul', b'{"a": nan}', b"{'a': 1}", b'{"a": 1} x', b'['*200_000, b'"' + b'\\'*9, b'\xff\xfe[',
          b'\x00', b'\xef\xbb\xbf',
          b'{"a": 1, "a": 2}', b'"%s' % (b'a'*100_000), b'PK\x03\x04', b'\x80\x04K\x03.', rb'["\ud8', rb'"\uzzzz"', b'caf\xe9']

@pytest.mark.parametrize('data', BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize('reader', [name for name in READERS if name != 'settings'])
def test_what_is_no_json_is_one_line_with_its_file(tmp_path, reader, data):
    (tmp_path/'bad.json').write_bytes(data)
    with pytest.raises(ValueError, match='bad.json ') as error: READERS[reader][1](tmp_path/'bad.json')
    assert '\n' not in str(error.value) and len(str(error.value)) < 400

@pytest.mark.parametrize('number', [7, 7.0, '7', 7e0])
def test_whole_numbers_however_they_are_written(tmp_path, number):
    instances = coco()
    for record in instances['annotations'][1:2]: record |= dict(id=number, image_id=1., category_id='1')
    instances['images'][1] |= dict(id='1', height=float(H), width=str(W))
    instances['categories'][0]['id'] = 1.
    for i in range(3): Image.new('RGB', (W, H), (50*i, 9, 9)).save(tmp_path/f'{i}.jpg')
    (tmp_path/'coco.json').write_text(json.dumps(instances))
    refer = refer_from_coco(tmp_path/'coco.json', {0: 'a', number: 'b', '2': 'c'}, tmp_path, tmp_path, 'new')
    assert [(r.ann_id, r.image_id, r.category_id) for r in refer.refs()] == [(0, 0, 1), (7, 1, 1), (2, 2, 1)]
    written = json.loads(refer.path.read_text())
    assert written['annotations'][1] == dict(id=7, image_id=1, category_id=1, segmentation=SQUARE)
    assert written['images'][1]['height'] == H and type(written['images'][1]['id']) is int
    (tmp_path/'masks.json').write_text(json.dumps([predictions()[0] | dict(sent_id=number)]))
    assert read_predictions(tmp_path/'masks.json')[0].sent_id == 7
    ref = dict(ref_id=number, ann_id=number, image_id=number, category_id=number, split='val', sentences=[])
    (tmp_path/'refs(x).p').write_bytes(pickle.dumps([ref]))
    assert read_refs(tmp_path/'refs(x).p')[0].ref_id == 7

@pytest.mark.parametrize('number', [-1, 2**63, 10**30, 7.5, 1e30, '7.5', '', '+7', 'seven', None, True, [7],
                                    '9'*5000, 1e999])
def test_numbers_that_are_none(tmp_path, number):
    for change in dict(id=number), dict(image_id=number):
        instances = coco()
        instances['annotations'][1] |= change
        (tmp_path/'bad.json').write_text(json.dumps(instances))
        with pytest.raises(ValueError, match='bad.json is not a COCO file: ') as error:
            read_instances(tmp_path/'bad.json')
        assert '\n' not in str(error.value) and len(str(error.value)) < 400
    ref = dict(ref_id=number, ann_id=1, image_id=1, category_id=1, split='val', sentences=[])
    (tmp_path/'refs(x).p').write_bytes(pickle.dumps([ref]))
    with pytest.raises(ValueError, match=r'refs\(x\).p is not a list of refs: '): read_refs(tmp_path/'refs(x).p')
    with pytest.raises(ValueError, match='there is no annotation'): read_phrases({str(number): 'it'}, {7: {}})

@pytest.mark.parametrize('side', [0, -1, 10**30, 65536, 1e30, 40.5])
def test_sizes_of_images_that_are_none(tmp_path, side):
    instances = coco()
    instances['images'][1]['width'] = side
    (tmp_path/'bad.json').write_text(json.dumps(instances))
    with pytest.raises(ValueError, match=r'bad.json is not a COCO file: .*images\[1\].width'):
        read_instances(tmp_path/'bad.json')

# ---- annotations with boxes only

def own(tmp_path, instances):
    folder = tmp_path/'mine'
    (folder/'images').mkdir(parents=True)
    for i in range(3): Image.new('RGB', (W, H), (50*i, 9, 9)).save(folder/'images'/f'{i}.jpg')
    refs = [dict(ref_id=i, ann_id=i, image_id=i, category_id=1, split=('train', 'val', 'test')[i],
                 sentences=[dict(sent_id=i, raw='it', sent='it')]) for i in range(3)]
    (folder/'refs(own).p').write_bytes(pickle.dumps(refs))
    (folder/'instances.json').write_text(json.dumps(instances))
    return Refer(tmp_path, 'mine', 'own')

BOXES = [dict(), dict(segmentation=[]), dict(segmentation=None), dict(segmentation=''), dict(segmentation=[[]]),
         dict(segmentation=[[1, 2]]), dict(segmentation=dict(counts=None))]

@pytest.mark.parametrize('box', BOXES, ids=range(len(BOXES)))
def test_an_annotation_with_a_box_only(tmp_path, box):
    "Nobody minds as long as no ref uses it; then it is named"
    instances = coco()
    instances['annotations'].append(dict(id=9, image_id=0, category_id=1, bbox=[1, 2, 3, 4], area=12) | box)
    refer = own(tmp_path, instances)
    assert len(refer.refs()) == 3 and check_data(tmp_path, 'mine') == []
    again = refer_from_coco(refer.path, phrases(), refer.images, tmp_path, 'again')
    assert [a.id for a in read_instances(again.path).annotations] == [0, 1, 2, 9]
    instances['annotations'][0] = instances['annotations'].pop() | dict(id=0)
    refer.path.write_text(json.dumps(instances))
    used = Refer(tmp_path, 'mine', 'own')
    with pytest.raises(ValueError, match='instances.json, annotation 0: '): used.mask(used.refs()[0])
    assert any('annotation 0: ' in line for line in check_data(tmp_path, 'mine'))
    with pytest.raises(ValueError, match='annotation 0: '):
        refer_from_coco(refer.path, phrases(), refer.images, tmp_path, 'no')

def test_without_categories_and_with_fields_of_other_tools(tmp_path):
    instances = coco() | dict(info=None, licenses='none', version=3)
    del instances['categories']
    for record in [*instances['images'], *instances['annotations']]: record |= dict(extra={'note': 'left'}, score=.5)
    refer = own(tmp_path, instances)
    again = refer_from_coco(refer.path, phrases(), refer.images, tmp_path, 'again')
    assert refer.categories == again.categories == {} and check_data(tmp_path, 'mine') == []
    assert json.loads(again.path.read_text())['annotations'] == instances['annotations']

def test_unread_text_that_is_no_unicode_is_written_as_unicode(tmp_path):
    refer = own(tmp_path, coco())
    text = refer.path.read_bytes()
    fields = rb'"note": "caf%s \ud83d", "score": NaN, "category_id"' % b'\xe9'
    refer.path.write_bytes(text.replace(b'"category_id"', fields))
    again = refer_from_coco(refer.path, phrases(), refer.images, tmp_path, 'again')
    assert json.loads(again.path.read_text())['annotations'][0]['score'] is None

# ---- text that is no Unicode

HALVES = 'red \ud83d object', '\udc36', 'caf\udce9'

@pytest.mark.parametrize('text', HALVES, ids=ascii)
def test_half_characters_are_named_where_they_stand(tmp_path, text):
    refer = own(tmp_path, coco())
    (tmp_path/'refs(x).p').write_bytes(pickle.dumps([
        dict(ref_id=i, ann_id=1, image_id=1, category_id=1, split='val',
             sentences=[dict(sent_id=i, raw=text if i == 4 else 'it', sent='it')]) for i in range(6)]))
    with pytest.raises(ValueError, match=r'refs\(x\).p is not a list of refs: ref 4: ') as refs:
        read_refs(tmp_path/'refs(x).p')
    with pytest.raises(ValueError, match='^annotation 1: a phrase is no Unicode text') as coco_error:
        refer_from_coco(refer.path, phrases() | {'1': ['it', text]}, refer.images, tmp_path, 'no')
    (tmp_path/'phrases.json').write_text(json.dumps({'0': 'it', '1': text}))
    with pytest.raises(ValueError, match='phrases.json is no JSON: the text .* is no Unicode') as file_error:
        refer_from_coco(refer.path, tmp_path/'phrases.json', refer.images, tmp_path, 'no')
    rows = [dict(image=refer.images/f'{i}.jpg', phrase='it', polygon=SQUARE, split=s) for i, s in enumerate(refer.splits)]
    errors = [refs, coco_error, file_error]
    for field in 'phrase', 'image', 'split', 'polygon':
        with pytest.raises(ValueError, match=r'^row 2 \(') as row:
            refer_from_table([rows[0], rows[1] | {field: text}, rows[2]], tmp_path, 'no')
        errors.append(row)
    with pytest.raises(ValueError, match=r'^row 2 \(') as row:
        refer_from_table([rows[0], rows[1] | dict(mask=text, polygon=None), rows[2]], tmp_path, 'no')
    for error in [*errors, row]: assert '\n' not in str(error.value).encode().decode() # can be printed
    assert not (tmp_path/'no').exists()

@pytest.mark.parametrize('phrase', [b'red', ['red', 'blue'], {'red': 1}, ('red',)], ids=str)
def test_a_phrase_in_a_table_is_text_or_a_number(tmp_path, phrase):
    refer = own(tmp_path, coco())
    rows = [dict(image=refer.images/f'{i}.jpg', phrase=7, polygon=SQUARE, split=s) for i, s in enumerate(refer.splits)]
    assert refer_from_table(rows, tmp_path, 'number').refs()[0].sentences[0].raw == '7'
    with pytest.raises(ValueError, match=r'^row 2 \(.*: the phrase is no text but'):
        refer_from_table([rows[0], rows[1] | dict(phrase=phrase), rows[2]], tmp_path, 'no')
    for names in ('no\ud83d', 'own'), ('no', 'own\ud83d'), ('no', '\0'):
        with pytest.raises(ValueError, match='is no name: '): refer_from_table(rows, tmp_path, *names)

def test_text_of_python_2(tmp_path):
    "It was bytes, of UTF-8 or of Latin-1"
    refs = [dict(ref_id=0, ann_id=0, image_id=0, category_id=1, split='val', file_name='x', sentences=[
        dict(sent_id=0, raw='TEXT', sent='it')])]
    def read(raw, name=b'x'):
        text = pickle.dumps(refs, 0).replace(b'VTEXT', b"S'%s'" % raw).replace(b'Vx', b"S'%s'" % name)
        (tmp_path/'refs(x).p').write_bytes(text)
        return read_refs(tmp_path/'refs(x).p')[0].sentences[0].raw
    assert read(rb'caf\xc3\xa9', rb'\xff') == read(rb'caf\xe9') == 'café' and read(rb'\xe5\xb7\xa6') == '左'

@pytest.mark.parametrize('text', HALVES, ids=ascii)
def test_half_characters_in_predictions(tmp_path, text):
    (tmp_path/'masks.json').write_text(json.dumps([predictions()[0] | dict(dataset=text)]))
    with pytest.raises(ValueError, match='masks.json holds no predictions: the text .* is no Unicode'):
        read_predictions(tmp_path/'masks.json')

# ---- tables

ROWS = [('a.jpg', 'the "red" disc, left', '[0, 0, 9, 0, 9, 9]'), ('b.jpg', 'two\nlines; and more', '[1, 1, 9, 1, 9, 9]'),
        ('ü.jpg', "l'été\tici", '[[2, 2], [9, 2], [9, 9]]')]

@pytest.mark.parametrize('encoding', ENCODINGS)
@pytest.mark.parametrize('sep', [',', ';', '\t'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_tables_of_spreadsheets(tmp_path, sep, encoding, end):
    lines = [sep.join(f'"{cell}"' for cell in [c.replace('"', '""') for c in row])
             for row in [('image', 'phrase', 'polygon'), *ROWS]]
    (tmp_path/'t.csv').write_bytes(end.join([*lines, '']).encode(encoding))
    found = read_table(tmp_path/'t.csv')
    assert [tuple(row.values()) for row in found] == ROWS and [*found[0]] == ['image', 'phrase', 'polygon']

@pytest.mark.parametrize('content, told', [
    ('image,phrase\na.png,café'.encode('latin1'), 'byte 22 \\(0xe9\\) is no UTF-8'), (b'', 'No columns'),
    (b'image,phrase,polygon\na.png,it,[0, 0, 9, 0, 9, 9]\n', 'Expected 3 fields in line 2, saw 8'),
    (b'image,phrase,polygon\na.png,it,"[0, 0]"\nb.png,it,left,"[0, 0]"\n', 'Expected 3 fields in line 3, saw 4'),
    (b'image,phrase,phrase\na.png,it,that\n', "the column 'phrase' stands twice"),
    (b'image,phrase\na.png,"it\n', 'EOF inside string'), (b'image,phrase\n', 'no rows'),
    (b'Image,Phrase\na.png,it\n', "'Image' would not be read: call it 'image'"),
    (b'photo,phrase\na.png,it\n', "no column 'image'; there are photo, phrase"), (b'\x00\x01\x02', 'no rows'),
    (b'PK\x03\x04\x14\x00\x06\x00\x08\x00', '')])
def test_tables_that_are_none(tmp_path, content, told):
    (tmp_path/'t.csv').write_bytes(content)
    with pytest.raises(ValueError, match=told) as error: read_table(tmp_path/'t.csv')
    assert '\n' not in str(error.value)

def test_a_short_row_has_empty_cells(tmp_path):
    (tmp_path/'t.csv').write_text('image,phrase,split\na.png,it\n')
    assert [*read_table(tmp_path/'t.csv')[0].values()][:2] == ['a.png', 'it']
    with pytest.raises(ValueError, match="row 1 .*: it takes either a 'mask' or a 'polygon'|no image at"):
        refer_from_table(tmp_path/'t.csv', tmp_path, 'new')

POLYGONS = ['\ufeff[0, 0, 9, 0, 9, 9]', '[0, 0, 9.0, 0, 9, 9]', '[["0", 0], [9, 0], [9, 9]]']
NO_POLYGONS = ['[0, 0, NaN, 0, 9, 9]', '[0, 0, 1e999, 0, 9, 9]', f'[0, 0, {"9"*400}, 0, 9, 9]', f'[0, 0, {"9"*5000}, 0, 9, 9]',
               '['*100_000,  '{"a": 1, "a": 2}', '[0, 0, -1e30, 0, 9, 9]', '\ud83d', '["\\ud83d"]', 'nan', '[null]']

@pytest.mark.parametrize('text', POLYGONS)
def test_polygons_as_text(text): assert polygon_parts(text, H, W) == [[0, 0, 9, 0, 9, 9]]

NO_POLYGONS += [[0, 0, 10**400, 0, 9, 9], [0, 0, float('inf'), 0, 9, 9]]

@pytest.mark.parametrize('text', NO_POLYGONS, ids=range(len(NO_POLYGONS)))
def test_polygons_that_are_none(text):
    with pytest.raises(ValueError) as error: polygon_parts(text, H, W)
    assert '\n' not in str(error.value) and len(str(error.value)) < 400

def test_a_damaged_file_of_shapes(tmp_path):
    refer = make_shapes(tmp_path, n_images=10)
    for text in refer.path.read_text()[:-9], '[]', 'null':
        refer.path.write_text(text)
        with pytest.raises(ValueError, match='instances.json is no file of shapes: '): make_shapes(tmp_path, n_images=10)

def test_text_is_read_as_bytes_are():
    assert decode_json('{"a": "é🐕"}') == decode_json('{"a": "é🐕"}'.encode()) == {'a': 'é🐕'}
