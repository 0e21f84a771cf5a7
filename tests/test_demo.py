"The demo: the panel driven as code drives it, and as a page does, through the messages of a real kernel"
import re
from base64 import b64decode
from datetime import datetime
from io import BytesIO
import numpy as np, pytest, torch
from jupyter_client.manager import start_new_kernel
from PIL import Image
from sadlr.data.scenes import draw_scene
from sadlr.demo import MAX_PHRASES, demo, draw_example
from sadlr.models.build import create_model
from sadlr.phrases import as_answer
from sadlr.pictures import read_upload
from sadlr.preprocess import word_tokenizer

WORDS = word_tokenizer(['the red star', 'the blue circle on the left'])

def model_of(**options):
    "Small, with random weights that answer differently to different words"
    torch.manual_seed(0)
    return create_model(**{'size': 'nano', 'img_size': 32, 'tokenizer': WORDS, **options}).eval()

@pytest.fixture(scope='module')
def model(): return model_of()

@pytest.fixture
def panel(model): return demo(model, Image.fromarray(draw_scene(0, 0).image), 'the red star')

def jpegs(panel): return [frame.picture.value for frame in panel.answers.children]
def captions(panel): return [re.sub('<.*?>', ' ', frame.text.value) for frame in panel.answers.children]
def strips(panel): return [re.findall('<figcaption.*?>(.*?)</figcaption>', frame.strip.value) for frame in panel.answers.children]
def told(panel): return re.sub('<.*?>', '', panel.message.value)
def pixels(jpeg): return np.asarray(Image.open(BytesIO(jpeg))).astype(int)

def png(image, **options):
    buffer = BytesIO()
    image.save(buffer, 'png', **options)
    return buffer.getvalue()

def upload(panel, **files):
    panel.upload.value = [dict(name=name, type='image/png', size=len(content), content=content,
                               last_modified=datetime.now()) for name, content in files.items()]

# What moves the picture

def test_masks_are_those_of_segment(panel, model):
    answer = model.segment(panel.image, 'the red star')
    np.testing.assert_array_equal(panel.answered[0].iterations, answer.iterations)
    assert panel.iteration.max == panel.iteration.value == len(answer.iterations) == 3

@pytest.mark.parametrize('name, value', [('phrase', 'blue circle'), ('opacity', 1.), ('view', 'score map'),
                                         ('view', 'gained and lost')])
def test_a_control_moves_the_picture(panel, name, value):
    before = pixels(jpegs(panel)[0])
    getattr(panel, name).value = value
    assert np.abs(pixels(jpegs(panel)[0]) - before).mean() > 1

def test_the_iteration_shows_its_own_scores(panel):
    rows, coloured = np.arange(64)[:, None]*np.ones(64), []
    panel.answered = [as_answer(np.stack([-9 - rows, 31.5 - rows, 9 + rows]))] # nothing, the upper half, all
    panel.opacity.value = 1.
    for i in 1, 2, 3:
        panel.iteration.value = 1 if i > 1 else 2
        panel.iteration.value = i
        picture = pixels(jpegs(panel)[0])
        coloured.append((np.abs(picture - [255, 127, 14]).sum(-1) < 60).mean()) # tab:orange
    assert coloured[0] < .01 and .4 < coloured[1] < .5 and coloured[2] > .95, coloured

def test_slider_and_view_do_not_run_the_model(panel):
    before = panel.answered
    for name, value in ('iteration', 1), ('opacity', .1), ('view', 'score map'): getattr(panel, name).value = value
    assert panel.answered is before

def test_several_phrases(panel, model):
    panel.phrase.value = 'star; ; the blue circle\nred'
    assert panel.phrases == ['star', 'the blue circle', 'red'] and len(jpegs(panel)) == 3
    for answer, phrase in zip(panel.answered, panel.phrases):
        np.testing.assert_array_equal(answer.iterations, model.segment(panel.image, phrase).iterations)
    assert [phrase in text for phrase, text in zip(panel.phrases, captions(panel))] == [True]*3
    panel.phrase.value = 'star'
    assert len(jpegs(panel)) == 1

