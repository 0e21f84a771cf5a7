"The page on which a model runs in a browser, driven in Chromium: it answers as Python does, and what is wrong is one line"
import base64, io, json, shutil, subprocess, sys
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
import numpy as np, pytest, torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from sadlr.data.scenes import draw_scene
from sadlr.export import OnnxSegmenter, enlarge, export_onnx
from sadlr.models.build import bundled, create_model
from sadlr.phrases import MAX_WORDS, PhraseTokenizer, landmarks, note_absent, token_rows, unknown_words
from test_onnx import WORDS, photos

repo = Path(__file__).parent.parent
BROWSER, DRIVER = (next(filter(None, map(shutil.which, names)), None)
                   for names in (('chromium', 'google-chrome', 'chrome'), ('chromedriver',)))
NEEDED = {'chromium': BROWSER, 'chromedriver': DRIVER, 'npm': shutil.which('npm'), 'selenium': find_spec('selenium')}
pytestmark = needs_browser = pytest.mark.skipif(
    not all(NEEDED.values()), reason='the page was NOT tested, for want of ' + ', '.join(
        name for name, found in NEEDED.items() if not found))
FLAGS = ('--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "The page, alone, with the shipped model"
    place = tmp_path_factory.mktemp('live')
    export_onnx(bundled('shapes'), file := place/'shapes.onnx')
    subprocess.run([sys.executable, repo/'.ci'/'live', place/'page', '--model', file], check=True)
    return place/'page'

@pytest.fixture(scope='module')
def exported(folder): return OnnxSegmenter(folder/'model.onnx', threads=1)

class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@contextmanager
def served(folder):
    "The address of a folder's page"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Silent, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/'
    finally: server.shutdown()

@pytest.fixture(scope='module')
def address(folder):
    with served(folder) as address: yield address

@pytest.fixture(scope='module')
def chromium():
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, '--window-size=1280,1000'): options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(200)
    yield driver
    driver.quit()

@pytest.fixture
def page(chromium, address):
    "The page as a visitor finds it"
    def opened(hash=''):
        chromium.get('about:blank')
        chromium.get(address + hash)
        wait(chromium, "document.documentElement.dataset.ready")
        return chromium
    return opened

