"Downloads from mirrors that drop, cut, mix up and refuse, and folders that are not whole"
import hashlib, json, pickle, re, threading, time, zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
import numpy as np, pytest
from forked import forked
from PIL import Image
from sadlr.data import download
from sadlr.data.download import BLOCK, DOWNLOADS, GREFCOCO, RRSISD, Download, fetch, get_data, unpack
from sadlr.data.refer import PARTITIONS
from sadlr.data.shapes import make_shapes

DATA = np.random.default_rng(0).bytes(40*BLOCK + 7)

class Mirror(BaseHTTPRequestHandler):
    "Sends `data`, `stop` bytes a connection; the first `refuse` connections get `status`"
    data, stop, refuse, status, ranges, lengths, stall = DATA, None, 0, 503, True, True, None
    def do_GET(self):
        cls = type(self)
        cls.asked = [*getattr(cls, 'asked', []), self.headers.get('Range')]
        if len(cls.asked) <= self.refuse: return self.send_error(self.status)
        ranged = self.ranges and 'Range' in self.headers
        start = int(self.headers['Range'][6:-1]) if ranged else 0
        if start >= len(self.data): return self.send_error(416)
        self.send_response(206 if ranged else 200)
        if self.lengths: self.send_header('Content-Length', len(self.data) - start)
        if ranged: self.send_header('Content-Range', f'bytes {start}-{len(self.data) - 1}/{len(self.data)}')
        self.end_headers()
        sent = self.data[start:][:self.stop]
        try:
            self.wfile.write(sent[:self.stall])
            if self.stall: self.rfile.read(1) # nothing more until the reader is gone
        except ConnectionError: return # the reader has seen enough

    def log_message(self, *args): pass

@pytest.fixture
def serve():
    "Start mirrors; the address and the class, whose `asked` lists the ranges asked for"
    servers = []
    def start(**behaviour):
        handler = type('Handler', (Mirror,), behaviour)
        servers.append(ThreadingTCPServer(('127.0.0.1', 0), handler))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, args=(.01,), daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_address[1]}/data.zip', handler
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()

def known(*urls, data=DATA, name='data'): return Download(name, len(data), hashlib.sha256(data).hexdigest(), urls)

def starts(handler): return [int((r or 'bytes=0-')[6:-1]) for r in handler.asked]

def files(folder): return sorted(p.name for p in folder.iterdir())

def test_one_good_mirror(serve, tmp_path):
    url, handler = serve()
    assert fetch(known(url), tmp_path).read_bytes() == DATA
    assert files(tmp_path) == ['data.zip'] and handler.asked == [None]

def test_dropped_connections_are_continued(serve, tmp_path):
    url, handler = serve(stop=9*BLOCK)
    assert fetch(known(url), tmp_path, pause=0).read_bytes() == DATA
    assert starts(handler) == [0, 9*BLOCK, 18*BLOCK, 27*BLOCK, 36*BLOCK]

def test_drops_within_a_block_lose_at_most_that_block(serve, tmp_path):
    url, handler = serve(stop=9*BLOCK + 100)
    assert fetch(known(url), tmp_path, pause=0).read_bytes() == DATA
    assert all(0 < b - a <= 9*BLOCK + 100 for a, b in zip(starts(handler), starts(handler)[1:]))

def test_a_server_that_ignores_range_and_drops_cannot_undo_what_is_there(serve, tmp_path):
    (tmp_path/'data.zip.part').write_bytes(DATA[:20*BLOCK])
    stuck, good = serve(ranges=False, stop=10*BLOCK), serve()
    assert fetch(known(stuck[0], good[0]), tmp_path, pause=0).read_bytes() == DATA
    assert len(stuck[1].asked) == 5 and starts(good[1]) == [20*BLOCK]

def test_a_server_that_ignores_range_is_used_to_its_end(serve, tmp_path):
    (tmp_path/'data.zip.part').write_bytes(DATA[:20*BLOCK + 3])
    assert fetch(known(serve(ranges=False)[0]), tmp_path).read_bytes() == DATA

def test_a_server_without_lengths(serve, tmp_path):
    url, handler = serve(lengths=False, stop=15*BLOCK)
    assert fetch(known(url), tmp_path, pause=0).read_bytes() == DATA

