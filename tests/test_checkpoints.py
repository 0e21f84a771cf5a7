"Weights from elsewhere: a damaged, hostile or foreign file is refused in one line, and nothing of it runs"
import json, os, pickle, random, resource, shutil, socket, warnings, zipfile
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from sadlr.models.build import ReferSegmenter, create_model, load_strictly
from sadlr.models.lavt_ris import PREFIXES, load_lavt_ris
from sadlr.preprocess import word_tokenizer

ENCODER = dict(embed_dim=8, depths=(1, 2, 1, 2), num_heads=(1, 2, 2, 4), window_size=4)
BERT = dict(vocab_size=60, hidden_size=64, num_attention_heads=1, num_hidden_layers=2, intermediate_size=32,
            max_position_embeddings=24)

def published(model, kind='lavt', **args):
    "A checkpoint of `model` as LAVT's programs write it"
    theirs = {}
    for name, t in deepcopy(model.state_dict()).items():
        their, our = next((k, v) for k, v in PREFIXES.items() if name.startswith(v))
        theirs[their + name.removeprefix(our)] = t[..., None] if '.fusion.' in their and t.ndim == 2 else t
    bert = {k.removeprefix('text_encoder.'): theirs.pop(k) for k in [*theirs] if k.startswith('text_encoder.')}
    beside = dict(bert_model=bert) if kind == 'lavt' else {}
    if kind == 'lavt_one': theirs |= {f'text_encoder.{k}': t for k, t in bert.items()}
    return dict(model=theirs, **beside, optimizer=dict(state={0: dict(exp_avg=torch.randn(9))}), epoch=3,
                lr_scheduler=dict(lr_lambdas=[None]), args=Namespace(model=kind, img_size=64, **args))

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return create_model(head='classifier', img_size=64, encoder_options=ENCODER, language_options=BERT).eval()

@pytest.fixture(params=['lavt', 'lavt_one'])
def good(request, model): return published(model, request.param)

@pytest.fixture
def lavt(model): return published(model)

@pytest.fixture
def save(tmp_path):
    def save(content, **options):
        torch.save(content, tmp_path/'lavt.pth', **options)
        return tmp_path/'lavt.pth'
    return save

def same(a, b):
    theirs = b.state_dict()
    return all(torch.equal(t, theirs[k]) for k, t in a.state_dict().items())

def complaint(path, *parts, **options):
    "The one line in which `path` is refused; it names the file, and `parts`"
    with pytest.raises((ValueError, FileNotFoundError)) as error: load_lavt_ris(path, **options)
    told = str(error.value)
    assert str(path) in told and '\n' not in told and len(told) < len(str(path)) + 700
    for part in parts: assert part in told, told
    return told

@pytest.mark.parametrize('zipped', [True, False])
def test_both_kinds_in_both_formats(good, model, save, zipped, capsys):
    loaded = load_lavt_ris(save(good, _use_new_zipfile_serialization=zipped))
    assert same(model, loaded) and not loaded.training
    line, = capsys.readouterr().out.splitlines()
    assert 'tensors loaded' in line and all(part in line for part in ('optimizer', 'lr_scheduler', 'epoch'))

@pytest.mark.parametrize('wrapper', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'module.module.'])
def test_wrapped_models(good, model, save, wrapper):
    "`DataParallel` and `torch.compile`, of the whole or of a part, change names alone"
    for k in ('model', 'bert_model'):
        if k in good: good[k] = {wrapper + name: t for name, t in good[k].items()}
    assert same(model, load_lavt_ris(save(good)))
    inner = {name.replace('backbone.', 'backbone._orig_mod.').replace('encoder.layer', 'encoder._orig_mod.layer'): t
             for name, t in good['model'].items()}
    assert same(model, load_lavt_ris(save(good | dict(model=inner))))

def test_saved_on_a_gpu(lavt, model, save, monkeypatch):
    monkeypatch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
    for zipped in (True, False): assert same(model, load_lavt_ris(save(lavt, _use_new_zipfile_serialization=zipped)))