def wait(driver, condition, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(driver, seconds, .02).until(lambda d: d.execute_script(f'return {condition}'))

def run(driver, code, *args):
    "What async code of JavaScript returns; its own arguments are in `given`"
    answer = driver.execute_async_script('''const given = [...arguments], done = given.pop()
        ;(async () => { ''' + code + ''' })().then(value => done([value, null]), error => done([null, String(error.message)]))''', *args)
    if answer[1] is not None: raise RuntimeError(answer[1])
    return answer[0]

def text(driver, name): return driver.execute_script(f"return document.getElementById('{name}').textContent")

# ---- the modules answer as Python does

def bert():
    "A tokenizer of words in pieces, as BERT has it"
    pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'play', '##ing', '##s', 'un', '##play', 'a', '##a', 'ü', 'u', '1', '##2', '.', '-', '東', 'é']
    made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token='[UNK]', max_input_chars_per_word=100))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing('[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    made.add_special_tokens(pieces[:5])
    return PhraseTokenizer(made.to_str(), 0, [0, 1, 2, 3, 4])

def odd_phrases():
    rng = np.random.default_rng(0)
    letters = [*'aAuUüÜéÉ1₂ .-_,\t\u00a0\u0301\u200b\u3000東京İßΣſﬁ🟥\u0085', 'play', 'ing', 'un', ' red', ' star ', '[MASK]', '[UNK]', ' the', 'left']
    for _ in range(400): yield 'a' + ''.join(rng.choice(letters, rng.integers(0, 12)))

def test_token_ids(page, exported):
    phrases = [*WORDS, *odd_phrases(), 'a' * 101, 'play' * 40]
    for tokenizer in exported.tokenizer, bert():
        ids = run(page(), '''const {Tokenizer} = await import('./phrases.js')
            const [json, pad, unknown, length, phrases] = given, tokenizer = new Tokenizer(JSON.parse(json), pad, unknown, length)
            return phrases.map(phrase => [tokenizer.encode(phrase).ids, tokenizer.marked(phrase).filter(({known}) => !known).length])''',
            tokenizer.backend.to_str(), tokenizer.pad_token_id, [*tokenizer.all_special_ids], MAX_WORDS, phrases)
        for phrase, (row, unknown) in zip(phrases, ids):
            assert row == token_rows(phrase, tokenizer)[0][0], ascii(phrase)
            assert bool(unknown) == bool(unknown_words(phrase, tokenizer)), ascii(phrase)

FILTERS = 'nearest', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos'

def test_pixels_of_a_resized_picture(page):
    "Those of Pillow 13; a sine may differ in its last bit"
    driver, rng = page(), np.random.default_rng(0)
    for size in (96, 96), (150, 97), (97, 150), (640, 427), (7, 5), (1, 40), (300, 1):
        pixels = rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
        found = run(driver, '''const {resize} = await import('./pixels.js')
            const [coded, width, height, filters] = given, data = Uint8Array.from(atob(coded), c => c.charCodeAt(0))
            return filters.map(filter => [...resize({data, width, height}, 96, 96, filter)])''',
            base64.b64encode(pixels.tobytes()).decode(), *size, FILTERS)
        for name, ours in zip(FILTERS, found):
            planes = (Image.fromarray(pixels[..., c]).resize((96, 96), Image.Resampling[name.upper()]) for c in range(4))
            theirs = np.stack([*map(np.asarray, planes)], 2)
            differ = np.reshape(ours, (96, 96, 4)) != theirs
            assert differ.mean() <= 1e-4*(name in ('hamming', 'lanczos')), f'{size} {name}'

MASKS = '''
const {Segmenter} = await import('./segmenter.js'), {readPicture} = await import('./pixels.js')
globalThis.segmenter ??= await Segmenter.open()
await segmenter.load()
const answers = []
for (const [coded, phrases] of given[0]) {
  const picture = await readPicture(new File([Uint8Array.from(atob(coded), c => c.charCodeAt(0))], 'photo'))
  const square = segmenter.square(picture), {width, height} = picture
  for (const phrase of phrases) {
    const {scores} = await segmenter.segment(square, phrase, width, height)
    answers.push([width, height, scores.map(map => map.reduce((bits, score) => bits + (score > 0 ? '1' : '0'), ''))])
  }
}
return answers'''

def masks_in(driver, asked):
    "(n, H, W) of each phrase; `asked`: bytes of a picture, and phrases"
    for width, height, maps in run(driver, MASKS, [(base64.b64encode(content).decode(), phrases) for content, phrases in asked]):
        yield np.array([[*map(int, bits)] for bits in maps], bool).reshape(len(maps), height, width)

def as_file(image):
    buffer = io.BytesIO()
    image.save(buffer, 'jpeg' if image.mode == 'CMYK' else 'png')
    return buffer.getvalue()

def test_masks_of_200_scenes(page, exported):
    "Every pixel of every iteration"
    driver, differing = page(), []
    for first in range(0, 200, 20):
        scenes = [draw_scene(77, i) for i in range(first, first + 20)]
        asked = [(Image.fromarray(scene.image), [' '.join(look[::-1]) for look in scene.looks[:2]]) for scene in scenes]
        theirs = [answer.iterations for image, phrases in asked for answer in exported.segment(image, phrases)]
        ours = [*masks_in(driver, [(as_file(image), phrases) for image, phrases in asked])]
        differing += [int((a != b).sum()) for a, b in zip(ours, theirs, strict=True)]
    assert len(differing) == 400 and sum(differing) <= 3, differing # at a score of zero rounding decides

def test_masks_of_photos_of_every_kind(page, exported, tmp_path):
    driver, shares = page(), []
    for photo in photos(tmp_path):
        content = photo.read_bytes() if isinstance(photo, Path) else as_file(photo)
        theirs = [answer.iterations for answer in exported.segment(content, [*WORDS])]
        ours = [*masks_in(driver, [(content, WORDS)])]
        assert [a.shape for a in ours] == [b.shape for b in theirs]
        shares.append(max((a != b).mean() for a, b in zip(ours, theirs)))

    assert max(shares) <= .001, shares # of a JPEG a browser decodes some pixels by one level otherwise

# ---- the page

def answered(driver):
    wait(driver, "document.getElementById('status').textContent || !document.getElementById('alert').hidden")
    return text(driver, 'status'), text(driver, 'alert')

def asked(driver, phrase):
    from selenium.webdriver import Keys
    driver.execute_script("document.getElementById('status').textContent = ''")
    field = driver.find_element('id', 'phrase')
    field.clear()
    field.send_keys(phrase, Keys.ENTER)
    return answered(driver)

def test_little_is_loaded_before_a_question(page, address, folder):
    driver = page()
    names = "performance.getEntriesByType('resource').map(r => r.name)"
    before = {name.removeprefix(address) for name in wait(driver, names)} | {'index.html'}
    assert sum((folder/name).stat().st_size for name in before) < 1e6
    assert not any('onnx' in name or 'wasm' in name for name in before)
    status, alert = asked(driver, 'the small square above the purple circle')
    assert 'iteration 3: ' in status and not alert
    after = {name.removeprefix(address) for name in wait(driver, names)}
    assert 'model.onnx' in after and after <= {str(f.relative_to(folder)) for f in folder.iterdir()}
    log = [entry for entry in driver.get_log('browser') if entry['level'] == 'SEVERE']
    assert not log, log

def test_by_keyboard_alone(page):
    "Every control is reached, has a name, and works"
    from selenium.webdriver import ActionChains, Keys
    driver, names = page(), []
    asked(driver, 'red cross')
    driver.execute_script("document.querySelector('a').focus()")
    for _ in range(60):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        control = driver.switch_to.active_element
        if control.tag_name == 'body': break
        names.append(control.accessible_name)
        assert control.accessible_name, control.get_attribute('outerHTML')
    for name in 'Scene 1: ', 'Draw a new scene', 'Your own picture', 'Phrase', 'Ask', 'Words that the model knows', 'Play', 'Iteration', 'Copy a link':
        assert any(found.startswith(name) for found in names), (name, names)
    slider = driver.find_element('id', 'iteration')
    slider.send_keys(Keys.ARROW_LEFT)
    assert 'iteration 2: ' in text(driver, 'status') and slider.get_attribute('aria-valuetext').startswith('iteration 2: ')
    assert driver.find_element('id', 'mask').get_attribute('aria-label').startswith('The picture with the mask of iteration 2: ')
    driver.find_element('id', 'play').send_keys(Keys.ENTER)
    assert 'iteration 3: ' in text(driver, 'status') and text(driver, 'play') == 'Pause'

def test_unknown_words(page):
    "Marked as they are typed; a phrase of none but such words is not answered"
    driver = page()
    driver.find_element('id', 'phrase').clear()
    driver.find_element('id', 'phrase').send_keys('the shiny red cross, please')
    marked = driver.execute_script("return [...document.querySelectorAll('#echo mark')].map(m => m.textContent)")
    assert marked == ['shiny', 'please'] and text(driver, 'echo').endswith('unknown: shiny, please')
    driver.find_element('id', 'phrase').clear()
    driver.find_element('id', 'phrase').send_keys('the re')
    assert text(driver, 'echo') == '' # it may become 'red'
    status, alert = asked(driver, 'a dog')
    assert (status, alert) == ('', 'The model knows none of these words: a, dog.')
    status, alert = asked(driver, 'rotes kreuz left')
    assert 'without the unknown rotes, kreuz; ' in status and not alert
    driver.execute_script("document.getElementById('words').open = true; document.querySelector('#known button').click()")
    assert driver.find_element('id', 'phrase').get_attribute('value') == 'rotes kreuz left above'

@pytest.fixture(scope='module')
def judge():
    "The shipped model with a score of existence, which has learnt nothing"
    shipped = bundled('shapes')
    torch.manual_seed(0)
    judge = create_model(size='nano', img_size=shipped.config['img_size'], tokenizer=shipped.tokenizer,
                         head_options=dict(existence=True), language_options=shipped.config['language_options'],
                         encoder_options=shipped.config['encoder_options'])
    judge.load_state_dict(shipped.state_dict(), strict=False)
    return judge

def with_model(folder, place, model):
    "The page with another model"
    shutil.copytree(folder, place)
    export_onnx(model, place/'model.onnx')
    segmenter = OnnxSegmenter(place/'model.onnx')
    told = dict(threshold=segmenter.about.threshold, landmark_after=segmenter.about.landmark_after)
    (place/'model.json').write_text(json.dumps(json.loads((place/'model.json').read_text()) | told))
    return segmenter

def test_a_model_that_can_say_no(chromium, folder, tmp_path, judge):
    "The words and the empty mask of an iteration, as Python has them"
    image, phrase = Image.open(folder/'scene1.png'), json.loads((folder/'scenes.json').read_text())['scenes'][0]['phrases'][0]
    judge.config['threshold'] = float(judge.segment(image, phrase).exists[1:].mean()) # between two iterations
    answer = with_model(folder, place := tmp_path/'page', judge).segment(image, phrase)
    notes = [note_absent(answer.until(i)) for i in (1, 2, 3)]
    assert '' in notes and any(notes) and (answer.scores > 0).any()
    with served(place) as address:
        chromium.get('about:blank')
        for i, note in enumerate(notes, 1):
            chromium.get('about:blank')
            chromium.get(f'{address}#scene=1&phrase={phrase}&iteration={i}')
            wait(chromium, f"document.getElementById('status').textContent.includes('iteration {i}: ')")
            pixels = f'{answer.iterations[i - 1].sum()} of {answer.mask.size} pixels'
            assert f'iteration {i}: {note or pixels}' in text(chromium, 'status')

def test_a_landmark_is_asked_for(chromium, folder, tmp_path, judge):
    "It is found in a phrase as Python finds it, and its probability counts where it is the smaller one"
    image, things = Image.open(folder/'scene1.png'), ['star', 'red cross', 'blue circle', 'small heart', 'large square']
    asked, judge = [(f'{a} left of the {b}', b) for a in things for b in things], deepcopy(judge)
    with torch.no_grad(): judge.head.existence[-1].weight.neg_() # its score falls from iteration to iteration
    whole = [answer.exists.min() for answer in judge.segment(image, [phrase for phrase, _ in asked])]
    alone = {b: judge.segment(image, f'the {b}').exists for b in things}
    between = [min(least, alone[b][0]) - alone[b][-1] for least, (_, b) in zip(whole, asked)] # what lies above its last one
    phrase, landmark = asked[np.argmax(between)]
    assert max(between) > 1e-4
    judge.config |= dict(landmark_after=['left of'], threshold=float(alone[landmark][-1] + max(between)/2))
    answer = with_model(folder, tmp_path/'page', judge).segment(image, phrase)
    notes = [note_absent(answer.until(i)) for i in (1, 2, 3)]
    assert all(notes)
    tricky = [phrase, 'star', 'what is above', 'a cleft of rock', 'circle (left  of it) Above the star above  ', 'left of\u200b', 'x.above y']
    after = ['left of', ' above ', '(left of', 'x.']
    with served(tmp_path/'page') as address:
        for i, note in enumerate(notes, 1):
            chromium.get('about:blank')
            chromium.get(f'{address}#scene=1&phrase={phrase}&iteration={i}')
            wait(chromium, f"document.getElementById('status').textContent.includes('iteration {i}: ')")
            assert f'iteration {i}: {note}' in text(chromium, 'status')
        found = chromium.execute_async_script("""const [phrases, after, done] = arguments
            import('./phrases.js').then(({landmarks}) => done(phrases.map(phrase => landmarks(phrase, after))))""", tricky, after)
    assert found == [landmarks(phrase, after) for phrase in tricky]
    assert found[4] == ['it) Above the star above', 'the star above'] and sum(map(len, found)) == 4

def test_an_address_brings_picture_phrase_and_iteration_back(page):
    driver = page()
    driver.find_element('id', 'draw').click()
    driver.find_element('css selector', '#examples button').click()
    status, _ = answered(driver)
    driver.execute_script("document.getElementById('iteration').value = 1; document.getElementById('iteration').dispatchEvent(new Event('input'))")
    seen = text(driver, 'status'), driver.current_url
    assert '#seed=' in seen[1] and seen[1].endswith('&iteration=1')
    again = page(seen[1][seen[1].index('#'):])
    answered(again)
    wait(again, "location.hash.endsWith('iteration=1')")
    assert (text(again, 'status').rsplit('; ', 1)[0], again.current_url) == (seen[0].rsplit('; ', 1)[0], seen[1])
    odd = page('#scene=-7&seed=x&phrase=red+cross&iteration=99')
    assert 'iteration 3' in answered(odd)[0]

def test_the_first_iteration_gains_nothing(page):
    "As in the notebooks' pictures"
    driver = page('#scene=1&phrase=red+cross&iteration=1')
    answered(driver)
    def told(): return driver.find_element('id', 'change').get_attribute('aria-label')
    wait(driver, "document.getElementById('change').getAttribute('aria-label')")
    assert told() == 'The first iteration, which gains and loses nothing'
    driver.execute_script("document.getElementById('iteration').value = 2; document.getElementById('iteration').dispatchEvent(new Event('input'))")
    assert told().startswith('Since the iteration before: ')

def test_a_folder_that_is_there_and_a_tokenizer_of_another_kind(folder, tmp_path):
    def said(*words):
        done = subprocess.run([sys.executable, repo/'.ci'/'live', *words], capture_output=True, text=True)
        assert done.returncode == 2 and 'Traceback' not in done.stderr
        return done.stderr.splitlines()[-1]
    assert f'{folder} is there already' in said(folder)
    tiny = create_model(size='nano', img_size=32, encoder='lts', tokenizer=PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram([('[UNK]', 0.), ('a', -1.)], 0)), unk_token='[UNK]', pad_token='[UNK]'))
    export_onnx(tiny, tmp_path/'other.onnx')
    assert 'of the kind of BERT only, not Unigram' in said(tmp_path/'page', '--model', tmp_path/'other.onnx')
    assert not (tmp_path/'page').exists()