def test_new_scenes(panel):
    first, photo = panel.image, panel.choice.value
    panel.scene.click()
    assert panel.choice.value == 'scene 1' and np.asarray(panel.image).shape == (32, 32, 3)
    assert panel.phrase.value == panel.chips.value == next(iter(draw_example(1, 32)[1])), 'a phrase for another scene rarely fits'
    panel.phrase.value = 'the red star'
    panel.scene.click()
    assert panel.phrase.value in panel.chips.options and {*panel.chips.options} <= draw_example(2, 32)[1].keys()
    panel.choice.value = photo
    assert panel.image is first and panel.chips.options == () and panel.chips.layout.display == 'none'
    typed = panel.phrase.value = 'a star'
    panel.choice.value = 'scene 1'
    panel.choice.value = photo
    assert panel.phrase.value != typed and panel.phrases == [panel.phrase.value]

def test_buttons_ask_phrases_that_fit(panel):
    panel.scene.click()
    truths, shown = draw_example(1, 32)[1], panel.chips.options
    assert 3 <= len(shown) <= 6
    for phrase in shown[1:]:
        panel.chips.value = phrase
        assert panel.phrases == [panel.phrase.value] == [phrase] and told(panel) == ''
        ious = [(mask & truths[phrase]).sum()/(mask | truths[phrase]).sum() for mask in panel.answered[0].iterations]
        assert strips(panel) == [[f'iteration {i}<br>IoU {iou:.0%}' for i, iou in enumerate(ious, 1)] + ['truth']]
    panel.phrase.value = 'star'
    assert panel.chips.value is None and strips(panel) == [['iteration 1', 'iteration 2', 'iteration 3']]
    panel.chips.value = shown[0]
    assert panel.phrases == [shown[0]]

def test_an_orange_mask_on_orange(model):
    "A white and a black line part it from its ground"
    panel = demo(model, Image.new('RGB', (60, 40), (255, 127, 14)), 'star')
    panel.answered = [as_answer(np.where(np.hypot(*np.mgrid[-20:20, -30:30]) < 10, 9., -9.)[None])]
    for panel.opacity.value in 0., 1.: pass
    picture = pixels(jpegs(panel)[0])
    for ground in 0, 255: assert .01 < (np.abs(picture - ground).max(-1) < 40).mean() < .1

def test_the_picture_can_be_saved(panel):
    address = re.search('download="the red star.jpg" href="data:image/jpeg;base64,(.*?)"', panel.frames[0].text.value)[1]
    assert b64decode(address) == jpegs(panel)[0]

def test_nothing_is_wider_than_a_phone(panel):
    widths = re.findall(r'(?<!max-)width: *(\d+)(px|%)', panel.frames[0].text.value + panel.frames[0].strip.value + panel.note.value)
    assert {(n, unit) for n, unit in widths} <= {('100', '%')} and panel.frames[0].picture.layout.max_width == '100%'

# Models

@pytest.mark.parametrize('options', [dict(head='classifier'), dict(head='cgan'), dict(encoder='vlt', language='gru'),
                                     dict(head_options=dict(iterations=5)), dict(img_size=96)], ids=str)
def test_any_model(options):
    panel = demo(model_of(**options))
    assert told(panel) == '' and len(jpegs(panel)) == 1
    n = len(panel.answered[0].scores)
    assert panel.iteration.max == max(n, 2) and panel.iteration.value == panel.iteration.max
    assert (panel.iteration.layout.display == 'none') == (n == 1)

def test_another_number_of_iterations(panel, model):
    try:
        for n, at in (5, 5), (1, 2), (3, 3):
            model.head.iterations = n
            panel.phrase.value = f'{panel.phrase.value} red'
            assert (len(panel.answered[0].scores), panel.iteration.value, told(panel)) == (n, at, '')
    finally: model.head.iterations = 3

def test_training_goes_on_afterwards():
    model = model_of().train()
    assert demo(model).model.training

