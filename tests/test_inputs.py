"Pictures and phrases of every kind that users hand in: what is right, or one line"
import io, os, pickle, signal, struct, warnings, zlib
from functools import partial
from types import SimpleNamespace
import numpy as np, pytest, torch
import sadlr.data.block as block # before fastai's, as a user may
from fastai.interpret import ClassificationInterpretation, Interpretation
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerFast
from sadlr.data.block import Normalise, ReadImage, Sample, refer_block, refer_dataloaders, refer_samples
from sadlr.data.shapes import make_shapes
from sadlr.demo import demo
from sadlr.evaluation import evaluate
from sadlr.explain import trace
from sadlr.learner import refer_learner
from sadlr.losses import IterativeCrossEntropy, IterativeDiceLoss
from sadlr.models.build import ReferSegmenter, bundled, create_model
from sadlr.pictures import open_image
from sadlr.phrases import check_words, phrase_fault, unknown_words
from sadlr.preprocess import (IMAGENET, Preprocessing, image_tensor, load_tokenizer, square_pixels, tokenize,
                              word_tokenizer)
from sadlr.training import Training, check_training, start_model
from sadlr.visualize import overlay

RAMP = np.arange(256).reshape(16, 16)            # every byte once
SCENE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)

@pytest.fixture(scope='module')
def refer(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('shapes'), n_images=40, img_size=32)

@pytest.fixture(scope='module')
def dls(refer): return refer_dataloaders(refer, img_size=32, bs=4, num_workers=0, device='cpu')

@pytest.fixture(scope='module')
def model(): return bundled()

def grey(image, **options):
    "The one channel of a picture that has no colour"
    pixels = np.asarray(open_image(image, **options)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]

def told(f, *args):
    "What a call gives, and the texts of its warnings"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        answer = f(*args)
    return answer, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]

def png(values, colour, transparent=None):
    "A PNG of 16 bits a channel; `colour` 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha"
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    lines = b''.join(b'\0' + line.astype('>u2').tobytes() for line in values)
    header = struct.pack('>IIBBBBB', values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    key = chunk(b'tRNS', np.array(transparent).astype('>u2').tobytes()) if transparent else b''
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + key + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')

def tiff(values, bits, kind=1, order='<', white=None, photometric=1):
    "A TIFF; `kind` 1 unsigned, 2 signed, 3 with a fraction; `white` MaxSampleValue"
    data = values if isinstance(values, bytes) else values.astype(values.dtype.newbyteorder(order)).tobytes()
    n = 3 if not isinstance(values, bytes) and values.ndim == 3 else 1
    tags = {256: [16], 257: [16], 258: [bits]*n, 259: [1], 262: [2 if n == 3 else photometric], 273: [0], 277: [n], 278: [16],
            279: [len(data)], 339: [kind]*n} | ({281: [white]*n} if white else {})
    start, extra, entries = 8 + 2 + 12*len(tags) + 4, b'', []
    for tag, value in sorted(tags.items()):
        packed = struct.pack(f'{order}{len(value)}H', *value)
        if len(packed) > 4: packed, extra = struct.pack(order + 'I', start + len(extra)), extra + packed
        entries.append([tag, len(value), packed.ljust(4, b'\0')])
    for entry in entries:
        if entry[0] == 273: entry[2] = struct.pack(order + 'H', start + len(extra)).ljust(4, b'\0')
    directory = b''.join(struct.pack(order + 'HHI', tag, 3, n) + packed for tag, n, packed in entries)
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IH', 8, len(tags))
    return head + directory + bytes(4) + extra + data

# more than 8 bits

@pytest.mark.parametrize('values', [
    RAMP.astype(np.uint8), RAMP.astype(np.uint16)*257, RAMP, RAMP/255, RAMP.astype(np.float32),
    (RAMP/255).astype(np.float16), RAMP.astype(np.uint32)*16843009, RAMP.astype('>u2')*257, RAMP.astype(np.int16)*128])
def test_a_full_range_is_itself(values):
    "Nothing to tell, and each of the 256 levels comes back"
    for given in values, torch.tensor(values.astype(values.dtype.newbyteorder('='))):
        seen, warned = told(grey, given)
        assert (seen == RAMP).all() and not warned

@pytest.mark.parametrize('values', [
    RAMP.astype(np.uint16)*16, RAMP.astype(np.uint16)*4, RAMP.astype(np.uint16)*64, RAMP.astype(np.int32)*4096,
    RAMP.astype(np.uint64) << 40, RAMP - 100., RAMP.astype(np.int64) - 128, RAMP/127.5 - 1,
    (RAMP - 128).astype(np.int8), (RAMP*257 - 32768).astype(np.int16),
    RAMP*1e-6, RAMP*1e6, RAMP/2550 - 5])
def test_a_range_that_is_not_full_is_stretched_and_told(values):
    seen, warned = told(grey, values)
    assert abs(seen - RAMP).max() <= 1 and len(warned) == 1 and 'range' in warned[0]

def test_what_is_no_number():
    values = RAMP/255
    values[0, :3] = np.nan, np.inf, -np.inf
    assert grey(values)[0].tolist() == [0, 255, 0, *range(3, 16)]
    with pytest.raises(ValueError, match='finite number'): open_image(np.full((4, 4), np.nan))

@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('values, bits, kind, white', [
    (RAMP.astype(np.uint16)*257, 16, 1, None), (RAMP.astype(np.uint16)*16, 16, 1, 4095),
    (RAMP.astype(np.uint16)*16, 16, 1, None), (RAMP.astype(np.int16)*128, 16, 2, None), (RAMP.astype(np.int32)*300, 32, 2, None),
    (RAMP.astype(np.uint32)*16843009, 32, 1, None),
    ((RAMP/255).astype(np.float32), 32, 3, None), (RAMP.astype(np.float32), 32, 3, None),
    (RAMP.astype(np.int16) - 100, 16, 2, None), (np.stack([RAMP.astype(np.uint16)*16]*3, 2), 16, 1, None)])
def test_deep_tiffs(values, bits, kind, white, order):
    "A ramp stays a ramp, from black to white but for the 31 bits of the fifth; or PIL cannot read it, in one line"
    if order == '>' and values.dtype == np.uint32: # unknown to PIL
        with pytest.raises(ValueError, match='no such format'): open_image(tiff(values, bits, kind, order, white))
        return
    seen = grey(tiff(values, bits, kind, order, white)).ravel()
    assert (np.diff(seen) >= 0).all() and seen[0] == 0 and seen[-1] >= 128
    if values.dtype != np.int32: assert abs(seen - RAMP.ravel()).max() <= 1

def test_a_tiff_whose_smallest_number_is_white():
    "PhotometricInterpretation 0, which PIL minds for 8 bits alone"
    for values, bits, kind in (RAMP.astype(np.uint8), 8, 1), (RAMP.astype(np.uint16)*257, 16, 1), (
            (RAMP/255).astype(np.float32), 32, 3):
        assert abs(grey(tiff(values, bits, kind, photometric=0)) - (255 - RAMP)).max() <= 1

def test_the_file_says_what_white_is():
    assert grey(tiff(RAMP.astype(np.uint16)*2, 16, white=1023)).max() == 510*256//1024
    assert grey(tiff(RAMP.astype(np.uint16)*2, 16, white=65535)).max() == 1
    levels = np.arange(0, 4096, 16)
    packed = b''.join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in levels.reshape(-1, 2).tolist())
    assert (grey(tiff(packed, 12)) == RAMP).all() # BitsPerSample