def test_the_last_choice_counts(page):
    "A picture that arrives after a later choice is not shown; a phrase of the old one makes way, a typed one stays"
    driver = page()
    scene = json.loads(run(driver, "return await (await fetch('scenes.json')).text()"))['scenes']
    radios = driver.find_elements('css selector', '#scenes input')
    driver.execute_script('''const slow = fetch
        window.fetch = async address => { if (`${address}`.includes('scene2')) await new Promise(r => setTimeout(r, 500)); return slow(address) }
        arguments[0].click(); arguments[1].click()''', radios[1], radios[2])
    wait(driver, f"document.querySelector('#examples button').textContent == '{scene[2]['phrases'][0]}'")
    assert driver.find_element('id', 'phrase').get_attribute('value') == scene[2]['phrases'][0]
    run(driver, 'await new Promise(done => setTimeout(done, 900))')
    assert driver.find_element('css selector', '#examples button').text == scene[2]['phrases'][0]
    assert driver.current_url.endswith('#scene=3')
    asked(driver, 'red star or so')
    radios[3].click()
    wait(driver, "location.hash == '#scene=4'")
    assert driver.find_element('id', 'phrase').get_attribute('value') == 'red star or so' and text(driver, 'status') == ''

def test_what_does_not_load_is_said(page, chromium, address):
    chromium.execute_cdp_cmd('Network.enable', {})
    try:
        driver = page()
        chromium.execute_cdp_cmd('Network.setBlockedURLs', dict(urls=['*model.onnx*']))
        assert asked(driver, 'red cross')[1].startswith('The model could not be loaded (')
        chromium.execute_cdp_cmd('Network.setBlockedURLs', dict(urls=['*scenes.json*']))
        chromium.get('about:blank')
        chromium.get(address)
        wait(chromium, "!document.getElementById('alert').hidden")
        assert text(chromium, 'alert').startswith('The page could not start (')
    finally: chromium.execute_cdp_cmd('Network.setBlockedURLs', dict(urls=[]))
    assert 'iteration 3: ' in asked(page(), 'red cross')[0]