def test_no_network(lavt, model, save, tmp_path, monkeypatch):
    "Loading, running, saving and loading again never open a connection; a phrase reads a local vocabulary"
    def refuse(*args, **kwargs): raise AssertionError('a connection was opened')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    words = word_tokenizer(['the red star'])
    words.save_pretrained(tmp_path/'words')
    loaded = load_lavt_ris(save(lavt), tokenizer=tmp_path/'words')
    image, token_ids = torch.randn(1, 3, 64, 64), torch.tensor([[2, 5, 6, 7, 3, 0, 0]])
    with torch.no_grad(): assert torch.equal(loaded(image, token_ids), model(image, token_ids))
    loaded.save_pretrained(tmp_path/'saved')
    assert not (tmp_path/'saved'/'tokenizer.json').exists()
    back = ReferSegmenter.from_pretrained(tmp_path/'saved')
    assert same(model, back)
    photo = np.full((40, 50, 3), 99, np.uint8)
    assert back.segment(Image.fromarray(photo), 'the red star').mask.shape == (40, 50)
    back.save_pretrained(tmp_path/'whole')
    shutil.rmtree(tmp_path/'words')
    again = ReferSegmenter.from_pretrained(tmp_path/'whole')
    assert again.tokenizer('red star')['input_ids'] == words('red star')['input_ids']

class Program:
    "Makes a folder when it is unpickled"
    def __init__(self, folder): self.folder = str(folder)
    def __reduce__(self): return os.mkdir, (self.folder,)

@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('place', ['model', 'bert_model', 'args', 'optimizer', 'new'])
def test_programs_do_not_run(lavt, save, tmp_path, zipped, place):
    path = save(lavt | {place: Program(tmp_path/'was_here')}, _use_new_zipfile_serialization=zipped)
    complaint(path, f'asks to import {os.mkdir.__module__}.mkdir', 'nothing was run')
    assert not (tmp_path/'was_here').exists()

@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_programs_do_not_run_in_a_plain_pickle(tmp_path):
    path = tmp_path/'plain.pth'
    for protocol in range(6):
        path.write_bytes(pickle.dumps(Program(tmp_path/'was_here'), protocol))
        complaint(path)
    assert not (tmp_path/'was_here').exists()

@pytest.mark.parametrize('content, wanted', [(nn.Linear(2, 2), 'torch.nn.modules.linear.Linear'),
    (dict(model={}, args=Path('x')), 'Path'), (dict(model={}, best=np.float64(3)), 'numpy')])
def test_only_namespace_is_admitted(save, content, wanted):
    complaint(save(content), 'asks to import', wanted)
    assert Namespace not in torch.serialization.get_safe_globals()

@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kept', [0, .01, .5, .99, -1])
def test_cut_short(lavt, save, zipped, kept):
    path = save(lavt, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(kept*len(whole)) if kept >= 0 else kept])
    complaint(path, 'download it again')

def test_flipped_bits_in_an_archive(lavt, model, save):
    "Every part has a checksum: a flipped bit is told, or it was in the padding and nothing has changed"
    path, rng, told = save(lavt), random.Random(0), 0
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive: parts = [(i.header_offset, i.file_size) for i in archive.infolist()]
    places = [at + size//2 + 60 for at, size in parts[::15]] + [rng.randrange(len(whole)) for _ in range(15)]
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at+1:])
        try: assert same(model, load_lavt_ris(path))
        except ValueError: told += complaint(path) is not None
    assert told > len(places)//2

def test_flipped_bits_in_the_old_format(lavt, save):
    "No checksums there; whatever the pickle becomes, nothing but one line comes out of it"
    path, rng = save(lavt, _use_new_zipfile_serialization=False), random.Random(0)
    whole = path.read_bytes()
    for at in [rng.randrange(20000) for _ in range(15)]:
        path.write_bytes(whole[:at] + bytes([rng.randrange(256)]) + whole[at+1:])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: load_lavt_ris(path)
            except ValueError as e: assert str(path) in str(e) and '\n' not in str(e)

@pytest.mark.parametrize('start', [b'<!DOCTYPE html><html>Quota exceeded</html>', b'',
    b'version https://git-lfs.github.com/spec/v1', b'{"a": 1}', b'\x1f\x8b\x08\x00 compressed', b'\x89PNG\r\n\x1a\n'])