def test_without_tokenizer():
    with pytest.raises(ValueError, match='no tokenizer'): demo(model_of(tokenizer=None))

def test_images_of_ones_own(model, tmp_path):
    Image.new('RGB', (900, 30)).save(tmp_path/'wide.png')
    panel = demo(model, [tmp_path/'wide.png', Image.new('L', (20, 2000))], 'star')
    assert panel.choice.options == ('1: wide.png', 'image 2') and panel.image.size == (6, 640)
    panel.choice.value = '1: wide.png'
    assert panel.image.size == (640, 21) and told(panel) == ''
    with pytest.raises(FileNotFoundError, match='gone.png'): demo(model, 'gone.png')

# Errors are told, in one line

@pytest.mark.parametrize('text, message', [
    ('', 'type a phrase'), (' ; \n', 'type a phrase'), ('star '*30, '32 tokens'),
    ('star;'*(MAX_PHRASES + 1), f'{MAX_PHRASES + 1} phrases')])
def test_phrases_that_cannot_be_asked(panel, text, message):
    panel.phrase.value = text
    assert message in told(panel) and len(panel.message.value) < 300
    alone = pixels(jpegs(panel)[0])
    assert np.abs(alone - np.asarray(panel.image).repeat(6, 0).repeat(6, 1)).mean() < 5, 'the image alone'
    panel.iteration.value = 1
    assert message in told(panel)
    panel.phrase.value = 'star'
    assert told(panel) == '' and len(panel.answered) == 1

def test_a_model_that_fails(panel, monkeypatch):
    def fail(*_): raise RuntimeError('out of\nmemory <b>')
    monkeypatch.setattr(panel.model.head, 'forward', fail)
    panel.phrase.value = 'star'
    assert told(panel) == 'RuntimeError: out of memory &lt;b&gt;'

def test_unknown_words_and_markup(panel):
    panel.phrase.value = '<img src=x onerror=alert(1)> star'
    assert '<img' not in panel.frames[0].text.value + panel.note.value and 'does not know “img”' in panel.note.value
    assert 'the 7 words that it knows' in panel.note.value and 'circle, left, on, red, star, the' in panel.note.value
    shown = [*panel.children]
    assert shown.index(panel.note) < shown.index(panel.answers), 'above the picture'
    panel.phrase.value = '<img src=x onerror=alert(1)>'
    assert '<img' not in told(panel) and 'has none of the words' in told(panel) and not panel.answered
    assert 'the 7 words' in panel.note.value
    panel.phrase.value = 'The red, red star!'
    assert panel.note.value == ''

def test_uploads(panel):
    photo = Image.fromarray(draw_scene(0, 1, 480).image)
    upload(panel, **{'a.png': png(photo), 'notes.txt': b'no image', 'b.png': png(photo.resize((900, 300)))})
    assert panel.choice.options == ('image 1', 'a.png', 'b.png') and panel.choice.value == 'b.png'
    assert panel.image.size == (640, 213) and 'notes.txt' in told(panel) and panel.upload.value == ()
    upload(panel, **{'c.png': b''})
    assert panel.choice.value == 'b.png' and 'c.png' in told(panel) and len(panel.answered) == 1