def test_a_model_cut_short_is_said(chromium, folder, tmp_path):
    place = shutil.copytree(folder, tmp_path/'page')
    whole = (place/'model.onnx').read_bytes()
    for content in whole[:len(whole)//2], b'', b'no model':
        (place/'model.onnx').write_bytes(content)
        with served(place) as address:
            chromium.get(address)
            wait(chromium, 'document.documentElement.dataset.ready')
            status, alert = asked(chromium, 'red cross')
        assert status == '' and alert.startswith('The model could not be loaded (') and '\n' not in alert, alert

def test_light_and_dark(page, chromium):
    "Every text has a contrast of 4.5 at least with what is behind it (WCAG 2, AA)"
    contrasts = """
        const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d')
        const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1)
                                 return [...canvas.getImageData(0, 0, 1, 1).data] }
        const light = ([r, g, b]) => [r, g, b].map(c => c/255).map(c => c <= .04045 ? c/12.92 : ((c + .055)/1.055)**2.4)
            .reduce((sum, c, i) => sum + c*[.2126, .7152, .0722][i], 0)
        const ground = element => { for (let e = element; e; e = e.parentElement) {
            const colour = rgba(getComputedStyle(e).backgroundColor); if (colour[3] == 255) return colour }
            return rgba(getComputedStyle(document.documentElement).colorScheme.includes('dark') ? '#000' : '#fff') }
        return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest(':disabled') &&
            [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
            .map(e => { const [a, b] = [light(rgba(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x)
                        return [e.tagName + ' ' + e.textContent.trim().slice(0, 30), (a + .05)/(b + .05)] })"""
    grounds = []
    try:
        for scheme in 'light', 'dark':
            chromium.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=scheme)]))
            driver = page()
            asked(driver, 'the shiny red cross')
            texts = driver.execute_script(contrasts)
            assert len(texts) > 20 and not [told for told in texts if told[1] < 4.5]
            grounds.append(driver.execute_script('return getComputedStyle(document.body).backgroundColor'))
    finally: chromium.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[]))
    assert grounds[0] != grounds[1], grounds