def test_no_checkpoint_at_all(tmp_path, start):
    path = tmp_path/'lavt.pth'
    path.write_bytes(start)
    complaint(path, 'is no PyTorch file', repr(start[:12])[:-1])

def test_no_file(tmp_path):
    complaint(tmp_path/'none.pth', 'there is no file')
    complaint(tmp_path, 'there is no file')

def test_another_archive(tmp_path):
    for name in ('a.txt', 'archive/data.pkl'):
        with zipfile.ZipFile(tmp_path/'lavt.pth', 'w') as archive: archive.writestr(name, 'hello')
        complaint(tmp_path/'lavt.pth', 'cut short or damaged')

RESNET = {'conv1.weight': torch.zeros(64, 3, 7, 7), 'bn1.weight': torch.zeros(64), 'fc.bias': torch.zeros(9)}

@pytest.mark.parametrize('content', [RESNET, dict(model=RESNET), dict(model=RESNET, bert_model=RESNET),
    dict(model={'backbone.conv1.weight': RESNET['conv1.weight'], **RESNET}, bert_model=RESNET)])
def test_another_model(save, content): complaint(save(content), 'conv1.weight', 'bn1.weight')

@pytest.mark.parametrize('content', [[1, 2], torch.zeros(3), 'model', None, {}, dict(model=None), dict(model=[1]),
    dict(model={}), dict(model={1: 2}, bert_model={}), dict(model=dict(a='b'), bert_model=dict(a='b'))])
def test_something_else(save, content): complaint(save(content), 'was not loaded as a LAVT checkpoint')

def part(checkpoint, name):
    "The state dict in which a tensor lies"
    return checkpoint['model'] if name in checkpoint['model'] else checkpoint['bert_model']

NAMES = ['backbone.patch_embed.proj.weight', 'backbone.patch_embed.norm.bias', 'backbone.norm2.weight',
         'backbone.layers.0.blocks.0.attn.qkv.weight', 'backbone.layers.1.blocks.0.attn.relative_position_bias_table',
         'backbone.layers.1.res_gate.2.weight', 'backbone.layers.2.downsample.reduction.weight',
         'backbone.layers.3.fusion.project_mm.0.bias', 'classifier.bn1_3.running_mean', 'classifier.conv1_1.weight',
         'embeddings.LayerNorm.weight', 'encoder.layer.1.attention.self.key.bias']

@pytest.mark.parametrize('name', [*NAMES, 'embeddings.word_embeddings.weight'])
def test_missing_tensor(lavt, save, name):
    del part(lavt, name)[name]
    complaint(save(lavt), name)
    complaint(save(lavt), name, head='sadlr')

@pytest.mark.filterwarnings('ignore:Initializing zero-element')
@pytest.mark.parametrize('i, name', [*enumerate(NAMES)])
def test_wrong_shape(lavt, save, i, name):
    change = [lambda t: t[:0], lambda t: t[:1], lambda t: t[None], lambda t: t.flatten()[0]][i%4]
    part(lavt, name)[name] = change(part(lavt, name)[name]).clone()
    complaint(save(lavt))

def test_missing_tensors_are_listed(lavt, save):
    gone = [k for k in lavt['model'] if 'layers.2.fusion' in k]
    for name in gone: del lavt['model'][name]
    complaint(save(lavt), f'{len(gone)} missing', *gone[:5])

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite(lavt, save, value):
    lavt['model']['backbone.norm1.weight'][3] = value
    complaint(save(lavt), 'not finite in backbone.norm1.weight')

def test_no_bert_or_two(lavt, model, save):
    two = lavt | dict(model=published(model, 'lavt_one')['model'])
    complaint(save(two), 'two BERTs')
    del lavt['bert_model']
    complaint(save(lavt), 'no BERT')

@pytest.mark.parametrize('name, args', [('mha', dict(mha='4-4')), ('mha', dict(mha='a-b-c-d')),
    ('mha', dict(mha='0-1-1-1')), ('fusion_heads', dict(mha='3-1-1-1')), ('img_size', dict(img_size='big')),
    ('img_size', dict(img_size=0))])
