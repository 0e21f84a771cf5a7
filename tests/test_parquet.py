"Tables of the hub become REFER's files: the command, scores as on the set they were made of, and what is left on disk"
import io, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from sadlr import cli
from sadlr.data import parquet
from sadlr.data.refer import PARTITIONS, Refer
from sadlr.data.shapes import make_shapes

pyarrow = pytest.importorskip('pyarrow', reason='needs the parquet extra: pip install -e ".[parquet]"')
from pyarrow import parquet as tables

def rows_of(refer, split):
    "A split in RefCOCO-M's columns"
    rows = {}
    for ref in refer.refs(split):
        path, rle = refer.image_path(ref), refer.rle(ref)
        row = rows.setdefault(ref.image_id, dict(image=dict(bytes=path.read_bytes(), path=path.name), image_id=ref.image_id,
                                                 file_name=path.name, samples=[]))
        row['samples'].append(dict(
            id=ref.ann_id, image_id=ref.image_id, category='shape', supercategory='', label='', bbox=[0., 0., 1., 1.],
            sentences=[s.raw for s in ref.sentences], mask=dict(counts=rle['counts'].decode(), size=rle['size'])))
    return [*rows.values()]

def write(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(pyarrow.Table.from_pylist(rows), path)
    return path

@pytest.fixture(scope='module')
def shapes(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('shapes'), n_images=20, level='relations')

@pytest.fixture
def hub(shapes, tmp_path, monkeypatch):
    "A hub that is a folder; what it was asked for"
    for i, split in enumerate(('train', 'val')):
        write(rows_of(shapes, split), tmp_path/'hub'/'data'/f'validation-0000{i}-of-00002.parquet')
    asked = []
    monkeypatch.setattr(parquet, 'snapshot_download', lambda *args, **options: asked.append((args, options)) or tmp_path/'hub')
    return asked

def test_get_check_evaluate(hub, shell, shapes, tmp_path, monkeypatch):
    "RefCOCO-M as the commands know it, with the counts of this small one"
    root = tmp_path/'root'
    assert shell('sadlr_data', 'get', root, '--dataset', 'refcoco-m')[0] is None
    (args, options), = hub
    assert args == ('moondream/refcoco-m',) and options['repo_type'] == 'dataset' and len(options['allow_patterns']) == 2
    assert shell('sadlr_data', 'get', root, '--dataset', 'refcoco-m') == (None, 'refcoco-m: there already\n') and len(hub) == 1
    said, out = shell('sadlr_data', 'check', root, '--dataset', 'refcoco-m')
    assert 'not whole' in said and 'refs and not 2080' in out # it is not the published one, and that is found
    monkeypatch.setitem(PARTITIONS['refcoco-m'], 'moondream', {'val': Refer(root, 'refcoco-m', 'moondream').counts()['val']})
    said, out = shell('sadlr_data', 'check', root, '--dataset', 'refcoco-m')
    assert said is None and 'whole' in out and 'missing' not in out
    asked = 'sadlr_evaluate', '--model', 'shapes', '--protocol', 'lisa'
    said, ours = shell(*asked, '--root', root, '--dataset', 'refcoco-m')
    assert said is None
    scores = {}
    for name in 'train', 'val':
        _, out = shell(*asked, '--root', shapes.root, '--split_by', 'relations', '--split', name)
        n = sum(len(r.sentences) for r in shapes.refs(name))
        scores[name] = n, np.array([line.split() for line in out.splitlines()[2:]], float)
    total = sum(n for n, _ in scores.values())
    mean = sum(n*table[:, 1:7] for n, table in scores.values())/total # P@X and mIoU are means over sentences
    found = np.array([line.split() for line in ours.splitlines()[2:]], float)[:, 1:7]
    np.testing.assert_allclose(found, mean, atol=.011)

def test_own_table(shell, shapes, tmp_path):
    path = write(rows_of(shapes, 'test'), tmp_path/'testA-00000-of-00001.parquet')
    said, _ = shell('sadlr_data', 'get', tmp_path/'root', '--dataset', 'mine', '--parquet', path)
    assert said.startswith("sadlr_data: split='val': ") and "'testA'" in said and len(said.splitlines()) == 1
    assert not (tmp_path/'root').exists()
    assert shell('sadlr_data', 'get', tmp_path/'root', '--dataset', 'mine', '--parquet', path, '--split', 'testA')[0] is None
    assert shell('sadlr_data', 'check', tmp_path/'root', '--dataset', 'mine')[0] is None
    assert [*Refer(tmp_path/'root', 'mine', 'own').counts()] == ['testA']
    said, _ = shell('sadlr_data', 'get', tmp_path/'root', '--dataset', 'mine', '--parquet', path, '--split', 'testA')
    assert 'is there' in said and len(said.splitlines()) == 1

def test_photos_in_a_folder(shell, shapes, tmp_path):
    "A file of any name whose photos lie elsewhere"
    rows = [{k: v for k, v in row.items() if k != 'image'} for row in rows_of(shapes, 'test')]
    get = 'sadlr_data', 'get', tmp_path/'root', '--dataset', 'mine', '--parquet', write(rows, tmp_path/'mine.parquet')
    said, _ = shell(*get)
    assert 'row 0, image: there is no photo in the row' in said and len(said.splitlines()) == 1
    assert shell(*get, '--images', shapes.images)[0] is None
    refer = Refer(tmp_path/'root', 'mine', 'own')
    assert {refer.image_path(ref).read_bytes() for ref in refer.refs('val')} == {
        shapes.image_path(ref).read_bytes() for ref in shapes.refs('test')}

@pytest.mark.parametrize('words, told', [
    (('get', 'root', '--parquet', 'x.parquet'), 'takes a dataset'), (('check', 'root', '--dataset', 'a', '--parquet', 'b'), 'for get'),
    (('get', 'root', '--dataset', 'refcoco', '--parquet', 'b'), 'another data set'), (('get', 'root', '--split', 'val'), 'split=val'),
    (('get', 'root', '--images', 'photos'), 'images=photos'),
    (('get', 'root', '--dataset', 'rrsisd'), 'no program can fetch rrsisd')])
def test_mistakes_of_the_command(shell, words, told):
    said, _ = shell('sadlr_data', *words)
    assert said.startswith('sadlr_data: ') and told in said and len(said.splitlines()) == 1

def test_random_damage_is_one_line(shapes, tmp_path):
    "Bits flipped, bytes cut: a data set that can be read whole, or one error and nothing on disk"
    whole = write(rows_of(shapes, 'val'), tmp_path/'val-0.parquet').read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for i in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, len(data) if i % 2 else 2000, 3): data[-1 - at] ^= 1 << rng.integers(8)
        (tmp_path/'odd'/'val-0.parquet').parent.mkdir(exist_ok=True)
        (tmp_path/'odd'/'val-0.parquet').write_bytes(data)
        try: refer = parquet.write_parquet(tmp_path/'data', f'd{i}', tmp_path/'odd')
        except ValueError as error:
            refused += 1
            assert 'val-0.parquet' in str(error) and len(str(error).splitlines()) == 1
            assert not [*(tmp_path/'data').glob(f'*d{i}*')]
        else: assert [refer.mask(ref).any() for ref in refer.refs()].count(False) == 0
    assert refused > 20