def drop(driver, content, name, kind='image/png'):
    "Drop a file on the page"
    driver.execute_script('''const [coded, name, type] = arguments, data = new DataTransfer()
        data.items.add(new File([Uint8Array.from(atob(coded), c => c.charCodeAt(0))], name, {type}))
        document.getElementById('status').textContent = ''
        dispatchEvent(new DragEvent('drop', {dataTransfer: data}))''', base64.b64encode(content).decode(), name, kind)

def huge():
    "200 megapixels in 25 kB"
    buffer = io.BytesIO()
    Image.new('1', (20_000, 10_000)).save(buffer, 'png')
    return buffer.getvalue()

@pytest.mark.parametrize('name, content, line', [
    ('a.svg', lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 'a.svg is no picture that is read here'),
    ('b.png', lambda: b'no picture', 'b.png is no picture that is read here'), ('c.png', lambda: b'', 'c.png is no picture that is read here'),
    ('d.png', lambda: as_file(Image.new('RGB', (50, 50)))[:60], 'd.png is no picture that can be read'),
    ('e.png', huge, 'e.png has 200 megapixels; 40 at most are read.')])
def test_hostile_pictures(page, name, content, line):
    driver = page()
    drop(driver, content(), name)
    wait(driver, "!document.getElementById('alert').hidden")
    assert text(driver, 'alert').startswith(line) and '\n' not in text(driver, 'alert')
    status, alert = asked(driver, 'red cross')
    assert 'iteration 3: ' in status and not alert