def test_wrong_args(lavt, save, name, args):
    lavt['args'] = Namespace(**args)
    complaint(save(lavt), name)

def test_contradicting_args(good, model, save):
    "The tensors decide, and a warning tells"
    other = 'lavt_one' if 'bert_model' in good else 'lavt'
    good['args'] = Namespace(model=other, swin_type='base')
    with pytest.warns(UserWarning) as told: assert same(model, load_lavt_ris(save(good)))
    told = [str(w.message) for w in told]
    assert any(f'args.model is {other!r}' in t for t in told) and any("args.swin_type is 'base'" in t for t in told)

def test_no_args(lavt, model, save):
    del lavt['args']
    with pytest.warns(UserWarning, match='it has no args'): loaded = load_lavt_ris(save(lavt))
    assert same(model, loaded) and loaded.config['img_size'] == 480

def test_foreign_tensors_are_named(lavt, model, save):
    lavt['model']['backbone.absolute_pos_embed'] = torch.zeros(3)
    with pytest.warns(UserWarning, match='no LAVT has were left out.*backbone.absolute_pos_embed'):
        assert same(model, load_lavt_ris(save(lavt)))

@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the peak is read from /proc')
def test_the_optimizer_costs_no_memory(lavt, model, save):
    path = save(lavt | dict(optimizer=dict(state={0: dict(exp_avg=torch.zeros(50_000_000))})))  # 200 MB
    def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])  # kB
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = peak()
    assert same(model, load_lavt_ris(path))
    assert path.stat().st_size > 200_000_000 and peak() - before < 50_000

def test_claims_without_content(lavt, save, tmp_path):
    "A small file cannot make us take much memory, whatever it claims"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name = 'backbone.patch_embed.proj.weight'
    wide = lavt | dict(model=lavt['model'] | {name: torch.zeros(1).expand(10**9, 3, 4, 4)})
    for zipped in (True, False):
        complaint(save(wide, _use_new_zipfile_serialization=zipped), name, 'claim more numbers than are stored')
    path = save(lavt | dict(model=lavt['model'] | {name: torch.zeros(10**7)}))
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path/'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.namelist(): bomb.writestr(entry, archive.read(entry))
    complaint(tmp_path/'bomb.pth', 'it is compressed')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB; claimed were up to 178 GiB

def test_lying_storage_sizes(save, tmp_path):
    "The pickle says 65535 numbers, the archive holds 1000"
    path = save(dict(model=dict(a=torch.zeros(1000))))
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path/'lie.pth', 'w') as lie:
        for entry in archive.namelist(): lie.writestr(entry, archive.read(entry).replace(b'M\xe8\x03', b'M\xff\xff'))
    complaint(tmp_path/'lie.pth')

def test_other_heads(lavt, model, save):
    refined = load_lavt_ris(save(lavt), head='sadlr', head_options=dict(iterations=2, kernels=(4, 32)))
    own = refined.state_dict()
    assert all(torch.equal(t, own[k]) for k, t in model.state_dict().items() if not k.startswith('head.'))
    assert refined(torch.randn(1, 3, 64, 64), torch.tensor([[5, 6, 7]])).shape == (1, 2, 2, 16, 16)
    with pytest.raises(ValueError, match="unknown head 'crf'"): load_lavt_ris(save(lavt), head='crf')

@pytest.fixture(scope='module')
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')/'model'
    model.tokenizer = word_tokenizer(['the red star'])
    model.save_pretrained(folder)
    model.tokenizer = None
    return folder

@pytest.fixture
def folder(saved, tmp_path): return Path(shutil.copytree(saved, tmp_path/'model'))

def refused(folder, *parts):
    "The one line in which a folder is refused"
    with pytest.raises((ValueError, FileNotFoundError)) as error: ReferSegmenter.from_pretrained(folder)
    told = str(error.value)
    assert '\n' not in told and all(part in told for part in parts), told

def test_own_format(folder, model): assert same(model, ReferSegmenter.from_pretrained(folder))