@pytest.mark.parametrize('name, content', [
    ('empty', b''), ('text', b'no image'), ('cut', png(Image.effect_noise((99, 99), 50))[:2000]),
    ('bomb', png(Image.new('1', (20_000, 20_000)))), ('large', png(Image.new('1', (11_000, 11_000)))),
    ('script', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n')])
def test_hostile_files(name, content):
    with pytest.raises(ValueError, match=f'^{name} is no image that can be read: .+$'): read_upload(name, content)

def test_a_sideways_photo():
    image, exif = Image.new('RGB', (40, 20)), Image.Exif()
    exif[0x0112] = 6
    assert read_upload('a.png', png(image, exif=exif)).size == (20, 40)

# Speed: what a new phrase takes, counted

@pytest.mark.parametrize('size', [64, 480])
def test_a_phrase_takes_one_pass(size):
    panel, seen = demo(images=Image.fromarray(draw_scene(0, 0, size).image)), []
    side = panel.model.config['img_size']
    hook = panel.model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    try:
        for phrase in 'red star', 'blue star': panel.phrase.value = phrase
    finally: hook.remove()
    assert seen == [(1, 3, side, side)]*2

# In a kernel

SETUP = """
import torch
from sadlr.demo import demo
from sadlr.models.build import create_model
from sadlr.preprocess import word_tokenizer
torch.manual_seed(0)
words = word_tokenizer(['the red star', 'the blue circle on the left'])
panel = demo(create_model(size='nano', img_size=32, tokenizer=words).eval())
panel"""

class Page:
    "What a frontend does: shows an output, sends a control's new state, and hears of the pictures"
    def __init__(self, client): self.client = client

    def outputs(self, code):
        "Messages of a cell, until the kernel is idle"
        return self.heard(self.client.execute(code))

    def heard(self, request):
        messages = []
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if message['parent_header'].get('msg_id') != request: continue
            if message['msg_type'] == 'error': pytest.fail('\n'.join(message['content']['traceback']))
            if message['content'].get('execution_state') == 'idle': return messages
            messages.append(message)

    def value(self, code):
        "Of an expression, as text"
        return next(m['content']['data']['text/plain'] for m in self.outputs(code) if m['msg_type'] == 'execute_result')

    def move(self, control, buffers=None, **state):
        "Send a control's state as a page does; the states that come back, by model"
        comm = self.value(f'panel.{control}.model_id').strip("'")
        paths = [['value', 0, 'content']] if buffers else []
        content = dict(comm_id=comm, data=dict(method='update', state=state, buffer_paths=paths))
        message = self.client.session.msg('comm_msg', content)
        self.client.session.send(self.client.shell_channel.socket, message, buffers=buffers)
        back = [m for m in self.heard(message['header']['msg_id']) if m['msg_type'] == 'comm_msg']
        return {m['content']['comm_id']: m for m in back if m['content']['data']['method'] == 'update'}

    def pictures(self, back):
        "The JPEGs among the states that came back"
        frames = eval(self.value('[f.picture.model_id for f in panel.frames]'))
        return [bytes(back[f]['buffers'][0]) for f in frames if f in back and back[f]['buffers']]

@pytest.fixture(scope='module')
def page():
    manager, client = start_new_kernel(startup_timeout=300, kernel_name='python3')
    try: yield Page(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

def test_in_a_kernel(page):
    shown = next(m['content']['data'] for m in page.outputs(SETUP) if m['msg_type'] == 'execute_result')
    assert {'application/vnd.jupyter.widget-view+json', 'image/jpeg', 'text/plain'} <= shown.keys()
    moves = [('view', dict(index=2)), ('phrase', dict(value='blue star')), ('opacity', dict(value=1)),
             ('iteration', dict(value=1))]
    pictures = [page.pictures(page.move(control, **state)) for control, state in moves]
    assert [len(p) for p in pictures] == [1]*4 and len({p[0] for p in pictures}) == 4
    assert page.value('panel.phrase.value, panel.opacity.value, panel.view.value, panel.iteration.value') == \
        "('blue star', 1.0, 'score map', 1)"
    assert len(page.pictures(page.move('phrase', value='red; star; circle'))) == 3

def test_upload_in_a_kernel(page):
    content = png(Image.fromarray(draw_scene(0, 3).image))
    file = dict(name='scene.png', type='image/png', size=len(content), last_modified=0)
    assert page.pictures(page.move('upload', value=[file], buffers=[content]))
    assert page.value('panel.choice.value, panel.upload.value') == "('scene.png', ())"
    page.move('upload', value=[dict(file, name='bad.png', size=3)], buffers=[b'bad'])
    assert 'bad.png' in page.value('panel.message.value') and page.value('panel.choice.value') == "'scene.png'"

def test_without_a_kernel_there_is_a_picture(model):
    shown = demo(model)._repr_mimebundle_()
    assert shown.keys() == {'image/jpeg', 'text/plain'} and 'scene 1' in shown['text/plain']