def test_a_picture_of_ones_own(page):
    driver = page()
    drop(driver, as_file(Image.fromarray(draw_scene(3, 3).image).resize((700, 500))), 'mine.png')
    wait(driver, "document.querySelector('#scenes label:last-child input').getAttribute('aria-label') == 'Picture mine.png'")
    status, alert = asked(driver, 'star')
    assert f' of {640*457} pixels' in status and not alert and '#' not in driver.current_url

def test_a_text_of_a_megabyte(page):
    driver = page()
    driver.execute_script("document.getElementById('phrase').value = 'star '.repeat(2e5); document.getElementById('phrase').dispatchEvent(new Event('input'))")
    driver.find_element('id', 'go').click()
    assert answered(driver) == ('', 'The phrase has 999999 letters; 500 at most are read.')
    assert asked(driver, 'star ' * 30)[1] == 'The phrase has 32 tokens; the model reads 20 at most.'

def test_no_page_scrolls_sideways(page):
    driver = page()
    try:
        for width in 1280, 390:
            driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                                   dict(width=width, height=900, deviceScaleFactor=1, mobile=False))
            asked(driver, 'red cross')
            assert driver.execute_script('return [innerWidth, document.documentElement.scrollWidth <= innerWidth]') == [width, True]
    finally: driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