@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
@pytest.mark.parametrize('kept', [0, .5, -1])
def test_own_file_cut_short(folder, name, kept):
    whole = (folder/name).read_bytes()
    (folder/name).write_bytes(whole[:int(kept*len(whole)) if kept >= 0 else kept])
    refused(folder, str(folder/name), 'was not read')

@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_own_file_missing(folder, name):
    (folder/name).unlink()
    refused(folder, str(folder/name), 'is missing')

@pytest.mark.parametrize('content', [b'<!DOCTYPE html>', b'\xff\xfe\x00', b'\x80\x02}q.'])
def test_own_file_of_another_kind(folder, content):
    (folder/'model.safetensors').write_bytes(content)
    refused(folder, 'model.safetensors was not read')
    (folder/'config.json').write_bytes(content)
    refused(folder, 'config.json was not read')

@pytest.mark.parametrize('change, told', [(dict(size='huge'), "'huge'"), (dict(head='crf'), "'crf'"),
    (dict(encoder='cris'), "'cris'"), (dict(depth=3), 'depth'), (dict(encoder_options=dict(widths=3)), 'widths'),
    (dict(encoder_options=dict(embed_dim='wide')), ''), (dict(head_options=3), 'mapping'),
    (dict(language_options=dict(vocab_size='many')), 'vocab_size'), (dict(encoder_options=dict(channels=-1)), ''),
    (dict(language_options=dict(vocab_size=None)), 'vocab_size'), (dict(language_options=dict(BERT, hiden=3)), 'hiden'),
    (dict(language_options=dict(BERT, vocab_size=-5)), 'vocab_size'), (dict(img_size='wide'), ''),
    (dict(language='gru', language_options=dict(dims=3)), 'dims'), (dict(language_options=None), ''),
    (dict(language='auto', language_options=dict(model_type='vit')), "'vit'"), (dict(language='lstm'), "'lstm'")])
def test_foreign_configuration(folder, change, told):
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config | change))
    refused(folder, 'config.json does not describe a model', told)

@pytest.mark.parametrize('change, name', [('"img_size": NaN', 'img_size'), ('"img_size": 1e999', 'img_size'),
    ('"img_size": -Infinity', 'img_size'), (f'"img_size": {10**30}', 'img_size'),
    (f'"encoder_options": {{"channels": {10**30}}}', 'channels'), ('"encoder_options": {"channels": -1e300}', 'channels'),
    (f'"encoder_options": {{"depths": [1, 1, {10**9}, 1]}}', 'depths'),
    (f'"head_options": {{"iterations": {10**9}}}', 'iterations'),
    (f'"language_options": {{"num_hidden_layers": {10**8}}}', 'num_hidden_layers'),
    ('"img_size": 1' + '0'*5000, 'img_size'), ('"x": ' + '['*100_000, 'config.json')])
def test_numbers_that_cannot_be(folder, change, name):
    path = folder/'config.json'
    kept = {key: value for key, value in json.loads(path.read_text()).items() if f'"{key}"' not in change}
    path.write_text(json.dumps(kept).removesuffix('}') + f', {change}}}')
    refused(folder, str(path), name)

class Own(torch.nn.Module):
    "An encoder of one's own; `how` two of its tensors share their numbers"
    channels = 8
    def __init__(self, how='parameter'):
        super().__init__()
        self.conv, self.other = (torch.nn.Conv2d(3, 8, 4, 4) for _ in range(2))
        if how == 'parameter': self.other.weight = torch.nn.Parameter(self.conv.weight.data)
        if how == 'module': self.other = self.conv
        if how == 'part': self.register_buffer('part', self.conv.weight.data[2:5])
    def forward(self, image, words, token_mask): return self.conv(image)

@pytest.mark.parametrize('how', ['parameter', 'module', 'part'])
def test_tensors_that_share_their_numbers_are_saved(tmp_path, how):
    model = create_model(Own(how), 'classifier', 'nano', 32, language='gru', language_options=dict(vocab_size=9))
    model.save_pretrained(tmp_path)
    assert same(model, ReferSegmenter.from_pretrained(tmp_path, Own(how)))