@pytest.mark.parametrize('scale', [257, 16])
@pytest.mark.parametrize('colour, channels', [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_deep_pngs(tmp_path, colour, channels, scale):
    "16 bits, and 12 bits in 16, in grey and colours, opaque; as bytes, as a file and opened by PIL"
    values = np.repeat(RAMP[..., None]*scale, channels, 2)
    if channels in (2, 4): values[..., -1] = 65535
    (tmp_path/'deep.png').write_bytes(png(values, colour))
    for image in png(values, colour), tmp_path/'deep.png', Image.open(tmp_path/'deep.png'):
        assert (grey(image) == RAMP).all()

def test_deep_pictures_turn():
    exif, picture = Image.Exif(), Image.fromarray((np.arange(24).reshape(4, 6)*2700).astype(np.uint16))
    exif[0x0112] = 6
    for kind in 'PNG', 'TIFF':
        file = io.BytesIO()
        picture.save(file, kind, exif=exif)
        assert (grey(file) == np.rot90(np.asarray(picture)//256, -1)).all()

# transparency

@pytest.mark.parametrize('mode', ['RGBA', 'RGBa', 'LA', 'La', 'PA'])
def test_a_transparent_ground_is_white(mode):
    picture = Image.fromarray(SCENE)
    picture.putalpha(Image.fromarray(np.tile(np.arange(20) < 10, (12, 1))))
    kept = picture.convert('RGB').convert('L').convert('RGB') if mode in ('LA', 'La') else picture.convert('RGB')
    picture = picture.convert('LA').convert('La') if mode == 'La' else picture.convert(mode)
    seen = np.asarray(open_image(picture))
    assert (seen[:, 10:] == 255).all()
    if mode != 'PA': assert (seen[:, :10] == np.asarray(kept)[:, :10]).all()

def saved(picture, kind='PNG', **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()

@pytest.mark.parametrize('content, at', [
    (saved(Image.fromarray(RAMP.astype(np.uint8)), transparency=7), 7),
    (saved(Image.fromarray(np.stack([RAMP.astype(np.uint8)]*3, 2)), transparency=(7, 7, 7)), 7),
    (saved(Image.fromarray(RAMP.astype(np.uint8)).convert('P'), transparency=7), 7),
    (saved(Image.fromarray(RAMP.astype(np.uint8)).convert('P'), 'GIF', transparency=7), 7),
    (png(RAMP[..., None]*257, 0, [7*257]), 7), (png(np.stack([RAMP*257]*3, 2), 2, [7*257]*3), 7)])
def test_a_transparent_colour_is_white(content, at):
    "And no other"
    expected = RAMP.copy()
    expected[RAMP == at] = 255
    assert (grey(content) == expected).all()

def test_every_path_of_a_photo_is_white_below(tmp_path):
    ghost = Image.new('RGBA', (8, 8), (200, 0, 0, 0))
    ghost.save(tmp_path/'ghost.png')
    for image in ghost, tmp_path/'ghost.png', saved(ghost, 'WEBP', lossless=True), np.asarray(ghost):
        assert (square_pixels(image, 4) == 255).all() and (square_pixels(image, 4, (8, 8)) == 255).all()
        assert (ReadImage(4)(Sample(image, 'a', dict(size=[8, 8]))) == 255).all()

# types of an image

def handed_in(tmp_path):
    Image.fromarray(SCENE).save(tmp_path/'scene.png')
    content = (tmp_path/'scene.png').read_bytes()
    yield from (SCENE, SCENE.astype(int), SCENE/255, SCENE.astype(np.float32), np.asfortranarray(SCENE))
    yield from (SCENE.transpose(2, 0, 1), np.dstack([SCENE, np.full((12, 20), 255, np.uint8)]), SCENE.astype(np.uint16)*257)
    yield from (torch.tensor(SCENE), torch.tensor(SCENE).movedim(2, 0), torch.tensor(SCENE/255).requires_grad_())
    yield from (content, bytearray(content), memoryview(content), io.BytesIO(content), tmp_path/'scene.png')
    yield from (str(tmp_path/'scene.png'), Image.fromarray(SCENE), Image.open(tmp_path/'scene.png'))
    yield np.ma.masked_array(SCENE)
    yield open(tmp_path/'scene.png', 'rb')

def test_types_of_an_image(tmp_path):
    for image in handed_in(tmp_path):
        for _ in range(2): # a file that was read once is read from its beginning
            assert (np.asarray(open_image(image)) == SCENE).all()

@pytest.mark.parametrize('array, first', [(np.full((3, 20, 3), 9, np.uint8), 3), (torch.full((3, 20, 3), 9), 20)])
def test_where_channels_stand(array, first):
    "Behind in an array, in front in a tensor"
    assert open_image(array).height == first

def test_bool_and_one_channel():
    mask = RAMP > 99
    for image in mask, mask[..., None], torch.tensor(mask), torch.tensor(mask)[None]:
        assert (grey(image) == mask*255).all()
    assert (grey(np.matrix(mask)) == mask*255).all()
    assert (grey(torch.full((4, 5), .5, dtype=torch.bfloat16)) == 128).all()
    assert (grey(torch._neg_view(torch.full((4, 5), -.5))) == 128).all()

def test_files_of_few_words(tmp_path):
    "An object that can be read, and nothing else; one that cannot"
    picture = SimpleNamespace(read=lambda: saved(Image.fromarray(SCENE)))
    assert (np.asarray(open_image(picture)) == SCENE).all()
    with open(tmp_path/'new', 'wb') as file, pytest.raises(ValueError, match='new is no image that can be read: no read'):
        open_image(file)

@pytest.mark.parametrize('image, message', [
    (None, 'NoneType is no image: an image is a file'), (7, 'int is no image'), ([[1]], 'list is no image'), ({}, 'dict is no'),
    (io.StringIO('x'), 'StringIO is no image'), (np.zeros(5), 'no image'), (np.zeros((2, 3, 8, 8)), 'no image'),
    (torch.eye(4).to_sparse(), 'a tensor of torch.float32 is no image'), (torch.zeros(4, 4, device='meta'), 'is no image'),
    (torch.zeros(4, 4).cfloat(), 'complex64'),
    (np.zeros((8, 8, 7)), 'no image'), (np.zeros((8, 8), complex), 'complex128'), (np.array([['a']]), 'is no image'),
    (np.zeros((0, 8)), 'nothing to see'), (np.zeros((8, 0, 3)), 'nothing to see'), (Image.new('RGB', (0, 4)), 'no pixels'),
    (b'', 'PIL knows no such format'), (b'no picture', 'PIL knows no such format'), ('', 'is no image that can be read'),
    ('https://example.org/a.jpg', 'is an address and is not fetched'), ('data:image/png;base64,AAAA', 'is not fetched'),
    ('s3://bucket/a.png', 'is not fetched'), ('.', 'is no image that can be read')])
def test_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message) as caught: open_image(image)
    assert '\n' not in str(caught.value)

def test_names_that_are_no_text():
    with pytest.raises(FileNotFoundError) as caught: open_image('photo\udcff.png')
    str(caught.value).encode()
    with pytest.raises(FileNotFoundError): open_image('a\0b')

def test_segment_loaders_and_panel_take_them(model, tmp_path):
    "Any of them gives the mask of the picture"
    scores = model.segment(Image.fromarray(SCENE), 'the red star').scores
    images = [*handed_in(tmp_path)]
    for image in images: np.testing.assert_array_equal(model.segment(image, 'the red star').scores, scores)
    items = [Sample(image, 'the red star', None) for image in images[:-1]] # an open file cannot be sent to a process
    expected = image_tensor(SCENE, 32)
    for num_workers in 0, 2:
        loaders = refer_block(model.tokenizer, 32).dataloaders(
            [Sample(SCENE, 'the red star', dict(size=[12, 20], counts=b'`7'))]*4, bs=4, num_workers=0, device='cpu')
        batches = [*loaders.test_dl(items, num_workers=num_workers)]
        pixels = torch.cat([batch[0] for batch in batches]).as_subclass(torch.Tensor)
        torch.testing.assert_close(pixels, expected.expand_as(pixels))
    panel = demo(model, images[0], 'the red star')
    assert np.array_equal(np.asarray(panel.image), SCENE)
    assert np.array_equal(np.asarray(demo(model, images[13], 'the red star').image), SCENE)

# text

HALF = 'the red \ud83d star'

@pytest.mark.parametrize('phrase, message', [
    (HALF, r"is no Unicode text: 'the red \\ud83d star' has '\\ud83d' at place 9"),
    (b'caf\xe9'.decode(errors='surrogateescape'), r'\\udce9'),
    ('\udfff', 'no Unicode'), (None, 'is no text but NoneType'), (7, 'no text but int'), (b'red star', 'no text but bytes'),
    (['red'], 'no text but list'), (float('nan'), 'no text but float')]
    + [(blank, 'is empty') for blank in (
        '', ' ', '\t\n', '\0', '\u200b', '\ufeff', '\u200d\u200c', '\xa0\u3000', '\xad', '\u2060', '\x1b', '\ufe0f',
        '\U000e0101', '\U000e0041\U000e007f', '\u202e', '\u034f', '\u3164', '\u2800', '\u115f\u1160', '\x85', '\u180e', '\u2028')])
def test_text_that_is_none(model, phrase, message):
    for call in (lambda: tokenize([phrase], model.tokenizer), lambda: model.segment(SCENE, [phrase]),
                 lambda: check_words([phrase], model.tokenizer)):
        with pytest.raises(ValueError, match=message) as caught: call()
        assert '\n' not in str(caught.value)
        str(caught.value).encode() # it can be printed
    if isinstance(phrase, list): return
    assert phrase_fault(phrase) in str(caught.value)

def test_text_that_is_some(model):
    for phrase in 'a', '7', '?', '🐕', '左边', 'e\u0301', '\u200bred', 'red\0', '\U0001f3f4\U000e0067\U000e007f', '€', '+':
        assert not phrase_fault(phrase)

@pytest.mark.parametrize('phrase', ['the red '*125_000, 'red ' + 'a'*1_000_000])
def test_a_megabyte(model, phrase):
    (ids, mask), warned = told(tokenize, phrase, model.tokenizer)
    assert ids.shape == (1, 20) and all(len(text) < 400 for text in warned)
    assert all(len(text) < 2000 for text in told(check_words, phrase, model.tokenizer)[1])
    with pytest.raises(ValueError) as caught: check_words('a'*1_000_000, model.tokenizer)
    assert len(str(caught.value)) < 2000

@pytest.mark.parametrize('raw, message', [(HALF, 'no Unicode'), ('\u200b', 'is empty'), (None, 'no text but NoneType')])
def test_text_of_a_data_set(refer, raw, message):
    import msgspec
    ref = refer.refs('train')[0]
    sentences = (msgspec.structs.replace(ref.sentences[0], sent_id=5, raw=raw),)
    mine = SimpleNamespace(name='mine', refs=lambda split: [msgspec.structs.replace(ref, sentences=sentences)],
                           image_path=refer.image_path, rle=refer.rle)
    with pytest.raises(ValueError, match=f'mine: ref {ref.ref_id}: sentence 5 is.*{message.split()[-1]}'):
        refer_samples(mine, 'train')

def test_words_of_what_is_no_text(model):
    for phrase in HALF, None, 7, b'red':
        with pytest.raises(ValueError, match='phrase 1 of 2 is no'): word_tokenizer(['red', phrase])
        with pytest.raises(ValueError, match='phrase 0 of 1 is no'): unknown_words(phrase, model.tokenizer)
    assert len(word_tokenizer(['', 'red'])) == 6

def test_one_phrase_makes_a_vocabulary():
    assert word_tokenizer('the red star').get_vocab() == word_tokenizer(['the red star']).get_vocab()

# words

def test_unknown_words_are_told_once():
    tokenizer = word_tokenizer(['the red star', 'a blue one'])
    share, warned = told(check_words, ['the red star', 'the azure star', 'azure, blue'], tokenizer)
    assert share == 2/8 and len(warned) == 1 and '25.0%' in warned[0] and "'azure'" in warned[0]
    assert told(check_words, 'the azure star', tokenizer) == (1/3, [])       # the word was told
    assert len(told(check_words, 'the crimson star', tokenizer)[1]) == 1     # another was not
    assert told(check_words, 'the red star, a blue one!', tokenizer) == (0, []) # punctuation is no word
    assert len(told(check_words, 'the azure star', word_tokenizer(['the star']))[1]) == 1

@pytest.mark.parametrize('phrases', ['crimson roundel', ['crimson', 'roundel ?'], '...', '?', '🐕', '[PAD] [CLS]', '[UNK]', 'röt'])
def test_no_known_word_is_an_error(phrases):
    with pytest.raises(ValueError, match='has none of the words'): check_words(phrases, word_tokenizer(['the red star']))

def test_words_as_the_tokenizer_splits_them():
    tokenizer = word_tokenizer(['the red star', '?', 'left-most'])
    assert unknown_words('Réd-ish STAR? left-most x-ray', tokenizer) == ['ish', 'x', 'ray']
    assert unknown_words('左边 red', tokenizer) == ['左', '边']
    assert unknown_words('the red', tokenizer) == []
    assert check_words('?', tokenizer) == 0 # known, and there is nothing else

def pieces(kind=models.BPE, options={}, trainer=trainers.BpeTrainer, pre=None, **special):
    tokenizer = Tokenizer(kind(**options))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    extra = dict(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()) if trainer is trainers.BpeTrainer else {}
    names = [*dict.fromkeys(special.values())]
    tokenizer.train_from_iterator(['the red star', 'a blue one']*9, trainer(special_tokens=names, show_progress=False, **extra))
    return tokenizer, names

def gpt2(**special):
    special = special or dict(eos_token='<|endoftext|>', bos_token='<|endoftext|>', unk_token='<|endoftext|>')
    return PreTrainedTokenizerFast(tokenizer_object=pieces(**special)[0], **special)

def sentencepiece():
    tokenizer, _ = pieces(models.Unigram, {}, lambda special_tokens, show_progress: trainers.UnigramTrainer(
        vocab_size=40, special_tokens=special_tokens, unk_token='<unk>', show_progress=False), pre_tokenizers.Metaspace(),
        unk_token='<unk>', eos_token='</s>')
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='<unk>', eos_token='</s>')

@pytest.mark.parametrize('pieces', [
    models.WordLevel({'[UNK]': 0, 'red': 1}, unk_token='[UNK]'),
    models.WordPiece({'[UNK]': 0, 'red': 1}, unk_token='[UNK]'),
    models.BPE({'[UNK]': 0, 'red': 1}, [], unk_token='[UNK]'), models.Unigram([('[UNK]', -9.), ('red', -1.)], 0)])
def test_an_unknown_word_that_only_the_model_of_a_tokenizer_knows_of(pieces):
    "`unk_token` was not handed to `PreTrainedTokenizerFast`"
    tokenizer = Tokenizer(pieces)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='[PAD]')
    assert unknown_words('red roundel', tokenizer)[-1] == 'roundel'
    with pytest.raises(ValueError, match='none of the words'): check_words('azure tile', tokenizer)

def test_every_way_to_ask_looks_at_the_words(model):
    image, none = SCENE, 'none of the words'
    for ask in model.segment, partial(trace, model):
        with pytest.raises(ValueError, match=none): ask(image, 'crimson roundel')

def test_a_tokenizer_of_another_model():
    "One line for ids that the language encoder does not have"
    model = bundled()
    model.tokenizer = word_tokenizer([f'w{i}' for i in range(300)])
    with pytest.raises(ValueError, match='the id 304, which the language encoder'): model.segment(SCENE, 'w99')

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_scores_that_are_no_numbers_are_no_empty_mask(refer, value):
    model = bundled()
    with torch.no_grad(): next(model.head.parameters()).fill_(value)
    samples = refer_samples(refer, 'val')[:2]
    for ask in model.segment, partial(trace, model):
        with pytest.raises(ValueError, match='not all finite'): ask(SCENE, 'red square')
    with pytest.raises(ValueError, match='not all finite'): evaluate(model, samples, progress=False)

def test_an_option_that_no_loader_has(refer):
    with pytest.raises(TypeError, match="no option 'shufle'"): refer_dataloaders(refer, img_size=32, shufle=False)
    assert refer_dataloaders(refer, img_size=32, shuffle=False, val_shuffle=True, val_bs=3, num_workers=0).valid.bs == 3

@pytest.mark.parametrize('kind, times', [(np.uint16, 257), (np.int64, 1), (float, 1)])
def test_overlay_of_what_is_neither_bytes_nor_shares(kind, times):
    with pytest.raises(ValueError, match='open_image'): overlay(SCENE.astype(kind)*times, np.zeros((12, 20), bool))

def test_words_of_tokenizers_of_pieces():
    assert check_words('crimson roundel 左 🐕', gpt2()) == 0 # of bytes: nothing is unknown
    assert unknown_words('red 左 star', sentencepiece()) == ['左']
    with pytest.raises(ValueError, match='none of the words'): check_words('左 边', sentencepiece())

def test_loaders_tell_unknown_words(refer, dls):
    tokenizer = word_tokenizer(['the large small circle square triangle'])
    loaders, warned = told(lambda: refer_dataloaders(refer, tokenizer, 32, 4, num_workers=2, device='cpu'))
    assert sum('not in the vocabulary' in text for text in warned) == 1
    assert not told(lambda: [*loaders.valid])[1] # nothing more with the batches
    with pytest.raises(ValueError, match='none of the words'):
        refer_dataloaders(refer, word_tokenizer(['foreign']), 32, 4, num_workers=0, device='cpu')

def test_test_loaders_tell_unknown_words(refer, dls):
    some = [*refer_samples(refer, 'val')]
    odd = [some[0]._replace(phrase='crimson roundel'), *some[1:]]
    loader, warned = told(lambda: dls.test_dl(odd, with_labels=True))
    assert len(warned) == 1 and "'crimson', 'roundel'" in warned[0]
    assert sum(len(batch[0]) for batch in loader) == len(odd) # one wholly unknown phrase among others is answered
    with pytest.raises(ValueError, match='none of the words'): dls.test_dl([odd[0]])

# tokenizers without a padding token

@pytest.mark.parametrize('special, pad', [
    ({}, '<|endoftext|>'), (dict(eos_token='</s>', bos_token='<s>'), '</s>'), (dict(unk_token='<unk>'), '[PAD]'),
    (dict(eos_token='</s>', pad_token='<pad>'), '<pad>')])
def test_padding_is_chosen(tmp_path, special, pad):
    "A token that no phrase has; it stays with the tokenizer, and the mask from ids is that of the lengths"
    gpt2(**special).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token == pad
    ids, mask = tokenize(['the red star', 'a blue'], tokenizer)
    assert torch.equal(ids != tokenizer.pad_token_id, mask)
    assert mask.sum(1).tolist() == [len(row) for row in tokenizer(['the red star', 'a blue'])['input_ids']]
    tokenizer.save_pretrained(tmp_path/'again')
    assert load_tokenizer(tmp_path/'again').pad_token_id == tokenizer.pad_token_id

@pytest.mark.parametrize('pad', [{}, dict(pad_token='</s>')])
def test_padding_that_a_template_uses(pad):
    "An end that stands behind each phrase is no padding, not even where a tokenizer says so, as CLIP's does"
    tokenizer, _ = pieces(eos_token='</s>', bos_token='<s>')
    tokenizer.post_processor = processors.TemplateProcessing(
        single='$A </s>', special_tokens=[('</s>', tokenizer.token_to_id('</s>'))])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='</s>', bos_token='<s>', **pad)
    ids, mask = tokenize('red', fast)
    assert fast.pad_token == '<s>' and torch.equal(ids != fast.pad_token_id, mask) and mask.sum() > 1

@pytest.mark.parametrize('source', [Tokenizer(models.BPE()), None, 7, {'a': 1}], ids=range(4))
def test_what_is_no_tokenizer(source):
    for call in (lambda: tokenize('red', source), lambda: load_tokenizer(source), lambda: refer_block(source, 32)):
        with pytest.raises(ValueError, match='is no tokenizer of transformers'): call()

def test_a_damaged_folder_of_a_tokenizer(tmp_path):
    gpt2().save_pretrained(tmp_path)
    for content in '{}', '{"version"', '':
        (tmp_path/'tokenizer.json').write_text(content)
        with pytest.raises(FileNotFoundError, match=f"no AutoTokenizer at '{tmp_path}'") as error: load_tokenizer(tmp_path)
        assert '\n' not in str(error.value)

def test_a_model_without_padding(refer):
    "Loader, model and answer agree, with the mask and without"
    loaders = refer_dataloaders(refer, gpt2(), img_size=32, bs=4, num_workers=0, device='cpu')
    torch.manual_seed(0)
    model = create_model(size='nano', img_size=32, tokenizer=loaders.tokenizer).eval()
    image, ids, _ = (part.as_subclass(torch.Tensor) for part in loaders.valid.one_batch())
    lengths = [len(model.tokenizer(s.phrase)['input_ids']) for s in refer_samples(refer, 'val')[:4]]
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    with torch.no_grad(): torch.testing.assert_close(model(image, ids), model(image, ids, mask))

# accents

def test_accents_on_request():
    phrases = ['con bò', 'con bọ', 'con bo']
    assert len(word_tokenizer(phrases)) == 5 + 2
    tokenizer = word_tokenizer(phrases, accents=True)
    ids = tokenize(phrases, tokenizer)[0]
    assert len(tokenizer) == 5 + 4 and len({tuple(row) for row in ids.tolist()}) == 3
    assert tokenize('Con BO\u0300', tokenizer)[0].tolist() == ids[:1].tolist() # signs of their own, capitals
    assert word_tokenizer(['Réd star']).get_vocab() == word_tokenizer(['red star']).get_vocab()

@pytest.mark.parametrize('name, words', [('words', 2), ('words-accents', 4)])
def test_accents_from_the_command_line(tmp_path, name, words):
    "The vocabulary of a training, and of the model that it saves"
    phrases = ['con bò', 'con bọ', 'con bo']
    refs = [SimpleNamespace(sentences=[SimpleNamespace(raw=phrase)]) for phrase in phrases]
    settings = Training(tokenizer=name, img_size=32)
    start_model(settings, SimpleNamespace(refs=lambda split: refs)).save_pretrained(tmp_path)
    ids = tokenize(phrases, ReferSegmenter.from_pretrained(tmp_path).tokenizer)[0]
    assert len({tuple(row) for row in ids.tolist()}) == words - 1 and ids.max() == 5 + words - 1
    with pytest.raises(ValueError, match="'auto' starts from trained weights"):
        check_training(Training(tokenizer=name, language='auto', encoder='timm', pretrained=True))

# errors in workers

@pytest.fixture
def cut(refer, tmp_path):
    "Samples of which one has a photo that ends in its middle"
    samples = [*refer_samples(refer, 'val')][:12]
    (tmp_path/'cut.png').write_bytes(samples[0].image.read_bytes()[:150])
    return [*samples[:5], samples[5]._replace(image=tmp_path/'cut.png'), *samples[6:]]

@pytest.mark.parametrize('num_workers', [0, 1, 2])
@pytest.mark.parametrize('options', [{}, dict(pin_memory=torch.cuda.is_available())])
def test_a_cut_photo_is_one_line(dls, cut, num_workers, options):
    with pytest.raises(ValueError, match='cut.png is no image that can be read') as caught:
        [*dls.test_dl(cut, num_workers=num_workers, **options)]
    assert '\n' not in str(caught.value)

def test_a_cut_photo_by_pickle(cut, dls):
    "By which spawned workers get everything, and give an error back"
    loader = pickle.loads(pickle.dumps(dls.test_dl(cut, num_workers=1)))
    with pytest.raises(ValueError, match='cut.png is no image that can be read') as caught: [*loader]
    assert '\n' not in str(pickle.loads(pickle.dumps(caught.value)))

def read(dls, refer, num_workers):
    return [*dls.test_dl([*refer_samples(refer, 'val')][:8], with_labels=True, num_workers=num_workers)]

@pytest.mark.parametrize('error', [
    RuntimeError('unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)'),
    RuntimeError('DataLoader worker (pid 3) is killed by signal: Bus error. It is possible')])
def test_no_shared_memory_is_one_line(dls, refer, monkeypatch, error):
    def fail(*args):
        if get_worker_info() is not None: raise error
    if 'allocate' in str(error): monkeypatch.setattr(block, 'square_mask', fail)
    else: monkeypatch.setattr(block.TfmdDL, '__iter__', lambda self: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match='fewer workers') as caught: read(dls, refer, 2)
    assert '\n' not in str(caught.value)

def test_a_worker_that_dies_is_one_line(dls, refer, monkeypatch):
    def die(*args):
        if get_worker_info() is not None: os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(block, 'square_mask', die)
    with pytest.raises(OSError, match='fewer workers'): read(dls, refer, 1)

def test_other_errors_keep_their_traceback(dls, refer, monkeypatch):
    def fail(*args): raise KeyError('a fault of the code')
    monkeypatch.setattr(block, 'square_mask', fail)
    with pytest.raises(KeyError, match='Original Traceback'): read(dls, refer, 1)

# a backbone's own preprocessing

def test_preprocessing_of_loaders(refer):
    "Each part moves what it should and nothing else, and a batch decodes to the same picture"
    def first(**options):
        loaders = refer_dataloaders(refer, img_size=16, bs=4, num_workers=0, device='cpu', **options)
        return loaders, loaders.valid.one_batch()
    (plain, batch), (_, again) = first(), first(preprocessing=IMAGENET)
    assert plain.preprocessing == IMAGENET and all(torch.equal(a, b) for a, b in zip(batch, again))
    for one in dict(mean=(.5, .4, .3)), dict(std=(.5, .5, .25)), dict(interpolation='bicubic'):
        changed = IMAGENET._replace(**one)
        loaders, other = first(preprocessing=changed)
        for each in loaders, loaders.valid.new(), loaders.test_dl(loaders.valid.items): assert each.preprocessing == changed
        assert torch.equal(other[1], batch[1]) and torch.equal(other[2], batch[2]) and not torch.equal(other[0], batch[0])
        sample = loaders.valid.items[0]
        expected = image_tensor(sample.image, 16, changed)
        torch.testing.assert_close(other[0][0].as_subclass(torch.Tensor), expected)
        square = square_pixels(sample.image, 16, interpolation=changed.interpolation).permute(1, 2, 0)
        assert torch.equal(loaders.valid.decode(other)[0][0].as_subclass(torch.Tensor), square)
    means = Normalise(IMAGENET._replace(mean=(.5, .456, .406)))(ReadImage(16)(plain.valid.items[0])).as_subclass(torch.Tensor)
    moved = (means - batch[0][0].as_subclass(torch.Tensor)).flatten(1)
    torch.testing.assert_close(moved, torch.tensor([[(.485 - .5)/.229], [0.], [0.]]).expand_as(moved))

@pytest.mark.parametrize('word', ['nearest', 'nearest-exact', 'bilinear', 'bicubic', 'lanczos', 'box', 'hamming'])
def test_interpolations(word):
    "All of timm's words; close to PIL's filter of that name"
    seen = square_pixels(SCENE, 8, interpolation=word)
    assert seen.shape == (3, 8, 8) and seen.dtype == torch.uint8
    theirs = Image.fromarray(SCENE).resize((8, 8), Image.Resampling[word.split('-')[0].upper()])
    assert (seen.permute(1, 2, 0).int() - torch.tensor(np.array(theirs)).int()).abs().max() <= 1

@pytest.mark.parametrize('changed, message', [
    (dict(interpolation='cubic'), "interpolation='cubic': choose one of nearest"), (dict(mean=(.5, .5)), 'mean='),
    (dict(std=(1, 1, 0)), 'std='), (dict(std=(1, float('nan'), 1)), 'std='), (dict(mean='abc'), 'mean='), (dict(std=None), 'std='),
    (dict(interpolation=None), 'interpolation=')])
def test_preprocessing_that_is_none(changed, message):
    with pytest.raises(ValueError, match=message):
        refer_block(word_tokenizer(['a']), 32, preprocessing=IMAGENET._replace(**changed))

def test_preprocessing_from_a_file():
    assert Preprocessing([.5, .5, .5], [1, 1, 1], 'bicubic').check() == Preprocessing((.5, .5, .5), (1., 1., 1.), 'bicubic')

# fastai's interpretation

@pytest.mark.parametrize('iterations', [1, 3])
@pytest.mark.parametrize('loss', [IterativeDiceLoss(), IterativeCrossEntropy()])
def test_interpretation(dls, loss, iterations):
    "Losses of single images are those of batches of one, and what fastai shows of them is shown"
    torch.manual_seed(0)
    model = create_model(size='nano', img_size=32, tokenizer=dls.tokenizer, head_options=dict(iterations=iterations))
    learn = refer_learner(dls, model, loss_func=loss)
    n = len(dls.valid_ds)
    with learn.no_bar(), learn.no_logging():
        inputs, preds, targets, decoded, losses = learn.get_preds(with_input=True, with_loss=True, with_decoded=True)
        assert losses.shape == (n,) and decoded.shape == targets.shape == (n, 32, 32) and len(inputs) == 2
        one = dls.test_dl([dls.valid.items[3]], with_labels=True)
        torch.testing.assert_close(learn.validate(dl=one)[0], losses[3].item(), rtol=1e-4, atol=1e-6)
        assert loss.reduction == 'mean'
        found = Interpretation.from_learner(learn)
        values, places = found.top_losses(3)
        assert values.tolist() == losses.sort(descending=True)[0][:3].tolist()
        found.plot_top_losses(3)
        found.plot_top_losses([0, 2], largest=False)
        found.show_results([0, 1])
        counts = ClassificationInterpretation.from_learner(learn).confusion_matrix()
        assert counts.sum() == targets.numel() and counts[1].sum() == targets.sum()

def test_interpretation_of_training(refer, dls, capsys):
    "A ref has several phrases; what is shown is what has the loss; classes have names"
    learn = refer_learner(dls, create_model(size='nano', img_size=32, tokenizer=dls.tokenizer))
    with learn.no_bar(), learn.no_logging():
        found = Interpretation.from_learner(learn, ds_idx=0)
        _, places, items = found.top_losses(6, items=True)
        _, preds, targets, _, losses = found[places]
        ClassificationInterpretation.from_learner(learn).print_classification_report()
    assert [*items] == [dls.train.items[i] for i in places.tolist()]
    assert 'background' in (told := capsys.readouterr().out) and 'object' in told
    loss = IterativeDiceLoss()
    loss.reduction = 'none'
    torch.testing.assert_close(loss(preds.log(), targets), losses.as_subclass(torch.Tensor), rtol=1e-4, atol=1e-6)