@pytest.mark.parametrize('behaviour, told', [
    (dict(data=DATA[:-1]), f'it offers {len(DATA) - 1} and not {len(DATA)} bytes'),
    (dict(data=DATA + b'!'), f'it offers {len(DATA) + 1} and not'),
    (dict(data=DATA[::-1]), 'it gives another file, of SHA-256'),
    (dict(data=b'<html>not found</html>'), 'it offers 22 and not'),
    (dict(data=DATA + b'?'*BLOCK, lengths=False), 'it sends more than'),
    (dict(stop=0), '5 connections in a row brought nothing'),
    (dict(refuse=99, status=404), '404'),
    (dict(refuse=99, status=500), '500'),
], ids=['short', 'long', 'other', 'page', 'endless', 'silent', '404', '500'])
def test_a_bad_mirror_is_named_and_the_next_one_used(serve, tmp_path, behaviour, told):
    bad = serve(**behaviour)[0]
    with pytest.raises(OSError, match='data.zip is not to be had') as error: fetch(known(bad), tmp_path, pause=0)
    assert bad in str(error.value) and told in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not (tmp_path/'data.zip').exists()
    assert fetch(known(bad, serve()[0]), tmp_path, pause=0).read_bytes() == DATA
    assert files(tmp_path) == ['data.zip']

def test_passing_trouble_is_waited_for(serve, tmp_path):
    url, handler = serve(refuse=3)
    assert fetch(known(url), tmp_path, pause=0).read_bytes() == DATA
    assert len(handler.asked) == 4

def test_a_refusal_is_not_asked_again(serve, tmp_path):
    url, handler = serve(refuse=99, status=404)
    with pytest.raises(OSError): fetch(known(url), tmp_path)
    assert len(handler.asked) == 1

def test_nobody_listens(serve, tmp_path):
    with ThreadingTCPServer(('127.0.0.1', 0), Mirror) as server: port = server.server_address[1]
    assert fetch(known(f'http://127.0.0.1:{port}/', serve()[0]), tmp_path, pause=0).read_bytes() == DATA

def test_mirrors_share_a_part(serve, tmp_path):
    first, second = serve(stop=15*BLOCK), serve()
    first[1].do_GET = lambda self: self.send_error(403) if 'Range' in self.headers else Mirror.do_GET(self)
    assert fetch(known(first[0], second[0]), tmp_path, pause=0).read_bytes() == DATA
    assert starts(second[1]) == [15*BLOCK]

@pytest.mark.parametrize('part', [b'x'*BLOCK, b'x'*len(DATA), b'x'*(len(DATA) + 9), b''])
def test_a_wrong_part_costs_one_more_download(serve, tmp_path, part):
    (tmp_path/'data.zip.part').write_bytes(part)
    assert fetch(known(serve()[0]), tmp_path, pause=0).read_bytes() == DATA

def test_a_whole_part_is_not_fetched_again(serve, tmp_path):
    (tmp_path/'data.zip.part').write_bytes(DATA)
    assert fetch(known('http://127.0.0.1:9/'), tmp_path).read_bytes() == DATA

def test_what_is_there_is_kept(tmp_path):
    (tmp_path/'data.zip').write_bytes(DATA)
    assert fetch(known(), tmp_path) == tmp_path/'data.zip'
    for other, told in (b'mine', 'data.zip has 4 bytes'), (DATA[::-1], 'data.zip is another file, of SHA-256'):
        (tmp_path/'data.zip').write_bytes(other)
        with pytest.raises(FileExistsError, match=told): fetch(known(), tmp_path)
        assert (tmp_path/'data.zip').read_bytes() == other

class Bar:
    "A progress bar that keeps what it showed"
    def __init__(self, total, initial, **_): self.total, self.shown = total, [initial]
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def update(self, n): self.shown.append(self.n + n)
    @property
    def n(self): return self.shown[-1]

@pytest.mark.parametrize('part', [0, 20*BLOCK + 3], ids=['empty', 'leftover'])
@pytest.mark.parametrize('ranges', [True, False], ids=['ranges', 'whole'])
def test_the_bar_shows_what_is_there(serve, tmp_path, monkeypatch, part, ranges):
    bars = []
    monkeypatch.setattr(download, 'tqdm', lambda **options: bars.append(Bar(**options)) or bars[-1])
    if part: (tmp_path/'data.zip.part').write_bytes(DATA[:part])
    url = serve(stop=9*BLOCK + 100)[0] if ranges else serve(ranges=False)[0]
    fetch(known(url), tmp_path, pause=0)
    assert len(bars) == 1 and bars[0].total == bars[0].n == len(DATA)
    assert bars[0].shown[0] == part and bars[0].shown == sorted(bars[0].shown)

def test_too_large_for_the_disk(tmp_path):
    with pytest.raises(OSError, match='GB are free'): fetch(replace(known(), size=10**18), tmp_path)