def test_a_full_disk_leaves_nothing(shapes, tmp_path, monkeypatch):
    path = write(rows_of(shapes, 'val'), tmp_path/'val-0.parquet')
    real = Path.write_bytes
    def full(self, data):
        if self.suffix == '.png': raise OSError(28, 'No space left on device', str(self))
        return real(self, data)
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match='was not written: No space left'): parquet.write_parquet(tmp_path/'data', 'full', path)
    assert not [*(tmp_path/'data').iterdir()]

def test_a_photo_that_lies_on_its_side(tmp_path):
    "The mask tells which way the photo was looked at, as for all data sets"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (40, 30), 'white').save(file := io.BytesIO(), 'JPEG', exif=exif)
    from sadlr.masks import to_rle
    for name, (h, w) in dict(stored=(30, 40), upright=(40, 30)).items():
        mask = np.zeros((h, w), bool)
        mask[5:9, 4:8] = True
        row = dict(image=dict(bytes=file.getvalue(), path='a.jpg'), image_id=1, file_name='a.jpg', samples=[
            dict(id=5, category='thing', sentences=['it'], mask=to_rle(mask))])
        refer = parquet.write_parquet(tmp_path/'data', name, write([row], tmp_path/name/'val-0.parquet'))
        assert (refer.mask(refer.refs()[0]) == mask).all()
        assert cli.check_data(tmp_path/'data', name) == []

GROWTH = '''
import io, resource, sys
from pathlib import Path
import numpy as np, pyarrow
from PIL import Image
from pyarrow import parquet as tables
from sadlr.data.parquet import write_parquet
from sadlr.masks import to_rle

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
mask, writer = to_rle(np.ones((480, 640))), None
for i in range(120):
    Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(file := io.BytesIO(), 'PNG', compress_level=0)
    rows = [dict(image=dict(bytes=file.getvalue(), path=''), image_id=i, file_name=f'{i}.png',
                 samples=[dict(id=i, category='noise', sentences=['all of it'], mask=mask)])]
    table = pyarrow.Table.from_pylist(rows)
    writer = writer or tables.ParquetWriter(folder/'val-0.parquet', table.schema)
    writer.write_table(table)
writer.close()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
before = peak()
write_parquet(folder/'data', 'large', folder/'val-0.parquet')
print((folder/'val-0.parquet').stat().st_size/2**20, peak() - before)
'''

def test_memory_does_not_grow_with_the_table(tmp_path):
    size, growth = map(float, subprocess.check_output([sys.executable, '-c', GROWTH, tmp_path], text=True).split())
    assert size > 100 and growth < 40, (size, growth)