@pytest.mark.parametrize('wrap', [
    torch.compile, torch.nn.DataParallel, lambda m: torch.compile(torch.nn.DataParallel(m))])
def test_a_model_of_wrapped_parts_loads_as_one_of_plain_parts(tmp_path, wrap):
    options = dict(size='nano', img_size=32, language='gru', language_options=dict(vocab_size=9))
    model, plain = create_model(**options), create_model(**options)
    plain.load_state_dict(model.state_dict())
    model.head.iterations = 5
    model.language, model.encoder, model.head = map(wrap, (model.language, model.encoder, model.head))
    model.save_pretrained(tmp_path)
    found = ReferSegmenter.from_pretrained(tmp_path)
    assert same(plain, found) and found.head.iterations == 5
    load_strictly(model, plain.state_dict(), 'it')

class Twice(Own):
    "Has a part called `module`, and a tensor beside it of the same name"
    def __init__(self):
        super().__init__()
        self.scale, self.module = torch.nn.Parameter(torch.ones(1)), torch.nn.ParameterDict(dict(scale=torch.zeros(1)))

def test_names_that_are_one_without_wrappers(tmp_path):
    options = dict(size='nano', img_size=32, language='gru', language_options=dict(vocab_size=9))
    model = create_model(Twice(), 'classifier', **options)
    model.save_pretrained(tmp_path)
    found = ReferSegmenter.from_pretrained(tmp_path, Twice()).encoder
    assert (found.scale.item(), found.module['scale'].item()) == (1, 0)

def test_an_encoder_of_ones_own_and_options_of_another(tmp_path):
    with pytest.raises(ValueError, match='encoder_options=.*: leave them out, Own is built'):
        create_model(Own(), 'classifier', 'nano', 32, language='gru', encoder_options=dict(depths=(1, 1)))
    create_model('lavt', 'classifier', 'nano', 32, language='gru').save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the encoder 'lavt': leave encoder= out"):
        ReferSegmenter.from_pretrained(tmp_path, Own())

def test_a_byte_order_mark_is_skipped(folder, model):
    path = folder/'config.json'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert same(model, ReferSegmenter.from_pretrained(folder))

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_weights_that_are_not_finite(folder, value, dtype):
    file = folder/'model.safetensors'
    tensors = {k: t.to(dtype) if t.is_floating_point() else t for k, t in load_file(file).items()}
    tensors['head.classifier.bias'] = torch.tensor([0, value], dtype=dtype)
    tensors = {k: t.clone() for k, t in tensors.items()}
    file.unlink()
    save_file(tensors, file)
    refused(folder, str(file), 'not finite', 'head.classifier.bias')

@pytest.mark.parametrize('text', ['[]', '3', 'null', '{}', '{"model_type": "bert"}'])
def test_configuration_of_something_else(folder, text):
    (folder/'config.json').write_text(text)
    refused(folder, 'config.json does not describe a model of sadlr')

def test_foreign_weights(folder):
    tensors = load_file(folder/'model.safetensors')
    save_file({f'x.{k}': t for k, t in tensors.items()}, folder/'model.safetensors')
    refused(folder, f'{len(tensors)} missing', f'{len(tensors)} foreign')
    save_file(tensors | {'head.classifier.bias': torch.zeros(3)}, folder/'model.safetensors')
    refused(folder, 'head.classifier.bias (3,), not (2,)')

def test_damaged_tokenizer(folder):
    (folder/'tokenizer.json').write_text('{')
    refused(folder, str(folder))

@pytest.mark.parametrize('head', ['sadlr', 'unshared', 'neighbours'])
@pytest.mark.parametrize('iterations', [1, 2])
def test_a_head_keeps_its_iterations(tmp_path, head, iterations):
    "Also where parts of the head could have a number of their own"
    model = create_model(head=head, size='nano', img_size=32, head_options=dict(iterations=iterations),
                         language_options=dict(vocab_size=30))
    model.save_pretrained(tmp_path/'saved')
    assert ReferSegmenter.from_pretrained(tmp_path/'saved').head.iterations == iterations