def test_killed_and_started_again(serve, tmp_path):
    stalled, handler = serve(stall=8*BLOCK)
    process = forked(fetch, known(stalled), tmp_path)
    part = tmp_path/'data.zip.part'
    while not (part.exists() and part.stat().st_size > 5*BLOCK):
        assert process.is_alive()
        time.sleep(.01)
    process.kill()
    process.join()
    assert files(tmp_path) == ['data.zip.part']
    have = part.stat().st_size
    url, handler = serve()
    assert fetch(known(url), tmp_path).read_bytes() == DATA and starts(handler) == [have]

# Unpacking

def make_zip(path, members, **options):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members.items(): archive.writestr(name, data)
    return path

@pytest.mark.parametrize('name', ['../evil', '/evil', 'data/../evil', 'data/../../evil', 'data/sub/evil', 'data/..',
                                  'data/.hidden', 'other/evil', 'data\\..\\evil', 'data/C:evil', 'evil', 'data//evil'])
def test_strange_members_stay_packed(tmp_path, name):
    (tmp_path/'out').mkdir()
    path = make_zip(tmp_path/'data.zip', {'data/nice': b'1', name: b'2'})
    assert unpack(path, tmp_path/'out') == 1
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*')) == [
        'data.zip', 'out', 'out/data', 'out/data/nice']

def test_links_in_a_zip_are_plain_files(tmp_path):
    with zipfile.ZipFile(tmp_path/'data.zip', 'w') as archive:
        link = zipfile.ZipInfo('data/link')
        link.external_attr = 0o120777 << 16
        archive.writestr(link, '/etc/passwd')
    unpack(tmp_path/'data.zip', tmp_path)
    assert not (tmp_path/'data'/'link').is_symlink() and (tmp_path/'data'/'link').read_text() == '/etc/passwd'

def test_a_size_that_lies(tmp_path):
    path = make_zip(tmp_path/'data.zip', {'data/a': bytes(10**6) + DATA})
    size = len(DATA) + 10**6
    raw = path.read_bytes()
    path.write_bytes(raw.replace(size.to_bytes(4, 'little'), (1000).to_bytes(4, 'little')))
    with pytest.raises(ValueError, match='data.zip is no whole zip'): unpack(path, tmp_path)
    assert not (tmp_path/'data'/'a').exists() and (tmp_path/'data'/'a.part').stat().st_size <= 1000

def test_unpacking_goes_on_and_overwrites_nothing(tmp_path):
    path = make_zip(tmp_path/'data.zip', {f'data/{i}': DATA[:i] for i in range(1, 9)})
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'3').write_bytes(b'own')
    (tmp_path/'data'/'4.part').write_bytes(b'torn')
    assert unpack(path, tmp_path) == 7
    assert (tmp_path/'data'/'3').read_bytes() == b'own' and (tmp_path/'data'/'4').read_bytes() == DATA[:4]
    (tmp_path/'data'/'5').write_bytes(b'cut')
    with pytest.raises(ValueError, match='has 5 of another size'): unpack(path, tmp_path)
    assert (tmp_path/'data'/'5').read_bytes() == b'cut'

# A root

@pytest.fixture
def small(serve, tmp_path, monkeypatch):
    "The four downloads with the contents of a small data set, from local mirrors"
    folder = make_shapes(tmp_path/'made', n_images=20).root/'shapes'
    instances = (folder/'instances.json').read_bytes().replace(b'.png', b'.jpg')
    refs = (folder/'refs(attributes).p').read_bytes()
    contents = {d: {'instances.json': instances} | {f'refs({p}).p': refs for p in PARTITIONS[d]}
                for d in PARTITIONS if d in DOWNLOADS}
    contents['train2014'] = {f'{p.stem}.jpg': p.read_bytes() for p in (folder/'images').iterdir()}
    downloads = {}
    for name, members in contents.items():
        data = make_zip(tmp_path/f'{name}.zip', {f'{name}/{n}': m for n, m in members.items()}).read_bytes()
        url = serve(data=data)[0]
        downloads[name] = replace(known(url, data=data, name=name), into=DOWNLOADS[name].into)
    monkeypatch.setattr(download, 'DOWNLOADS', downloads)
    monkeypatch.setattr(download, 'N_IMAGES', 20)
    counts = {'train': dict(images=16, refs=None, sentences=None), 'val': dict(images=2, refs=None, sentences=None),
              'test': dict(images=2, refs=None, sentences=None)}
    monkeypatch.setattr(download, 'PARTITIONS', {d: {p: counts for p in PARTITIONS[d]} for d in PARTITIONS})
    return downloads

def test_get_then_check(small, shell, tmp_path):
    root = tmp_path/'root'
    said, out = shell('sadlr_data', 'get', root)
    assert said is None and out.count('files unpacked') == 4
    said, out = shell('sadlr_data', 'check', root)
    assert said is None and out.count('whole') == 5 and 'images: 20 of 20' in out
    assert out.count('missing') == 3 and 'grefcoco (unc): not there' in out and GREFCOCO in out and RRSISD in out
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    for path in root.glob('*.zip'): path.unlink()
    assert shell('sadlr_data', 'get', root)[1].count('there already') == 4
    assert {p: t for p, t in before.items() if p.suffix != '.zip'} == {p: p.stat().st_mtime_ns for p in root.rglob('*')}

def test_get_one_data_set(small, shell, tmp_path):
    assert shell('sadlr_data', 'get', tmp_path/'root', '--dataset', 'refcoco+')[0] is None
    assert sorted(p.name for p in (tmp_path/'root').iterdir()) == ['images', 'refcoco+', 'refcoco+.zip', 'train2014.zip']
    said, out = shell('sadlr_data', 'check', tmp_path/'root')
    assert said is None and out.count('not there') == 7 and 'missing' in out

def test_all_mirrors_fail(small, shell, tmp_path, serve):
    small['refcocog'] = replace(small['refcocog'], urls=(serve(refuse=99, status=404)[0],))
    said, out = shell('sadlr_data', 'get', tmp_path/'root')
    assert said.startswith('sadlr_data: refcocog: not complete') and len(said.splitlines()) == 1
    assert out.count('files unpacked') == 3
    assert all(word in out for word in ('By hand', small['refcocog'].urls[0], str(tmp_path/'root'/'refcocog.zip')))
    (tmp_path/'root'/'refcocog.zip').write_bytes((tmp_path/'refcocog.zip').read_bytes()) # as the text says
    assert shell('sadlr_data', 'get', tmp_path/'root')[0] is None

def test_images_elsewhere_below_the_root_count(small, shell, tmp_path):
    shell('sadlr_data', 'get', tmp_path/'first')
    (tmp_path/'root').mkdir()
    (tmp_path/'root'/'train2014').symlink_to(tmp_path/'first'/'images'/'train2014')
    assert 'train2014: there already' in shell('sadlr_data', 'get', tmp_path/'root')[1]
    assert shell('sadlr_data', 'check', tmp_path/'root')[0] is None

def test_grefcoco_is_got_by_hand_and_checked(small, shell, tmp_path):
    "No program can fetch it: the command tells where it is, and checks it once it is there"
    root = tmp_path/'root'
    said, _ = shell('sadlr_data', 'get', root, '--dataset', 'grefcoco')
    assert GREFCOCO in said and f"{root/'grefcoco'}" in said and len(said.splitlines()) == 1
    shell('sadlr_data', 'get', root, '--dataset', 'refcoco')
    (root/'grefcoco').mkdir()
    (root/'grefcoco'/'instances.json').symlink_to('../refcoco/instances.json') # as the text says
    refs = pickle.loads((root/'refcoco'/'refs(unc).p').read_bytes())
    of_image = {ref['image_id']: [r['ann_id'] for r in refs if r['image_id'] == ref['image_id']] for ref in refs}
    for k, ref in enumerate(refs): # every third means nothing, the others all that their image has
        ref.update(ann_id=of_image[ref['image_id']] if k % 3 else [-1], category_id=[1 if k % 3 else -1], no_target=not k % 3)
    path = root/'grefcoco'/'grefs(unc).json'
    path.write_text(json.dumps(refs))
    said, out = shell('sadlr_data', 'check', root, '--dataset', 'grefcoco')
    assert said is None and re.search(r'grefcoco \(unc\): .* sentences, \d+ for none, \d+ for several, whole', out), out
    refs[5].update(ann_id=[-1, 7])
    path.write_text(json.dumps(refs))
    said, out = shell('sadlr_data', 'check', root, '--dataset', 'grefcoco')
    assert said.startswith('sadlr_data: ') and f'{path} is not a list of refs: ref {refs[5]["ref_id"]}: its ann_id' in out

def break_pickle(root): (root/'refcoco'/'refs(unc).p').write_bytes((root/'refcoco'/'refs(unc).p').read_bytes()[:-20])
def break_json(root): (root/'refcoco+'/'instances.json').write_bytes((root/'refcoco+'/'instances.json').read_bytes()[:-20])
def no_json(root): (root/'refcocog'/'instances.json').unlink()
def no_image(root): (root/'images'/'train2014'/'000003.jpg').unlink()
def cut_image(root):
    path = root/'images'/'train2014'/'000003.jpg'
    path.write_bytes(path.read_bytes()[:200])
def other_size(root): Image.new('RGB', (64, 65)).save(root/'images'/'train2014'/'000003.jpg')
def fewer_refs(root):
    path = root/'refcoco'/'refs(google).p'
    path.write_bytes(pickle.dumps([r for r in pickle.loads(path.read_bytes()) if r['split'] != 'val']))
def empty_polygon(root):
    path = root/'refcoco'/'instances.json'
    instances = json.loads(path.read_bytes())
    instances['annotations'][0]['segmentation'] = []
    path.write_text(json.dumps(instances))
def no_pixel(root):
    path = root/'refcoco'/'instances.json'
    instances = json.loads(path.read_bytes())
    instances['annotations'][0]['segmentation'] = [[10, 10, 20, 10, 30, 10]]
    path.write_text(json.dumps(instances))
def change_refs(change):
    def damage(root):
        path = root/'refcoco'/'refs(unc).p'
        refs = pickle.loads(path.read_bytes())
        change(refs)
        path.write_bytes(pickle.dumps(refs))
    return damage
blank = change_refs(lambda refs: refs[3]['sentences'][0].update(raw=' \t'))
silent = change_refs(lambda refs: refs[3].update(sentences=[]))
twice = change_refs(lambda refs: refs[3]['sentences'][0].update(sent_id=refs[1]['sentences'][0]['sent_id']))
def no_folder(root): (root/'images'/'train2014').rename(root/'elsewhere')

@pytest.mark.parametrize('damage, told', [
    (break_pickle, 'refs(unc).p'), (break_json, 'refcoco+/instances.json'), (no_json, 'refcocog/instances.json'),
    (no_image, '000003.jpg is missing'), (cut_image, '000003.jpg'), (other_size, '000003.jpg has 64 x 65 pixels, its mask 64 x 64'),
    (fewer_refs, 'refcoco (google) val: 0 images and not 2'), (empty_polygon, 'annotation 0'),
    (no_pixel, 'no pixel is covered'), (blank, 'is empty'), (silent, 'there is no sentence'), (twice, 'stands twice'),
    (no_folder, 'no folder of its images')])
def test_check_finds(small, shell, tmp_path, damage, told):
    root = tmp_path/'root'
    get_data(root)
    damage(root)
    said, out = shell('sadlr_data', 'check', root)
    assert said.startswith('sadlr_data: ') and len(said.splitlines()) == 1 and told in out

def test_check_of_nothing(shell, tmp_path):
    said, out = shell('sadlr_data', 'check', tmp_path)
    assert said.startswith('sadlr_data: ') and out.count('not there') == 8
    assert all(url in out for d in DOWNLOADS.values() for url in d.urls)

def test_check_of_a_named_data_set_that_is_not_there(shell, tmp_path):
    make_shapes(tmp_path, n_images=10)
    for name in 'refcoco', 's*':
        said, out = shell('sadlr_data', 'check', tmp_path, '--dataset', name)
        assert said.startswith('sadlr_data: ') and f'no refs of {name}' in out

def test_folders_with_the_names_of_files(shell, tmp_path):
    make_shapes(tmp_path, n_images=10)
    for name in 'shapes', 'mine': (tmp_path/name/'refs(own).p').mkdir(parents=True)
    said, out = shell('sadlr_data', 'check', tmp_path)
    assert said is None and '(own)' not in out

def test_check_of_own_data_alone(shell, tmp_path):
    make_shapes(tmp_path, n_images=10)
    assert shell('sadlr_data', 'check', tmp_path, '--dataset', 'shapes')[0] is None
    assert shell('sadlr_data', 'check', tmp_path)[0] is None
    assert 'no refs of mine' in shell('sadlr_data', 'check', tmp_path, '--dataset', 'mine')[1]

def test_mistakes(shell, tmp_path):
    assert "'check' or 'get'" in shell('sadlr_data', 'fetch', tmp_path)[0]
    (tmp_path/'file').touch()
    assert 'file is no folder' in shell('sadlr_data', 'get', tmp_path/'file')[0]
    assert 'no data set' in shell('sadlr_data', 'get', tmp_path, '--dataset', 'refclef')[0]
